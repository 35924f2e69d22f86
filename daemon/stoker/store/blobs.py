"""Verified files, named by their digest: put in place, looked at, hashed again, removed.

Nothing here decides whether bytes are good. Not for: partials, manifests.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stoker.store import disk, layout
from stoker.store.partial import Partial
from stoker.store.signatures import Signature
from stoker.store.verify import Observed
from stoker.types import Digest


class Blobs:
    """The folder ``blobs/sha256``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: Digest) -> Path:
        return self._root / layout.blob(digest)

    def publish(self, partial: Partial, digest: Digest) -> Signature:
        """Give verified, hardened bytes their name; the caller has checked that they hash to it.

        When this returns the name is on the medium and the partial is gone. Whatever stood under
        the name is replaced in one step.
        """
        target = self.path(digest)
        with disk.wrapped("store a file", target):
            self._make_folder(target.parent)
            partial.close()  # Windows renames no open file
            disk.rename(partial.path, target)
            disk.sync_folder(target.parent)
            partial.forget_sidecar()
            return Signature.of(target.lstat())

    def signature(self, digest: Digest) -> Signature | None:
        """None when there is no such file, or something else under its name."""
        try:
            info = self.path(digest).lstat()
        except FileNotFoundError:
            return None
        return Signature.of(info) if stat.S_ISREG(info.st_mode) else None

    @contextmanager
    def reader(self, digest: Digest) -> Iterator[BinaryIO]:
        """Raises FileNotFoundError when it is not there, StoreError when it cannot be read."""
        path = self.path(digest)
        if self.signature(digest) is None:
            raise FileNotFoundError(path)
        with disk.wrapped("read a stored file", path):
            descriptor = disk.open_for_reading(path)
            with open(descriptor, "rb", buffering=0) as stream:  # noqa: PTH123  # a descriptor
                yield stream

    def hash(
        self,
        digest: Digest,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> tuple[Observed, Signature] | None:
        """What the bytes on disk are now, and the signature that stands for them.

        ``progress`` gets the number of bytes hashed since its last call. None when cancelled.
        """
        found = hashlib.sha256()
        buffer = bytearray(disk.READ_BYTES)
        view = memoryview(buffer)
        with self.reader(digest) as stream:
            before = Signature.of(os.fstat(stream.fileno()))
            while count := stream.readinto(buffer):  # type: ignore[attr-defined]  # unbuffered: a FileIO
                found.update(view[:count])
                progress(count)
                if cancelled():
                    return None
        return Observed(before.size, Digest.parse(found.hexdigest())), before

    def remove(self, digest: Digest) -> int:
        """The bytes freed; 0 when it was not there."""
        path = self.path(digest)
        signature = self.signature(digest)
        with disk.wrapped("delete a stored file", path):
            disk.unlink(path)
            if path.parent.exists():
                disk.sync_folder(path.parent)
        return signature.size if signature else 0

    def all(self) -> Iterator[tuple[Digest, os.stat_result]]:
        """Every file that is named like a blob."""
        base = self._root / layout.BLOBS
        with disk.wrapped("list the stored files", base):
            for folder in sorted(base.iterdir()):
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    digest = layout.blob_digest(path.name)
                    if digest is not None and path == self.path(digest):
                        yield digest, path.lstat()

    def _make_folder(self, folder: Path) -> None:
        if not folder.exists():
            disk.make_folder(folder)
            disk.sync_folder(folder.parent)
