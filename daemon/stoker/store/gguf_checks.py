"""What the metadata of a GGUF means must make sense: types, lengths and bounds.

Runs on a header whose form is already sound. Confusion that an engine would stumble over is an
error; values that an engine ignores are warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from stoker.errors import GgufError
from stoker.store.gguf_header import Array, GgufHeader, Scalar
from stoker.store.gguf_types import ValueType

MAX_SHARDS: Final = 1000
PROJECTOR: Final = "clip"  # the architecture of every multimodal projector

_ARCHITECTURE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BLOCK: Final = re.compile(r"blk\.(\d{1,9})\.")
_SHARD_NAME: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_INTEGERS: Final = frozenset(kind for kind in ValueType if kind.name.startswith(("UINT", "INT")))
_INT32S: Final = frozenset((ValueType.INT32, ValueType.UINT32))


class _Bounds(NamedTuple):
    low: int
    high: int
    required: bool = False
    per_layer: bool = False  # may be a list with one number per block


# <architecture>.<key>: numbers that an engine or the launch plan computes with.
_NUMBERS: Final = {
    "block_count": _Bounds(1, 4096, required=True),
    "context_length": _Bounds(1, 2**31, required=True),
    "embedding_length": _Bounds(1, 2**24, required=True),
    "vocab_size": _Bounds(1, 2**24),
    "expert_count": _Bounds(0, 4096),
    "pooling_type": _Bounds(-1, 4),
    "attention.head_count": _Bounds(1, 65_536, per_layer=True),
    "attention.head_count_kv": _Bounds(1, 65_536, per_layer=True),
    "attention.key_length": _Bounds(1, 65_536),
    "attention.value_length": _Bounds(1, 65_536),
    "attention.kv_lora_rank": _Bounds(0, 2**20),
    "attention.sliding_window": _Bounds(0, 2**31, per_layer=True),
    "attention.shared_kv_layers": _Bounds(0, 4096),
}
# Layers without attention have no heads: 0 is sound in a list, and in a recurrent model.
_ZERO_HEADS: Final = frozenset(("attention.head_count", "attention.head_count_kv"))


def check_meaning(header: GgufHeader) -> Iterator[str]:
    """Yield the warnings. Raises GgufError."""
    split = _check_split_keys(header)
    if not header.tensors and split is None:
        raise GgufError("the file has no tensors")
    yield from _check_tokenizer(header)
    if split is not None and split > 0 and "general.architecture" not in header.metadata:
        return  # a further shard holds no metadata of its own
    architecture = header.architecture
    if architecture is None or not _ARCHITECTURE.fullmatch(architecture):
        raise GgufError("general.architecture is missing or not a name")
    if architecture != PROJECTOR:
        _check_numbers(header, architecture)


def check_shards(names: Sequence[str], headers: Sequence[GgufHeader]) -> None:
    """All shards of one split model, in order. Raises GgufError.

    An engine finds the further shards by the name of the first, so the names are checked too.
    """
    total = 0
    stem = None
    for number, (name, header) in enumerate(zip(names, headers, strict=True)):
        match = _SHARD_NAME.fullmatch(name)
        if match is None or (int(match[2]), int(match[3])) != (number + 1, len(names)):
            raise GgufError(f"{name!r} is not the name of shard {number + 1} of {len(names)}")
        if stem not in {None, match[1]}:
            raise GgufError(f"{name!r} belongs to another set of shards")
        stem = match[1]
        if (header.integer("split.no"), header.integer("split.count")) != (number, len(names)):
            raise GgufError(f"{name!r} says it is another shard (split.no, split.count)")
        total += len(header.tensors)
    declared = {header.integer("split.tensors.count") for header in headers}
    if declared != {total}:
        raise GgufError(f"the shards hold {total} tensors together, which is not what they declare")
    seen = {tensor.name for header in headers for tensor in header.tensors}
    if len(seen) != total:
        raise GgufError("the same tensor is in two shards")


def _check_split_keys(header: GgufHeader) -> int | None:
    """The number of this shard, from zero; None when the model is in one file."""
    if "split.count" not in header.metadata and "split.no" not in header.metadata:
        return None
    count = _whole(header, "split.count", _Bounds(1, MAX_SHARDS, required=True))[0]
    number = _whole(header, "split.no", _Bounds(0, count - 1, required=True))[0]
    return number if count > 1 else None


def _check_tokenizer(header: GgufHeader) -> Iterator[str]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    count = None if tokens is None else _list(header, "tokens", frozenset((ValueType.STRING,)))
    for name, kinds in (("scores", frozenset((ValueType.FLOAT32,))), ("token_type", _INT32S)):
        length = _list(header, name, kinds)
        if length is not None and length != count:
            raise GgufError(f"tokenizer.ggml.{name} has {length} entries for {count} tokens")
    _list(header, "merges", frozenset((ValueType.STRING,)))
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            if not isinstance(value, Scalar) or value.kind not in _INTEGERS:
                raise GgufError(f"{key} is not a whole number")
            if count is not None and not 0 <= int(value.content) < count:
                yield f"{key} is {value.content}, but there are {count} tokens"
        elif key.startswith("tokenizer.chat_template"):
            _check_template_type(key, value)


def _list(header: GgufHeader, name: str, kinds: frozenset[ValueType]) -> int | None:
    """The length of a tokenizer list; None when it is absent."""
    key = f"tokenizer.ggml.{name}"
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, Array) or value.element not in kinds:
        wanted = " or ".join(sorted(kind.name for kind in kinds))
        raise GgufError(f"{key} is not a list of {wanted}")
    return value.count


def _check_template_type(key: str, value: Scalar | Array) -> None:
    kind = value.kind if isinstance(value, Scalar) else value.element
    if kind is not ValueType.STRING or (isinstance(value, Array) and key.endswith("template")):
        raise GgufError(f"{key} is not a text")


def _check_numbers(header: GgufHeader, architecture: str) -> None:
    recurrent = header.recurrent
    blocks = 0
    for name, bounds in _NUMBERS.items():
        key = f"{architecture}.{name}"
        listed = isinstance(header.metadata.get(key), Array)
        zero = name in _ZERO_HEADS and (listed or recurrent)
        numbers = _whole(header, key, bounds._replace(low=0) if zero else bounds)
        if name == "block_count":
            blocks = numbers[0]
        if listed and len(numbers) != blocks:
            raise GgufError(f"{key} has {len(numbers)} entries for {blocks} blocks")
    matches = (_BLOCK.match(tensor.name) for tensor in header.tensors)
    highest = max((int(match[1]) for match in matches if match), default=-1)
    if highest >= blocks:
        raise GgufError(f"{architecture}.block_count is {blocks}, but there is a block {highest}")


def _whole(header: GgufHeader, key: str, bounds: _Bounds) -> tuple[int, ...]:
    """The number or the list of numbers under a key, checked; empty when it is absent."""
    value = header.metadata.get(key)
    if value is None:
        if bounds.required:
            raise GgufError(f"{key} is missing")
        return ()
    kind = value.kind if isinstance(value, Scalar) else value.element
    numbers = header.numbers(key)
    if (
        kind not in _INTEGERS
        or numbers is None
        or (isinstance(value, Array) and not bounds.per_layer)
    ):
        raise GgufError(f"{key} is not a whole number")
    for number in numbers:
        if not bounds.low <= number <= bounds.high:
            msg = f"{key} is {number}; it must be {bounds.low} to {bounds.high}"
            raise GgufError(msg)
    return numbers
