"""Write and remove our files so that the folders around them end exactly as they were.

Each step is one rename: a file that needs new folders is made inside the first of them under
another name, and a folder that goes is renamed first. An interruption leaves either nothing or a
name ending in `_NEW` or `_OLD`, which the next call removes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Final

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import record
from stoker_service.base import Record, Wish, check_words

_NEW: Final = ".stoker-new"
_OLD: Final = ".stoker-old"
_FOLDER_MODE: Final = 0o700  # what the XDG specification asks for
_LOCK_S: Final = 10.0  # another call of ours is done in less than a second
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    content: str


@dataclass(frozen=True, slots=True)
class Link:
    path: Path
    target: str


Item = File | Link


@dataclass(frozen=True, slots=True)
class Entry:
    """The files of one part in one back end: every place that any wish may need.

    The first file carries the record. ``render`` is pure.
    """

    files: tuple[Path, ...]
    render: Callable[[Wish, Record], tuple[Item, ...]]
    program: Callable[[Wish], tuple[str, ...]]
    links: tuple[Path, ...] = ()
    unblock: str = ""  # how a user takes back a mask

    @property
    def anchor(self) -> Path:
        return self.files[0]

    @property
    def places(self) -> tuple[Path, ...]:
        return (*self.files, *self.links)


def install(entry: Entry, wish: Wish, *, others: Collection[Entry], linger: bool = False) -> None:
    """Write the entry; what it had before and this wish does not need goes.

    `others` are the entries whose folders this one may share. Raises AutostartFailed,
    AutostartBlocked.
    """
    check_words([*entry.program(wish), *(value for _, value in wish.program.environment)])
    with _told(entry):
        _refuse(entry)
        draft = Record(
            program=entry.program(wish),
            environment=wish.program.environment,
            on_demand=wish.on_demand,
            linger=linger,
            hardened=wish.hardened,
        )
        planned = {item.path for item in entry.render(wish, draft)}
        made = _made(entry, planned, others)
        for item in entry.render(wish, replace(draft, made=tuple(made.values()))):
            _put(item)
        for place in entry.places:
            if place not in planned:
                _take(entry, place, made[place])
                if _absent(place.parent):
                    made[place] = 0
        anchor, *_ = entry.render(wish, replace(draft, made=tuple(made.values())))
        _put(anchor)


def is_current(entry: Entry, wish: Wish) -> bool:
    """Whether the files say what this wish would make them say; links are not looked at."""
    noted = record.read(entry.anchor)
    if noted is None:
        return False
    again = replace(
        noted,
        program=entry.program(wish),
        environment=wish.program.environment,
        on_demand=wish.on_demand,
        hardened=wish.hardened,
    )
    planned = [item for item in entry.render(wish, again) if isinstance(item, File)]
    kept = {item.path for item in planned}
    return all(map(_is_there, planned)) and not any(
        place not in kept and _is_ours(entry, place) for place in entry.files
    )


def uninstall(entry: Entry) -> bool:
    """Remove the entry and the folders made for it; False when there was nothing of ours."""
    with _told(entry):
        noted = record.read(entry.anchor)
        if noted is None and not _absent(entry.anchor):
            return False  # somebody else's; the links point to it
        found = any(_is_ours(entry, place) for place in entry.places)
        for place, made in reversed(_counts(entry).items()):
            _take(entry, place, made)
        return found


def is_mask(path: Path) -> bool:
    """Whether a user or an administrator switched this name off, as `systemctl mask` does."""
    try:
        return path.is_symlink() and str(path.readlink()) == os.devnull
    except OSError:
        return False


@contextmanager
def working_on(entries: Collection[Entry], folder: Path) -> Iterator[None]:
    """Inside, no other process of this user changes them, and no interrupted call left a trace.

    All that may share a folder must be named, and `folder` must be the same in every call: it is
    locked itself, for a lock file would be one more file to remove. Raises AutostartFailed.
    """
    with _exclusive(folder):
        for entry in entries:
            with _told(entry):
                for place in entry.places:
                    _clean(place)
        yield


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # no such folder yet: nobody else is at work in it
        yield
        return
    try:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    msg = "another call is changing what starts at login"
                    raise AutostartFailed(msg, hint="Wait a moment and try again.") from None
                time.sleep(_POLL_S)
            except OSError:  # a file system without locks
                break
            else:
                break
        yield
    finally:
        os.close(handle)


# --- decisions -------------------------------------------------------------------------------


def _made(entry: Entry, planned: Collection[Path], others: Collection[Entry]) -> dict[Path, int]:
    """Per place, how many folders above it are ours: missing now, or made by us earlier.

    A folder that another entry of ours made counts here, too: whichever goes last removes it.
    """
    earlier = _counts(entry)
    ours = {folder for other in (*others, entry) for folder in _claims(other)}
    ours |= {folder for place in planned for folder in place.parents if _absent(folder)}
    return {
        place: len(list(takewhile(ours.__contains__, place.parents))) if place in planned else made
        for place, made in earlier.items()
    }


def _claims(entry: Entry) -> Iterator[Path]:
    for place, made in _counts(entry).items():
        yield from place.parents[:made]


def _counts(entry: Entry) -> dict[Path, int]:
    """Per place, how many folders above it were made for it, as the entry's record says."""
    noted = record.read(entry.anchor) or Record()
    made = (*noted.made, *(0 for _ in entry.places))
    return dict(zip(entry.places, made, strict=False))


