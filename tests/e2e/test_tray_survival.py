"""The tray lives on, whatever happens to the daemon, the panel and the bus, or what they say."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stoker import __version__
from stoker.schemas import (
    DaemonView,
    MemoryView,
    ModelChanged,
    ModelView,
    PullChanged,
    PullView,
    ResourcesView,
    ServerView,
    StatusView,
    StoreChanged,
)
from stoker.types import ModelState, PullState
from tests.fakes.daemon import Daemon
from tests.fakes.desktop_control import ScriptedControl
from tests.fakes.desktop_programs import wait_until
from tests.fakes.desktop_session import Session, artefact_folder
from tests.fakes.session_bus import DBusError, PrivateBus, settle
from tests.fakes.tray_host import Line, TrayHost

EVENTS_PER_S = 500
FLOOD_S = 6
MANY = 200
NAMES = (
    "qwen3-4b_instruct_Q4_K_M",
    "日本語モデル",
    "модель-Ё",
    "نموذج-عربي",
    "मॉडल",
    "👩‍👩‍👧 family",
    "e\u0301tude",
    "\u202egnp.exe",  # turns what follows around
    "line\nbreak\ttab",
    "nul\x00byte",
    "_mnemonic_ __twice__ &both",
    "<b>markup</b> &amp;",
    "%s%n${HOME}",
    "x" * 10_000,
    "\ud83d",  # half of a pair; JSON can say it
)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    if not PrivateBus.is_installed():
        problem = "THE TRAY WAS NOT TRIED ON A SESSION BUS: needs dbus-daemon"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    with Session(artefact_folder(tmp_path / "artefacts")) as session:
        yield session


@pytest.fixture
def home(session: Session) -> Path:
    return session.folder / "stoker"


@pytest.fixture
def host(session: Session) -> Iterator[TrayHost]:
    with TrayHost(session.bus) as host:
        yield host


def status(models: tuple[ModelView, ...] = (), pulls: tuple[PullView, ...] = ()) -> StatusView:
    return StatusView(
        daemon=DaemonView(version=__version__, pid=1, uptime_s=5.0, home="/nowhere"),
        server=ServerView(enabled=True, base_url="http://127.0.0.1:4328/v1"),
        models=models,
        pulls=pulls,
        resources=ResourcesView(cpu_percent=8, ram_used_bytes=5 * 10**9, ram_total_bytes=10**10),
    )


def ready(name: str, tokens_per_s: float = 0) -> ModelView:
    return ModelView(
        id=name,
        state=ModelState.READY,
        memory=MemoryView(predicted_bytes=10**9, resident_bytes=9 * 10**8),
        tokens_per_s=tokens_per_s,
        in_flight=1 if tokens_per_s else 0,
    )


def stored(name: str) -> ModelView:
    return ModelView(id=name, state=ModelState.UNLOADED)


@contextmanager
def scripted(session: Session, home: Path, *models: ModelView) -> Iterator[ScriptedControl]:
    """A tray that is connected to a scripted daemon."""
    with ScriptedControl(home, status(models)) as control:
        session.start_tray(home)
        wait_until(lambda: control.watchers == 1, "the tray's connection")
        yield control
        session.programs.end("tray")


def labels(host: TrayHost) -> list[str]:
    return [line.label for line in host.menu() if line.label]


def wait_for_label(host: TrayHost, beginning: str) -> Line:
    """The first line that begins like this, once it is there."""

    def look() -> Line | None:
        try:
            return next((line for line in host.menu() if line.label.startswith(beginning)), None)
        except DBusError:  # the tray is starting again
            return None

    return wait_until(look, f"{beginning!r} in the menu", 60)


def rows_with_login(host: TrayHost) -> list[int] | None:
    """The menu's rows, once those are there that the tray must ask for first."""
    lines = list(host.menu())
    there = any(line.label == "Start at login" for line in lines)
    return [line.number for line in lines] if there else None


def tray_of(session: Session) -> psutil.Process:
    return session.programs.process("tray")


# --- what it is connected to ------------------------------------------------------------------


@pytest.mark.e2e
def test_the_daemon_is_killed_and_started_again(
    session: Session, host: TrayHost, daemon: Daemon
) -> None:
    """The same tray says that it is gone, and by itself that it is back."""
    tray = session.start_tray(daemon.home)
    host.wait_for_item()
    wait_for_label(host, "No model loaded")

    daemon.kill()
    wait_for_label(host, "Stoker is not running")
    daemon.start()

    wait_for_label(host, "No model loaded")
    wait_for_label(host, "starter")
    assert tray.is_running()
    assert len(host.items) == 1


