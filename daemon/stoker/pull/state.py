"""The file that lets pulls survive a restart of the daemon: what had not ended, in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from stoker.errors import SourceInvalid
from stoker.store import disk
from stoker.store.partial import PartialKey
from stoker.store.verify import Expected
from stoker.types import Digest

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
    keys: tuple[PartialKey, ...] = ()  # of what it has left in the store; to throw it away


def save(path: Path, pulls: Iterable[Saved]) -> None:
    """Replace the file atomically; readable by its owner only (a URL may hold a secret)."""
    document = {
        "format": _FORMAT,
        "pulls": [
            {
                "id": p.id,
                "reference": p.reference,
                "name": p.name,
                "paused": p.paused,
                "files": [_file(key) for key in p.keys],
            }
            for p in pulls
        ],
    }
    disk.make_folder(path.parent)
    disk.write_file(path, json.dumps(document, indent=1).encode(), ".tmp")


def restore(path: Path) -> list[Saved]:
    """What was saved; nothing when the file is absent or damaged: pulls are easily begun again."""
    try:
        document = json.loads(path.read_text("utf-8"))
        pulls = document["pulls"][:_MOST] if document["format"] == _FORMAT else []
        return [
            Saved(
                str(p["id"]),
                str(p["reference"]),
                p["name"],
                bool(p["paused"]),
                tuple(_key(file) for file in p.get("files", ())),
            )
            for p in pulls
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SourceInvalid) as error:
        log.warning("pulls_not_restored", path=str(path), error=type(error).__name__)
        return []


def _file(key: PartialKey) -> dict[str, object]:
    digest = key.expected.digest
    return {"size": key.expected.size, "sha256": digest and digest.hex, "origin": key.origin}


def _key(file: Mapping[str, Any]) -> PartialKey:
    digest = None if file["sha256"] is None else Digest.parse(file["sha256"])
    return PartialKey(Expected(file["size"], digest), str(file["origin"]))
