"""Read the header of a GGUF file: bounded, streaming, no engine and no third party involved.

Every number in such a file may be an attack on the engine that maps it, so the rules here are at
least as strict as the engine's own, and anything odd is refused before an engine sees the file.
Not for: tensor data, or what a model can do (`facts`).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from types import MappingProxyType
from typing import BinaryIO, Final

from stoker.errors import GgufError
from stoker.store.gguf_checks import check_meaning
from stoker.store.gguf_cursor import Cursor
from stoker.store.gguf_header import Array, GgufHeader, Scalar, TensorInfo
from stoker.store.gguf_types import SCALAR_CODES, TENSOR_TYPES, ValueType

__all__ = ["Array", "GgufHeader", "Scalar", "TensorInfo", "read_header"]

MAX_KEYS: Final = 65_536  # the largest real header has some hundreds
MAX_TENSORS: Final = 65_536
MAX_KEY_BYTES: Final = 65_535  # the format's own limit
LONG_KEY_BYTES: Final = 256
MAX_ELEMENTS: Final = 4 << 20  # the largest vocabulary in use has 262 144 entries
MAX_STRINGS: Final = 8 << 20  # in all lists together: some two seconds of reading at most
MAX_METADATA_BYTES: Final = 256 << 20
MAX_KEPT_BYTES: Final = 8 << 20  # values that stay in memory
MAX_KEPT_NUMBERS: Final = 4096  # per list; per-layer lists are what is needed
MAX_TENSOR_NAME: Final = 63  # the engine's fixed buffer, less its NUL
MAX_DIMS: Final = 4
_PLAIN_NAME: Final = frozenset(range(0x21, 0x7F)) - frozenset(b"/\\")  # printable ASCII, no path
MAX_ELEMENTS_PER_TENSOR: Final = 2**63 - 1
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENTS: Final = frozenset(1 << power for power in range(3, 17))  # 8 … 65 536
_SMALLEST_KEY: Final = 13  # bytes: length, type, one byte of value
_SMALLEST_TENSOR: Final = 33  # bytes: length, one letter, one dimension, type, offset
_NUMBER_COST: Final = 40  # bytes of memory for a number in a kept list


def read_header(stream: BinaryIO, size: int) -> GgufHeader:
    """Check and return the header of a GGUF of ``size`` bytes.

    Reads forward, holds a few megabytes at most, and ends within seconds for any input. Raises
    GgufError with the precise reason; an OSError of the stream passes through.
    """
    cursor = Cursor(stream, size)
    version, tensor_count, key_count = _read_counts(cursor)
    metadata, warnings = _MetadataReader(cursor).read(key_count)
    alignment = _alignment(metadata)
    tensors = _read_tensors(cursor, tensor_count)
    data_offset = _padded(cursor.position, alignment)
    end = data_offset + _check_offsets(tensors, alignment)
    _check_end(tensors, data_offset, size)
    if size - end > alignment:
        warnings.append(f"{size - end} bytes follow the last tensor")
    header = GgufHeader(version, alignment, MappingProxyType(metadata), tensors, data_offset)
    return replace(header, warnings=(*warnings, *check_meaning(header)))


def _read_counts(cursor: Cursor) -> tuple[int, int, int]:
    if cursor.remaining == 0:
        raise GgufError("the file is empty")
    magic = cursor.take(min(4, cursor.remaining), "the magic number")
    if magic != b"GGUF":
        msg = f"not a GGUF file: the magic number is {magic!r}"
        raise GgufError(msg)
    version = cursor.whole("I", "the version")
    if version and not version & 0xFFFF:
        raise GgufError("a big-endian GGUF file; no engine here can read it")
    if version not in {2, 3}:
        msg = f"GGUF version {version} is not supported; 2 and 3 are"
        raise GgufError(msg)
    tensors = cursor.whole("Q", "the tensor count")
    keys = cursor.whole("Q", "the metadata count")
    if keys > MAX_KEYS or keys * _SMALLEST_KEY > cursor.remaining:
        msg = f"{keys} metadata keys do not fit in the file or are over {MAX_KEYS}"
        raise GgufError(msg)
    if tensors > MAX_TENSORS or tensors * _SMALLEST_TENSOR > cursor.remaining:
        msg = f"{tensors} tensors do not fit in the file or are over {MAX_TENSORS}"
        raise GgufError(msg)
    return version, tensors, keys


class _MetadataReader:
    """Reads the keys and values, and counts what they cost."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._kept_bytes = 0
        self._strings = 0

    def read(self, count: int) -> tuple[dict[str, Scalar | Array], list[str]]:
        found: dict[str, Scalar | Array] = {}
        warnings = []
        for _ in range(count):
            key = self._key()
            if key in found:
                raise GgufError(f"the key {key!r} is there twice")
            if len(key) > LONG_KEY_BYTES:
                warnings.append(f"a key of {len(key)} characters")
            found[key] = self._value(key)
            if self._cursor.position > MAX_METADATA_BYTES:
                raise GgufError(f"the metadata is longer than {MAX_METADATA_BYTES} bytes")
        return found, warnings

    def _key(self) -> str:
        raw = self._cursor.string("a metadata key", MAX_KEY_BYTES)
        key = _text(raw, "a metadata key")
        if not key or not key.isprintable():
            raise GgufError(f"a key that is empty or not printable: {key[:80]!r}")
        self._keep(len(raw))
        return key

    def _value(self, key: str) -> Scalar | Array:
        kind = _value_type(self._cursor.whole("I", f"the type of {key!r}"), key)
        if kind is ValueType.ARRAY:
            return self._array(key)
        if kind is ValueType.STRING:
            raw = self._cursor.string(f"the string {key!r}")
            self._keep(len(raw))
            return Scalar(kind, _text(raw, f"the string {key!r}"))
        number = self._cursor.number(SCALAR_CODES[kind], f"the value of {key!r}")
        if kind is ValueType.BOOL:
            if number not in {0, 1}:
                raise GgufError(f"the boolean {key!r} is {number}")
            number = bool(number)
        return Scalar(kind, number)

    def _array(self, key: str) -> Array:
        what = f"the array {key!r}"
        element = _value_type(self._cursor.whole("I", f"the type of {key!r}"), key)
        if element is ValueType.ARRAY:
            raise GgufError(f"{key!r} is an array of arrays")
        count = self._cursor.whole("Q", what)
        code = SCALAR_CODES.get(element, "Q")  # a string takes at least its length
        layout_size = struct.calcsize("<" + code)
        if count > MAX_ELEMENTS or count * layout_size > self._cursor.remaining:
            msg = f"{what} declares {count} elements: more than the file holds or {MAX_ELEMENTS}"
            raise GgufError(msg)
        if element is ValueType.STRING:
            self._skip_strings(count, what)
            return Array(element, count)
        if count > MAX_KEPT_NUMBERS:
            self._cursor.skip(count * layout_size, what)
            return Array(element, count)
        self._keep(count * _NUMBER_COST)
        raw = self._cursor.take(count * layout_size, what)
        return Array(element, count, struct.unpack(f"<{count}{code}", raw))

    def _skip_strings(self, count: int, what: str) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise GgufError(f"more than {MAX_STRINGS} strings in arrays")
        self._cursor.skip_strings(count, what)

    def _keep(self, size: int) -> None:
        self._kept_bytes += size
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise GgufError(f"the metadata holds more than {MAX_KEPT_BYTES} bytes of values")


