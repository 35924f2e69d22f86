"""Bytes that failed, put aside with the reason; bounded in size and age.

No engine opens them and nothing restores them by itself. They are kept so that a user can look
at, or send, what a source delivered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from stoker.store import disk, layout
from stoker.store.finding import Finding
from stoker.types import Digest

MAX_BYTES: Final = 4 << 30  # all together; the newest are kept
_BYTES: Final = ".bin"
_REASON: Final = ".json"


class Quarantine:
    """The folder ``quarantine``. The store's lock guards it."""

    def __init__(self, root: Path) -> None:
        self._folder = root / layout.QUARANTINE
        self._root = root

    def put(
        self,
        path: Path,
        findings: Sequence[Finding],
        at: datetime,
        digest: Digest | None,
        evidence: Mapping[str, object],
    ) -> None:
        """Move the file away from where it could be used, then write down why."""
        stem = self._root / layout.quarantined(digest, at)
        target = stem.with_name(stem.name + _BYTES)
        reason = {
            "at": at.astimezone(UTC).isoformat(),
            "findings": [{"code": found.code, "text": found.text} for found in findings],
            **evidence,
        }
        with disk.wrapped("put a file into quarantine", path):
            disk.rename(path, target)
            disk.sync_folder(path.parent)
            disk.sync_folder(self._folder)
            raw = json.dumps(reason, indent=2).encode()
            disk.write_file(stem.with_name(stem.name + _REASON), raw, layout.TEMPORARY)
            self._shrink()

    def prune(self, older_than: datetime) -> int:
        """Delete what was put aside before then; returns how many files.

        The names tell when that was; the times of a blob's file are those of its download.
        """
        limit = layout.quarantine_time(older_than)
        with disk.wrapped("empty the quarantine", self._folder):
            old = [path for path, _ in self._entries() if path.name < limit]
            for path in old:
                disk.unlink(path)
        return len(old)

    def _shrink(self) -> None:
        """Drop the oldest bytes beyond the limit; the reasons stay until they are old."""
        kept = 0
        for path, info in reversed(self._entries()):
            kept += info.st_size
            if kept > MAX_BYTES and path.suffix == _BYTES:
                disk.unlink(path)

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        """Oldest first: the names begin with the time."""
        return [(path, path.lstat()) for path in sorted(self._folder.iterdir())]
