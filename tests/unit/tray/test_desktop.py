"""The desktop's programs: which one is run, with what, and what its failure means."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stoker import errors
from stoker_tray import desktop
from stoker_tray.desktop import NoClipboard, Opener, clipboards, copy, no_icon, run
from tests.fakes.x11_display import X11Display

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs are shell scripts here")

URL = "http://127.0.0.1:4328/v1"
WAIT_S = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The only folder with programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def program(folder: Path) -> Callable[..., Path]:
    """Make a program; it writes its words and its input to the file that is returned."""

    def make(name: str, *lines: str) -> Path:
        heard = folder / f"{name}.heard"
        script = folder / name
        text = f'#!/bin/sh\necho "$@" >> {heard}\n/bin/cat >> {heard}\n'
        script.write_text(text + "\n".join(lines) + "\n")
        script.chmod(0o755)
        return heard

    return make


@pytest.fixture
def environ(folder: Path) -> dict[str, str]:
    return {"PATH": str(folder), "HOME": str(folder)}


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


# --- our own commands ------------------------------------------------------------------------


def test_a_command_that_works_is_silent() -> None:
    run(python("print('hello')"), WAIT_S)


def test_a_failed_command_is_its_own_two_lines() -> None:
    """As `stoker` prints them, with or without colour."""
    code = (
        "import sys; print('noise', file=sys.stderr);"
        r"print('\x1b[31merror:\x1b[0m port 4328 is taken\nhint:  Stop the other one.',"
        "file=sys.stderr); sys.exit(1)"
    )

    with pytest.raises(errors.StokerError) as caught:
        run(python(code), WAIT_S)

    assert caught.value.message == "port 4328 is taken"
    assert caught.value.hint == "Stop the other one."


def test_a_command_that_fails_silently_is_named() -> None:
    with pytest.raises(errors.StokerError, match="exit code 3"):
        run(python("import sys; sys.exit(3)"), WAIT_S)


def test_a_command_that_hangs_is_ended_at_its_deadline() -> None:
    with pytest.raises(errors.DaemonNotReady, match="did not end"):
        run(python("import time; time.sleep(1000)"), 0.2)


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """Even when it holds the output that we read."""
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(1000)"
    )

    with pytest.raises(errors.DaemonNotReady):
        run(python(code), 5.0)

    left = psutil.Process(int((tmp_path / "pid").read_text()))
    left.kill()
    left.wait(WAIT_S)


def test_a_command_gets_the_environment_it_needs(tmp_path: Path) -> None:
    code = f"import os; open({str(tmp_path / 'home')!r}, 'w').write(os.environ['STOKER_HOME'])"

    run(python(code), WAIT_S, {**os.environ, "STOKER_HOME": "/h"})

    assert (tmp_path / "home").read_text() == "/h"


def test_a_command_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(errors.StokerError, match="/nowhere/stoker"):
        run(("/nowhere/stoker", "start"), WAIT_S)


# --- open ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="there it is `open`")
def test_a_folder_is_opened_by_the_desktop(
    program: Callable[..., Path], environ: dict[str, str]
) -> None:
    """As one word, whatever is in it."""
    heard = program("xdg-open")

    Opener(environ)("/a folder; rm -rf $HOME")

    assert heard.read_text() == "/a folder; rm -rf $HOME\n"


@pytest.mark.skipif(sys.platform == "darwin", reason="there it is `open`")
def test_another_opener_helps_out(program: Callable[..., Path], environ: dict[str, str]) -> None:
    program("xdg-open", "exit 3")
    heard = program("gio")

    Opener(environ)("/logs")

    assert heard.read_text() == "open /logs\n"


def test_without_an_opener_the_user_is_told_where_it_is(environ: dict[str, str]) -> None:
    with pytest.raises(errors.StokerError) as caught:
        Opener(environ)("/logs")

    assert "/logs" in caught.value.hint


@pytest.mark.skipif(sys.platform == "darwin", reason="there it is `open`")
def test_a_browser_in_the_foreground_has_opened_it(
    program: Callable[..., Path], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for, and not left as a zombie."""
    program("xdg-open", "exec /bin/sleep 1000")
    monkeypatch.setattr(desktop, "OPEN_S", 0.2)
    opener = Opener(environ)

    opener("/logs")
    browser = opener._running[0]
    browser.kill()
    browser.wait(WAIT_S)
    program("xdg-open")
    monkeypatch.setattr(desktop, "OPEN_S", WAIT_S)
    opener("/logs")

    assert opener._running == []


# --- the clipboard ---------------------------------------------------------------------------


def _names(environ: dict[str, str], platform: str) -> list[str]:
    return [Path(command[0]).name for command in clipboards(environ, platform)]


def test_each_system_has_its_clipboard() -> None:
    """On Wayland its own comes first, X11's takes over where there is one."""
    wayland, x11 = {"WAYLAND_DISPLAY": "w"}, {"DISPLAY": ":0"}

    own = Path(sys.executable).name
    assert _names({}, "win32") == ["clip.exe"]
    assert _names({}, "darwin") == ["pbcopy"]
    assert _names(wayland, "linux") == ["wl-copy"]
    assert _names(x11, "linux") == ["xclip", "xsel", own]
    assert _names(wayland | x11, "linux") == ["wl-copy", "xclip", "xsel", own]
    assert _names({}, "linux") == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's programs")
