"""The file that lets pulls survive a restart of the daemon: what had not ended, in order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_FORMAT: Final = 1
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Saved:
    """A pull that had not ended."""

    id: str
    reference: str
    name: str | None
    paused: bool


def save(path: Path, pulls: Iterable[Saved]) -> None:
    """Replace the file atomically; readable by its owner only (a URL may hold a secret)."""
    document = {
        "format": _FORMAT,
        "pulls": [
            {"id": p.id, "reference": p.reference, "name": p.name, "paused": p.paused}
            for p in pulls
        ],
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def restore(path: Path) -> list[Saved]:
    """What was saved; nothing when the file is absent or damaged: pulls are easily begun again."""
    try:
        document = json.loads(path.read_text("utf-8"))
        pulls = document["pulls"][:_MOST] if document["format"] == _FORMAT else []
        return [
            Saved(str(p["id"]), str(p["reference"]), p["name"], bool(p["paused"])) for p in pulls
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("pulls_not_restored", path=str(path), error=type(error).__name__)
        return []
