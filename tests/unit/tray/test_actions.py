"""What each click does, and how jobs share the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from stoker import errors, updates
from stoker.types import ModelState
from stoker_service import Part, PartState, Program, Record, Wish
from stoker_tray import actions
from stoker_tray.actions import Ended, Found, Job, Lane, Tools, Workers
from stoker_tray.face import Command, Verb
from stoker_tray.state import State
from stoker_tray.wire import Hangup
from tests.fakes.tray_states import connected, model, ready

DEADLINE_S = 20.0
PROGRAM = Program(("/s", "serve"), ("/s",), ("/s-tray",))
WISH = Wish(PROGRAM, "127.0.0.1", 4328)


@dataclass
class Manager:
    """A back end for start at login that only remembers."""

    on: set[Part] = field(default_factory=set)
    wishes: list[Wish] = field(default_factory=list)
    noted: Record | None = None

    def installed(self) -> Record | None:
        return self.noted

    def install(self, parts: Any, wish: Wish) -> tuple[str, ...]:
        self.on |= set(parts)
        self.wishes.append(wish)
        return ()

    def uninstall(self, parts: Any) -> tuple[str, ...]:
        self.on -= set(parts)
        return ()

    def status(self) -> dict[Part, PartState]:
        return {part: PartState(part in self.on, "") for part in Part}


@dataclass
class Desk:
    """All that jobs touch, remembered in order."""

    done: list[tuple[Any, ...]] = field(default_factory=list)
    manager: Any = field(default_factory=Manager)
    fails: set[str] = field(default_factory=set)
    error: errors.StokerError = field(default_factory=lambda: errors.StokerError("it failed"))
    failed: int = 0
    answers: dict[str, object] = field(default_factory=dict)

    def call(
        self, method: str, target: str, body: object = None, timeout_s: float = 0, **more: Any
    ) -> object:
        assert timeout_s > 0
        assert set(more) <= {"hangup"}
        self.note(method, target, body)
        return self.answers.get(target, {})

    def note(self, *what: Any) -> None:
        if self.fails & set(map(str, what)):
            self.failed += 1
            raise self.error
        self.done.append(what)

    def tools(self) -> Tools:
        return Tools(
            call=self.call,
            run=lambda command, timeout_s: self.note("run", command, timeout_s > 0),
            open=lambda target: self.note("open", target),
            copy=lambda text: self.note("copy", text),
            save_muted=lambda muted: self.note("save", muted),
            program=lambda: PROGRAM,
            autostart=lambda: self.manager,
            wish=lambda: WISH,
            logs="/logs",
        )

    def do(self, verb: Verb, arg: str = "", state: State | None = None) -> Found:
        job = actions.job(Command(verb, arg), state or connected(), self.tools())
        assert job is not None
        return job.do()


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- the verbs -------------------------------------------------------------------------------

CALLS = [
    (Verb.USE, "a/b:Q4", "/use", {"model": "a/b:Q4"}),
    (Verb.PULL, "starter", "/pulls", {"reference": "starter"}),
    (Verb.PAUSE, "p1", "/pulls/p1/pause", None),
    (Verb.RESUME, "p1", "/pulls/p1/resume", None),
    (Verb.CANCEL, "a/b?c\ud83d", "/pulls/a%2Fb%3Fc%3F/cancel", None),
    (Verb.SERVER, "on", "/server", {"enabled": True}),
    (Verb.SERVER, "off", "/server", {"enabled": False}),
    (Verb.FREE, "", "/free", None),
]


@pytest.mark.parametrize(("verb", "arg", "target", "body"), CALLS)
def test_a_click_is_one_call(desk: Desk, verb: Verb, arg: str, target: str, body: object) -> None:
    desk.do(verb, arg)

    assert desk.done == [("POST", target, body)]


def test_unloading_all_unloads_what_is_loaded(desk: Desk) -> None:
    """Also what is only about to be."""
    state = connected(
        ready("a"), model("b"), model("c", ModelState.LOADING), model("d", ModelState.FAILED)
    )

    desk.do(Verb.UNLOAD_ALL, state=state)

    assert desk.done == [("POST", "/unload", {"model": name}) for name in ("a", "c")]


def test_one_that_cannot_be_unloaded_keeps_no_other(desk: Desk) -> None:
    desk.fails.add(str({"model": "a"}))

    with pytest.raises(errors.StokerError):
        desk.do(Verb.UNLOAD_ALL, state=connected(ready("a"), ready("b")))

    assert desk.done == [("POST", "/unload", {"model": "b"})]


def test_a_daemon_that_does_not_answer_is_asked_once(desk: Desk) -> None:
    """Each call would wait for minutes."""
    desk.error, desk.fails = errors.DaemonNotReady("no answer"), {"/unload"}
    with pytest.raises(errors.DaemonNotReady):
        desk.do(Verb.UNLOAD_ALL, state=connected(ready("a"), ready("b"), ready("c")))

    assert desk.failed == 1


def test_the_daemon_is_started_and_stopped_by_its_own_command(desk: Desk) -> None:
    assert desk.do(Verb.START).reach
    assert desk.do(Verb.STOP).leave
    assert desk.done == [("run", ("/s", "start"), True), ("run", ("/s", "stop"), True)]


def test_folders_and_pages_are_opened(desk: Desk) -> None:
    desk.do(Verb.OPEN_LOGS)
    desk.do(Verb.OPEN_UPDATE)

    assert desk.done == [("open", "/logs"), ("open", updates.PAGE)]


def test_an_address_is_copied_or_shown(desk: Desk) -> None:
    """Where nothing can be copied, a notification has it."""
    assert desk.do(Verb.COPY_URL, "http://x").notice is None

    desk.fails.add("copy")
    notice = desk.do(Verb.COPY_URL, "http://x").notice

    assert desk.done == [("copy", "http://x")]
    assert notice is not None
    assert notice.text == "http://x"


@pytest.mark.parametrize(
    ("verb", "part"), [(Verb.AUTOSTART, Part.DAEMON), (Verb.AUTOSTART_TRAY, Part.TRAY)]
)
def test_each_part_is_switched_by_itself(desk: Desk, verb: Verb, part: Part) -> None:
    """And what is true then is brought back."""
    on = desk.do(verb, "on").autostart
    off = desk.do(verb, "off").autostart

    assert desk.manager.wishes == [WISH]
    assert on == {one.value: one is part for one in Part}
    assert off == dict.fromkeys(on, False)


def test_the_login_of_another_home_is_left_alone(desk: Desk, tmp_path: Path) -> None:
    """Its own icon may change it; this one says whose it is."""
    other = tmp_path / "stoker"
    other.touch()
    desk.manager.noted = Record(program=(str(other), "serve"), environment=(("STOKER_HOME", "/x"),))
    desk.manager.on = {Part.DAEMON}

    with pytest.raises(errors.AutostartBlocked, match="another home"):
        desk.do(Verb.AUTOSTART, "off")

    assert desk.manager.on == {Part.DAEMON}


def test_muting_saves_what_is_silent(desk: Desk) -> None:
    state = connected(muted=frozenset({"ready"}))

    desk.do(Verb.MUTE, "ready", state)

    assert actions.muted(Command(Verb.MUTE, "failed"), state) == {"ready", "failed"}
    assert actions.muted(Command(Verb.UNMUTE, "ready"), state) == frozenset()
    assert actions.muted(Command(Verb.FREE), state) == {"ready"}
    assert desk.done == [("save", frozenset({"ready"}))]


def test_every_verb_does_something(desk: Desk) -> None:
    """Quitting is the controller's own."""
    jobless = [
        verb for verb in Verb if actions.job(Command(verb), connected(), desk.tools()) is None
    ]

    assert jobless == [Verb.QUIT]


