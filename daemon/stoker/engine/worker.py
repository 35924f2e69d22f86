"""Start a worker process, watch it, and make sure that it is gone. Knows no engine.

Two threads belong to each worker: one empties its stderr without end (a full pipe would stop the
engine), one waits for its end and clears up. They need no event loop, so a busy or closing one
never leaves a process unwatched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import anyio
import psutil
import structlog

from stoker.engine.base import Address, ExitReport
from stoker.engine.classify import classify, describe, numbers
from stoker.errors import WorkerFailed, WorkerTimeout
from stoker.logs import clean
from stoker.types import FailureKind

log = structlog.get_logger(__name__)

TAIL_LINES: Final = 60  # of stderr; a failed load says why within the last twenty
_LONGEST_LINE: Final = 4096  # bytes
_TERM_WAIT_S: Final = 2.0  # an engine that did not heed EOF rarely heeds TERM
_KILL_WAIT_S: Final = 30.0  # a killed process may sit in a disk read that long
_GROUP_WAIT_S: Final = 2.0  # for killed helper processes to be reaped by init
_UMASK: Final = -1 if sys.platform == "win32" else 0o077  # conversations that it saves are private
_OOM_SCORE: Final = "500"  # under memory pressure the kernel ends a worker before a user's program

_KEPT_ENVIRONMENT: Final = frozenset(
    {
        "PATH",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "TMPDIR",
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "GGML_VK_VISIBLE_DEVICES",
        # Windows cannot load its own libraries without these.
        "SYSTEMROOT",
        "WINDIR",
        "TEMP",
        "TMP",
    }
)


@dataclass(frozen=True, slots=True)
class Spawn:
    """How to start one worker."""

    command: tuple[str, ...]
    order: Mapping[str, object]  # one JSON line on stdin, with `parent_pid` added
    address: Address
    key: str
    cwd: Path
    runtime: str = ""
    engine: str = ""
    heeds_stdin: bool = True  # False: its program replaces itself by one that never reads stdin


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a worker may know: no home, no proxies, no tokens of the user."""
    kept = {name: value for name, value in environ.items() if name.upper() in _KEPT_ENVIRONMENT}
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "GGML_NO_BACKTRACE": "1",  # else a failed assert forks a debugger
        # How often an engine thread polls for the others before it sleeps. libgomp's own 300,000
        # rounds burn whole time slices when any other program wants the processor: measured on
        # two busy cores 7 tokens/s, against 29 with 1,000 rounds; on idle ones no difference.
        "GOMP_SPINCOUNT": "1000",
    }


