"""The folder of partials: one at a time per key, and none kept for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from stoker.errors import ModelInUse
from stoker.store import disk, layout
from stoker.store.partial import Partial, PartialKey

_LOCK_SUFFIX: Final = ".lock"


class Partials:
    """The folder ``partials``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / layout.PARTIALS

    @contextmanager
    def open(self, key: PartialKey) -> Iterator[Partial]:
        """Raises ModelInUse when somebody, in any process, has it open."""
        stem = self._root / layout.partial(key.expected, key.origin)
        with _locked(stem):
            partial = Partial(stem, key)
            try:
                yield partial
            finally:
                partial.leave()
                if not partial.path.exists():
                    _unlink_lock(stem)

    def drop_stale(self, older_than: datetime) -> int:
        """Delete what nobody touched since then and nobody holds; returns how many partials."""
        newest: dict[str, float] = {}
        with disk.wrapped("list the partials", self._folder):
            for path in self._folder.iterdir():
                stem = path.name.partition(".")[0]
                newest[stem] = max(newest.get(stem, 0.0), path.lstat().st_mtime)
        stale = [name for name, at in newest.items() if at < older_than.timestamp()]
        return sum(self._drop(self._folder / name) for name in stale)

    def _drop(self, stem: Path) -> bool:
        with suppress(ModelInUse), _locked(stem), disk.wrapped("delete a partial", stem):
            found = [path for path in self._folder.glob(f"{stem.name}.*") if path != _lock(stem)]
            for path in found:
                disk.unlink(path)
            _unlink_lock(stem)
            return any(path.suffix == ".part" for path in found)
        return False


@contextmanager
def _locked(stem: Path) -> Iterator[None]:
    # Not bound to a thread: a caller may enter here and leave in another worker thread.
    lock = FileLock(_lock(stem), mode=0o600, thread_local=False, fallback_to_soft=False)
    with disk.wrapped("lock a partial", stem):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            hint = "Wait for the other pull of the same file to end, or cancel it."
            raise ModelInUse("the same file is being fetched already", hint=hint) from error
    try:
        yield
    finally:
        lock.release()


def _lock(stem: Path) -> Path:
    return stem.with_name(stem.name + _LOCK_SUFFIX)


def _unlink_lock(stem: Path) -> None:
    """While it is held: whoever waits for it sees that the name is gone and makes a new one."""
    with suppress(OSError):  # Windows does not delete an open file; it stays, empty
        disk.unlink(_lock(stem))
