"""A model file on this machine, copied into the store. The user's file is only ever read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio import from_thread, to_thread

from stoker.errors import BadReference, FileKindRefused, SourceInvalid, SourceNotFound
from stoker.pull.choose import MOST_SHARDS, shard_of
from stoker.pull.source import Progress, RemoteFile, Resolution, Sink
from stoker.pull.url import model_id
from stoker.store.manifest import FileRole, SourceRecord
from stoker.types import Filename

_CHUNK: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Signature:
    """What changes when a file is written to or replaced."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> _Signature:
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


class LocalSource:
    """One file, or all parts of a split one beside each other. See `source.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, _Signature] = {}

    async def resolve(self) -> Resolution:
        return await to_thread.run_sync(self._resolve)

    async def fetch(self, file: RemoteFile, sink: Sink, progress: Progress) -> None:
        """Copy, going on where an earlier copy of the unchanged file stopped."""
        await to_thread.run_sync(self._copy, file, sink, progress)

    def _resolve(self) -> Resolution:
        paths = _parts(self._path)
        files = tuple(
            self._file(path, FileRole.SHARD if index else FileRole.MODEL)
            for index, path in enumerate(paths)
        )
        shard = shard_of(files[0].name.text)
        name = Filename.parse(f"{Path(shard[0]).name}.gguf") if shard else files[0].name
        return Resolution(
            model=model_id(name),
            source=SourceRecord(kind="path", location=str(paths[0])),
            files=files,
        )

    def _file(self, path: Path, role: FileRole) -> RemoteFile:
        descriptor = _open(path)
        try:
            seen = _Signature.of(os.fstat(descriptor))
        finally:
            os.close(descriptor)
        self._seen[str(path)] = seen
        return RemoteFile(
            path=str(path),
            name=Filename.parse(path.name),
            role=role,
            origin=f"{path}#{seen.inode}-{seen.size}-{seen.mtime_ns}",
            size=seen.size,
            digest=None,
        )

    def _copy(self, file: RemoteFile, sink: Sink, progress: Progress) -> None:
        seen = self._seen[file.path]
        sink.set_size(seen.size)
        descriptor = _open(Path(file.path))
        try:
            self._check_unchanged(descriptor, seen, sink)
            for start, end in sink.missing(_CHUNK):
                from_thread.check_cancelled()
                _copy_range(descriptor, sink, start, end)
                sink.advance_hash()
                progress(sink.bytes_done)
            self._check_unchanged(descriptor, seen, sink)
        finally:
            os.close(descriptor)
            sink.checkpoint()

    def _check_unchanged(self, descriptor: int, seen: _Signature, sink: Sink) -> None:
        if _Signature.of(os.fstat(descriptor)) != seen:
            sink.reset()
            msg = f"{self._path} changed while it was copied"
            raise SourceInvalid(msg, hint="Close the program that writes it, then import again.")


def _parts(path: Path) -> list[Path]:
    """The file, or every part of the split set that it belongs to."""
    shard = shard_of(path.name)
    if shard is None:
        return [path]
    stem, _, count = shard
    if not 0 < count <= MOST_SHARDS:
        msg = f"{path.name} claims to be one of {count} parts"
        raise BadReference(msg, hint="Check the file's name.")
    ending = path.name[-len(".gguf") :]
    numbers = range(1, count + 1)
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}{ending}") for number in numbers]


def _open(path: Path) -> int:
    """A descriptor of a regular file. Raises SourceNotFound or FileKindRefused; never waits.

    O_NONBLOCK, because opening a FIFO would otherwise wait for a writer for ever.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        msg = f"there is no file {path}"
        raise SourceNotFound(
            msg, hint="Check the path; every part of a split model is needed."
        ) from error
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise SourceNotFound(msg, hint="Check the path and its permissions.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = f"{path} is not a regular file"
        raise FileKindRefused(msg, hint="Give the path of one GGUF file.")
    return descriptor


def _copy_range(descriptor: int, sink: Sink, start: int, end: int) -> None:
    while start < end:
        try:
            os.lseek(descriptor, start, os.SEEK_SET)
            data = os.read(descriptor, end - start)
        except OSError as error:
            msg = f"reading the file failed: {error.strerror}"
            raise SourceInvalid(msg, hint="Check the disk that holds it.") from error
        if not data:
            sink.reset()
            msg = "the file became shorter while it was copied"
            raise SourceInvalid(msg, hint="Close the program that writes it, then import again.")
        sink.write(start, data)
        start += len(data)
