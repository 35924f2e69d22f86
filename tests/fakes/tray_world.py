"""A controller and all that is around it, in a time that moves only while the controller sleeps.

The daemon's stream, the jobs' tools and the clock are doubles; the jobs' threads are real.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from stoker import errors
from stoker_service import Part, PartState, Program
from stoker_tray import app
from stoker_tray.actions import Tools
from stoker_tray.controller import Controller, HasDescriptor
from stoker_tray.face import Command, Face, Verb
from tests.fakes.tray_shell import RecordingShell

DEADLINE_S = 20.0
VERSION = "0.1.0"
LOADING_S = 8.0  # of the model in these tests
NEVER_S = 1e99
PING_S = 15.0


def status(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The answer of GET /status."""
    return {
        "daemon": {"version": VERSION, "api_version": 1, "pid": 7, "uptime_s": 1.0, "home": "/h"},
        "server": {"enabled": True, "base_url": "http://127.0.0.1:4328/v1", "lan": False},
        "models": list(models),
        "resources": {"cpu_percent": 5.0, "ram_used_bytes": 10**9, "ram_total_bytes": 8 * 10**9},
        "pulls": [],
        "problems": [],
        **changes,
    }


def snapshot(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"type": "snapshot", "status": status(*models, **changes)}


def model(state: str = "ready", **changes: Any) -> dict[str, Any]:
    return {"id": "m", "state": state, "load_s": LOADING_S, **changes}


def changed(state: str, **changes: Any) -> dict[str, Any]:
    return {"type": "model", "model": model(state, **changes)}


GOODBYE = {"type": "goodbye"}


class Stream:
    """What the daemon says, at certain times or now."""

    def __init__(self, world: World, *events: dict[str, Any]) -> None:
        self.world = world
        self.coming: list[tuple[float, list[dict[str, Any]]]] = []
        self.ping_s: float | None = world.now_s + PING_S  # the next one
        self.is_open = True
        self.reads = 0
        self.error: errors.StokerError | None = None
        self.say(*events)

    def say(self, *events: dict[str, Any], after_s: float = 0.0) -> None:
        """Without events only bytes."""
        self.coming.append((self.world.now_s + after_s, list(events)))

    def end(self, error: errors.StokerError | None = None) -> None:
        self.error = error or errors.DaemonNotRunning("cut")

    def due_s(self) -> float:
        if self.error:
            return self.world.now_s
        return min([at for at, _ in self.coming] + [self.ping_s or NEVER_S], default=NEVER_S)

    def fileno(self) -> int:
        raise AssertionError("only the world looks for what is readable")

    def read(self) -> list[dict[str, Any]]:
        self.reads += 1
        now = [event for at, events in self.coming if at <= self.world.now_s for event in events]
        self.coming = [one for one in self.coming if one[0] > self.world.now_s]
        if self.error and not now:
            raise self.error
        if self.ping_s is not None and self.ping_s <= self.world.now_s:
            self.ping_s += PING_S
        return now

    def close(self) -> None:
        self.is_open = False


class Advice:
    def __init__(self) -> None:
        self.given = 0
        self.forgotten = 0

    def give(self, shell: object) -> None:
        _ = shell
        self.given += 1

    def forget(self) -> None:
        self.forgotten += 1


