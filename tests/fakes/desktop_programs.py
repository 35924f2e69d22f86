"""Programs of a test's desktop: owned, logged, waited for with deadlines, and gone at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

PATIENCE_S = 30.0  # a busy two-core machine starts programs slowly
STEP_S = 0.05
END_S = 5.0

T = TypeVar("T")


def wait_until(look: Callable[[], T | None], what: str, within_s: float = PATIENCE_S) -> T:
    """The first answer of `look` that is true. Fails naming `what`."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(STEP_S)


def listens(path: Path) -> bool:
    """Whether a server listens on this socket; its file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


class Programs:
    """``with Programs(environ, logs) as programs:`` ends what it started, and what that started.

    Everything started here carries `XDG_RUNTIME_DIR` of `environ`, which must be this test's own:
    programs that the bus or a panel started for us are found by it.
    """

    def __init__(self, environ: Mapping[str, str], logs: Path) -> None:
        self.environ = dict(environ)
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in reversed(tuple(self._running)):
            self.end(name)
        strangers = tuple(self._of_this_desktop())
        for process in strangers:
            process.kill()
        psutil.wait_procs(strangers, timeout=END_S)

    def start(
        self,
        name: str,
        *command: str,
        user: int | None = None,
        pass_fds: tuple[int, ...] = (),
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """Start a program; its output goes to ``<logs>/<name>.log``. `user`: as that user id."""
        assert name not in self._running, name
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**self.environ, **environ},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                pass_fds=pass_fds,
            )
        self._running[name] = process
        return process

    def run(self, *command: str, within_s: float = PATIENCE_S) -> str:
        """Run a program to its end; what it printed."""
        done = subprocess.run(
            command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def wait_until(self, look: Callable[[], T | None], what: str) -> T:
        """As the function, but fails at once, with its log, when a program has ended."""

        def look_at_all() -> T | None:
            for name, process in self._running.items():
                assert process.poll() is None, f"{name} ended: {self.log_of(name)}"
            return look()

        return wait_until(look_at_all, what)

    def end(self, name: str, *, hard: bool = False) -> int:
        """End a program (`hard`: as the kernel would) and wait for it; its exit code."""
        process = self._running.pop(name)
        if hard:
            process.kill()
        else:
            process.terminate()
        try:
            return process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(END_S)

    def wait_for_end(self, name: str) -> int:
        """Wait until a program has ended by itself; its exit code."""
        return self._running.pop(name).wait(PATIENCE_S)

    def process(self, name: str) -> psutil.Process:
        return psutil.Process(self._running[name].pid)

    def log_of(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def _of_this_desktop(self) -> Iterator[psutil.Process]:
        ours = self.environ["XDG_RUNTIME_DIR"]
        for process in psutil.process_iter():
            try:
                environ = process.environ()
            except (psutil.Error, OSError):
                continue
            if environ.get("XDG_RUNTIME_DIR") == ours and process.pid != os.getpid():
                yield process
