"""The sizes of quantisations, to name one that would fit or be faster. Pure."""

from __future__ import annotations

from typing import Final

# Bits per weight of whole files, as published by those who make them; embeddings included.
BITS: Final[dict[str, float]] = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q5_K_S": 5.5,
    "Q4_1": 5.0,
    "Q4_K_M": 4.9,
    "Q4_K_S": 4.6,
    "Q4_0": 4.5,
    "IQ4_XS": 4.3,
    "Q3_K_M": 3.9,
    "IQ3_XS": 3.3,
    "Q2_K": 3.0,
}
# What people are pointed at, from the best: below three bits answers suffer visibly.
OFFERED: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XS")


def bits_of(file_bytes: int, parameters: int) -> float | None:
    """Bits per weight of a real file; None when it does not say how many it has."""
    return file_bytes * 8 / parameters if parameters > 0 else None


def size_bytes(name: str, parameters: int) -> int:
    """About how large a file of this quantisation is."""
    return int(parameters * BITS[name] / 8)


def largest_below(file_bytes: int, parameters: int, most_bytes: int) -> str | None:
    """The best quantisation that is smaller than this file and at most so large."""
    if parameters <= 0:
        return None
    sizes = ((name, size_bytes(name, parameters)) for name in OFFERED)
    return next((name for name, size in sizes if size < file_bytes and size <= most_bytes), None)