class WorkerProcess:
    """A started process; implements `Worker` once it greeted. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], spawn: Spawn) -> None:
        self._process = process
        self._spawn = spawn
        self._address = spawn.address
        self._engine_pid = process.pid
        self._peak_bytes: int | None = None
        self._asked = False
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._greeting: Future[dict[str, Any] | None] = Future()
        self._exit: Future[ExitReport] = Future()
        self._drain = self._thread("stderr", self._drain_stderr)
        self._thread("greeting", self._exchange)
        self._thread("exit", self._await_exit)

    @classmethod
    def start(cls, spawn: Spawn, process: subprocess.Popen[bytes] | None = None) -> WorkerProcess:
        """Give the order to a new process, or to one that `start_process` made for it.

        Raises WorkerFailed when the system does not let us start one.
        """
        if spawn.address.socket is not None:
            with contextlib.suppress(OSError):  # what cannot be removed, the engine reports
                spawn.address.socket.unlink(missing_ok=True)  # a stale file would stop the bind
        return cls(process or start_process(spawn.command, spawn.cwd), spawn)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runtime(self) -> str:
        return self._spawn.runtime

    @property
    def engine(self) -> str:
        return self._spawn.engine

    @property
    def engine_pid(self) -> int:
        """The process that computes; once greeted. `pid` may be one that only watches it."""
        return self._engine_pid

    @property
    def address(self) -> Address:
        return self._address

    @property
    def key(self) -> str:
        return self._spawn.key

    @property
    def tail(self) -> tuple[str, ...]:
        return tuple(self._tail)

    @cached_property
    def _usage(self) -> psutil.Process:
        # Reads the start time: ten times the cost of one look.
        return psutil.Process(self._engine_pid)

    def resident_bytes(self) -> int | None:
        if self._exit.done():
            return None
        try:
            return int(self._usage.memory_info().rss)
        except psutil.Error:
            return None

    def peak_bytes(self) -> int | None:
        seen = None if self._exit.done() else _anonymous_bytes(self._engine_pid)
        if seen is not None:
            self._peak_bytes = max(seen, self._peak_bytes or 0)
        return self._peak_bytes

    def cpu_s(self) -> float | None:
        if self._exit.done():
            return None
        try:
            times = self._usage.cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)

    async def greeted(self) -> dict[str, Any] | None:
        """The child's greeting; None when it ended or closed its stdout without one."""
        greeting = await asyncio.shield(asyncio.wrap_future(self._greeting))
        if greeting is not None and isinstance(greeting.get("port"), int):
            self._address = replace(self._address, port=greeting["port"])
        if greeting is not None and isinstance(greeting.get("pid"), int):
            # On Windows a virtual environment's python.exe starts the real one and waits for it;
            # and a program that reads no stdin has one of ours beside it that does.
            self._engine_pid = greeting["pid"]
        return greeting

    async def wait(self) -> ExitReport:
        return await asyncio.shield(asyncio.wrap_future(self._exit))

    async def stop(self, grace_s: float) -> ExitReport:
        with anyio.CancelScope(shield=True):
            if not self._exit.done():
                self._asked = True
                await self._end(grace_s)
            with anyio.move_on_after(_KILL_WAIT_S):
                return await self.wait()
        msg = f"Process {self.pid} was killed but the system does not let go of it."
        raise WorkerTimeout(msg, hint="A stuck disk or driver can do this; restart the machine.")

    async def _end(self, grace_s: float) -> None:
        self._close_stdin()
        if not self._spawn.heeds_stdin:
            self._signal_group("SIGTERM")
        for wait_s, name in ((grace_s, "SIGTERM"), (_TERM_WAIT_S, "SIGKILL")):
            with anyio.move_on_after(wait_s):
                await self.wait()
                return
            log.info("worker_signalled", pid=self.pid, signal=name)
            self._signal_group(name)

    def _close_stdin(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _signal_group(self, name: str) -> None:
        if self._exit.done():
            return
        if sys.platform == "win32":
            self._process.kill()
            return
        # EPERM: on macOS the group holds only a zombie.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, getattr(signal, name))

    def _thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"worker-{self.pid}-{name}", daemon=True)
        thread.start()
        return thread

    def _exchange(self) -> None:
        """Hand over the order, take the greeting. The pipes may close at any time."""
        greeting: dict[str, Any] | None = None
        try:
            order = {**self._spawn.order, "parent_pid": os.getpid()}
            stdin, stdout = self._pipe(self._process.stdin), self._pipe(self._process.stdout)
            with stdout:
                stdin.write(json.dumps(order).encode() + b"\n")
                stdin.flush()
                answer = json.loads(stdout.readline(_LONGEST_LINE) or b"null")
            greeting = answer if isinstance(answer, dict) else None
        except (OSError, ValueError) as error:
            log.debug("worker_exchange_failed", pid=self.pid, reason=str(error))
        finally:
            self._greeting.set_result(greeting)

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:  # cannot be: `start` asks for all three
            raise OSError
        return stream

    def _drain_stderr(self) -> None:
        with self._pipe(self._process.stderr) as stream:
            while line := stream.readline(_LONGEST_LINE):
                text = clean(line.decode("utf-8", errors="replace").rstrip())
                if text:
                    self._tail.append(text)
                    log.debug("worker_said", pid=self.pid, line=text)

    def _await_exit(self) -> None:
        if hasattr(os, "waitid"):
            # Leaves the zombie: until it is reaped its number cannot go to another group.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:  # Windows, and macOS before Python 3.13
            self._process.wait()
        self._kill_rest_of_group()
        returncode = self._process.wait()
        _wait_group_gone(self.pid)
        self._close_stdin()
        # A killed group closes the pipe; one that escaped it must not hold up the report.
        self._drain.join(timeout=_GROUP_WAIT_S)
        if self._spawn.address.socket is not None:
            self._spawn.address.socket.unlink(missing_ok=True)
        kind = None if self._asked else classify(returncode, self.tail)
        self._exit.set_result(ExitReport(kind, returncode, self.tail))

    def _kill_rest_of_group(self) -> None:
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def start_process(command: tuple[str, ...], cwd: Path) -> subprocess.Popen[bytes]:
    """A process that waits for its order. Raises WorkerFailed when the system does not let us."""
    try:
        # A cleaner of /tmp, where it may lie, removes empty folders after some days.
        cwd.mkdir(mode=0o700, exist_ok=True)
        process = subprocess.Popen(  # noqa: S603  # our own interpreter, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            creationflags=_creation_flags(),
            umask=_UMASK,
        )
    except OSError as error:
        msg = f"The engine process cannot be started: {error.strerror or error}."
        raise WorkerFailed(msg, kind=FailureKind.UNKNOWN.value, tail=[]) from error
    _raise_oom_score(process.pid)
    return process


