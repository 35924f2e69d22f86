"""What Windows lacks or does otherwise, as far as it can be shown on another system."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from stoker import logs, serve

# Everything that the standard library and ours use stays as it is; then the names that Windows
# lacks go away, and all of our modules are imported.
IMPORT_ALL = """
import asyncio, importlib, importlib.util, os, pkgutil, signal, socket, subprocess, sys
import anyio, apscheduler.schedulers.asyncio, fastapi, filelock, huggingface_hub, httpx2
import prometheus_client
import psutil, pydantic_settings, rich.console, sqlite3, structlog, typer, uvicorn
import anyio._backends._asyncio
import uvicorn.protocols.http.httptools_impl
import tempfile, multiprocessing, ctypes
absent = {"fcntl", "resource", "pwd", "grp", "termios", "uvloop"}
for name in absent:
    sys.modules[name] = None
for module, names in (
    (os, "getuid geteuid getpgrp killpg fchmod statvfs waitid P_PID O_NOFOLLOW O_NONBLOCK O_CLOEXEC"
         " O_DIRECTORY pwrite preadv sched_getaffinity fork setsid"),
    (socket, "AF_UNIX SO_PEERCRED SO_REUSEPORT"),
    (signal, "SIGKILL SIGHUP SIGBUS"),
):
    for name in names.split():
        delattr(module, name)
sys.platform = "win32"
import stoker, stoker_tray.wire
for found in pkgutil.walk_packages(stoker.__path__, "stoker."):
    if found.name not in {"stoker.__main__", "stoker.engine.child"}:
        importlib.import_module(found.name)
        print(found.name)
"""


def test_every_module_can_be_imported_without_what_windows_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert {"stoker.serve", "stoker.cli.process", "stoker.engine.worker"} <= set(
        done.stdout.split()
    )


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to oneself there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_asks_for_a_stop_without_help_of_the_loop(number: signal.Signals) -> None:
    """A loop that sleeps wakes up for it; afterwards the handler of before is back."""
    before = signal.getsignal(number)
    stop = anyio.Event()
    with serve.handled(stop, number), anyio.fail_after(10):
        os.kill(os.getpid(), number)
        await stop.wait()

    assert signal.getsignal(number) == before


def test_a_log_that_cannot_be_rotated_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows renames no file that somebody reads; no record is lost, and later it is rotated."""
    monkeypatch.setattr(logs, "LOG_BYTES", 200)
    rename, read = os.rename, [True]

    def busy(*names: str) -> None:
        if read[0]:
            raise PermissionError
        rename(*names)

    monkeypatch.setattr(os, "rename", busy)
    file = tmp_path / "stoker.log"
    handler, _ = logs._handler(file)

    def say(count: int) -> None:
        for number in range(count):
            handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"line {number}", None, None))

    say(50)
    assert file.read_text().splitlines() == [f"line {number}" for number in range(50)]
    read[0] = False
    say(1)
    handler.close()

    assert file.read_text() == "line 0\n"
    assert len((tmp_path / "stoker.log.1").read_text().splitlines()) == 50


@pytest.mark.parametrize(
    ("words", "code"), [(["--version"], 0), (["status"], 3), (["no-such-command"], 2)]
)
def test_a_program_without_streams_ends_as_it_should(
    words: list[str], code: int, tmp_path: Path
) -> None:
    """As under pythonw.exe, where nobody would see a traceback either."""
    program = (
        "import sys; sys.stdout = sys.stderr = None; from stoker.cli import main; sys.exit(main())"
    )

    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *words],
        env={**os.environ, "STOKER_HOME": str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert list(tmp_path.iterdir()) == []