SLOW = [
    (Verb.SERVER, "off"),  # running answers end first
    (Verb.OPEN_LOGS, ""),  # in a program that stays in the foreground
    (Verb.AUTOSTART, "on"),  # by a service manager
    (Verb.USE, "m"),
    (Verb.STOP, ""),
]
QUICK = [(Verb.PAUSE, "p"), (Verb.COPY_URL, "u"), (Verb.MUTE, "ready")]


@pytest.mark.parametrize("quick", QUICK)
@pytest.mark.parametrize("slow", SLOW)
def test_what_is_quick_waits_for_nothing_slow(
    desk: Desk, slow: tuple[Verb, str], quick: tuple[Verb, str]
) -> None:
    jobs = [actions.job(Command(*words), connected(), desk.tools()) for words in (slow, quick)]

    assert jobs[0] is not None
    assert jobs[1] is not None
    assert jobs[0].lane is not jobs[1].lane


# --- looks -----------------------------------------------------------------------------------


def test_a_look_brings_the_status(desk: Desk) -> None:
    desk.answers["/status"] = {"a": 1}

    assert actions.look(desk.tools()).do() == Found(status={"a": 1})


def test_a_look_around_brings_what_can_be_had(desk: Desk) -> None:
    """Start at login is known without a daemon, the catalogue without start at login."""
    desk.manager.on = {Part.TRAY}
    desk.answers["/catalogue"] = [1]
    both = actions.look_around(desk.tools(), connected=True).do()
    alone = actions.look_around(desk.tools(), connected=False).do()
    desk.fails.add("/catalogue")
    failed = actions.look_around(desk.tools(), connected=True).do()
    desk.fails.clear()
    desk.manager = Broken()
    unknown = actions.look_around(desk.tools(), connected=True).do()

    switches = {"daemon": False, "tray": True}
    assert both == Found(offers=[1], autostart=switches)
    assert alone == failed == Found(autostart=switches)
    assert unknown == Found(offers=[1])


class Broken:
    def status(self) -> dict[Part, PartState]:
        raise errors.AutostartFailed("no")


