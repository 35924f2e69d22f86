"""What the user told the tray itself: the notices that are to be silent. A small JSON file.

Replaced whole or not at all. A file that is missing or broken is the default: nothing is silent.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from stoker.errors import StokerError
from stoker_tray.notices import Kind

_LARGEST: Final = 64 * 1024  # bytes; what Stoker wrote itself is far smaller


def load(file: Path) -> frozenset[str]:
    """The muted `notices.Kind` values; others in the file are ignored. Never raises."""
    try:
        with file.open("rb") as stream:
            content = json.loads(stream.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    muted = content.get("muted") if isinstance(content, dict) else None
    return _known(muted if isinstance(muted, list) else ())


def save(file: Path, muted: Iterable[str]) -> None:
    """Raises StokerError when it cannot be written; what was there is then still there."""
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as stream:
            json.dump({"muted": sorted(_known(muted))}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        msg = f"cannot write {file}: {error.strerror or error}"
        hint = "Your choice holds until the icon quits; free some space or make the folder yours."
        raise StokerError(msg, hint=hint) from error


def _known(kinds: Iterable[object]) -> frozenset[str]:
    found = list(kinds)  # of any kind: from a file, they need not even be hashable
    return frozenset(kind.value for kind in Kind if kind.value in found)
