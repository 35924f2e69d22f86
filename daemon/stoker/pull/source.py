"""The seam between a pull and where the bytes come from.

A source resolves what was asked for to a fixed set of files, and moves their bytes into partials.
It never decides whether the bytes are good: the store verifies them, whatever the source says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stoker.store.manifest import FileRole, SourceRecord
from stoker.types import Digest, Filename, ModelId

Progress = Callable[[int], None]  # bytes that have travelled so far, of one file


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a hub's scanners say about one file, as they say it; unknown words are kept."""

    status: str
    scanners: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to fetch. ``path`` is the remote side's name for it and is never a local path."""

    path: str
    name: Filename
    role: FileRole
    origin: str  # canonical and free of secrets; keys the partial when there is no digest
    size: int | None
    digest: Digest | None
    travel_bytes: int | None = None  # when more or less than `size` travels: a packed file
    scan: ScanReport | None = None

    @property
    def to_travel(self) -> int | None:
        return self.size if self.travel_bytes is None else self.travel_bytes


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a reference stands for, pinned: fetching it again gives the same bytes or an error."""

    model: ModelId
    source: SourceRecord
    files: tuple[RemoteFile, ...]
    licence: str | None = None
    evidence: Mapping[str, object] = field(default_factory=dict)
    scanned: bool = False  # whether this kind of source has scanners at all


class Sink(Protocol):
    """Where a source puts bytes: a partial of the store, or a scratch file."""

    @property
    def bytes_done(self) -> int: ...
    def set_size(self, size: int) -> None: ...
    def missing(self, chunk: int) -> list[tuple[int, int]]: ...
    def write(self, offset: int, data: bytes | memoryview) -> None: ...
    def advance_hash(self) -> bool: ...
    def checkpoint(self) -> None: ...
    def reset(self) -> None: ...


class Source(Protocol):
    """One model at one place. Made for one pull, used by one task."""

    async def resolve(self) -> Resolution:
        """Pin what was asked for. Raises SourceError, FileKindRefused or BadReference."""
        ...

    async def fetch(self, file: RemoteFile, sink: Sink, progress: Progress) -> None:
        """Fill the sink. On return no byte is missing; nothing is verified yet.

        What the sink already holds is kept when the source can go on from there. Raises
        SourceError, SizeMismatch, RedirectRefused or DiskFull; the sink then keeps what came.
        Cancellation leaves the sink in the same good order.
        """
        ...
