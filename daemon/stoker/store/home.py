"""The store's root: made, checked, and told apart from a newer format.

docs/store-format.md has the migration rule; there is one version so far, so there is no migration.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stoker.errors import StoreError, StoreTooNew, StoreUnsafe
from stoker.store import disk, layout

VERSION: Final = 1
_MAX_BYTES: Final = 4096
_TEMPORARY_AGE: Final = timedelta(hours=1)  # no write of a small file takes that long


class _Format(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    format: Literal["stoker-store"] = "stoker-store"
    version: Annotated[int, Field(ge=1)] = VERSION


def prepare(root: Path, now: datetime) -> None:
    """Make what is missing; when this returns the root may be trusted.

    Raises StoreUnsafe, StoreTooNew or StoreError, and has then changed nothing that was there.
    """
    with disk.wrapped("make the store's folder", root):
        if not root.exists() and not root.is_symlink():
            disk.make_folder(root)
        _check_owner(root)
    _check_format(root)
    with disk.wrapped("make the store's folders", root):
        for folder in layout.FOLDERS:
            disk.make_folder(root / folder)
            _check_owner(root / folder)
        _sweep(root, now)


def _check_owner(folder: Path) -> None:
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        hint = "The store's folder must be a real folder; to move it, set STOKER_HOME."
        raise StoreUnsafe(f"{folder} is a link or a file, not a folder", hint=hint)
    if sys.platform == "win32":
        return  # the profile folder's access list already shuts others out
    if info.st_uid != os.getuid():
        raise StoreUnsafe(f"{folder} belongs to another user")
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o022:
        raise StoreUnsafe(f"{folder} can be written by other users (mode {mode:o})")
    if mode & 0o077:
        folder.chmod(0o700)


def _check_format(root: Path) -> None:
    path = root / layout.FORMAT_FILE
    try:
        found = _Format.model_validate_json(disk.read_file(path, _MAX_BYTES))
    except FileNotFoundError:
        with disk.wrapped("write the store's format", path):
            disk.write_file(path, _Format().model_dump_json().encode() + b"\n", layout.TEMPORARY)
        return
    except (OSError, ValidationError) as error:
        hint = f"If this is a Stoker store, delete {path.name} in it and start again."
        raise StoreError(f"{path} does not say what format the store has", hint=hint) from error
    if found.version > VERSION:
        raise StoreTooNew(f"the store has format {found.version}; this Stoker knows {VERSION}")


def _sweep(root: Path, now: datetime) -> None:
    """Remove small files that a crash left half written."""
    oldest = (now - _TEMPORARY_AGE).timestamp()
    for folder in (root, *(root / folder for folder in layout.FOLDERS)):
        for path in folder.glob(f"*{layout.TEMPORARY}"):
            with suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    disk.unlink(path)
