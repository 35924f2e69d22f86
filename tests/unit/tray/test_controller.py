"""When the controller wakes and what it shows, in a world whose time moves only in its sleep."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from stoker import errors
from stoker_service import Part, PartState
from stoker_tray import controller, pace
from stoker_tray.face import Command, IconState, Verb
from tests.fakes.tray_shell import rows
from tests.fakes.tray_world import GOODBYE, LOADING_S, World, changed, model, snapshot, status

RUNNING_S = 10.0  # how long a flood lasts


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def new(**wishes: Any) -> World:
        worlds.append(World(**wishes))
        return worlds[-1]

    yield new
    for world in worlds:
        world.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


# --- the daemon comes and goes ---------------------------------------------------------------


def test_a_snapshot_is_shown(world: World) -> None:
    world.begin(snapshot(model()))

    assert world.face.icon.state is IconState.READY
    assert "models" in rows(world.face)
    assert len(world.shell.faces) == 1


def test_without_a_daemon_there_is_a_face_that_offers_to_start_one(world: World) -> None:
    world.is_up = False

    face = world.run_for(1)

    assert face.icon.state is IconState.OFF
    assert Command(Verb.START) in [row.command for row in rows(face).values()]


def test_a_daemon_is_looked_for_less_and_less_often(world: World) -> None:
    """From a second to ten, and not more often for ever."""
    world.is_up = False

    world.run_for(120)

    gaps = [later - sooner for sooner, later in pairwise(world.attempts_s)]
    assert gaps[0] == 1
    assert gaps == sorted(gaps)
    assert gaps[-1] == 10
    assert len(gaps) < 20


def test_an_opened_menu_looks_for_the_daemon_at_once(world: World) -> None:
    world.is_up = False
    world.run_for(60)
    world.is_up = True

    world.controller.opened()
    opened_s = world.now_s
    face = world.run_for(0.5)

    assert world.attempts_s[-1] == opened_s
    assert face.icon.state is IconState.IDLE


def test_after_a_goodbye_the_daemon_is_gone_at_once(world: World) -> None:
    """And it is looked for after a second: it may be a restart."""
    world.run_for(60)
    left_s = world.now_s
    world.streams[0].say(GOODBYE)

    world.turn()

    assert world.face.icon.state is IconState.OFF
    assert not world.streams[0].is_open
    world.run_for(1.5)
    assert world.attempts_s[-1] == left_s + 1
    assert world.shell.face.icon.state is IconState.IDLE


def test_a_cut_stream_is_the_same_as_no_daemon(world: World) -> None:
    world.greeting = [snapshot(model())]
    world.run_for(60)
    world.streams[0].end()

    world.turn()

    assert world.face.icon.state is IconState.OFF
    assert "models" not in rows(world.face)
    assert world.run_for(2).icon.state is IconState.READY


def test_an_event_that_makes_no_sense_leads_to_a_new_snapshot(world: World) -> None:
    world.run_for(60)
    world.greeting = [snapshot(model())]
    world.streams[0].say({"type": "model", "model": {"id": 5}})

    face = world.run_for(2)

    assert len(world.streams) == 2
    assert face.icon.state is IconState.READY


def test_a_daemon_that_always_says_nonsense_is_not_asked_all_the_time(world: World) -> None:
    world.greeting = [snapshot(), {"type": "model", "model": None}]

    world.run_for(120)

    assert len(world.attempts_s) < 20


def test_a_daemon_that_falls_silent_is_given_up(world: World) -> None:
    """A ping is enough to be alive; 45 s without one are too much, and the menu says so."""
    world.run_for(60)
    world.streams[0].ping_s = None
    world.is_up = False

    alive = world.run_for(44)
    hung = world.run_for(1.5)
    dead = world.run_for(2)

    assert alive.icon.state is IconState.IDLE
    assert hung.icon.state is dead.icon.state is IconState.OFF
    assert "says nothing" in rows(hung)["note"].text
    assert "note" not in rows(dead), "what is not there cannot hang"
    assert world.shell.notices == []


def test_a_connection_without_a_snapshot_is_given_up(world: World) -> None:
    """The kernel connects to a process that is stopped, too. Bytes alone are no answer."""
    world.greeting = []
    world.begin()
    world.streams[0].ping_s = None
    for after_s in range(1, 30):
        world.streams[0].say(after_s=after_s)

    face = world.run_for(pace.SNAPSHOT_S + 0.5)

    assert not world.streams[0].is_open
    assert face.icon.state is IconState.OFF


def test_what_was_lost_is_forgotten_and_what_is_the_trays_own_stays(
    make: Callable[..., World],
) -> None:
    world = make(muted=frozenset({"ready"}))
    world.run_for(60)
    world.streams[0].end()
    world.run_for(2)

    face = world.shell.face

    assert rows(face)["notices/notice:ready"].checked is False


# --- how often -------------------------------------------------------------------------------


def test_a_flood_of_events_is_four_faces_a_second(world: World) -> None:
    """All events are taken in, few are shown, and the last one is."""
    world.begin()
    count = int(500 * RUNNING_S)
    for number in range(count):
        speed = float(100 + number)
        event = changed("ready", in_flight=1, tokens_per_s=speed)
        world.streams[0].say(event, after_s=number * RUNNING_S / count)

    face = world.run_for(RUNNING_S + 1)

    faces, reads = len(world.shown_s), world.streams[0].reads
    assert faces <= 4 * RUNNING_S + 3
    assert faces > 3 * RUNNING_S
    assert reads <= RUNNING_S / pace.READ_S + 2
    assert f"{100 + count - 1} tokens/s" in rows(face)["header"].text


def test_a_single_event_is_shown_at_once(world: World) -> None:
    world.run_for(60)
    world.streams[0].say(changed("ready", load_s=None))
    came_s = world.now_s

    world.turn()

    assert world.shown_s[-1] == came_s
    assert world.shell.face.icon.state is IconState.READY


def test_an_idle_tray_wakes_only_for_the_daemons_silence(world: World) -> None:
    """Nothing else has a timer while nothing happens and the menu is closed."""
    world.begin(snapshot(model()))
    world.run_for(10)
    world.sleeps_s.clear()

    world.run_for(600)

    assert world.sleeps_s[1:] == [pace.SILENCE_S] * 39


def test_the_ring_of_a_load_moves_without_events(world: World) -> None:
    """At most twice a second, and only while it loads."""
    world.begin()
    world.streams[0].say(changed("loading"))
    world.turn()
    before = len(world.shell.faces)

    half = world.run_for(LOADING_S / 2)
    faces = len(world.shell.faces) - before

    assert half.icon.progress in {3, 4}
    assert 3 <= faces <= LOADING_S
    world.streams[0].say(changed("ready"))
    world.run_for(1)
    count = len(world.shell.faces)
    world.run_for(30)
    assert len(world.shell.faces) == count


# --- the open menu ---------------------------------------------------------------------------


def asked(world: World, target: str) -> int:
    return sum(call[1] == target for call in world.calls)


def test_an_open_menu_shows_fresh_figures_every_second(world: World) -> None:
    world.begin()
    world.controller.opened()
    for percent in (10.0, 20.0, 30.0):
        figures = {"cpu_percent": percent, "ram_used_bytes": 1, "ram_total_bytes": 2}
        world.answers["/status"] = status(resources=figures)
        face = world.run_for(pace.LOOK_S)

        assert f"CPU {percent:.0f} %" in rows(face)["usage"].text
    assert 3 <= asked(world, "/status") <= 4


def test_a_closed_menu_asks_nothing(world: World) -> None:
    world.begin()
    world.controller.opened()
    world.run_for(3)
    world.controller.closed()
    world.turn()
    count = asked(world, "/status")

    world.run_for(40)

    assert asked(world, "/status") == count


def test_a_menu_that_nobody_closes_is_taken_for_closed(world: World) -> None:
    """Some hosts never say it; opening it again starts again."""
    world.begin()
    world.controller.opened()
    world.run_for(pace.MENU_S + 2)
    count = asked(world, "/status")

    world.run_for(30)

    assert asked(world, "/status") == count <= pace.MENU_S + 2
    world.controller.opened()
    world.run_for(1)
    assert asked(world, "/status") > count


def test_a_slow_answer_does_not_undo_events_that_came_meanwhile(world: World) -> None:
    """Its figures are new all the same."""
    world.begin(snapshot(model("loading")))
    world.gates["/status"] = threading.Event()
    figures = {"cpu_percent": 77.0, "ram_used_bytes": 1, "ram_total_bytes": 2}
    world.answers["/status"] = status(model("loading"), resources=figures)
    world.controller.opened()
    world.turn()
    world.streams[0].say(changed("ready"))
    world.turn()
    world.gates["/status"].set()

    world.finish_jobs()
    face = world.run_for(0.3)

    assert face.icon.state is IconState.READY
    assert "CPU 77 %" in rows(face)["usage"].text


def test_a_daemon_that_answers_no_look_is_given_up(world: World) -> None:
    """A stopped process keeps its connections, so the stream alone would not tell for 45 s."""
    world.run_for(60)
    world.answers["/status"] = errors.DaemonNotReady("the daemon gave no answer within 5 s")
    world.is_up = False
    world.controller.opened()
    world.turn()

    world.finish_jobs()
    face = world.run_for(0.3)

    assert face.icon.state is IconState.OFF
    assert "no answer" in rows(face)["note"].text


def test_an_open_menu_learns_what_can_be_added(world: World) -> None:
    offer = {
        "name": "q",
        "title": "Q",
        "summary": "",
        "licence": "MIT",
        "bytes": 5,
        "stored": False,
    }
    offer |= {"memory_bytes": 5, "fits": True, "quick": True}
    world.answers["/catalogue"] = [offer]
    world.begin()

    world.controller.opened()
    world.controller.opened()
    face = world.run_for(1)

    assert rows(face)["add/offer:q"].command == Command(Verb.PULL, "q")
    assert asked(world, "/catalogue") == 1


def test_a_catalogue_that_makes_no_sense_is_no_catalogue(world: World) -> None:
    """What came with it counts."""
    world.answers["/catalogue"] = [{"name": 5}]
    world.login = {
        Part.DAEMON: PartState(enabled=True, detail=""),
        Part.TRAY: PartState(enabled=False, detail=""),
    }
    world.begin()

    world.controller.opened()
    face = world.run_for(1)

    assert "add" not in rows(face)
    assert rows(face)["autostart"].checked is True
    assert face.icon.state is IconState.IDLE


def test_a_look_around_that_is_due_while_one_goes_on_is_not_lost(world: World) -> None:
    """The one that goes on may have begun before the daemon was there."""
    world.begin()
    world.gates["/catalogue"] = threading.Event()
    world.controller.opened()
    world.turn()
    deadline = time.monotonic() + 30
    while not asked(world, "/catalogue"):  # a thread asks
        assert time.monotonic() < deadline
        time.sleep(0.01)
    world.streams[0].say(GOODBYE)
    for _ in range(5):
        world.turn()

    before = asked(world, "/catalogue")
    world.gates["/catalogue"].set()
    world.run_for(pace.AROUND_S + 1)

    assert (before, asked(world, "/catalogue")) == (1, 2)


# --- clicks ----------------------------------------------------------------------------------


def test_a_click_is_done_and_said_to_be(world: World) -> None:
    world.begin(snapshot(model("unloaded")))
    world.gates["/use"] = threading.Event()

    busy = world.click(Verb.USE, "m")
    world.gates["/use"].set()
    world.finish_jobs()
    done = world.run_for(0.3)

    assert world.calls == [("POST", "/use", {"model": "m"})]
    assert "Switching to m" in rows(busy)["busy"].text
    assert "busy" not in rows(done)


def test_a_click_that_fails_says_why(world: World) -> None:
    """In the menu for a minute, and by a notification."""
    world.run_for(1)
    world.answers["/free"] = errors.ShuttingDown("the daemon is stopping", hint="Start it again.")
    world.click(Verb.FREE)
    world.finish_jobs()

    face = world.run_for(0.3)

    assert rows(face)["note"].text == "the daemon is stopping. Start it again."
    assert [notice.kind for notice in world.shell.notices] == ["failed"]
    assert "note" in rows(world.run_for(controller.NOTE_S - 2))
    assert "note" not in rows(world.run_for(3))


def test_the_next_click_takes_the_reason_away(world: World) -> None:
    world.run_for(1)
    world.answers["/free"] = errors.ShuttingDown("no")
    world.click(Verb.FREE)
    world.finish_jobs()
    world.run_for(1)

    world.click(Verb.UNLOAD_ALL)
    world.finish_jobs()
    face = world.run_for(1)

    assert "note" not in rows(face)


def test_a_fault_in_a_job_is_a_failed_click(world: World) -> None:
    world.run_for(1)

    world.click(Verb.OPEN_LOGS)  # there is nothing to open it with in this world
    world.finish_jobs()
    face = world.run_for(1)

    assert "a fault in Stoker" in rows(face)["note"].text


def test_silencing_a_notice_is_seen_at_once_and_saved(world: World) -> None:
    world.run_for(1)

    silent = world.click(Verb.MUTE, "ready")
    world.run_for(1)
    loud = world.click(Verb.UNMUTE, "ready")
    world.finish_jobs()

    assert rows(silent)["notices/notice:ready"].checked is False
    assert rows(loud)["notices/notice:ready"].checked is True
    assert world.saved == [frozenset({"ready"}), frozenset()]


def test_quit_ends_the_loop_whatever_else_goes_on(world: World) -> None:
    """A job that hangs does not keep it."""
    world.gates["/use"] = threading.Event()
    world.begin()
    world.click(Verb.USE, "m")

    world.controller.clicked(Command(Verb.QUIT))
    world.controller.run(world.shell)

    assert world.controller.upgraded_to is None


def test_stopping_the_daemon_quits_when_it_has_stopped(world: World) -> None:
    """When it cannot be stopped, the icon stays and says why."""
    world.begin()
    world.answers["stop"] = errors.DaemonError("it hangs in the system")
    world.click(Verb.STOP)
    world.finish_jobs()
    face = world.run_for(1)

    assert "it hangs" in rows(face)["note"].text
    assert not world.controller._over
    del world.answers["stop"]
    world.controller.clicked(Command(Verb.STOP))
    world.controller.run(world.shell)
    assert world.ran == [("stoker", "stop")] * 2


def test_a_daemon_that_was_started_is_reached_at_once(world: World) -> None:
    world.is_up = False
    world.run_for(60)
    world.is_up = True

    world.click(Verb.START)
    world.finish_jobs()
    clicked_s = world.now_s
    face = world.run_for(0.5)

    assert world.attempts_s[-1] == clicked_s
    assert face.icon.state is IconState.IDLE


def test_an_address_that_cannot_be_copied_is_shown(world: World) -> None:
    world.begin()

    world.click(Verb.COPY_URL, "http://127.0.0.1:1/v1")
    world.finish_jobs()

    assert [notice.text for notice in world.shell.notices] == ["http://127.0.0.1:1/v1"]


# --- versions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("daemons", "tried", "again"),
    [
        ("0.1.0", None, None),
        ("0.2.0", None, "0.2.0"),
        ("0.2.0", "0.2.0", None),
        ("0.2.0", "0.3.0", "0.2.0"),
        ("--help", None, None),
        ("1; rm -rf /", None, None),
        ("1" * 1000, None, None),
        ("", None, None),
    ],
)
def test_a_daemon_of_another_version_starts_the_program_again_once(
    make: Callable[..., World], daemons: str, tried: str | None, again: str | None
) -> None:
    """The tray on disk may be a newer one; when it is not, it must not do so for ever."""
    world = make(tried=tried)
    facts = {"version": daemons, "api_version": 1, "pid": 7, "uptime_s": 1.0, "home": "/h"}
    world.greeting = [snapshot(daemon=facts)]

    world.begin()

    assert world.controller.upgraded_to == again
    assert world.controller._over is (again is not None)


# --- no icon ---------------------------------------------------------------------------------


def test_a_desktop_without_icons_is_told_of_once(make: Callable[..., World]) -> None:
    """After a while: at a login the panel may start later."""
    world = make(grace_s=30.0)
    world.begin()

    world.controller.hosted(visible=False)
    world.run_for(29)
    before = world.advice.given
    world.run_for(2)
    world.controller.hosted(visible=False)
    world.run_for(40)

    assert (before, world.advice.given) == (0, 1)


def test_a_panel_that_comes_late_needs_no_advice(make: Callable[..., World]) -> None:
    world = make(grace_s=30.0)
    world.begin()

    world.controller.hosted(visible=False)
    world.run_for(10)
    world.controller.hosted(visible=True)
    world.run_for(34)

    assert (world.advice.given, world.advice.forgotten) == (0, 1)


# --- faults and signals ----------------------------------------------------------------------


def test_a_fault_of_ours_does_not_freeze_the_icon(world: World, monkeypatch: Any) -> None:
    """It goes on from a new snapshot."""
    world.greeting = [snapshot(model())]
    world.is_up = False
    turns = iter(range(1000))
    working = world.controller.turn

    def turn() -> None:
        if next(turns) == 3:
            world.is_up = True
            raise ValueError("a fault")
        working()
        if world.shell.face.icon.state is IconState.READY:
            world.controller.quit()

    monkeypatch.setattr(world.controller, "turn", turn)

    world.controller.run(world.shell)

    assert world.shell.face.icon.state is IconState.READY


def test_a_signal_is_heard_among_any_number_of_clicks(world: World) -> None:
    world.begin()
    for _ in range(5000):
        world.controller.closed()

    os.write(world.controller.bell, bytes([signal.SIGTERM]))  # raises when there is no room
    world.controller.run(world.shell)

    assert world.controller._over


def test_a_fault_that_never_ends_ends_the_loop(world: World, monkeypatch: Any) -> None:
    """Better than to spin."""
    monkeypatch.setattr(world.controller, "turn", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        world.controller.run(world.shell)


@pytest.mark.parametrize("number", sorted(controller.QUIT_SIGNALS))
def test_a_signal_ends_the_loop(world: World, number: int) -> None:
    """Its number is the byte that Python's own handler writes."""
    os.write(world.controller.bell, bytes([number]))

    world.controller.run(world.shell)

    assert world.controller._over


def test_another_signal_does_not(world: World) -> None:
    os.write(world.controller.bell, bytes([signal.SIGUSR1]))

    world.begin()

    assert not world.controller._over


def test_what_is_said_after_the_end_is_not_heard(world: World) -> None:
    """An adapter or a job may be slower than the loop."""
    world.controller.quit()
    world.controller.run(world.shell)
    world.controller.close()

    world.controller.opened()
    world.controller.clicked(Command(Verb.FREE))

    assert world.calls == []
