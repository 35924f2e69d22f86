"""What a GGUF header says, as plain values. Built by `gguf.read_header`; holds no rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from stoker.store.gguf_types import ValueType

_FLOATS: Final = frozenset((ValueType.FLOAT32, ValueType.FLOAT64))  # NaN is no whole number
# Tensors that only layers with a recurrent state have.
_RECURRENT: Final = re.compile(r"blk\.\d+\.(?:ssm_|time_mix_|shortconv)")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One metadata value."""

    kind: ValueType
    content: int | float | str


@dataclass(frozen=True, slots=True)
class Array:
    """A list of values. ``numbers`` are kept for short lists of numbers only."""

    element: ValueType
    count: int
    numbers: tuple[int | float, ...] | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies, relative to the data section, and how big it is."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    elements: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A header that passed every check; ``warnings`` are odd but harmless things."""

    version: int
    alignment: int
    metadata: Mapping[str, Scalar | Array]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    warnings: tuple[str, ...] = ()

    @property
    def architecture(self) -> str | None:
        """None in a further shard of a split model."""
        return self.text("general.architecture")

    @property
    def recurrent(self) -> bool:
        """Whether some layer keeps a state instead of, or besides, keys and values."""
        return any(_RECURRENT.match(tensor.name) for tensor in self.tensors)

    @property
    def templates(self) -> dict[str, str]:
        """Every chat template by its key; an engine may choose any of them."""
        found = {}
        for key, value in self.metadata.items():
            if key.startswith("tokenizer.chat_template") and isinstance(value, Scalar):
                found[key] = str(value.content)
        return found

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        if isinstance(value, Scalar) and isinstance(value.content, str):
            return value.content
        return None

    def integer(self, key: str) -> int | None:
        value = self.metadata.get(key)
        if isinstance(value, Scalar) and isinstance(value.content, int):
            return value.content
        return None

    def count(self, key: str) -> int | None:
        """The length of a list."""
        value = self.metadata.get(key)
        return value.count if isinstance(value, Array) else None

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """A short list of whole numbers, or a single one as a list of one; None for all else."""
        value = self.metadata.get(key)
        if isinstance(value, Array):
            whole = value.numbers is not None and value.element not in _FLOATS
            return tuple(int(number) for number in value.numbers or ()) if whole else None
        single = self.integer(key)
        return None if single is None else (single,)
