from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from stoker import sd_notify
from stoker.events import EventBus
from stoker.schemas import ModelChanged, ModelView, ServerView, StoreChanged
from stoker.sd_notify import notify, status_line, watchdog_s
from stoker.types import ModelId, ModelState
from tests.fakes.manager import Manager

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no service manager of this kind")


def test_nobody_asked() -> None:
    assert notify("READY=1", {}) is False


def test_the_message_arrives() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            receiver.settimeout(5)

            sent = notify("READY=1\nSTATUS=ok", {"NOTIFY_SOCKET": str(path)})

            assert sent is True
            assert receiver.recv(100) == b"READY=1\nSTATUS=ok"


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0stoker-test-notify")
        receiver.settimeout(5)

        assert notify("STOPPING=1", {"NOTIFY_SOCKET": "@stoker-test-notify"}) is True
        assert receiver.recv(100) == b"STOPPING=1"


def test_a_dead_manager_is_no_error(tmp_path: Path) -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")}) is False
    assert notify("READY=1", {"NOTIFY_SOCKET": "relative"}) is False


# --- a manager that answers ------------------------------------------------------------------


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with Manager() as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        yield manager


def test_what_was_told_has_been_read_when_the_wait_is_over(manager: Manager) -> None:
    """The manager comes to the end of the pipe after all that was told before."""
    over: list[bool] = []
    notify("READY=1")
    waiting = threading.Thread(target=lambda: over.append(sd_notify.wait_until_read()))
    waiting.start()

    assert manager.next() == "READY=1"
    assert waiting.is_alive()
    assert manager.next() == "BARRIER=1"
    waiting.join(10)

    assert over == [True]


def test_nobody_waits_for_a_manager_that_is_not_there(tmp_path: Path) -> None:
    """Nor for one that does not read."""
    assert not sd_notify.wait_until_read({})
    assert not sd_notify.wait_until_read({"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_a_manager_that_does_not_read_is_given_up(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "_READ_S", 0.01)

    assert not sd_notify.wait_until_read()


# --- the watchdog ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({}, None),
    ],
)
def test_how_long_the_manager_waits(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_s(environ, 7) == seconds


def _block(seconds: float) -> None:
    """As code does that keeps the event loop from anything else."""
    time.sleep(seconds)


@pytest.mark.anyio
async def test_signs_of_life_come_from_the_event_loop(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again; while the loop is stuck there is none."""
    monkeypatch.setenv("WATCHDOG_USEC", "10000")
    async with anyio.create_task_group() as tasks:
        await tasks.start(sd_notify.keep_alive)
        for _ in range(3):
            assert await anyio.to_thread.run_sync(manager.next) == "WATCHDOG=1"
        manager.drain()
        _block(0.05)

        assert not manager.has_message()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_without_a_watchdog_nothing_is_told(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(sd_notify.keep_alive)

    assert not manager.has_message()


@pytest.mark.anyio
async def test_a_slow_start_asks_for_more_time(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once, and not for ever."""
    monkeypatch.setattr(sd_notify, "_EXTEND_EVERY_S", 0.001)
    monkeypatch.setattr(sd_notify, "_EXTENSIONS", 3)

    await sd_notify.extend_start()

    assert manager.drain() == ["EXTEND_TIMEOUT_USEC=30000000"] * 3


def test_a_stop_asks_for_the_time_that_it_may_take() -> None:
    lines = sd_notify.time_to_stop(75).split("\n")

    assert lines[0] == "STOPPING=1"
    assert "EXTEND_TIMEOUT_USEC=75000000" in lines


# --- the line --------------------------------------------------------------------------------

ON = ServerView(enabled=True, base_url="http://h/v1")
A, B = ModelId("a"), ModelId("b")


@pytest.mark.parametrize(
    ("server", "models", "line"),
    [
        (ON, {}, "Serving http://h/v1"),
        (ON, {A: ModelState.UNLOADED, B: ModelState.QUEUED}, "Serving http://h/v1"),
        (ON, {B: ModelState.READY, A: ModelState.READY}, "Serving http://h/v1; ready: a, b"),
        (
            ON,
            {A: ModelState.FAILED, B: ModelState.LOADING},
            "Serving http://h/v1; loading: b; failed: a",
        ),
        (ON.model_copy(update={"enabled": False}), {A: ModelState.DRAINING}, "The server is off"),
    ],
)
def test_the_line_says_what_is_served(
    server: ServerView, models: dict[ModelId, ModelState], line: str
) -> None:
    assert status_line(server, models) == line


@pytest.mark.anyio
async def test_the_line_follows_what_is_served(manager: Manager) -> None:
    """It is told when it is another one, and only then."""
    bus = EventBus()
    lines = iter(["missed", "missed", "loading", "loading", "ready"])
    changed = ModelChanged(model=ModelView(id="a", state=ModelState.READY))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sd_notify.tell_status, bus, lambda: next(lines), "told")
        await anyio.wait_all_tasks_blocked()
        bus.publish(StoreChanged(id="a", change="added"))
        for _ in range(4):
            bus.publish(changed)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert manager.drain() == ["STATUS=missed", "STATUS=loading", "STATUS=ready"]


@pytest.mark.anyio
async def test_without_a_manager_nobody_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    bus = EventBus()
    with anyio.fail_after(10):
        await sd_notify.tell_status(bus, lambda: "x", "")
