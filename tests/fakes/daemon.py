"""A real daemon in a real process, for end-to-end tests: started, watched, stopped, killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from stoker import paths
from stoker.client import StokerClient
from stoker.errors import StokerError
from stoker.schemas import ModelView, PullView, StatusView
from stoker.types import PullState

START_S = 30.0  # a busy two-core machine imports slowly
STOP_S = 30.0


class Daemon:
    """``with Daemon(home) as daemon:`` runs `stoker serve`; leaving stops it and all workers."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("STOKER_", "HF_"))},
            "STOKER_HOME": str(home),
            "STOKER_PORT": "0",
            **{f"STOKER_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.paths = paths.from_environment(self.environ)
        self.canary: Path | None = None  # a verdict to start with, or where to keep the first one
        self.command = [sys.executable, "-I", "-m", "stoker", "serve"]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start and wait until it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        if self.canary is not None and self.canary.exists():
            self.paths.state.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.canary, self.paths.canary)
        with (self.home / "daemon.out").open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            self._wait_until_up(self.process)
        except BaseException:  # nobody will call `stop`
            self.process.kill()
            self.process.wait()
            self.process = None
            raise

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.status()
            except StokerError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.home / "daemon.out").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> int:
        """Ask for a graceful stop and wait for it; the exit code."""
        if self.process is None:
            return 0
        workers = self.workers()
        if self.canary is not None and self.paths.canary.exists():
            shutil.copy(self.paths.canary, self.canary)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None
        assert_gone(workers)
        return code

    def kill(self) -> list[psutil.Process]:
        """SIGKILL, as the kernel would; the workers it had, for `assert_gone`."""
        workers = self.workers()
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None
        return workers

    def workers(self) -> list[psutil.Process]:
        """Every process below the daemon."""
        if self.process is None or self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> StokerClient:
        return StokerClient(self.paths)

    def status(self) -> StatusView:
        with self.client() as client:
            return client.status()

    def model(self, name: str) -> ModelView:
        return next(model for model in self.status().models if model.id == name)

    @property
    def base_url(self) -> str:
        return self.status().server.base_url

    def pull(self, reference: str, *, name: str | None = None, timeout_s: float = 60) -> PullView:
        """Pull or import and wait for the end; the last view of the pull."""
        with self.client() as client:
            view = client.pull(reference, name=name)
            deadline = time.monotonic() + timeout_s
            while not view.state.ended:
                assert time.monotonic() < deadline, view
                time.sleep(0.05)
                view = client.pull_view(view.id)
        return view

    def add(self, file: Path, name: str) -> None:
        """Import a GGUF under a name."""
        view = self.pull(str(file), name=name)
        assert view.state is PullState.DONE, view

    def cli(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the `stoker` command on this home."""
        return subprocess.run(
            [sys.executable, "-I", "-m", "stoker", *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def assert_gone(processes: list[psutil.Process], within_s: float = 15.0) -> None:
    """Fail unless all of them have ended (a zombie of ours counts as ended)."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    left = [process for process in alive if _runs(process)]
    assert not left, left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False