def test_a_text_goes_to_the_first_program_that_takes_it(
    program: Callable[..., Path], environ: dict[str, str]
) -> None:
    program("wl-copy", "exit 1")
    heard = program("xclip")

    copy(URL, {**environ, "WAYLAND_DISPLAY": "w", "DISPLAY": ":0"})

    assert heard.read_text() == f"-selection clipboard -in\n{URL}"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's programs")
def test_a_clipboard_program_that_hangs_is_given_up(
    program: Callable[..., Path], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("xclip", "exec /bin/sleep 1000")
    heard = program("xsel")
    monkeypatch.setattr(desktop, "COPY_S", 4.0)  # for the good one, too

    copy(URL, {**environ, "DISPLAY": ":0"})

    assert heard.read_text().endswith(URL)


def test_without_a_display_nothing_can_be_copied(environ: dict[str, str]) -> None:
    with pytest.raises(NoClipboard):
        copy(URL, environ)


def test_a_display_that_is_not_there_takes_nothing(environ: dict[str, str]) -> None:
    """Our own program says so, and leaves nothing behind."""
    with pytest.raises(NoClipboard):
        copy(URL, {**environ, "DISPLAY": ":9999"})


# --- our own clipboard program, on a real display ---------------------------------------------


@pytest.fixture
def display() -> Iterator[X11Display]:
    if not X11Display.is_installed():
        problem = "THE CLIPBOARD WAS NOT TRIED ON A DISPLAY: needs Xvfb"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    with X11Display() as display:
        yield display


def owners(display: X11Display) -> list[psutil.Process]:
    """The processes that hand a text over on this display."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "stoker_tray.clipboard" in (process.info["cmdline"] or ())
        and (process.info["environ"] or {}).get("DISPLAY") == display.name
        and process.status() != psutil.STATUS_ZOMBIE
    ]


def wait_for_end(processes: list[psutil.Process]) -> None:
    """A dead process that nobody has reaped yet has ended, too."""
    deadline = time.monotonic() + WAIT_S
    while any(_runs(one) for one in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def test_a_copied_text_can_be_pasted(display: X11Display, environ: dict[str, str]) -> None:
    """Again and again, in every form that programs ask for, until another text is copied."""
    text = f"{URL}/größe"

    copy(text, {**environ, **display.environ})

    for kind in ("UTF8_STRING", "text/plain;charset=utf-8", "TEXT", "UTF8_STRING"):
        assert display.paste(kind) == text.encode()
    assert {"TARGETS", "UTF8_STRING", "STRING"} <= set(display.kinds())
    assert display.paste("image/png") is None
    wait_for_end_by(display)


def wait_for_end_by(display: X11Display) -> None:
    """Another program takes the clipboard; then nothing of ours is left."""
    ours = owners(display)
    assert len(ours) == 1
    display.take()
    wait_for_end(ours)


def test_a_second_copy_replaces_the_first(display: X11Display, environ: dict[str, str]) -> None:
    copy("one", {**environ, **display.environ})
    first = owners(display)

    copy("two", {**environ, **display.environ})

    wait_for_end(first)
    assert display.paste("UTF8_STRING") == b"two"
    wait_for_end_by(display)


def test_the_owner_holds_nothing_of_the_trays(display: X11Display, environ: dict[str, str]) -> None:
    """No terminal, no folder, no session: it may outlive the tray."""
    copy(URL, {**environ, **display.environ})
    (owner,) = owners(display)

    deadline = time.monotonic() + WAIT_S
    while (os.getsid(owner.pid), owner.cwd()) != (owner.pid, "/"):  # the copy waits for its start
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert owner.terminal() is None
    wait_for_end_by(display)


def test_the_owner_ends_with_the_display(environ: dict[str, str], display: X11Display) -> None:
    copy(URL, {**environ, **display.environ})
    ours = owners(display)

    display.end()

    wait_for_end(ours)


@pytest.mark.skipif(shutil.which("xclip") is None, reason="xclip is another reader")
def test_another_program_can_paste_it(display: X11Display, environ: dict[str, str]) -> None:
    copy(URL, {**environ, **display.environ})

    command = ["xclip", "-selection", "clipboard", "-out"]
    pasted = subprocess.run(
        command, env={**os.environ, **display.environ}, capture_output=True, timeout=30, check=True
    )

    assert pasted.stdout == URL.encode()
    wait_for_end_by(display)


def test_a_text_that_is_too_long_is_refused(display: X11Display, environ: dict[str, str]) -> None:
    with pytest.raises(NoClipboard):
        copy("x" * 100_000, {**environ, **display.environ})


# --- no icon ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"XDG_CURRENT_DESKTOP": "ubuntu:GNOME", "XDG_RUNTIME_DIR": "/run"}, "AppIndicator"),
        ({"XDG_CURRENT_DESKTOP": "sway", "DBUS_SESSION_BUS_ADDRESS": "unix:"}, "panel"),
        ({}, "no session bus"),
    ],
)
def test_the_advice_fits_the_desktop(environ: dict[str, str], word: str) -> None:
    """And says that nothing is lost."""
    notice = no_icon(environ)

    assert word in notice.text
    assert "stoker --help" in notice.text
    assert len(notice.title) <= 60
    assert len(notice.text) <= 240


def test_nothing_is_run_through_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def popen(command: Any, **wishes: Any) -> Any:
        seen.append((command, wishes.get("shell")))
        raise OSError

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(NoClipboard):
        copy(URL, {"DISPLAY": ":0", "WAYLAND_DISPLAY": "w"})
    with pytest.raises(errors.StokerError):
        Opener({})("/logs")

    assert len(seen) >= 2
    assert all(isinstance(command, list) and not shell for command, shell in seen)
