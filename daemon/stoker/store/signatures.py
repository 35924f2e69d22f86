"""Which blobs were hashed, and what their files looked like then.

A blob whose signature is unchanged need not be hashed again before a load. The file is a cache:
losing it costs one more hashing of each blob, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stoker.store import disk
from stoker.store.layout import TEMPORARY
from stoker.types import Digest

log = structlog.get_logger(__name__)

_MAX_BYTES: Final = 64 << 20  # some 400 000 blobs
_Number = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Signature:
    """Changes when somebody writes to the file or puts another in its place."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, info: os.stat_result) -> Signature:
        return cls(info.st_size, info.st_mtime_ns, info.st_ino)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    size: _Number
    mtime_ns: int
    inode: _Number


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = 1
    blobs: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], _Entry]


class Signatures:
    """The cache in memory and on disk. The store's lock guards it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Digest, Signature] = {}

    def load(self) -> None:
        """Anything unreadable counts as empty."""
        try:
            document = _Document.model_validate_json(disk.read_file(self._path, _MAX_BYTES))
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            log.warning("signatures_lost", reason=type(error).__name__)
            return
        self._known = {
            Digest.parse(name): Signature(entry.size, entry.mtime_ns, entry.inode)
            for name, entry in document.blobs.items()
        }

    def get(self, digest: Digest) -> Signature | None:
        return self._known.get(digest)

    def put(self, digest: Digest, signature: Signature) -> None:
        if self._known.get(digest) != signature:
            self._save({**self._known, digest: signature})

    def drop(self, digest: Digest) -> None:
        if digest in self._known:
            self._save({key: value for key, value in self._known.items() if key != digest})

    def _save(self, known: Mapping[Digest, Signature]) -> None:
        self._known = dict(known)  # in memory it holds even when the disk is full
        entries = {digest.hex: _Entry(**asdict(seen)) for digest, seen in sorted(known.items())}
        raw = _Document(blobs=entries).model_dump_json(indent=1).encode()
        try:
            disk.write_file(self._path, raw, TEMPORARY)
        except OSError as error:
            log.warning("signatures_not_saved", reason=error.strerror)