def _value_type(number: int, key: str) -> ValueType:
    try:
        return ValueType(number)
    except ValueError as error:
        raise GgufError(f"{key!r} has the unknown value type {number}") from error


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise GgufError(f"{what} is not UTF-8") from error


def _alignment(metadata: dict[str, Scalar | Array]) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    if (
        not isinstance(value, Scalar)
        or value.kind is not ValueType.UINT32
        or value.content not in ALIGNMENTS
    ):
        raise GgufError("general.alignment is not a power of two between 8 and 65536 (UINT32)")
    return int(value.content)


def _read_tensors(cursor: Cursor, count: int) -> tuple[TensorInfo, ...]:
    found: dict[str, TensorInfo] = {}
    for _ in range(count):
        tensor = _read_tensor(cursor)
        if tensor.name in found:
            raise GgufError(f"the tensor {tensor.name!r} is there twice")
        found[tensor.name] = tensor
    return tuple(found.values())


def _read_tensor(cursor: Cursor) -> TensorInfo:
    raw = cursor.string("a tensor name", MAX_TENSOR_NAME)
    name = raw.decode("ascii", "replace")
    if not raw or not _PLAIN_NAME.issuperset(raw):
        raise GgufError(f"a tensor name that is empty or not plain: {name!r}")
    rank = cursor.whole("I", f"the tensor {name!r}")
    if not 1 <= rank <= MAX_DIMS:
        raise GgufError(f"the tensor {name!r} has {rank} dimensions; 1 to {MAX_DIMS} are possible")
    dims = struct.unpack(f"<{rank}Q", cursor.take(8 * rank, f"the tensor {name!r}"))
    elements = 1
    for dim in dims:
        elements *= dim
    if not 1 <= elements <= MAX_ELEMENTS_PER_TENSOR or max(dims) > MAX_ELEMENTS_PER_TENSOR:
        raise GgufError(f"the tensor {name!r} has an impossible dimension: {dims}")
    number = cursor.whole("I", f"the tensor {name!r}")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        hint = "The model needs a newer engine than this one; upgrade Stoker."
        raise GgufError(
            f"the tensor {name!r} has type {number}: a newer engine is needed", hint=hint
        )
    if dims[0] % kind.block:
        raise GgufError(f"a row of {name!r} is not a whole number of {kind.name} blocks: {dims[0]}")
    offset = cursor.whole("Q", f"the tensor {name!r}")
    return TensorInfo(name, dims, kind.name, elements, offset, elements // kind.block * kind.size)


def _check_offsets(tensors: tuple[TensorInfo, ...], alignment: int) -> int:
    """The engine's own rule: each tensor right behind the last one. Returns the padded end."""
    expected = 0
    for tensor in tensors:
        if tensor.offset != expected:
            msg = f"the offset of {tensor.name!r} is {tensor.offset}, not {expected}"
            raise GgufError(msg)
        expected += _padded(tensor.size, alignment)
    return expected


def _check_end(tensors: tuple[TensorInfo, ...], data_offset: int, size: int) -> None:
    """The last tensor must be whole; the padding behind it may be missing."""
    if tensors and data_offset + tensors[-1].offset + tensors[-1].size > size:
        name = tensors[-1].name
        needed = data_offset + tensors[-1].offset + tensors[-1].size
        raise GgufError(f"{name!r} reaches past the end: {needed} bytes needed, {size} there")


def _padded(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
