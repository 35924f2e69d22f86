"""Golden files: what is written to users' machines, word for word, for review."""

from __future__ import annotations

import os
from pathlib import Path

WRITE = "STOKER_TEST_WRITE_GOLDEN"  # set it to 1 to write them anew; read the difference


def check_golden(file: Path, text: str) -> None:
    """The text is what the file holds."""
    if os.environ.get(WRITE):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"run with {WRITE}=1 to accept a change"
