"""The contract between the lifecycle and an engine. An adapter implements it; nothing else does.

A worker is one running engine process with one model. It belongs to whoever launched it, who
must call `stop`, also after it ended by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stoker.tuning.launch import LaunchPlan
from stoker.types import FailureKind


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker listens: a UNIX socket, or a loopback port where there are none."""

    socket: Path | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a worker ended. `kind` is None when it was asked to stop."""

    kind: FailureKind | None
    returncode: int | None
    tail: tuple[str, ...]  # its last words on stderr, cleaned for a log

    @property
    def asked(self) -> bool:
        return self.kind is None


class Worker(Protocol):
    """A running engine process that answered a decode."""

    @property
    def pid(self) -> int: ...

    @property
    def runtime(self) -> str:
        """Name of the installed runtime that it runs in."""
        ...

    @property
    def engine(self) -> str:
        """Kind of engine, as in `stoker status`."""
        ...

    @property
    def address(self) -> Address: ...

    @property
    def key(self) -> str:
        """Bearer token for every request; lives only in memory."""
        ...

    def resident_bytes(self) -> int | None:
        """Resident memory now; None when it cannot be read or the worker is gone."""
        ...

    def peak_bytes(self) -> int | None:
        """The most memory of its own, not mapped from files, that it was seen to have; bytes.

        Looks now and remembers: the kernel keeps no such mark, so it is as good as the looks are
        many. Keeps its last value after the end. None when this system does not tell the kinds
        of memory apart.
        """
        ...

    def cpu_s(self) -> float | None:
        """Processor time used so far; None when it cannot be read or the worker is gone."""
        ...

    async def wait(self) -> ExitReport:
        """Return when the process has ended and its group, socket and pipes are cleared away.

        May be awaited by several tasks and after the end; cancelling it changes nothing.
        """
        ...

    async def stop(self, grace_s: float) -> ExitReport:
        """End the process: stdin EOF, after `grace_s` TERM, then KILL, to its whole group.

        One that reads no stdin gets TERM at once. When it returns no process is left and the
        socket file is gone. Cannot be cancelled half-way (its waits are bounded). Calling it
        again returns the first report. Raises WorkerTimeout only when the kernel does not let go
        of the process.
        """
        ...


class Engine(Protocol):
    """One installed runtime, or several behind one face; "" always means the current one."""

    @property
    def name(self) -> str:
        """Kind of engine of the current runtime."""
        ...

    @property
    def runtime(self) -> str:
        """Name of the current runtime, as in `stoker status`."""
        ...

    def has(self, runtime: str, *, measured_at: str | None = None) -> bool:
        """Whether a plan may name this runtime: it is there and not known to be bad.

        With ``measured_at`` (RFC 3339): whether a measurement of that time still counts in its
        favour, although another runtime may have become the current one since.
        """
        ...

    def safe_mode(self, runtime: str = "") -> bool | None:
        """What `prepare` would return at once; None when it would run a test. Blocking."""
        ...

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        """Test the runtime on this machine with `model`, once; later calls read the result.

        Returns whether plans need the safe mode (`Wishes.safe_mode`). Raises RuntimeUnsupported
        or CanaryFailed. Another runtime may be the current one afterwards.
        """
        ...

    def expect(self, runtime: str = "") -> None:
        """A launch is likely to come within seconds: begin what needs no plan.

        Never raises. A launch uses what was begun; `relax` undoes it, and so does time. To be
        called like `launch`.
        """
        ...

    def relax(self) -> None:
        """No launch comes: nothing of what `expect` began is left."""
        ...

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        """Start a worker of `plan.runtime` and return once it answered a decode.

        Its `runtime` may be another one, when the wanted one fails and another one does not.

        Raises WorkerFailed (facts ``kind``, ``tail``) when it ends first, WorkerTimeout at the
        deadline. On any error, cancellation included, no process is left. Call it from the
        thread of the event loop only, and let that thread live as long as its workers: on Linux
        they die with the thread that started them.
        """
        ...