@pytest.mark.e2e
def test_a_daemon_that_hangs_does_not_freeze_the_menu(
    session: Session, host: TrayHost, daemon: Daemon
) -> None:
    """The menu opens and takes clicks; when the daemon goes on, it does what was asked."""
    session.start_tray(daemon.home)
    host.wait_for_item()
    wait_for_label(host, "starter")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            host.open_menu()
            assert "Open logs" in labels(host)
            host.event(wait_for_label(host, "starter").number, "clicked")
            host.close_menu()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)

    wait_for_label(host, "starter — ready")


def test_the_panel_is_restarted(session: Session, home: Path, host: TrayHost) -> None:
    """Each new panel gets the icon, and its menu works."""
    with scripted(session, home, stored("one")) as control:
        host.wait_for_item()
        for _ in range(3):
            host.close()
            host.open()
            host.wait_for_item()

        host.event(wait_for_label(host, "one").number, "clicked")
        wait_until(lambda: control.asked_for("/use"), "a click that reaches the daemon")


def test_the_panel_comes_later_than_the_tray(session: Session, home: Path) -> None:
    with scripted(session, home, stored("one")), TrayHost(session.bus) as late:
        late.wait_for_item()
        wait_for_label(late, "one")


def test_the_bus_is_killed_and_comes_back(session: Session, home: Path) -> None:
    """The same tray finds the new bus and the panel on it; events of the time between count."""
    with scripted(session, home, stored("one")) as control:
        with TrayHost(session.bus) as host:
            host.wait_for_item()
            wait_for_label(host, "one")
            session.bus.kill()
        control.publish(StoreChanged(id="two", change="added"))
        tray = tray_of(session)
        assert tray.is_running()

        session.bus.start()

        with TrayHost(session.bus) as host:
            host.wait_for_item()
            wait_for_label(host, "two")
        assert tray_of(session) == tray


def test_there_is_no_bus_at_first(session: Session, home: Path) -> None:
    """A tray that starts before the bus appears in the panel when there is one."""
    session.bus.kill()
    with scripted(session, home, stored("one")):
        session.bus.start()

        with TrayHost(session.bus) as host:
            host.wait_for_item()
            wait_for_label(host, "one")


# --- what it is told --------------------------------------------------------------------------


def test_500_events_a_second(session: Session, home: Path, host: TrayHost) -> None:
    """The menu answers during the flood, shows its end, and redraws at a rate for eyes."""
    with scripted(session, home, ready("busy"), stored("other")) as control:
        host.wait_for_item()
        wait_for_label(host, "busy — ready")
        before, began = len(host.signals), time.monotonic()

        for n in range(FLOOD_S * EVENTS_PER_S):
            control.publish(ModelChanged(model=ready("busy", tokens_per_s=11 + n % 80)))
            if n % EVENTS_PER_S == 0:
                host.event(wait_for_label(host, "other").number, "clicked")
            time.sleep(1 / EVENTS_PER_S)
        control.publish(ModelChanged(model=ready("busy", tokens_per_s=4321)))

        wait_for_label(host, "busy — answering, 4321 tokens/s")
        settle(host)
        assert control.asked_for("/use") > 0
        assert control.asked_for("/status") == 0  # the menu was closed: nothing was polled
        assert control.watchers == 1
        signals = len(host.signals) - before
        # Each redraw sends up to four, and there are four redraws a second.
        assert signals < 20 * (time.monotonic() - began)


def test_an_open_menu_is_kept_fresh_and_a_closed_one_asks_nothing(
    session: Session, home: Path, host: TrayHost
) -> None:
    with scripted(session, home, stored("one")) as control:
        host.wait_for_item()
        wait_for_label(host, "one")
        assert control.asked_for("/status") == 0

        host.open_menu()
        wait_until(lambda: control.asked_for("/status") > 2, "questions while the menu is open")
        host.close_menu()
        settle(host)
        control.publish(StoreChanged(id="two", change="added"))
        wait_for_label(host, "two")  # whatever was on its way when it closed has been asked
        asked = control.asked_for("/status")
        time.sleep(3)

        assert control.asked_for("/status") <= asked + 1