async def launch(
    spawn: Spawn,
    ready: Callable[[WorkerProcess], Awaitable[None]],
    *,
    timeout_s: float,
    process: subprocess.Popen[bytes] | None = None,
) -> WorkerProcess:
    """Start a worker and return it once `ready` returned for it; see `Engine.launch`.

    `process` is one that waits for its order already. `ready` is called after the greeting and
    must not raise for a worker that is merely slow or dying: this function watches the exit and
    the clock.
    """
    worker = WorkerProcess.start(spawn, process)
    report: ExitReport | None = None
    done = False

    async def watch_exit(scope: anyio.CancelScope) -> None:
        nonlocal report
        report = await worker.wait()
        scope.cancel()

    try:
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as group:
                group.start_soon(watch_exit, group.cancel_scope)
                if await worker.greeted() is None:
                    # It closed its stdout, so it is about to end, or the deadline ends it.
                    await anyio.sleep_forever()
                await ready(worker)
                done = report is None
                group.cancel_scope.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        if not done and report is None:
            await worker.stop(0)
    if report is not None:
        raise failure(report)
    if not done:
        msg = f"The engine was not ready after {timeout_s:g} s."
        raise WorkerTimeout(msg, timeout_s=timeout_s, tail=list(worker.tail[-5:]))
    return worker


def failure(report: ExitReport) -> WorkerFailed:
    """The error for a worker that ended by itself."""
    kind = report.kind or FailureKind.UNKNOWN
    text, hint = describe(kind)
    return WorkerFailed(
        text,
        hint=hint,
        kind=kind.value,
        returncode=report.returncode,
        tail=list(report.tail[-5:]),
        **numbers(kind, report.tail),
    )


def remove_stale_sockets(run: Path) -> int:
    """Remove what workers of a killed daemon left in `run`; for a daemon that holds the lock."""
    removed = 0
    for socket in run.glob("w-*.sock"):
        with contextlib.suppress(OSError):
            socket.unlink()
            removed += 1
    return removed


def _creation_flags() -> int:
    if sys.platform == "win32":
        return subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    return 0


def _anonymous_bytes(pid: int) -> int | None:
    """Memory of its own, not mapped from files; None when the system does not tell them apart."""
    try:
        if sys.platform == "win32":
            return int(psutil.Process(pid).memory_info().private)
        if sys.platform == "linux":
            return anonymous_in(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except (OSError, ValueError, psutil.Error):
        pass
    return None


def anonymous_in(status: str) -> int | None:
    """From the text of ``/proc/PID/status``: what cannot be dropped and read again. Pure.

    Not its ``VmHWM``, which counts mapped weights, also those that the kernel dropped since.
    """
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    except (KeyError, ValueError, IndexError):
        return None


def _raise_oom_score(pid: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def _wait_group_gone(pid: int) -> None:
    if sys.platform == "win32":
        return
    deadline = time.monotonic() + _GROUP_WAIT_S
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.005)
