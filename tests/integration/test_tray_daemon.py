"""The tray's controller and program against a real daemon, and against one that misbehaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stoker import __version__, paths
from stoker.paths import Paths
from stoker.schemas import ModelChanged, ModelView, Snapshot, StatusView
from stoker.types import ModelState
from stoker_tray import app, pace
from stoker_tray.controller import Controller
from stoker_tray.face import Command, IconState, Verb
from stoker_tray.wire import EventStream
from tests.fakes.daemon import Daemon
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.scripted_socket import STREAM_HEAD, answer, event, says, scripted, silent
from tests.fakes.tray_shell import RecordingShell, rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no UNIX sockets")

WAIT_S = 30.0
EVENTS_PER_S = 500
FLOOD_S = 4.0


class NoAdvice:
    def give(self, shell: object) -> None:
        _ = shell

    def forget(self) -> None:
        pass


@contextmanager
def tray(places: Paths) -> Iterator[tuple[Controller, RecordingShell]]:
    """The real controller on its own thread; it must end when it is told to."""
    places.create()
    shell = RecordingShell()
    controller = Controller(
        tools=app.tools(places),
        connect=lambda: EventStream(places.control_socket),
        advice=NoAdvice(),
        upgrade=lambda _version: None,
    )
    thread = threading.Thread(target=controller.run, args=(shell,))
    thread.start()
    try:
        yield controller, shell
    finally:
        controller.clicked(Command(Verb.QUIT))
        thread.join(WAIT_S)
        controller.close()
    assert not thread.is_alive()


def is_off(face: object) -> bool:
    return getattr(face, "icon").state is IconState.OFF  # noqa: B009


# --- a real daemon ---------------------------------------------------------------------------


@pytest.fixture
def daemon(stoker_home: Path, transport: str) -> Daemon:
    return Daemon(stoker_home, test_control=transport)


def test_the_icon_follows_a_daemon_that_is_killed_and_restarted(daemon: Daemon) -> None:
    """At once when it is gone; soon when it is back; at once when the menu is opened."""
    with tray(daemon.paths) as (controller, shell), daemon:
        shell.until(is_off)
        controller.opened()
        shell.until(lambda face: face.icon.state is IconState.IDLE)

        daemon.kill()
        shell.until(is_off)
        daemon.start()

        shell.until(lambda face: face.icon.state is IconState.IDLE)
        daemon.stop()
        assert shell.until(is_off).title == "Stoker is not running"


def test_what_is_clicked_reaches_the_daemon(daemon: Daemon) -> None:
    """A model that another client adds is in the menu; the server goes off and on."""
    file = daemon.home / "m.gguf"
    with tray(daemon.paths) as (controller, shell), daemon:
        file.write_bytes(tiny_gguf())
        daemon.add(file, "m")
        shell.until(lambda face: "models/model:m" in rows(face))

        controller.clicked(Command(Verb.SERVER, "off"))
        shell.until(is_off)
        assert not daemon.status().server.enabled
        controller.clicked(Command(Verb.SERVER, "on"))
        shell.until(lambda face: face.icon.state is IconState.IDLE)

        controller.opened()
        shown = shell.until(lambda face: "CPU" in rows(face)["usage"].text)
        assert "GB" in rows(shown)["memory"].text
        shell.until(lambda face: "autostart" in rows(face))


def test_a_stopped_daemon_freezes_nothing(daemon: Daemon) -> None:
    """Its connections live on; the menu says that it does not answer, and clicks are taken."""
    with tray(daemon.paths) as (controller, shell), daemon:
        shell.until(lambda face: face.icon.state is IconState.IDLE)
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            controller.clicked(Command(Verb.FREE))
            shell.until(lambda face: "busy" in rows(face))
            controller.clicked(Command(Verb.MUTE, "ready"))
            shell.until(lambda face: rows(face)["notices/notice:ready"].checked is False)
            controller.opened()

            face = shell.until(is_off)

            assert "no answer" in rows(face)["note"].text
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        controller.opened()
        shell.until(lambda face: face.icon.state is IconState.IDLE and "note" not in rows(face))
        shell.until(lambda face: "busy" not in rows(face))


def test_quitting_does_not_wait_for_a_stopped_daemon(daemon: Daemon) -> None:
    with daemon:
        with tray(daemon.paths) as (controller, shell):
            shell.until(lambda face: face.icon.state is IconState.IDLE)
            os.kill(daemon.pid, signal.SIGSTOP)
            controller.clicked(Command(Verb.USE, "m"))
            controller.opened()
            shell.until(lambda face: "busy" in rows(face))

        os.kill(daemon.pid, signal.SIGCONT)


# --- one that misbehaves ---------------------------------------------------------------------


@pytest.fixture
def places(stoker_home: Path) -> Paths:
    return paths.from_environment({"STOKER_HOME": str(stoker_home)})


def snapshot(*models: ModelView) -> bytes:
    status = StatusView.model_validate(
        {
            "daemon": {"version": __version__, "pid": 1, "uptime_s": 1, "home": "/h"},
            "server": {"enabled": True, "base_url": "http://127.0.0.1:1/v1"},
            "models": models,
            "resources": {"cpu_percent": 1, "ram_used_bytes": 1, "ram_total_bytes": 2},
        }
    )
    return event(Snapshot(status=status).model_dump_json().encode())


def busy(speed: float) -> bytes:
    view = ModelView(id="m", state=ModelState.READY, in_flight=1, tokens_per_s=speed)
    return event(ModelChanged(model=view).model_dump_json().encode())


def flood(peer: socket.socket) -> None:
    """500 events a second, evenly; then silence."""
    events = [busy(10_000 + number) for number in range(int(EVENTS_PER_S * FLOOD_S))]
    peer.sendall(STREAM_HEAD + snapshot())
    begin_s = time.monotonic()
    for number, text in enumerate(events):
        time.sleep(max(0.0, begin_s + number / EVENTS_PER_S - time.monotonic()))
        peer.sendall(text)
    silent(peer)


def test_five_hundred_events_a_second_are_four_faces_a_second(places: Paths) -> None:
    """However many come, the last one is shown."""
    last = f"{10_000 + int(EVENTS_PER_S * FLOOD_S) - 1} tokens/s"

    nothing = says(answer(b"[]"))
    with (
        scripted(places.control_socket, flood, calls=nothing),
        tray(places) as (_, shell),
    ):
        shell.until(lambda face: "header" in rows(face) and last in rows(face)["header"].text)
        took_s = shell.times_s[-1] - shell.times_s[0]

        assert len(shell.faces) <= took_s / pace.FACE_S + 2
        assert len(shell.faces) >= 3


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        STREAM_HEAD + event(b"[]"),
        STREAM_HEAD + event(b'{"type": "snapshot", "status": {}}'),
        STREAM_HEAD + b"zz\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_nonsense_is_no_daemon_until_sense_comes(places: Paths, nonsense: bytes) -> None:
    """Whatever answers on the socket, the icon lives on and tries again."""
    asked: list[socket.socket] = []

    def first_wrong(peer: socket.socket) -> None:
        asked.append(peer)
        if asked == [peer]:
            peer.sendall(nonsense)
        else:
            peer.sendall(STREAM_HEAD + snapshot())
            silent(peer)

    nothing = says(answer(b"[]"))
    with (
        scripted(places.control_socket, first_wrong, calls=nothing),
        tray(places) as (_, shell),
    ):
        shell.until(is_off)
        shell.until(lambda face: face.icon.state is IconState.IDLE)


# --- the program -----------------------------------------------------------------------------


@contextmanager
def program(home: Path, *words: str, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """`stoker-tray` without any desktop; ended at the end of the block if it still runs."""
    away = ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")
    environ = {name: value for name, value in os.environ.items() if name not in away}
    environ |= {"STOKER_HOME": str(home), "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"}
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "stoker_tray", *words],
        env=environ | changes,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def log_of(home: Path) -> str:
    file = home / "state" / "logs" / "tray.log"
    return file.read_text() if file.exists() else ""


def wait_for(look: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def has_started(home: Path) -> bool:
    return "has started" in log_of(home)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_program_in_order(stoker_home: Path, number: int) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("whoever runs the tests ignores it, and so do programs that they start")
    with program(stoker_home) as process:
        wait_for(lambda: has_started(stoker_home), "the tray starts")
        process.send_signal(number)

        _, said = process.communicate(timeout=WAIT_S)

    assert (process.returncode, said) == (0, "")
    assert "has ended" in log_of(stoker_home)


def test_a_second_icon_for_a_home_ends_at_once(stoker_home: Path) -> None:
    with program(stoker_home):
        wait_for(lambda: has_started(stoker_home), "the tray starts")

        with program(stoker_home) as second:
            out, said = second.communicate(timeout=WAIT_S)

    assert (second.returncode, out.count("\n"), said) == (0, 1, "")


@pytest.mark.parametrize(
    ("words", "code", "out", "said"),
    [
        (["--version"], 0, f"stoker-tray {__version__}\n", ""),
        (["--help"], 0, "Usage: stoker-tray", ""),
        (["--wrong"], 2, "", "error: not understood: --wrong\nhint:  See `stoker-tray --help`.\n"),
    ],
)
def test_the_command_line(
    stoker_home: Path, words: list[str], code: int, out: str, said: str
) -> None:
    with program(stoker_home, *words) as process:
        told = process.communicate(timeout=WAIT_S)

    assert process.returncode == code
    assert told[0].startswith(out)
    assert told[1] == said
    assert list(stoker_home.iterdir()) == []


def test_a_home_that_cannot_be_used_is_two_lines(stoker_home: Path) -> None:
    (stoker_home / "state").write_text("a file in the way")

    with program(stoker_home) as process:
        _, said = process.communicate(timeout=WAIT_S)

    assert process.returncode == 1
    assert [line[:6] for line in said.splitlines()] == ["error:", "hint: "]


def of_version(version: str) -> Callable[[socket.socket], None]:
    text = snapshot().replace(f'"{__version__}"'.encode(), f'"{version}"'.encode())
    body = text.split(b"\r\n", 1)[1].removesuffix(b"\r\n")

    def script(peer: socket.socket) -> None:
        peer.sendall(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(body), body))
        silent(peer)

    return script


def test_an_upgraded_daemon_brings_an_upgraded_tray(stoker_home: Path, places: Paths) -> None:
    """The same process runs the program on disk, once, with its lock handed over."""
    launcher = stoker_home / "stoker"
    for file, line in (
        (launcher, ""),
        (launcher.with_name("stoker-tray"), f'exec {sys.executable} -I -m stoker_tray "$@"'),
    ):
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

    with (
        scripted(places.control_socket, of_version("9.9.9")),
        program(stoker_home, STOKER_COMMAND=str(launcher)) as process,
    ):
        wait_for(lambda: log_of(stoker_home).count("has started") == 2, "it starts again")
        wait_for(lambda: "--after-upgrade" in psutil.Process(process.pid).cmdline(), "as told")
        command = psutil.Process(process.pid).cmdline()
        process.terminate()
        process.communicate(timeout=WAIT_S)

    assert command[-2:] == ["--after-upgrade", "9.9.9"]
    assert process.returncode == 0
    assert log_of(stoker_home).count("has started") == 2


def test_a_program_that_cannot_start_again_goes_on(stoker_home: Path, places: Paths) -> None:
    """A launcher that an upgrade has just removed must not cost the icon."""
    launcher = stoker_home / "stoker"
    for file in (launcher, launcher.with_name("stoker-tray")):
        file.write_text("#!/nowhere\n")
        file.chmod(0o755)

    with (
        scripted(places.control_socket, of_version("9.9.9")),
        program(stoker_home, STOKER_COMMAND=str(launcher)) as process,
    ):
        wait_for(lambda: "cannot start again" in log_of(stoker_home), "it tries")
        wait_for(lambda: log_of(stoker_home).count("has started") == 2, "it goes on")
        assert process.poll() is None


def test_the_log_is_kept_small(stoker_home: Path, places: Paths) -> None:
    """One older file; nothing of it is lost at the turn."""
    places.create()
    code = (
        "import logging, sys; from pathlib import Path; from stoker_tray import app;"
        "app.LOG_BYTES = 2000; app.log_to(Path(sys.argv[1]));"
        "[logging.warning('line %d \\ud800', n) for n in range(60)]"
    )

    subprocess.run([sys.executable, "-c", code, str(places.tray_log)], check=True, timeout=WAIT_S)

    kept = [places.tray_log.with_name("tray.log.1"), places.tray_log]
    assert all(file.stat().st_size < 2200 for file in kept)
    text = "".join(file.read_text() for file in kept)
    numbers = [int(line.split("line ")[1].split()[0]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 60))