def test_the_rows_of_an_open_menu_stay_where_they_are(
    session: Session, home: Path, host: TrayHost
) -> None:
    """Texts change under the pointer, rows wait: some panels close a menu whose rows change."""
    with scripted(session, home, ready("one")) as control:
        host.wait_for_item()
        wait_for_label(host, "one — ready")
        rows = wait_until(lambda: rows_with_login(host), "the whole menu")

        pulls: tuple[PullView, ...] = ()
        for opened in range(2):
            host.open_menu()
            model = ready("one", tokens_per_s=100 + opened)
            pull = PullView(id=f"p{opened}", reference=f"new-{opened}", state=PullState.FETCHING)
            pulls = (*pulls, pull)
            control.status = status((model,), pulls)  # an open menu asks for it each second
            control.publish(PullChanged(pull=pull), ModelChanged(model=model))
            wait_for_label(host, f"one — answering, {100 + opened} tokens/s")
            assert [line.number for line in host.menu()] == rows

            if opened == 0:
                host.close_menu()
            else:  # GTK's panels never tell that a menu was closed, only that it opens again
                host.open_menu()
            wait_for_label(host, f"new-{opened}")
            host.close_menu()
            rows = [line.number for line in host.menu()]


def test_200_models(session: Session, home: Path, host: TrayHost) -> None:
    """Each can be reached and clicked, and no level of the menu is higher than a screen."""
    names = [f"model-{n:03}" for n in range(MANY)]
    with scripted(session, home, *(stored(name) for name in names)) as control:
        host.wait_for_item()
        wait_for_label(host, "model-000")

        lines = [line for line in host.menu() if line.kind == "radio"]
        assert sorted(line.label for line in lines) == [*sorted(["None (unload)", *names])]
        assert all(len(line.inside) <= 30 for line in host.menu())
        host.event(wait_for_label(host, f"model-{MANY - 1}").number, "clicked")
        wait_until(lambda: control.asked_for("/use"), "a click that reaches the daemon")
        (use,) = [asked for asked in control.asked if asked.target == "/use"]
        assert json.loads(use.body) == {"model": f"model-{MANY - 1}"}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_a_name_in_any_script(session: Session, home: Path, host: TrayHost, name: str) -> None:
    """It is one harmless line, and a click names exactly this model to the daemon."""
    with scripted(session, home) as control:
        host.wait_for_item()
        model = {"id": name, "state": "unloaded"}
        control.publish_text(json.dumps({"type": "model", "model": {**model, "state": "loading"}}))
        control.publish_text(json.dumps({"type": "model", "model": model}))

        def look() -> Line | None:
            lines = [line for line in host.menu() if line.kind == "radio"]
            return next((line for line in lines if not line.label.startswith("None")), None)

        line = wait_until(look, "the model in the menu")
        assert 0 < len(line.label) < 120
        assert not set(line.label) & set("\n\t\0\u202e")
        host.event(line.number, "clicked")
        wait_until(lambda: control.asked_for("/use"), "a click that reaches the daemon")
        (use,) = [asked for asked in control.asked if asked.target == "/use"]
        assert json.loads(use.body) == {"model": name}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"type": 5}',
        '{"type": "model"}',
        '{"type": "model", "model": {"id": 7, "state": "ready"}}',
        '{"type": "snapshot", "status": {"models": "many"}}',
        '{"type": "resources", "resources": {"cpu_percent": NaN}}',
        "[" * 100_000,
        "x" * 9_000_000,
    ],
    ids=lambda text: text[:40],
)
def test_a_broken_event_is_answered_by_a_new_connection(
    session: Session, home: Path, host: TrayHost, text: str
) -> None:
    """The tray distrusts what it knew, and takes a new snapshot."""
    with scripted(session, home, stored("one")) as control:
        host.wait_for_item()
        wait_for_label(host, "one")
        control.status = status((stored("fresh"),))

        control.publish_text(text)

        wait_for_label(host, "fresh")
        assert control.asked_for("/events") == 2


def test_a_daemon_of_another_version_makes_the_tray_start_again_once(
    session: Session, home: Path, host: TrayHost
) -> None:
    """The program on disk is another one then; when it is not, the tray lives with that."""
    with ScriptedControl(home, status((stored("one"),))) as control:
        newer = control.status.daemon.model_copy(update={"version": "99.1"})
        control.status = control.status.model_copy(update={"daemon": newer})
        tray = session.start_tray(home)
        host.wait_for_item()

        wait_until(lambda: "--after-upgrade" in tray.cmdline(), "the tray's new start")
        wait_for_label(host, "one")
        control.publish(StoreChanged(id="two", change="added"))
        wait_for_label(host, "two")
        assert tray.cmdline()[-1] == "99.1"
        wait_until(lambda: control.watchers == 1, "the end of the first connection")


def test_an_unknown_event_changes_nothing(session: Session, home: Path, host: TrayHost) -> None:
    """A newer daemon may say more."""
    with scripted(session, home, stored("one")) as control:
        host.wait_for_item()
        wait_for_label(host, "one")

        control.publish_text('{"type": "weather", "sun": true}')
        control.become(status((stored("one"), stored("two"))))

        wait_for_label(host, "two")
        assert control.asked_for("/events") == 1
