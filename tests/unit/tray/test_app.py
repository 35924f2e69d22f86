"""The program around the icon: its words, its advice, and how it ends when the icon misbehaves."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.errors import BadUsage
from stoker_tray import app
from stoker_tray.controller import QUIT_SIGNALS
from tests.fakes.tray_shell import RecordingShell

WAIT_S = 60.0

posix = pytest.mark.skipif(os.name != "posix", reason="a program is ended without being asked")


@pytest.mark.parametrize(
    "words",
    [
        ["-x"],
        ["--version", "x"],
        ["--quit", "--replace"],
        ["--after-upgrade"],
        ["--after-upgrade", "1", "2"],
        [""],
    ],
)
def test_words_that_are_not_understood_are_refused(words: list[str]) -> None:
    with pytest.raises(BadUsage):
        app.parse(words)


def test_the_words_that_are_understood() -> None:
    assert app.parse([]) == app.Words()
    assert app.parse(["--after-upgrade", "1.2"]) == app.Words(tried="1.2")
    assert app.parse(["--quit"]) == app.Words(ends_other=True, runs=False)
    assert app.parse(["--replace"]) == app.Words(ends_other=True)


# --- signals ---------------------------------------------------------------------------------


@pytest.fixture
def bell() -> Iterator[tuple[socket.socket, socket.socket]]:
    wake, bell = socket.socketpair()
    with wake, bell:
        bell.settimeout(0)
        yield wake, bell


def test_a_signal_is_a_byte_and_nothing_more(bell: tuple[socket.socket, socket.socket]) -> None:
    """Afterwards everything is as it was."""
    wake, ring = bell
    before = [signal.getsignal(number) for number in sorted(QUIT_SIGNALS)]

    with app.signals_to(ring.fileno()):
        signal.raise_signal(signal.SIGTERM)

    assert wake.recv(10) == bytes([signal.SIGTERM])
    assert [signal.getsignal(number) for number in sorted(QUIT_SIGNALS)] == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no terminals to hang up")
def test_what_is_ignored_stays_ignored(bell: tuple[socket.socket, socket.socket]) -> None:
    """`nohup stoker-tray` outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with app.signals_to(bell[1].fileno()):
            during = signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert during == signal.SIG_IGN


# --- advice ----------------------------------------------------------------------------------


@pytest.fixture
def gnome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "GNOME")


def test_advice_is_given_once_until_there_was_an_icon(gnome: None, tmp_path: Path) -> None:
    """However often the user logs in; a terminal is told each time."""
    told, terminal = tmp_path / "told.txt", io.StringIO()
    shell = RecordingShell()

    app.Advice(told, None).give(shell)
    app.Advice(told, terminal).give(shell)
    once = len(shell.notices)
    app.Advice(told, None).forget()
    app.Advice(told, None).give(shell)

    assert (once, len(shell.notices)) == (1, 2)
    assert "AppIndicator" in terminal.getvalue()
    assert "AppIndicator" in shell.notices[0].text