def _absent(path: Path) -> bool:
    return not os.path.lexists(path)


def _is_ours(entry: Entry, place: Path) -> bool:
    """A file by its record; a link by its name, which only our own file gives a sense."""
    if place in entry.links:
        return place.is_symlink() and not is_mask(place)
    return record.read(place) is not None


def _refuse(entry: Entry) -> None:
    """Raise for the first place that holds something else. Nothing was written yet."""
    for place in entry.places:
        if is_mask(place):
            msg = f"{place} is masked: starting at login was forbidden there"
            raise AutostartBlocked(msg, hint=entry.unblock or f"Remove {place} first.")
        if not _absent(place) and not _is_ours(entry, place):
            msg = f"{place} was not written by Stoker and was left alone"
            raise AutostartFailed(msg, hint=f"Move {place} away, then try again.")


@contextmanager
def _told(entry: Entry) -> Iterator[None]:
    """What the disk refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        msg = f"cannot change {error.filename or entry.anchor}: {error.strerror or error}"
        hint = "Mend that, then run the same command again; `stoker autostart off` takes all back."
        raise AutostartFailed(msg, hint=hint) from error


# --- the disk --------------------------------------------------------------------------------


def _put(item: Item) -> None:
    """Make the item true on disk, in one rename."""
    if _is_there(item):
        return
    chain = [item.path, *takewhile(_absent, item.path.parents)]
    top = chain.pop()
    stage = top.with_name(f".{top.name}{_NEW}")
    at = stage
    for path in reversed(chain):
        at.mkdir(mode=_FOLDER_MODE)
        at /= path.name
    _make(item, at)
    stage.replace(top)


def _is_there(item: Item) -> bool:
    match item:
        case File():
            return item.path.exists() and item.path.read_bytes() == item.content.encode()
        case Link():
            return item.path.is_symlink() and str(item.path.readlink()) == item.target


def _make(item: Item, at: Path) -> None:
    match item:
        case File():
            with at.open("xb") as stream:
                stream.write(item.content.encode())
                stream.flush()
                os.fsync(stream.fileno())
        case Link():
            at.symlink_to(item.target)


def _take(entry: Entry, place: Path, made: int) -> None:
    """Remove one of our files, with those of the `made` folders above it that hold nothing else."""
    if _absent(place):
        _remove_empty(place.parents[:made])
    elif _is_ours(entry, place):
        top = place
        for folder in place.parents[:made]:
            if [path.name for path in folder.iterdir()] != [top.name]:
                break
            top = folder
        _remove(top, place)


def _remove(top: Path, place: Path) -> None:
    """Remove `place`, and the folders from `top` down to it, which hold nothing else."""
    if top == place:
        place.unlink()
        return
    away = top.with_name(f".{top.name}{_OLD}")
    top.rename(away)
    inside = away / place.relative_to(top)
    inside.unlink()
    for folder in takewhile(lambda path: path != away.parent, inside.parents):
        try:
            folder.rmdir()
        except OSError:  # somebody has put something into it just now: it stays
            away.rename(top)
            return


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not _absent(folder):
            try:
                folder.rmdir()
            except OSError:
                return


def _clean(place: Path) -> None:
    """Remove what an interrupted call left beside the place or beside a folder above it."""
    for path in (place, *place.parents):
        for suffix in (_NEW, _OLD):
            left = path.with_name(f".{path.name}{suffix}") if path.name else None
            if left is not None and not _absent(left):
                if left.is_dir() and not left.is_symlink():
                    import shutil  # rarely needed, and large

                    shutil.rmtree(left)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        left.unlink()
