"""What a model is and needs, from its header. Pure: the input of the launch plan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stoker.errors import GgufError
from stoker.store.gguf_checks import PROJECTOR
from stoker.store.gguf_header import GgufHeader
from stoker.store.gguf_types import FILE_TYPES
from stoker.types import Capability

_FILE_TYPE_GUESSED: Final = 1024  # a flag in general.file_type
_POOLING_RANK: Final = 4
_EMBEDDERS: Final = frozenset(
    (
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    )
)
# Architectures that alternate windowed and full layers without saying so in the file: every
# n-th layer is full. Where neither the file nor this table tells, all layers count as full,
# which plans too much memory rather than too little.
_SLIDING_PERIODS: Final = {
    "cohere2": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gpt-oss": 2,
}
_LAYER: Final = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERTS: Final = re.compile(r"ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Per-layer tuples have ``block_count`` entries. Lengths are elements, not bytes."""

    architecture: str
    name: str | None
    parameters: int
    quantization: str | None
    file_bytes: int
    context_length: int
    embedding_length: int
    block_count: int
    vocab_size: int
    kv_heads: tuple[int, ...]  # 0 for a layer that keeps no keys and values
    key_length: int
    value_length: int
    sliding_window: int | None
    sliding_layers: tuple[bool, ...] | None  # None: not known; count them all as full
    pooling: int | None
    chat_template: str | None
    capabilities: tuple[Capability, ...]
    recurrent: bool
    mla_kv_rank: int | None
    expert_count: int | None
    matrix_bytes: tuple[tuple[str, int], ...] = ()  # by tensor type, of what is multiplied with
    head_count: int = 0  # of the widest layer; 0: not known
    layer_bytes: tuple[int, ...] = ()  # of each block's tensors, experts included
    expert_bytes: tuple[int, ...] = ()  # of each block's experts alone
    experts_used: int | None = None  # per token


def model_facts(
    header: GgufHeader, file_bytes: int, shards: Sequence[GgufHeader] = ()
) -> ModelFacts:
    """The facts of a model whose header passed `gguf.read_header`.

    ``shards`` are the headers of the further files of a split model; ``file_bytes`` counts all
    files. Raises GgufError for a file that is not a language model.
    """
    architecture = header.architecture
    if architecture is None:
        raise GgufError("this is a further shard of a split model, not a model")
    if architecture == PROJECTOR:
        raise GgufError("this is a multimodal projector, not a model")
    if header.text("general.type") not in {None, "model"}:
        raise GgufError(f"this is of type {header.text('general.type')!r}, not a model")
    return _Reader(header, architecture, shards).facts(file_bytes)


