"""The files of saved conversations: their names, folders and limits. Blocking; knows no engine.

A finished file is named by how many tokens it holds and by the SHA-256 of its bytes, so one rename
makes it whole, and nothing half ever has such a name. Everything here is what users wrote, in
another form: folders are 0700, links are never followed, and nothing outlives its time.
Not for: when to save (`conversations`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from stoker.errors import StoreError
from stoker.store import disk
from stoker.tuning.launch import LaunchPlan
from stoker.types import Digest

log = structlog.get_logger(__name__)

# Part of every key: a new number leaves all old files behind, for `tidy` to remove.
FORMAT: Final = 1
KEPT_S: Final = 30 * 24 * 3600.0  # a conversation that rested so long is not gone on with
MOST_FILES: Final = 32  # in one folder; a worker has fewer slots
FREE_LEFT: Final = 1 << 30  # bytes of the disk that are never taken
PART: Final = ".part"  # the engine writes it
TRYING: Final = ".trying"  # the engine reads it; what ends it in that moment is not tried again
_STATE: Final = ".state"
_NAME: Final = re.compile(r"(\d{1,9})-([0-9a-f]{64})\.state")
_FOLDER: Final = re.compile(r"([0-9a-f]{32})-[0-9a-f]{16}")
_TAG: Final = "CACHEDIR.TAG"  # tells backup programs to leave the folder out
_TAG_TEXT: Final = "Signature: 8a477f597d28d172789f06886806bc55\n"
# llama.cpp's state of one sequence begins with these, then the number of words, then the words.
_HEADER: Final = struct.Struct("<III")
_MAGIC: Final = 0x67677371
_PACKED: Final = -1  # first word of a list that has a head of its own: version, number of tokens
_MOST_WORDS: Final = 1 << 22
_SAME: Final = 0.8  # this much of an old conversation in a newer one, and the old one is its past


@dataclass(frozen=True, slots=True)
class Kept:
    """One finished file."""

    path: Path
    tokens: int
    sha256: str
    size: int
    modified_ns: int


def state_key(digest: Digest, plan: LaunchPlan, runtime: str) -> str:
    """Names everything that the computed values depend on. Pure.

    Not how many slots or threads there are. The number of cells counts by its power of two: it
    follows the free memory of the moment, and models that stretch their positions do so beyond
    such a power.
    """
    depends_on = (
        FORMAT,
        digest.hex,
        runtime,
        plan.mmproj_path.name if plan.mmproj_path else None,
        (max(plan.context, plan.cells) - 1).bit_length(),
        plan.kv_type,
        plan.kv_unified,
        plan.flash_attention,
        plan.extra_buffers,
        plan.gpu_layers,
        plan.cpu_experts,
    )
    named = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
    return f"{digest.hex[:32]}-{named[:16]}"


def make_folder(root: Path, key: str) -> Path:
    """The folder of a key, closed to others. Raises OSError when there is something else."""
    for folder in (root, root / key):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
    tag = root / _TAG
    if not tag.exists():
        tag.write_text(_TAG_TEXT, encoding="ascii")
    return root / key


def kept_in(folder: Path) -> list[Kept]:
    """The finished files of a folder, newest first; empty when there is no such folder."""
    found = []
    for entry in _entries(folder):
        name = _NAME.fullmatch(entry.name)
        if name and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):  # gone meanwhile
                info = entry.stat(follow_symlinks=False)
                kept = Kept(Path(entry), int(name[1]), name[2], info.st_size, info.st_mtime_ns)
                found.append(kept)
    return sorted(found, key=lambda kept: kept.modified_ns, reverse=True)


def all_kept(root: Path) -> list[Kept]:
    """Those of all folders, newest first."""
    found = [kept for folder in _folders(root) for kept in kept_in(folder)]
    return sorted(found, key=lambda kept: kept.modified_ns, reverse=True)


def hash_file(path: Path, wanted: Callable[[], bool] = lambda: True) -> str | None:
    """The SHA-256 of a plain file; None when it is none, or no longer ``wanted``."""
    try:
        descriptor = disk.open_for_reading(path)
    except (OSError, StoreError):
        return None
    with open(descriptor, "rb") as stream:  # noqa: PTH123  # a descriptor
        state = hashlib.sha256()
        buffer = bytearray(disk.READ_BYTES)
        while count := stream.readinto(buffer):
            if not wanted():
                return None
            state.update(memoryview(buffer)[:count])
        return state.hexdigest()


def finish(part: Path, tokens: int, size: int, saved_ns: int) -> Kept | None:
    """Give a file that the engine has written its name; None, and it is gone, when it is not whole.

    What it goes on from is removed. Raises OSError.
    """
    sha256 = hash_file(part)
    if sha256 is None or part.stat().st_size != size:
        part.unlink(missing_ok=True)
        return None
    path = part.with_name(f"{tokens}-{sha256}{_STATE}")
    mine = tokens_of(part)
    if mine is not None:
        for old in kept_in(part.parent):
            if old.path != path and is_past_of(tokens_of(old.path), mine):
                remove(old)
    os.utime(part, ns=(saved_ns, saved_ns))
    part.replace(path)
    return Kept(path, tokens, sha256, size, saved_ns)


def is_past_of(old: array[int] | None, new: array[int]) -> bool:
    """Whether the new conversation is the old one, gone on. Pure."""
    if not old or len(old) > len(new):
        return False
    same = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old))
    return same >= _SAME * len(old)


def tokens_of(path: Path) -> array[int] | None:
    """The tokens that a state file is of; None when that cannot be read from it."""
    try:
        descriptor = disk.open_for_reading(path)
        with open(descriptor, "rb") as stream:  # noqa: PTH123  # a descriptor
            magic, _, count = _HEADER.unpack(stream.read(_HEADER.size))
            if magic != _MAGIC or count > _MOST_WORDS:
                return None
            words = array("i")
            words.frombytes(stream.read(count * words.itemsize))
    except (OSError, StoreError, struct.error, ValueError):
        return None
    if sys.byteorder == "big":
        words.byteswap()
    if words[:1] == array("i", [_PACKED]):
        return words[3 : 3 + words[2]] if len(words) > 2 else None  # noqa: PLR2004  # its own head
    return words if len(words) == count else None


def take(kept: Kept) -> Path | None:
    """Put a file aside to be read by an engine; None when it is gone."""
    trying = kept.path.with_suffix(TRYING)
    try:
        kept.path.rename(trying)
    except OSError:
        return None
    return trying


def put_back(kept: Kept, trying: Path, good: bool) -> None:  # noqa: FBT001  # for a thread
    """After `take`: to its place, or away."""
    with contextlib.suppress(OSError):
        if good:
            trying.rename(kept.path)
        else:
            trying.unlink(missing_ok=True)


def discard(paths: Iterable[Path]) -> None:
    """Those that are still there."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove(kept: Kept) -> None:
    with contextlib.suppress(OSError):
        kept.path.unlink(missing_ok=True)


