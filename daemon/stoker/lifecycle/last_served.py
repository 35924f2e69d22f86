"""The model that served last, in a small file that is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from stoker.errors import BadReference
from stoker.types import ModelId


def read(path: Path) -> ModelId | None:
    """None when there is no file, or nothing usable in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return ModelId.parse(value.get("model") if isinstance(value, dict) else None)
    except (OSError, ValueError, BadReference):
        return None


def write(path: Path, model: ModelId | None) -> None:
    """Remember ``model``; None forgets. Raises OSError; the old content is then still there."""
    if model is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            json.dump({"model": str(model)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
