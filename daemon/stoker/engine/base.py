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
    def address(self) -> Address: ...

    @property
    def key(self) -> str:
        """Bearer token for every request; lives only in memory."""
        ...

    def resident_bytes(self) -> int | None:
        """Resident memory now; None when it cannot be read or the worker is gone."""
        ...

    async def wait(self) -> ExitReport:
        """Return when the process has ended and its group, socket and pipes are cleared away.

        May be awaited by several tasks and after the end; cancelling it changes nothing.
        """
        ...

    async def stop(self, grace_s: float) -> ExitReport:
        """End the process: stdin EOF, after `grace_s` TERM, then KILL, to its whole group.

        When it returns no process is left and the socket file is gone. Cannot be cancelled
        half-way (its waits are bounded). Calling it again returns the first report. Raises
        WorkerTimeout only when the kernel does not let go of the process.
        """
        ...


class Engine(Protocol):
    """A kind of engine in one installed runtime."""

    @property
    def name(self) -> str: ...

    @property
    def runtime(self) -> str:
        """Name and version of the runtime, as in `stoker status`."""
        ...

    async def prepare(self, model: Path) -> bool:
        """Test the runtime on this machine with `model`, once; later calls read the result.

        Returns whether plans need the safe mode (`Wishes.safe_mode`). Raises RuntimeUnsupported
        or CanaryFailed.
        """
        ...

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        """Start a worker and return once it answered a decode.

        Raises WorkerFailed (facts ``kind``, ``tail``) when it ends first, WorkerTimeout at the
        deadline. On any error, cancellation included, no process is left. Call it from the
        thread of the event loop only, and let that thread live as long as its workers: on Linux
        they die with the thread that started them.
        """
        ...
