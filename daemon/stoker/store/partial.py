"""Unverified bytes on their way into the store: written in any order, resumed, hashed.

No engine ever opens one. `Store.partial` makes them and holds their lock.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Final

from stoker.errors import DiskFull, InternalError, SizeMismatch, StoreError
from stoker.store import disk, sidecar
from stoker.store.layout import TEMPORARY
from stoker.store.ranges import Ranges
from stoker.store.sidecar import PartialKey
from stoker.store.verify import Expected, Observed
from stoker.types import Digest

__all__ = ["Partial", "PartialKey"]

SUFFIX: Final = ".part"
SIDECAR_SUFFIX: Final = ".json"
_RECORD_ROOM_BYTES: Final = 1 << 20  # a sidecar takes 4 KiB; some file systems need far more
_HASH_STEP_BYTES: Final = 256 << 20  # a fraction of a second on any machine that runs a model


class Partial:
    """One file in the making. Safe to use from several threads.

    What `checkpoint` has recorded survives a crash; bytes written since are fetched again. The
    caller ends all writing before it gives the partial to `Store.admit`.
    """

    def __init__(self, stem: Path, key: PartialKey) -> None:
        """Open or create it; the caller holds its lock. Raises StoreError, DiskFull."""
        self.path = stem.with_name(stem.name + SUFFIX)
        self.key = key
        self._sidecar = stem.with_name(stem.name + SIDECAR_SUFFIX)
        self._size = key.expected.size
        self._ranges = Ranges()
        self._lock = Lock()  # the ranges, the descriptor's life, the count of rewrites
        self._unrecorded = False  # bytes came since the last checkpoint
        self._recorded_end = 0  # the sidecar promises nothing behind it
        self._rewrites = 0  # times that bytes were written over: a hash begun before is void
        self._hash_lock = Lock()
        self._restart_hash()
        with disk.wrapped("open a partial", self.path):
            self._descriptor = self._open()

    @property
    def expected(self) -> Expected:
        return self.key.expected

    @property
    def size(self) -> int | None:
        """As promised, or as `set_size` said."""
        return self._size

    @property
    def bytes_done(self) -> int:
        """Never waits, also not for a write that hangs: the event loop asks for it."""
        return self._ranges.total

    @property
    def complete(self) -> bool:
        """Whether every byte is there, as far as anybody said how many there are."""
        with self._lock:
            end = self._ranges.end if self._size is None else self._size
            return self._ranges.prefix == end == self._ranges.total

    def set_size(self, size: int) -> None:
        """What the source says the length is. Raises SizeMismatch when another was promised.

        Bytes that were kept for another length are dropped.
        """
        if self.expected.size is not None and size != self.expected.size:
            msg = f"the source has {size} bytes; {self.expected.size} were promised"
            raise SizeMismatch(msg)
        if size <= 0:
            raise SizeMismatch("the source's file is empty")
        if self._size != size or self._ranges.end > size:
            if self._ranges.total:
                self.reset()
            self._size = size

    def missing(self, chunk: int) -> list[tuple[int, int]]:
        """The ``[start, end)`` ranges still to fetch, none longer than ``chunk``.

        The length must be known.
        """
        if self._size is None:
            raise InternalError("missing() was asked of a partial of unknown length")
        with self._lock:
            return self._ranges.missing(self._size, chunk)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Raises SizeMismatch past the promised end, DiskFull when there is no room.

        After either, nothing of ``data`` counts as written.
        """
        end = offset + len(data)
        if not data:
            return
        if self._size is not None and end > self._size:
            raise SizeMismatch(f"the source sends more than the promised {self._size} bytes")
        with self._lock, disk.wrapped(f"write {len(data)} more bytes", self.path, len(data)):
            if self._ranges.overlaps(offset, end):
                self._rewrites += 1
            disk.write_at(self._open_descriptor(), data, offset)
            self._ranges.add(offset, end)
            self._unrecorded = True

    def advance_hash(self) -> bool:
        """Hash some of what has become contiguous from the start, read back from the file.

        Returns whether there is more of it: a call ends soon, so that a pull can be stopped.
        """
        with self._hash_lock:
            return self._advance_hash(_HASH_STEP_BYTES)

    def checkpoint(self) -> None:
        """Make what is written so far survive a crash. Raises StoreError, DiskFull."""
        with self._lock:
            pairs, descriptor = self._ranges.pairs, self._open_descriptor()
            self._unrecorded = False
        try:
            with disk.wrapped("record the progress of a download", self.path):
                disk.sync_file(descriptor)
                raw = sidecar.dumps(self.key, self._size, pairs)
                disk.write_file(self._sidecar, raw, TEMPORARY)
        except StoreError:
            self._unrecorded = True
            raise
        self._recorded_end = pairs[-1][1] if pairs else 0

    def reset(self) -> None:
        """Start again from zero."""
        with self._hash_lock, self._lock, disk.wrapped("empty a partial", self.path):
            disk.unlink(self._sidecar)  # first: a sidecar must never promise bytes that are gone
            disk.truncate(self._open_descriptor(), 0)
            self._ranges = Ranges()
            self._recorded_end = 0
            self._restart_hash()

    def discard(self) -> None:
        """Delete it; for a pull that the user gave up."""
        self.close()
        with disk.wrapped("delete a partial", self.path):
            self.forget_sidecar()
            disk.unlink(self.path)

    def observed(self) -> Observed:
        """The length and digest of the whole file; it must be `complete`."""
        with self._hash_lock:
            with self._lock, disk.wrapped("read a partial", self.path):
                size = self._ranges.end
                # A failed or forgotten write may have left bytes behind the last counted one.
                disk.truncate(self._open_descriptor(), size)
            self._advance_hash(size)
            if self._hashed != size:
                raise InternalError("a partial with gaps was to be hashed as a whole")
            return Observed(size, Digest.parse(self._hash.hexdigest()))

    def reader(self) -> BinaryIO:
        """A stream of its own over the same open file; the caller closes it."""
        with self._lock, disk.wrapped("read a partial", self.path):
            return io.open(os.dup(self._open_descriptor()), "rb")  # noqa: UP020

    def harden(self) -> None:
        """All bytes are on the medium and the file is read-only: ready for its rename."""
        with self._lock, disk.wrapped("store a file", self.path):
            disk.make_read_only(self._open_descriptor(), self.path)
            disk.sync_file(self._open_descriptor())

    def forget_sidecar(self) -> None:
        disk.unlink(self._sidecar)

    def leave(self) -> None:
        """Close it for now, with a last checkpoint where that is still possible."""
        if self._descriptor >= 0 and self._unrecorded:
            with suppress(StoreError):
                try:
                    self.checkpoint()
                except DiskFull:
                    self._give_back()
                    self.checkpoint()
        self.close()

    def _give_back(self) -> None:
        """Drop the last bytes: on a full disk, the record of all others needs their room.

        Only at the end: a transfer that still runs would not fetch them again. Never below what
        the last record promises.
        """
        with self._lock, disk.wrapped("shorten a partial", self.path):
            pairs = self._ranges.pairs
            if not pairs:
                return
            start, end = pairs.pop()
            keep = max(start, end - _RECORD_ROOM_BYTES, self._recorded_end)
            disk.truncate(self._open_descriptor(), keep)
            self._ranges = Ranges([*pairs, (start, keep)] if keep > start else pairs)
            self._rewrites += 1

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> int:
        try:
            descriptor = disk.open_for_writing(self.path)
        except FileNotFoundError:
            disk.unlink(self._sidecar)
            return disk.create(self.path)
        except OSError as error:
            if error.errno not in disk.NOT_PLAIN:
                raise
            disk.unlink(self.path)  # a link or a device; nothing that could be continued
            return disk.create(self.path)
        found = self._read_sidecar(os.fstat(descriptor).st_size)
        if found is not None and found.belongs_to(self.key):
            self._size = found.size
            self._ranges = Ranges(found.ranges)
            self._recorded_end = self._ranges.end
        else:
            disk.unlink(self._sidecar)
            disk.truncate(descriptor, 0)
        return descriptor

    def _read_sidecar(self, actual_bytes: int) -> sidecar.Sidecar | None:
        with suppress(OSError):
            return sidecar.loads(disk.read_file(self._sidecar, sidecar.MAX_BYTES), actual_bytes)
        return None

    def _open_descriptor(self) -> int:
        if self._descriptor < 0:
            raise InternalError("a partial was used after its end")
        return self._descriptor

    def _restart_hash(self) -> None:
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._hashed_rewrites = self._rewrites

    def _advance_hash(self, most: int) -> bool:
        buffer = bytearray(disk.READ_BYTES)
        done = 0
        while done < most:
            with self._lock:
                if self._hashed_rewrites != self._rewrites:
                    self._restart_hash()
                count = min(self._ranges.prefix - self._hashed, len(buffer))
                descriptor = self._open_descriptor()
            if count <= 0:
                return False
            with disk.wrapped("read a partial", self.path):
                got = disk.read_at(descriptor, buffer, count, self._hashed)
            if got == 0:
                raise SizeMismatch("the partial file is shorter than what was written to it")
            self._hash.update(memoryview(buffer)[:got])
            self._hashed += got
            done += got
        return True
