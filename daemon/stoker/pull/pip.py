"""Run pip as a child that downloads one wheel into a folder of its own, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from stoker.errors import DiskFull, SourceInvalid, SourceNotFound, SourceUnreachable, StokerError
from stoker.pull.source import Progress

_POLL_S: Final = 0.25
_STILL_S: Final = 180.0  # without a byte: pip's own retries of a dead index take 90 s
_STOP_S: Final = 5.0
_TAIL_BYTES: Final = 16 * 1024
# PR_SET_PDEATHSIG is 1, and lasts over exec. A child of ours must not outlive a killed daemon.
_TIE: Final = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_SECRET: Final = re.compile(r"(?<=://)[^/@\s]+@")
_NO_ROOM: Final = re.compile(r"No space left|Errno 28|Disk quota exceeded|Errno 122", re.IGNORECASE)
_ABSENT: Final = re.compile(r"No matching distribution|Could not find a version")


async def download_wheel(
    command: Sequence[str],
    requirement: str,
    folder: Path,
    *,
    index: str | None,
    progress: Progress,
    limit: int | None,
) -> Path:
    """The wheel of an exactly pinned requirement, in ``folder``. pip's configuration applies.

    ``progress`` gets the bytes that have come, at most ``limit``. Raises SourceNotFound,
    SourceUnreachable, SourceInvalid or DiskFull. However it ends, no process is left.
    """
    target = folder / "wheel"
    work = folder / "work"
    target.mkdir()
    work.mkdir()
    arguments = [*command, "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    arguments += ["--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    arguments += ["--dest", str(target), *(["--index-url", index] if index else []), requirement]
    errors = folder / "errors.txt"
    with errors.open("wb") as stream:
        process = await anyio.open_process(
            _tied_to_us(arguments),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=work,
            env=_environment(work),
            start_new_session=True,
        )
    try:
        code = await _watch(process, folder, progress, limit)
    finally:
        await _stop(process)
    if code != 0:
        raise failure(requirement, _tail(errors))
    wheels = sorted(target.glob("*.whl"))
    if len(wheels) != 1:
        msg = f"pip brought {len(wheels)} wheels for {requirement}"
        raise SourceInvalid(msg)
    return wheels[0]


def _tied_to_us(arguments: list[str]) -> list[str]:
    """The same command; on Linux it dies with us, even when we are killed."""
    if sys.platform != "linux":
        return arguments
    return [sys.executable, "-P", "-c", _TIE, *arguments]


def failure(requirement: str, output: str) -> StokerError:
    """What pip's last words mean. Pure."""
    text = _SECRET.sub("", output)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "")
    if _NO_ROOM.search(text):
        return DiskFull(f"no room to download {requirement}")
    if _ABSENT.search(text):
        msg = f"the package index has no {requirement}: {said[:300]}"
        return SourceNotFound(
            msg, hint="Check the network and pip's index setting (`pip config list`)."
        )
    msg = f"pip could not fetch {requirement}: {said[:300]}"
    return SourceUnreachable(msg, hint="Check the network and pip's settings (`pip config list`).")


def _environment(work: Path) -> dict[str, str]:
    """Ours, so that pip finds its configuration, without what is no business of pip's.

    Temporary files go to the folder that is watched and removed.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STOKER_", "HF_", "PYTHON"))
    }
    return {**kept, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}


async def _watch(
    process: anyio.abc.Process, folder: Path, progress: Progress, limit: int | None
) -> int:
    """Tell how far it is until pip ends. Raises SourceUnreachable when nothing moves."""
    most, moved_at = 0, time.monotonic()
    while process.returncode is None:
        with anyio.move_on_after(_POLL_S):
            await process.wait()
        size = _largest(folder)
        if size > most:
            most, moved_at = size, time.monotonic()
            progress(most if limit is None else min(most, limit))
        if time.monotonic() - moved_at > _STILL_S:
            msg = f"pip has not received a byte for {_STILL_S:.0f} s"
            raise SourceUnreachable(msg)
    return process.returncode


def _largest(folder: Path) -> int:
    """The size of the largest file: pip keeps up to three copies while it works."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(parent, name)).st_size)  # noqa: PTH116, PTH118
            except OSError:
                continue  # pip has just removed it
    return max(sizes)


async def _stop(process: anyio.abc.Process) -> None:
    """No process is left on return."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            _signal(process.pid, signal.SIGTERM)
            with anyio.move_on_after(_STOP_S):
                await process.wait()
        if process.returncode is None:
            _signal(process.pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
            await process.wait()
        await process.aclose()


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        if sys.platform == "win32":
            os.kill(pid, number)
        else:
            os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # the latter is Windows' word for it
        pass  # it ended by itself


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")