class World:
    """A controller, and everything around it."""

    def __init__(self, **wishes: Any) -> None:
        self.now_s = 1000.0
        self.is_up = True  # whether the daemon lets itself be reached
        self.greeting: list[dict[str, Any]] = [snapshot()]
        self.streams: list[Stream] = []
        self.attempts_s: list[float] = []
        self.sleeps_s: list[float | None] = []
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, object] = {"/status": status(), "/catalogue": []}
        self.login: dict[Part, PartState] | None = None
        self.saved: list[frozenset[str]] = []
        self.ran: list[tuple[str, ...]] = []
        self.gates: dict[str, threading.Event] = {}  # a call to such a target waits for it
        self.shell = RecordingShell()
        self.advice = Advice()
        self.shown_s: list[float] = []
        self.controller = Controller(
            tools=self.tools(),
            connect=self.connect,
            advice=self.advice,
            upgrade=partial(app.upgrade, VERSION, tried=wishes.pop("tried", None)),
            clock=lambda: self.now_s,
            wait=self.wait,
            **wishes,
        )
        self.controller._shell = self.shell
        self.controller._begin()

    def tools(self) -> Tools:
        nothing: Any = None
        login: Any = self
        return Tools(
            call=self.call,
            run=self.run,
            open=nothing,
            copy=self.no_clipboard,
            save_muted=self.saved.append,
            program=lambda: Program((), ("stoker",), ()),
            autostart=lambda: login,
            wish=nothing,
            logs="/logs",
        )

    def status(self) -> dict[Part, PartState]:
        """Of start at login; its other methods are not there."""
        if self.login is None:
            raise errors.AutostartFailed("none here")
        return self.login

    @staticmethod
    def no_clipboard(text: str) -> None:
        raise errors.StokerError(f"no clipboard for {text}")

    def run(self, command: tuple[str, ...], timeout_s: float) -> None:
        _ = timeout_s
        self.ran.append(command)
        self._raise_if_told(command[-1])

    def _raise_if_told(self, what: str) -> object:
        answer = self.answers.get(what, {})
        if isinstance(answer, errors.StokerError):
            raise answer
        return answer

    def connect(self) -> Stream:
        self.attempts_s.append(self.now_s)
        if not self.is_up:
            raise errors.DaemonNotRunning("none")
        self.streams.append(Stream(self, *self.greeting))
        return self.streams[-1]

    def call(
        self, method: str, target: str, body: object = None, *limits: float, **more: object
    ) -> object:
        _ = limits, more
        self.calls.append((method, target, body))
        if target in self.gates:
            assert self.gates[target].wait(DEADLINE_S)
        return self._raise_if_told(target)

    def wait(
        self, sources: Sequence[HasDescriptor], timeout_s: float | None
    ) -> Sequence[HasDescriptor]:
        """Sleep: time moves on to whatever comes first."""
        bell, streams = sources[0], [one for one in sources[1:] if isinstance(one, Stream)]
        if select.select([bell], [], [], 0)[0]:
            return [bell]
        due_s = min([one.due_s() for one in streams], default=NEVER_S)
        until_s = NEVER_S if timeout_s is None else self.now_s + timeout_s
        self.sleeps_s.append(timeout_s)
        self.now_s = max(self.now_s, min(due_s, until_s))
        return [one for one in streams if one.due_s() <= self.now_s]

    def turn(self) -> None:
        shown = len(self.shell.faces)
        self.controller.turn()
        self.shown_s += [self.now_s] * (len(self.shell.faces) - shown)

    @property
    def face(self) -> Face:
        return self.shell.face

    def begin(self, *greeting: dict[str, Any]) -> Stream:
        """Connect, and let the first face be shown."""
        if greeting:
            self.greeting = list(greeting)
        self.run_for(1)
        return self.streams[0]

    def run_for(self, seconds: float) -> Face:
        """Let so much time pass; jobs are let finish at once."""
        until_s = self.now_s + seconds
        if self.controller._inbox:
            self.turn()
        self.finish_jobs()
        while self.now_s < until_s:
            before_s, left_s = self.now_s, until_s - self.now_s
            next_s = self.controller._patience_s()
            due_s = min((one.due_s() for one in self.streams if one.is_open), default=NEVER_S)
            if (next_s is None or next_s > left_s) and due_s > until_s:
                self.now_s = until_s
                break
            self.turn()
            self.finish_jobs()
            assert self.now_s >= before_s
        return self.shell.faces[-1]

    def finish_jobs(self) -> None:
        """Wait for the jobs' threads, and let the controller hear of them."""
        while self.controller._workers._running:
            assert select.select([self.controller._wake], [], [], DEADLINE_S)[0], "a job hangs"
            self.turn()

    def click(self, verb: Verb, arg: str = "") -> Face:
        self.controller.clicked(Command(verb, arg))
        self.turn()
        return self.face

    def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        if not self.controller._over:
            self.finish_jobs()
        self.controller._drop_stream()
        self.controller.close()