def trim(root: Path, limit_bytes: int, now_s: float | None = None) -> int:
    """Remove the oldest until no limit is passed: bytes, age, files in a folder. How many went."""
    now_s = time.time() if now_s is None else now_s
    used, in_folder = 0, dict[Path, int]()
    gone = 0
    for kept in all_kept(root):
        used += kept.size
        in_folder[kept.path.parent] = in_folder.get(kept.path.parent, 0) + 1
        too_old = kept.modified_ns / 1e9 < now_s - KEPT_S
        if used > limit_bytes or too_old or in_folder[kept.path.parent] > MOST_FILES:
            used -= kept.size
            remove(kept)
            gone += 1
    return gone


def tidy(root: Path, limit_bytes: int, stored: frozenset[Digest]) -> None:
    """At the start: leave nothing but finished files of stored models, within the limits."""
    if not limit_bytes:
        clear(root)
        return
    known = {digest.hex[:32] for digest in stored}
    for entry in _entries(root):
        if entry.name == _TAG and entry.is_file(follow_symlinks=False):
            continue
        key = _FOLDER.fullmatch(entry.name)
        if key is None or key[1] not in known or not entry.is_dir(follow_symlinks=False):
            _remove(entry)
            continue
        for file in _entries(Path(entry)):
            if not (_NAME.fullmatch(file.name) and file.is_file(follow_symlinks=False)):
                _remove(file)
    trim(root, limit_bytes)
    for folder in _folders(root):
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def forget(root: Path, digest: Digest) -> None:
    """Remove all that was kept of a model."""
    for entry in _entries(root):
        if entry.name.startswith(f"{digest.hex[:32]}-"):
            _remove(entry)


def clear(root: Path) -> None:
    """Remove all."""
    for entry in _entries(root):
        _remove(entry)
    with contextlib.suppress(OSError):
        root.rmdir()


def _folders(root: Path) -> list[Path]:
    return [
        Path(entry)
        for entry in _entries(root)
        if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
    ]


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, which may be gone; nothing when it is a link."""
    try:
        if folder.is_symlink():
            return
        with os.scandir(folder) as found:
            yield from list(found)
    except OSError:
        return


def _remove(entry: os.DirEntry[str]) -> None:
    try:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            Path(entry).unlink(missing_ok=True)
    except OSError as error:
        log.warning("conversation_not_removed", reason=error.strerror or str(error))


def _check_private(folder: Path) -> None:
    """Raises OSError when it is a link, or another user's."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if sys.platform != "win32":
        if info.st_uid != os.getuid():
            raise PermissionError(f"{folder} is another user's")
        if stat.S_IMODE(info.st_mode) & 0o077:
            folder.chmod(0o700)
