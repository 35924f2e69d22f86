"""The lab's process as the daemon sees it: a worker process that answers more than once.

Not for: what the orders mean (`lab`), or what runs inside it (`lab_child`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from concurrent.futures import Future
from typing import Any, Final

import psutil
import structlog

from stoker.engine.worker import Spawn, WorkerProcess

log = structlog.get_logger(__name__)

_MOST_PID: Final = (1 << 31) - 1
_LONGEST_ANSWER: Final = 1 << 20  # bytes; a survey of a thousand points takes 30,000


class LabProcess(WorkerProcess):
    """A worker process that answers more than once."""

    def __init__(self, process: Any, spawn: Spawn) -> None:
        self._open: dict[int, Future[dict[str, Any] | None]] = {}
        self._gone = False
        self.garbled = False  # it said something that is no answer; nobody listens to it any more
        self.first: Future[dict[str, Any] | None] = self._expect(0)
        super().__init__(process, spawn)

    def send(
        self, number: int, op: str, fields: dict[str, object]
    ) -> Future[dict[str, Any] | None]:
        """The answer to come; None when the process ended without one."""
        answer = self._expect(number)
        if self._gone:
            self._resolve(number, None)
        # A process that is just dying does not read it; its end then is the answer.
        self._write({"id": number, "op": op, **fields})
        return answer

    def give_up(self, number: int) -> None:
        """Nobody waits for the answer to this order any more."""
        self._write({"op": "give up", "of": number})

    def suspend(self) -> None:
        """Stop it at once, and all its threads."""
        if sys.platform != "win32":
            self._signal_group("SIGSTOP")
            return
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.engine_pid).suspend()

    def wake(self) -> None:
        if sys.platform != "win32":
            self._signal_group("SIGCONT")
            return
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.engine_pid).resume()

    def _expect(self, number: int) -> Future[dict[str, Any] | None]:
        answer: Future[dict[str, Any] | None] = Future()
        self._open[number] = answer
        return answer

    def _write(self, order: dict[str, object]) -> None:
        with contextlib.suppress(OSError, ValueError):
            stdin = self._pipe(self._process.stdin)
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()

    def _exchange(self) -> None:
        """Hand over which library, then take answers until the process ends."""
        self._write({**self._spawn.order, "parent_pid": os.getpid()})
        try:
            with self._pipe(self._process.stdout) as stdout:
                while line := stdout.readline(_LONGEST_ANSWER):
                    if not self._take(line):
                        # A line that breaks off is the end of a process that died over it.
                        self.garbled = line.endswith(b"\n") or len(line) == _LONGEST_ANSWER
                        break
        except (OSError, ValueError) as error:
            log.debug("lab_exchange_failed", pid=self.pid, reason=str(error))
        finally:
            self._gone = True
            for number in tuple(self._open):
                self._resolve(number, None)
            if not self._greeting.done():
                self._greeting.set_result(None)

    def _take(self, line: bytes) -> bool:
        """Whether it was an answer."""
        try:
            answer = json.loads(line)
            number = answer["id"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return False
        if not isinstance(number, int):
            return False
        if number == 0 and not self._greeting.done():
            greeting = answer.get("ok")
            pid = greeting.get("pid") if isinstance(greeting, dict) else None
            if isinstance(pid, int) and 0 < pid <= _MOST_PID:
                self._engine_pid = pid
            self._greeting.set_result(answer)
        self._resolve(number, answer)
        return True

    def _resolve(self, number: int, answer: dict[str, Any] | None) -> None:
        future = self._open.pop(number, None)
        if future is not None:
            future.set_result(answer)
