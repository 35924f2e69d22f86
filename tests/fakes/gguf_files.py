"""Tiny GGUF files written by hand: valid ones for everybody, and hostile ones by name.

`tiny_gguf()` passes Stoker's own reader; an engine need not be able to load it. `hostile_ggufs()`
holds files that the reader must refuse, each with a word that its reason must contain.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}
TYPE_F32, TYPE_Q4_0 = 0, 2
_BLOCKS = {TYPE_F32: (1, 4), TYPE_Q4_0: (32, 18)}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: object) -> bytes:
    """A value with its type, as it follows a key."""
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return struct.pack("<I", kind) + string(value)
    return struct.pack("<I" + CODES[kind], kind, value)


def array(kind: int, values: Sequence[object], *, count: int | None = None) -> bytes:
    """An array value; ``count`` may lie."""
    head = struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count)
    if kind == STRING:
        return head + b"".join(string(v) for v in values if isinstance(v, str | bytes))
    return head + struct.pack(f"<{len(values)}{CODES[kind]}", *values)


@dataclass
class Tensor:
    name: str | bytes
    dims: tuple[int, ...]
    kind: int = TYPE_F32
    offset: int | None = None  # None: where it belongs
    data: bytes | None = None  # None: zeros of the right length

    @property
    def size(self) -> int:
        block, size = _BLOCKS.get(self.kind, (1, 4))
        elements = 1
        for dim in self.dims:
            elements *= dim
        return elements // block * size


@dataclass
class Gguf:
    """A file in the making; every field may be set to a lie before `build`."""

    kv: dict[str | bytes, bytes] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_kv: int | None = None
    n_tensors: int | None = None
    extra_kv: bytes = b""  # raw bytes after the metadata
    trailing: bytes = b""

    def build(self) -> bytes:
        n_kv = len(self.kv) if self.n_kv is None else self.n_kv
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_kv)
        head += b"".join(string(key) + value for key, value in self.kv.items()) + self.extra_kv
        data = b""
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            head += string(tensor.name) + struct.pack("<I", len(tensor.dims))
            head += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims)
            head += struct.pack("<IQ", tensor.kind, offset)
            data += self._padded(tensor.data if tensor.data is not None else bytes(tensor.size))
        return self._padded(head) + data + self.trailing

    def _padded(self, raw: bytes) -> bytes:
        return raw + bytes(-len(raw) % self.alignment)


def tiny(  # options of a builder, all with defaults
    *,
    architecture: str = "llama",
    name: str = "tiny",
    context: int = 2048,
    template: str | None = CHAT_TEMPLATE,
    pooling: int | None = None,
    blocks: int = 2,
    vocabulary: int = 64,
    version: int = 3,
    seed: int = 0,
) -> Gguf:
    """A sound model file in the making; ``seed`` gives different bytes for the same facts."""
    tokens: list[object] = [f"<{number}>" for number in range(vocabulary)]
    kv: dict[str | bytes, bytes] = {
        "general.architecture": scalar(STRING, architecture),
        "general.name": scalar(STRING, name),
        "general.file_type": scalar(U32, 2),
        f"{architecture}.block_count": scalar(U32, blocks),
        f"{architecture}.context_length": scalar(U32, context),
        f"{architecture}.embedding_length": scalar(U32, 64),
        f"{architecture}.feed_forward_length": scalar(U32, 128),
        f"{architecture}.attention.head_count": scalar(U32, 4),
        f"{architecture}.attention.head_count_kv": scalar(U32, 2),
        f"{architecture}.attention.layer_norm_rms_epsilon": scalar(F32, 1e-5),
        f"{architecture}.rope.dimension_count": scalar(U32, 16),
        "tokenizer.ggml.model": scalar(STRING, "llama"),
        "tokenizer.ggml.tokens": array(STRING, tokens),
        "tokenizer.ggml.scores": array(F32, [0.0] * vocabulary),
        "tokenizer.ggml.token_type": array(I32, [1] * vocabulary),
        "tokenizer.ggml.bos_token_id": scalar(U32, 1),
        "tokenizer.ggml.eos_token_id": scalar(U32, 2),
    }
    if template is not None:
        kv["tokenizer.chat_template"] = scalar(STRING, template)
    if pooling is not None:
        kv[f"{architecture}.pooling_type"] = scalar(U32, pooling)
    embedding = bytes((seed + place) % 251 for place in range(64 * vocabulary // 32 * 18))
    tensors = [Tensor("token_embd.weight", (64, vocabulary), TYPE_Q4_0, data=embedding)]
    for block in range(blocks):
        tensors += [
            Tensor(f"blk.{block}.attn_q.weight", (64, 64), TYPE_Q4_0),
            Tensor(f"blk.{block}.attn_k.weight", (64, 32), TYPE_Q4_0),
            Tensor(f"blk.{block}.attn_v.weight", (64, 32), TYPE_Q4_0),
            Tensor(f"blk.{block}.attn_norm.weight", (64,)),
        ]
    return Gguf(kv, tensors, version=version)


def tiny_gguf(  # the options of tiny()
    *,
    architecture: str = "llama",
    name: str = "tiny",
    context: int = 2048,
    template: str | None = CHAT_TEMPLATE,
    pooling: int | None = None,
    blocks: int = 2,
    vocabulary: int = 64,
    version: int = 3,
    seed: int = 0,
    padding: int = 0,
) -> bytes:
    """The bytes of a sound model file (about 15 kB); ``padding`` adds that many tensor bytes."""
    made = tiny(
        architecture=architecture,
        name=name,
        context=context,
        template=template,
        pooling=pooling,
        blocks=blocks,
        vocabulary=vocabulary,
        version=version,
        seed=seed,
    )
    if padding:
        made.tensors.append(Tensor("padding.weight", (-(-padding // 4),)))
    return made.build()


def tiny_mmproj() -> bytes:
    """A multimodal projector: architecture ``clip``."""
    kv: dict[str | bytes, bytes] = {
        "general.architecture": scalar(STRING, "clip"),
        "clip.has_vision_encoder": scalar(BOOL, value=True),
        "clip.projector_type": scalar(STRING, "mlp"),
    }
    return Gguf(kv, [Tensor("mm.0.weight", (32, 32))]).build()


def tiny_shards(count: int = 3, **options: object) -> list[tuple[str, bytes]]:
    """A split model as ``(file name, bytes)``; only the first shard carries the metadata."""
    whole = tiny(**options)  # type: ignore[arg-type]  # the keyword options of tiny()
    names = [f"tiny-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    shards = []
    for number in range(count):
        kv = dict(whole.kv) if number == 0 else {}
        kv["split.no"] = scalar(U16, number)
        kv["split.count"] = scalar(U16, count)
        kv["split.tensors.count"] = scalar(I32, len(whole.tensors))
        shards.append(Gguf(kv, whole.tensors[number::count]).build())
    return list(zip(names, shards, strict=True))


# --- hostile files ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Hostile:
    data: bytes
    reason: str  # a word that the reader's reason must contain


def _changed(change: Callable[[Gguf], object]) -> bytes:
    made = tiny()
    change(made)
    return made.build()


def _with(key: str | bytes, value: bytes) -> bytes:
    return _changed(lambda made: made.kv.update({key: value}))


def _without(key: str) -> bytes:
    return _changed(lambda made: made.kv.pop(key))


def _tensor(**fields: object) -> bytes:
    def change(made: Gguf) -> None:
        for name, value in fields.items():
            setattr(made.tensors[0], name, value)

    return _changed(change)


def _set(**fields: object) -> bytes:
    def change(made: Gguf) -> None:
        for name, value in fields.items():
            setattr(made, name, value)

    return _changed(change)


def _alone(dims: tuple[int, ...]) -> bytes:
    return _set(tensors=[Tensor("token_embd.weight", dims, data=b"")])


def hostile_ggufs() -> dict[str, Hostile]:
    """Every file that must be refused, by the name of its fault."""
    return {
        name: Hostile(data, reason)
        for part in (_containers(), _metadata(), _meanings(), _tensors())
        for name, (data, reason) in part.items()
    }


def _containers() -> dict[str, tuple[bytes, str]]:
    good = tiny().build()
    swapped = b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64)
    return {
        "empty": (b"", "empty"),
        "three bytes": (b"GGU", "magic"),
        "magic only": (b"GGUF", "ends"),
        "old ggml": (b"lmgg" + bytes(64), "magic"),
        "old ggjt": (b"tjgg" + bytes(64), "magic"),
        "html": (b"<!DOCTYPE html><html></html>", "magic"),
        "zip": (b"PK\x03\x04" + bytes(64), "magic"),
        "safetensors": (struct.pack("<Q", 64) + b'{"__metadata__":{}}' + bytes(64), "magic"),
        "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "magic"),
        "version 0": (_set(version=0), "version"),
        "version 1": (_set(version=1), "version"),
        "version 99": (_set(version=99), "version"),
        "byte swapped": (swapped, "endian"),
        "cut in the fixed header": (good[:15], "ends"),
        "cut in the metadata": (good[: good.index(b"tokenizer.chat_template") + 60], "ends"),
        "cut in the tensor list": (good[: good.index(b"blk.0.attn_k") + 20], "ends"),
        "cut in the last tensor": (good[:-300], "past the end"),
        "metadata count 2^62": (_set(n_kv=2**62), "metadata"),
        "metadata count 2^64-1": (_set(n_kv=2**64 - 1), "metadata"),
        "tensor count 2^62": (_set(n_tensors=2**62), "tensor"),
        "tensor count 2^64-1": (_set(n_tensors=2**64 - 1), "tensor"),
        "no tensors": (_set(tensors=[]), "no tensors"),
    }


def _metadata() -> dict[str, tuple[bytes, str]]:
    huge = struct.pack("<Q", 2**62)
    nested = struct.pack("<IIQ", ARRAY, ARRAY, 1) * 5000 + array(U8, [1])
    strings_in_array = struct.pack("<IIQIQ", ARRAY, ARRAY, 1, STRING, 0)
    return {
        "empty key": (_with("", scalar(U8, 1)), "key"),
        "key with NUL": (_with("a\0b", scalar(U8, 1)), "key"),
        "key with newline": (_with("a\nb", scalar(U8, 1)), "key"),
        "key not UTF-8": (_with(b"\xff\xfe", scalar(U8, 1)), "UTF-8"),
        "key of 1 MB": (_with("k" * 1_000_000, scalar(U8, 1)), "key"),
        "key length 2^62": (_set(extra_kv=huge, n_kv=len(tiny().kv) + 1), "key"),
        "duplicate key": (
            _set(extra_kv=string("general.name") + scalar(STRING, "x"), n_kv=len(tiny().kv) + 1),
            "twice",
        ),
        "string length 2^62": (_with("x.long", struct.pack("<I", STRING) + huge), "string"),
        "string of 2 MB": (_with("x.long", scalar(STRING, "x" * 2_000_000)), "string"),
        "string not UTF-8": (_with("x.bad", scalar(STRING, b"\xc3\x28")), "UTF-8"),
        "value type 13": (_with("x.kind", struct.pack("<IQ", 13, 0)), "type 13"),
        "array of type 13": (_with("x.kind", struct.pack("<IIQ", ARRAY, 13, 1)), "type 13"),
        "boolean of 2": (_with("x.flag", struct.pack("<IB", BOOL, 2)), "boolean"),
        "array count 2^61 of u64": (_with("x.many", array(U64, [], count=2**61)), "array"),
        "array count 2^61 of strings": (_with("x.many", array(STRING, [], count=2**61)), "array"),
        "array count 5 Mi": (_with("x.many", array(U8, [1] * 5_300_000)), "array"),
        "string in array 2^62": (
            _with("x.many", struct.pack("<IIQ", ARRAY, STRING, 1) + huge),
            "string",
        ),
        "nested arrays": (_with("x.deep", nested), "array of arrays"),
        "array of arrays of strings": (_with("x.deep", strings_in_array), "array of arrays"),
        "alignment 0": (_with("general.alignment", scalar(U32, 0)), "alignment"),
        "alignment 1": (_with("general.alignment", scalar(U32, 1)), "alignment"),
        "alignment 24": (_with("general.alignment", scalar(U32, 24)), "alignment"),
        "alignment 2^31": (_with("general.alignment", scalar(U32, 2**31)), "alignment"),
        "alignment as string": (_with("general.alignment", scalar(STRING, "32")), "alignment"),
        "alignment as u64": (_with("general.alignment", scalar(U64, 32)), "alignment"),
    }


def _meanings() -> dict[str, tuple[bytes, str]]:
    tokens = "tokenizer.ggml.tokens"
    heads = "llama.attention.head_count_kv"
    return {
        "no architecture": (_without("general.architecture"), "general.architecture"),
        "architecture as number": (
            _with("general.architecture", scalar(U32, 1)),
            "general.architecture",
        ),
        "architecture with a path": (
            _with("general.architecture", scalar(STRING, "../llama")),
            "general.architecture",
        ),
        "tokens as numbers": (_with(tokens, array(U32, [1] * 64)), tokens),
        "tokens as one string": (_with(tokens, scalar(STRING, "a")), tokens),
        "scores as INT8": (_with("tokenizer.ggml.scores", array(I8, [0] * 64)), "scores"),
        "scores too short": (_with("tokenizer.ggml.scores", array(F32, [0.0] * 63)), "scores"),
        "token types as INT8": (_with("tokenizer.ggml.token_type", array(I8, [1] * 64)), "type"),
        "token types too short": (_with("tokenizer.ggml.token_type", array(I32, [1])), "type"),
        "merges as numbers": (_with("tokenizer.ggml.merges", array(U64, [1])), "merges"),
        "token id as string": (_with("tokenizer.ggml.bos_token_id", scalar(STRING, "1")), "bos"),
        "template as number": (_with("tokenizer.chat_template", scalar(U32, 1)), "template"),
        "blocks 2^32-1": (_with("llama.block_count", scalar(U32, 2**32 - 1)), "block_count"),
        "blocks 0": (_with("llama.block_count", scalar(U32, 0)), "block_count"),
        "blocks as string": (_with("llama.block_count", scalar(STRING, "2")), "block_count"),
        "blocks missing": (_without("llama.block_count"), "block_count"),
        "fewer blocks than tensors": (_with("llama.block_count", scalar(U32, 1)), "block_count"),
        "context 0": (_with("llama.context_length", scalar(U32, 0)), "context_length"),
        "context 2^63": (_with("llama.context_length", scalar(U64, 2**63)), "context_length"),
        "heads 0": (_with("llama.attention.head_count", scalar(U32, 0)), "head_count"),
        "heads as float": (_with("llama.attention.head_count", scalar(F32, 4.0)), "head_count"),
        "negative key/value heads": (_with(heads, scalar(I32, -1)), "head_count_kv"),
        "head list too short": (_with(heads, array(I32, [2])), "head_count_kv"),
        "experts absurd": (_with("llama.expert_count", scalar(U32, 2**31)), "expert_count"),
        "split count 0": (_with("split.count", scalar(U16, 0)), "split.count"),
        "split count 2000": (_with("split.count", scalar(U16, 2000)), "split.count"),
        "split number past the count": (
            _changed(
                lambda made: made.kv.update(
                    {"split.no": scalar(U16, 3), "split.count": scalar(U16, 3)}
                )
            ),
            "split.no",
        ),
    }


def _tensors() -> dict[str, tuple[bytes, str]]:
    sound = tiny().tensors
    end = sum(-(-tensor.size // 32) * 32 for tensor in sound)
    return {
        "tensor name empty": (_tensor(name=""), "name"),
        "tensor name of 64 bytes": (_tensor(name="n" * 64), "name"),
        "tensor name 2^62": (
            _set(tensors=[], n_tensors=1, trailing=struct.pack("<Q", 2**62) + bytes(64)),
            "name",
        ),
        "tensor name with a slash": (_tensor(name="../../x"), "name"),
        "tensor name with NUL": (_tensor(name="a\0b"), "name"),
        "tensor name not UTF-8": (_tensor(name=b"\xff"), "name"),
        "tensor name twice": (_tensor(name="blk.0.attn_q.weight"), "twice"),
        "no dimensions": (_tensor(dims=(), data=b""), "dimension"),
        "five dimensions": (_tensor(dims=(32, 1, 1, 1, 1)), "dimension"),
        "dimension 0": (_tensor(dims=(0, 64), data=b""), "dimension"),
        "dimension 2^63": (_tensor(dims=(2**63,), data=b""), "dimension"),
        "dimension 2^64-1": (_tensor(dims=(2**64 - 1,), data=b""), "dimension"),
        "dimensions overflow": (_tensor(dims=(2**32, 2**32), data=b""), "dimension"),
        "size that wraps the padding": (_alone((2**62 - 1,)), "past the end"),
        "unknown tensor type": (_tensor(kind=999), "newer"),
        "removed tensor type": (_tensor(kind=4), "newer"),
        "row not a whole block": (_tensor(dims=(33, 64), data=b""), "block"),
        "offset past the end": (_tensor(offset=2**40), "offset"),
        "offset 2^63": (_tensor(offset=2**63), "offset"),
        "offset unaligned": (_tensor(offset=1), "offset"),
        "offsets overlap": (_changed(lambda m: setattr(m.tensors[1], "offset", 0)), "offset"),
        "offsets with a gap": (_changed(lambda m: setattr(m.tensors[-1], "offset", end)), "offset"),
        "model bigger than the file": (_alone((2**20, 2**20)), "past the end"),
    }
