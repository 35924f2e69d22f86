"""A worker's process that is started before anybody knows what it is to do.

To start an interpreter and to bring in the engine's library takes a tenth of a small model's whole
load. It needs no plan, so it passes while one is made, and while another worker leaves. The process
waits for its order like any other; the end of its stdin, or of this one, ends it.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Final

import structlog

from stoker.engine.worker import start_process
from stoker.errors import WorkerFailed

log = structlog.get_logger(__name__)

_PATIENCE_S: Final = 20.0  # a load that waits longer for its turn starts its process itself
_KILLED_S: Final = 1.0  # for a killed process that never had a model to be gone


class Spare:
    """At most one such process. Used from the event loop's thread only."""

    def __init__(
        self, command: tuple[str, ...], cwd: Path, patience_s: float = _PATIENCE_S
    ) -> None:
        self._command = command
        self._cwd = cwd
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """See `Engine.expect`."""
        if self._process is None or self._process.poll() is not None:
            self.drop()
            try:
                self._process = start_process(self._command, self._cwd)
            except WorkerFailed as error:  # the launch will say so, if it fails as well
                log.debug("spare_not_started", reason=error.message)
                return
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._patience_s, self.drop)

    def take(self) -> subprocess.Popen[bytes] | None:
        """The process, for whoever gives it an order and ends it; None when there is none."""
        self._stop_timer()
        process, self._process = self._process, None
        if process is not None and process.poll() is not None:
            _end(process)
            return None
        return process

    def drop(self) -> None:
        """End it; nothing when there is none."""
        process = self.take()
        if process is not None:
            _end(process)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was given no order, and close its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_KILLED_S)
    except subprocess.TimeoutExpired:
        log.warning("spare_stuck", pid=process.pid)