def test_other_advice_is_given_again(
    gnome: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The desktop has changed, and with it what helps."""
    shell, advice = RecordingShell(), app.Advice(tmp_path / "told.txt", None)

    advice.give(shell)
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "sway")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    advice.give(shell)

    assert len({notice.text for notice in shell.notices}) == 2


def test_a_note_that_cannot_be_read_is_no_note(gnome: None, tmp_path: Path) -> None:
    (tmp_path / "told.txt").write_bytes(b"\xff\0")
    shell = RecordingShell()

    for _ in range(2):
        app.Advice(tmp_path / "told.txt", None).give(shell)

    assert len(shell.notices) == 1


def test_advice_that_cannot_be_noted_is_given(gnome: None, tmp_path: Path) -> None:
    (tmp_path / "told.txt").mkdir()
    shell, advice = RecordingShell(), app.Advice(tmp_path / "told.txt", None)

    advice.give(shell)
    advice.forget()

    assert len(shell.notices) == 1


# --- an icon that misbehaves, in a program of its own ----------------------------------------

PROGRAM = """
import sys, threading, time
import stoker_tray.adapters
from stoker_tray import app
from stoker_tray.controller import QUIT_SIGNALS
from stoker_tray.face import Command, Verb

class Shell:
    def __init__(self, listener):
        self.listener, self.over = listener, threading.Event()
        {init}
    def show(self, face):
        {show}
    def notify(self, notice):
        pass
    def run(self):
        {run}
    def stop(self):
        self.over.set()

stoker_tray.adapters.open_shell = Shell
sys.exit(app.main([]))
"""
QUIT = "self.listener.clicked(Command(Verb.QUIT))"


def run_with(home: Path, **lines: str) -> tuple[int, str, str]:
    """The program with an icon made of these lines: its exit code, what it said, its log."""
    code = PROGRAM.format(**{"init": "pass", "show": "pass", "run": "self.over.wait()", **lines})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    log = home / "state" / "logs" / "tray.log"
    return done.returncode, done.stderr, log.read_text()


def test_an_icon_that_goes_in_order_ends_the_program(stoker_home: Path) -> None:
    code, said, log = run_with(stoker_home, run=f"{QUIT}; self.over.wait()")

    assert (code, said) == (0, "")
    assert "has ended" in log


def test_an_icon_that_does_not_go_does_not_keep_the_program(stoker_home: Path) -> None:
    """Stuck in its system, it is left behind."""
    code, said, log = run_with(stoker_home, run=f"{QUIT}; time.sleep(1000)")

    assert (code, said) == (0, "")
    assert "did not go in time" in log


@pytest.mark.parametrize("where", ["init", "run"])
def test_an_icon_that_fails_is_two_lines(stoker_home: Path, where: str) -> None:
    """And a traceback in the log."""
    code, said, log = run_with(stoker_home, **{where: "1 / 0"})

    assert code == 1
    assert [line[:6] for line in said.splitlines()] == ["error:", "hint: "]
    assert "Traceback" in log


def test_a_controller_that_fails_for_good_ends_the_program(stoker_home: Path) -> None:
    """Rather than to show what is not true any more, or to spin."""
    code, said, log = run_with(stoker_home, init="type(listener).turn = lambda self: 1 / 0")

    assert code == 1
    assert str(stoker_home) in said
    assert log.count("a fault in the tray") < 20


# --- one takes the place of another ----------------------------------------------------------


@contextmanager
def tray(home: Path, *words: str, starts: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """The program without a desktop, as soon as the log tells of so many starts."""
    away = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR")
    environ = {name: value for name, value in os.environ.items() if name not in away}
    environ["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=/nowhere"
    command = [sys.executable, "-I", "-m", "stoker_tray", *words]
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL) as process:
        try:
            log = home / "state" / "logs" / "tray.log"
            deadline = time.monotonic() + WAIT_S
            while not log.exists() or log.read_text().count("has started") < starts:
                assert time.monotonic() < deadline, "it does not start"
                time.sleep(0.02)
            yield process
        finally:
            process.kill()


def run(*words: str) -> tuple[int, str, str]:
    """The program to its end: its exit code, its output, what it said of errors."""
    command = [sys.executable, "-I", "-m", "stoker_tray", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    return done.returncode, done.stdout, done.stderr


@posix
def test_quit_returns_when_the_icon_is_gone(stoker_home: Path) -> None:
    """It has ended in order; and once more is no error."""
    with tray(stoker_home) as process:
        first = run("--quit")
        said = (stoker_home / "state" / "logs" / "tray.log").read_text()
        code = process.wait(WAIT_S)  # the interpreter has a little to do yet
    second = run("--quit")

    assert (first, second) == ((0, "", ""), (0, "", ""))
    assert "has ended" in said
    assert code == 0


def test_quit_makes_nothing(stoker_home: Path) -> None:
    """An uninstaller calls it last of all."""
    assert run("--quit") == (0, "", "")
    assert list(stoker_home.iterdir()) == []


@posix
def test_replace_ends_the_old_icon_and_shows_its_own(stoker_home: Path) -> None:
    with tray(stoker_home) as old, tray(stoker_home, "--replace", starts=2) as new:
        assert (old.wait(WAIT_S), new.poll()) == (0, None)
        assert run() == (0, "Stoker's icon is there already.\n", "")
        run("--quit")


def test_a_fault_before_there_is_a_log_is_two_lines(
    stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_HOME", "~nobody-of-this-name/home")

    code, _, said = run()

    assert code == 1
    assert [line[:6] for line in said.splitlines()] == ["error:", "hint: "]