# --- the threads -----------------------------------------------------------------------------


@dataclass
class Gate:
    """A job that has begun, and ends when it is told to."""

    begun: threading.Event = field(default_factory=threading.Event)
    end: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Found:
        self.begun.set()
        assert self.end.wait(DEADLINE_S)
        return actions.NOTHING


class Bench:
    """Workers with their reports in hand."""

    def __init__(self) -> None:
        self.reports: Queue[Ended] = Queue()
        self.workers = Workers(self.reports.put)
        self.gates: list[Gate] = []

    def start(self, lane: Lane, arg: str = "", *, hangup: Hangup | None = None) -> Gate:
        gate = Gate()
        self.gates.append(gate)
        command = Command(Verb.USE, arg)
        self.workers.start(Job(lane, gate, command, f"Doing {arg}", hangup or Hangup()))
        return gate

    def next(self) -> tuple[Ended, bool]:
        """The next that ends, and whether it counts."""
        ended = self.reports.get(timeout=DEADLINE_S)
        return ended, self.workers.ended(ended.job)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for gate in bench.gates:
        gate.end.set()
    while bench.workers._running:
        bench.next()


@pytest.mark.parametrize("lane", sorted(actions._QUEUES, key=str))
def test_jobs_of_a_lane_run_one_after_the_other(bench: Bench, lane: Lane) -> None:
    first, second = bench.start(lane, "a"), bench.start(lane, "b")
    assert first.begun.wait(DEADLINE_S)
    waited = not second.begun.is_set()

    first.end.set()
    bench.next()

    assert waited
    assert second.begun.wait(DEADLINE_S)


def test_a_slow_lane_keeps_no_other_waiting(bench: Bench) -> None:
    gates = [bench.start(lane) for lane in Lane]

    assert all(gate.begun.wait(DEADLINE_S) for gate in gates)


def test_a_newer_switch_replaces_the_older(bench: Bench) -> None:
    """It begins at once, the older is hung up on, and its end does not count."""
    hung_up = threading.Event()

    class Watched(Hangup):
        def __call__(self) -> None:
            hung_up.set()

    older = bench.start(Lane.SWITCH, "a", hangup=Watched())
    newer = bench.start(Lane.SWITCH, "b")
    assert newer.begun.wait(DEADLINE_S)
    assert hung_up.is_set()
    assert bench.workers.busy == "Doing b"

    older.end.set()
    assert bench.next()[1] is False
    assert bench.workers.busy == "Doing b"

    newer.end.set()
    assert bench.next()[1] is True
    assert bench.workers.busy is None


def test_what_makes_a_switch_pointless_ends_it(bench: Bench, desk: Desk) -> None:
    """Its failure would be no news. Switching the server on is no such thing."""
    state, tools = connected(), desk.tools()
    commands = [Command(Verb.SERVER, "on"), Command(Verb.SERVER, "off"), Command(Verb.STOP)]
    counted = []
    for command in commands:
        bench.start(Lane.SWITCH, "a")
        job = actions.job(command, state, tools)
        assert job is not None
        bench.workers.start(job)
        counted.append(not bench.workers.is_free(Lane.SWITCH))
        for gate in bench.gates:
            gate.end.set()
        bench.next()
        bench.next()

    assert counted == [True, False, False]


def test_the_same_switch_goes_on(bench: Bench) -> None:
    first = bench.start(Lane.SWITCH, "a")

    again = bench.start(Lane.SWITCH, "a")

    first.end.set()
    assert bench.next()[1] is True
    assert not again.begun.is_set()


def test_a_double_click_is_one_click(bench: Bench) -> None:
    """But switching on, off and on again is three."""
    gates = [bench.start(Lane.ASK, arg) for arg in ("on", "on", "off", "off", "on")]
    for gate in gates:
        gate.end.set()
    while bench.workers._running:
        bench.next()

    assert [gate.begun.is_set() for gate in gates] == [True, False, True, False, True]


def test_a_stuck_mouse_does_not_pile_up_work(bench: Bench) -> None:
    for number in range(100):
        bench.start(Lane.ASK, str(number))

    assert len(bench.workers._waiting[Lane.ASK]) < 10


def test_a_failure_is_brought_back(bench: Bench) -> None:
    """Ours as it is; a fault of any other kind as one of ours."""

    def fail(error: Exception) -> errors.StokerError | None:
        def do() -> Found:
            raise error

        bench.workers.start(Job(Lane.DESK, do))
        return bench.next()[0].error

    ours = errors.NotCapable("no")
    assert fail(ours) is ours
    with no_traceback():
        assert isinstance(fail(KeyError("k")), errors.InternalError)


@contextmanager
def no_traceback() -> Iterator[None]:
    """A thread that dies would tell by its hook."""
    told: list[Any] = []
    before, threading.excepthook = threading.excepthook, told.append
    try:
        yield
    finally:
        threading.excepthook = before
    assert told == []