class _Reader:
    """Looks facts up under the architecture's prefix."""

    def __init__(self, header: GgufHeader, architecture: str, shards: Sequence[GgufHeader]) -> None:
        self._header = header
        self._architecture = architecture
        self._headers = (header, *shards)
        self._blocks = self._number("block_count") or 0
        self._recurrent = any(part.recurrent for part in self._headers)

    def facts(self, file_bytes: int) -> ModelFacts:
        pooling = self._number("pooling_type")
        template = self._header.text("tokenizer.chat_template")
        window = max(self._numbers("attention.sliding_window"), default=0)
        sliding = self._sliding_layers() if window else None
        embedding = self._number("embedding_length") or 0
        head_length = embedding // max((*self._numbers("attention.head_count"), 1))
        return ModelFacts(
            architecture=self._architecture,
            name=self._header.text("general.name"),
            parameters=sum(t.elements for part in self._headers for t in part.tensors),
            quantization=self._quantization(),
            file_bytes=file_bytes,
            context_length=self._number("context_length") or 0,
            embedding_length=embedding,
            block_count=self._blocks,
            vocab_size=self._vocabulary(),
            kv_heads=self._kv_heads(),
            key_length=self._number("attention.key_length") or head_length,
            value_length=self._number("attention.value_length") or head_length,
            sliding_window=window or None,
            sliding_layers=sliding,
            pooling=pooling,
            chat_template=template,
            capabilities=_capabilities(self._architecture, pooling, template),
            recurrent=self._recurrent,
            mla_kv_rank=self._number("attention.kv_lora_rank") or None,
            expert_count=self._number("expert_count") or None,
            matrix_bytes=self._matrix_bytes(),
            head_count=max(self._numbers("attention.head_count"), default=0),
            layer_bytes=self._layer_bytes(experts=False),
            expert_bytes=self._layer_bytes(experts=True),
            experts_used=self._number("expert_used_count") or None,
        )

    def _number(self, name: str) -> int | None:
        return self._header.integer(f"{self._architecture}.{name}")

    def _numbers(self, name: str) -> tuple[int, ...]:
        return self._header.numbers(f"{self._architecture}.{name}") or ()

    def _vocabulary(self) -> int:
        return self._header.count("tokenizer.ggml.tokens") or self._number("vocab_size") or 0

    def _quantization(self) -> str | None:
        declared = self._header.integer("general.file_type")
        name = None if declared is None else FILE_TYPES.get(declared & ~_FILE_TYPE_GUESSED)
        if name is not None:
            return name
        sizes: Counter[str] = Counter()
        for part in self._headers:
            for tensor in part.tensors:
                sizes[tensor.type_name] += tensor.size
        return sizes.most_common(1)[0][0] if sizes else None

    def _matrix_bytes(self) -> tuple[tuple[str, int], ...]:
        """Of the layers and the output; the token embedding is only looked up."""
        sizes: Counter[str] = Counter()
        for part in self._headers:
            for tensor in part.tensors:
                if tensor.name.startswith("blk.") or tensor.name == "output.weight":
                    sizes[tensor.type_name] += tensor.size
        return tuple(sorted(sizes.items()))

    def _layer_bytes(self, *, experts: bool) -> tuple[int, ...]:
        """Of each block: all tensors, or its experts' alone."""
        sizes = [0] * self._blocks
        for part in self._headers:
            for tensor in part.tensors:
                match = _LAYER.match(tensor.name)
                if match is None or int(match[1]) >= self._blocks:
                    continue
                if not experts or _EXPERTS.match(match[2]):
                    sizes[int(match[1])] += tensor.size
        return tuple(sizes)

    def _kv_heads(self) -> tuple[int, ...]:
        heads = self._numbers("attention.head_count_kv") or self._numbers("attention.head_count")
        if len(heads) <= 1:
            heads = (heads[0] if heads else 0,) * self._blocks
        # The last layers of some models read the keys and values of an earlier one.
        own = self._blocks - (self._number("attention.shared_kv_layers") or 0)
        attending = self._attending_layers() if self._recurrent else None
        return tuple(
            count if layer < own and (attending is None or layer in attending) else 0
            for layer, count in enumerate(heads)
        )

    def _attending_layers(self) -> frozenset[int]:
        """The layers of a hybrid model that have attention, by the tensors they own."""
        tensors: dict[int, set[str]] = {}
        for part in self._headers:
            for tensor in part.tensors:
                match = _LAYER.match(tensor.name)
                if match:
                    tensors.setdefault(int(match[1]), set()).add(match[2])
        return frozenset(layer for layer, names in tensors.items() if _attends(names))

    def _sliding_layers(self) -> tuple[bool, ...] | None:
        pattern = self._numbers("attention.sliding_window_pattern")
        if len(pattern) > 1:
            return tuple(map(bool, pattern)) if len(pattern) == self._blocks else None
        period = pattern[0] if pattern else _SLIDING_PERIODS.get(self._architecture, 0)
        if period < 1:
            return None
        return tuple(layer % period < period - 1 for layer in range(self._blocks))


def _attends(names: set[str]) -> bool:
    if any(name.startswith(("attn_k.", "attn_kv_")) for name in names):
        return True
    # A fused tensor is attention, unless the layer is a linear one that borrows its name.
    linear = any(name.startswith("ssm_") for name in names)
    return not linear and any(name.startswith("attn_qkv.") for name in names)


def _capabilities(
    architecture: str, pooling: int | None, template: str | None
) -> tuple[Capability, ...]:
    if pooling == _POOLING_RANK:
        return (Capability.RERANK,)
    if architecture in _EMBEDDERS or (pooling is not None and pooling > 0):
        return (Capability.EMBEDDING,)
    if template is not None:
        return (Capability.CHAT, Capability.COMPLETION)
    return (Capability.COMPLETION,)
