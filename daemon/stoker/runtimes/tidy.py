"""Make a runtime's folder out of what pip installed: keep what runs, drop what only built it.

And take away what an install that was killed left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stoker.paths import Paths
from stoker.store import disk

PARTIAL: Final = ".partial-"  # how the names begin of what is not whole yet
_PROGRAMS: Final = frozenset({"llama-server", "llama-bench"})
_FOLDERS: Final = frozenset({"bin", "lib", "llama_cpp"})
_NOT_LIBRARIES: Final = frozenset({"cmake", "pkgconfig"})


def strip(folder: Path) -> None:
    """Leave the server, the bench, the libraries, the bindings and the licences."""
    for entry in list(folder.iterdir()):
        if entry.name not in _FOLDERS and not entry.name.endswith(".dist-info"):
            remove(entry)
    programs = folder / "bin"
    for entry in list(programs.iterdir()) if programs.is_dir() else ():
        # On Windows the libraries lie beside the programs.
        if entry.stem not in _PROGRAMS and entry.suffix.lower() != ".dll":
            remove(entry)
    libraries = folder / "lib"
    for entry in list(libraries.iterdir()) if libraries.is_dir() else ():
        if entry.name in _NOT_LIBRARIES or entry.suffix == ".a":
            remove(entry)
    for cache in list(folder.rglob("__pycache__")):
        remove(cache)
    if sys.platform != "win32":
        _link_copies(folder)


def sync(folder: Path) -> int:
    """All of it is on the medium when this returns. The bytes it takes."""
    total = 0
    for path in _files(folder):
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
        try:
            disk.sync_file(descriptor)
            total += os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    for parent, _, _ in os.walk(folder, topdown=False):
        disk.sync_folder(Path(parent))
    return total


def size(folder: Path) -> int:
    """The bytes of all files; what vanishes meanwhile does not count."""
    total = 0
    for path in _files(folder):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


def _link_copies(folder: Path) -> None:
    """A wheel cannot hold links, so each library came several times; keep the longest name.

    One copy is not only smaller: the engine and its bindings then load the same file.
    """
    kept: dict[str, Path] = {}
    places = (folder / "lib", folder / "llama_cpp" / "lib")
    for place in places:
        for path in sorted(_files(place), key=lambda path: (-len(path.name), path.name)):
            if path.is_symlink() or (".so" not in path.name and path.suffix != ".dylib"):
                continue
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            first = kept.setdefault(digest, path)
            if first != path:
                path.unlink()
                path.symlink_to(os.path.relpath(first, path.parent))


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def remove(path: Path) -> None:
    """A folder with all in it, a file, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> bool:
    """Like `remove`, as far as the system lets us. Whether nothing is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:  # a link goes, never what it points to
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def sweep(places: Paths) -> int:
    """Remove what killed installs left; for a daemon that holds the home's lock. How many."""
    return sum(discard(path) for path in list(places.runtimes.glob(f"{PARTIAL}*")))
