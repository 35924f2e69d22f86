"""Every call of the store that changes the disk, one small function each.

Errors of the system become StoreError or DiskFull here and nowhere else. Because all changes pass
through `STEPS`, a test can stop a process between any two of them. Not for: decisions.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stoker.errors import DiskFull, StoreError

# The functions that change something on disk, in one place for those who count them.
STEPS: Final = (
    "make_folder",
    "create",
    "write_at",
    "truncate",
    "sync_file",
    "sync_folder",
    "rename",
    "unlink",
    "make_read_only",
)

READ_BYTES: Final = 1 << 20  # one system call per megabyte is lost in the time of hashing it
_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
NOT_PLAIN: Final = frozenset((errno.ELOOP, errno.EPERM, errno.ENXIO))  # see open_for_writing
_NO_FOLDER_SYNC: Final = frozenset((errno.EINVAL, errno.ENOTSUP))
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
)  # O_NONBLOCK: opening a FIFO somebody put there must not hang


@contextmanager
def wrapped(action: str, path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError into the store's own error, with what was tried."""
    try:
        yield
    except OSError as error:
        raise _wrap(error, action, path, needed_bytes) from error


def _wrap(error: OSError, action: str, path: Path, needed_bytes: int) -> StoreError:
    if error.errno in _FULL:
        free = free_bytes(path)
        msg = f"the disk is full: cannot {action}; {free} bytes are free"
        return DiskFull(msg, needed_bytes=needed_bytes, free_bytes=free)
    if error.errno == errno.EFBIG:
        return StoreError(f"cannot {action}: this file system cannot hold a file of this size")
    if error.errno == errno.ELOOP:
        return StoreError(f"cannot {action}: {path.name} is a link, and the store follows none")
    return StoreError(f"cannot {action}: {error.strerror or error}")


def free_bytes(path: Path) -> int:
    """What this user may still write on the file system of ``path``; 0 when nobody knows."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            if sys.platform == "win32":
                import shutil

                return shutil.disk_usage(folder).free
            info = os.statvfs(folder)
            return info.f_bavail * info.f_frsize
    return 0


def open_for_reading(path: Path) -> int:
    """A descriptor of a regular file; never of a link, a device or a FIFO."""
    return _regular(os.open(path, os.O_RDONLY | _FLAGS | _NOFOLLOW), path)


def open_for_writing(path: Path) -> int:
    """The same, to read and write an existing file that has no other name."""
    flags = os.O_RDWR | _FLAGS | _NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except PermissionError:  # a crash came between making it read-only and its rename
        descriptor = open_for_reading(path)
        try:
            path.chmod(0o600)
        finally:
            os.close(descriptor)
        descriptor = os.open(path, flags)
    return _regular(descriptor, path, alone=True)


def create(path: Path) -> int:
    """A new file, ours alone. Raises FileExistsError when there is one."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS | _NOFOLLOW, 0o600)


def read_at(descriptor: int, buffer: bytearray, count: int, offset: int) -> int:
    """Fill the buffer's first ``count`` bytes; returns how many there were."""
    view = memoryview(buffer)[:count]
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, count)
    view[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, view, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, view)
        view = view[written:]
        offset += written


def truncate(descriptor: int, size: int) -> None:
    """Cut off what lies behind ``size``."""
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, size)


def sync_file(descriptor: int) -> None:
    """The file's bytes are on the medium when this returns."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system has it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """The folder's entries are on the medium when this returns."""
    if sys.platform == "win32":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Replaces ``target`` in one step; on the same file system only."""
    _make_writable(target)
    source.replace(target)


def unlink(path: Path) -> None:
    """Gone when this returns, also when it was not there."""
    _make_writable(path)
    path.unlink(missing_ok=True)


def _make_writable(path: Path) -> None:
    """Elsewhere the folder's mode decides over a name; Windows keeps a file that is read-only."""
    if sys.platform == "win32":
        with suppress(OSError):
            path.chmod(stat.S_IREAD | stat.S_IWRITE)


def make_read_only(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        path.chmod(stat.S_IREAD)
    else:
        os.fchmod(descriptor, 0o444)


def make_folder(path: Path) -> None:
    """With its parents; what is new is closed to other users."""
    for folder in (*reversed(path.parents), path):  # mkdir(parents=True) would leave parents open
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)


def write_file(path: Path, data: bytes, temporary: str) -> None:
    """Replace a small file so that a reader, or a crash, sees the old one or the new one."""
    beside = path.with_name(path.name + temporary)
    unlink(beside)  # left by a crash; the caller holds the lock that makes it ours
    descriptor = create(beside)
    try:
        write_at(descriptor, data, 0)
        sync_file(descriptor)
    except BaseException:
        os.close(descriptor)
        with suppress(OSError):
            unlink(beside)
        raise
    os.close(descriptor)
    rename(beside, path)
    sync_folder(path.parent)


def read_file(path: Path, limit: int) -> bytes:
    """A small file whole; raises OSError (EFBIG) for a bigger one."""
    descriptor = open_for_reading(path)
    with open(descriptor, "rb") as stream:  # noqa: PTH123  # a descriptor, not a path
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes", str(path))
    return data


def _regular(descriptor: int, path: Path, *, alone: bool = False) -> int:
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or (alone and info.st_nlink != 1):
        os.close(descriptor)
        raise OSError(errno.EPERM, "not a plain file of the store", str(path))
    return descriptor
