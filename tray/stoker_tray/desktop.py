"""The user's desktop: its clipboard, what opens folders and pages, and programs that are run.

Everything is run without a shell, with a deadline, and away from the tray's own terminal and
process group. Blocks: for workers only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from stoker import errors
from stoker_tray.face import Notice

COPY_S: Final = 5.0  # a clipboard program answers in milliseconds, or hangs with its display
OPEN_S: Final = 10.0  # by then a program that cannot open it has said so
_KILLED_S: Final = 2.0
_PAINT: Final = re.compile(r"\x1b\[[0-9;]*m")

_OWN_CLIPBOARD: Final = (sys.executable, "-I", "-m", "stoker_tray.clipboard")


class NoClipboard(errors.StokerError):
    """Nothing here takes a text; the user must be shown it."""

    hint = "Install wl-clipboard or xclip, or copy the address from `stoker status`."


# --- programs --------------------------------------------------------------------------------


def run(command: Sequence[str], timeout_s: float, environ: Mapping[str, str] = os.environ) -> None:
    """Run one of our own programs. Raises the error that it ended with, from its two lines.

    At the deadline it is ended. What it started for good, as `stoker start` does, goes on.
    """
    try:
        child = _start(command, subprocess.DEVNULL, subprocess.PIPE, environ)
    except OSError as error:
        msg = f"cannot run {command[0]}: {error.strerror or error}"
        raise errors.DaemonNotReady(msg, hint="Install Stoker again.") from error
    with child:
        try:
            _, said = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            _end(child)
            msg = f"`{_shown(command)}` did not end within {timeout_s:.0f} s"
            raise errors.DaemonNotReady(msg) from error
    if child.returncode != 0:
        raise _why(command, child.returncode, said)


def _start(
    command: Sequence[str], stdin: int, stderr: int, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NO_WINDOW}
    return subprocess.Popen(  # noqa: S603  # only our own words, and no shell
        list(command),
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environ,
        **detached,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    try:
        child.communicate(timeout=_KILLED_S)
    except subprocess.TimeoutExpired:  # something that it started holds the pipe
        if child.stderr is not None:
            child.stderr.close()


def _why(command: Sequence[str], code: int, said: bytes) -> errors.StokerError:
    message, hint = f"`{_shown(command)}` failed (exit code {code})", "See `stoker logs`."
    for line in _PAINT.sub("", said.decode(errors="replace")).splitlines():
        if line.startswith("error:"):
            message = line.removeprefix("error:").strip()
        elif line.startswith("hint:"):
            hint = line.removeprefix("hint:").strip()
    return errors.StokerError(message, hint=hint)


def _shown(command: Sequence[str]) -> str:
    return f"stoker {command[-1]}"


# --- open ------------------------------------------------------------------------------------


class Opener:
    """Opens folders and pages in the user's programs; keeps those that stay until they end."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._running: list[subprocess.Popen[bytes]] = []

    def __call__(self, target: str) -> None:
        """Open a folder's absolute path or a web address. Raises StokerError when nothing can."""
        self._running = [child for child in self._running if child.poll() is None]
        if sys.platform == "win32":
            try:
                os.startfile(target)  # noqa: S606  # the user's own folder, or our page
            except OSError as error:
                raise _cannot_open(target) from error
            return
        if not any(self._opens([*command, target]) for command in _openers()):
            raise _cannot_open(target)

    def _opens(self, command: Sequence[str]) -> bool:
        try:
            child = _start(command, subprocess.DEVNULL, subprocess.DEVNULL, self._environ)
        except OSError:
            return False
        try:
            return child.wait(OPEN_S) == 0
        except subprocess.TimeoutExpired:  # a browser in the foreground
            self._running.append(child)
            return True


def _openers() -> tuple[tuple[str, ...], ...]:
    if sys.platform == "darwin":
        return (("open",),)
    return (("xdg-open",), ("gio", "open"))


def _cannot_open(target: str) -> errors.StokerError:
    return errors.StokerError("nothing here can open it", hint=f"It is at {target}")


# --- the clipboard ---------------------------------------------------------------------------


def copy(text: str, environ: Mapping[str, str] = os.environ) -> None:
    """Put a text on the clipboard. Raises NoClipboard."""
    for command in clipboards(environ, sys.platform):
        if _takes(command, text.encode(_encoding(sys.platform)), environ):
            return
    raise NoClipboard("no clipboard can be reached from here")


def clipboards(environ: Mapping[str, str], platform: str) -> Iterator[tuple[str, ...]]:
    """Programs that take a text on their input, the best first."""
    if platform == "win32":
        yield ("clip.exe",)
        return
    if platform == "darwin":
        yield ("pbcopy",)
        return
    if environ.get("WAYLAND_DISPLAY"):
        yield ("wl-copy",)
    if environ.get("DISPLAY"):
        yield ("xclip", "-selection", "clipboard", "-in")
        yield ("xsel", "--clipboard", "--input")
        yield _OWN_CLIPBOARD


def _encoding(platform: str) -> str:
    return "utf-16-le" if platform == "win32" else "utf-8"


def _takes(command: Sequence[str], text: bytes, environ: Mapping[str, str]) -> bool:
    """Whether this program is there and took the text."""
    # pbcopy reads in the encoding of the locale, which a program started at login may lack.
    wanted = {**environ, "LC_CTYPE": "UTF-8"} if sys.platform == "darwin" else environ
    try:
        child = _start(command, subprocess.PIPE, subprocess.DEVNULL, wanted)
    except OSError:
        return False
    with child:
        try:
            child.communicate(text, COPY_S)
        except subprocess.TimeoutExpired:
            _end(child)
            return False
    return child.returncode == 0


# --- no icon ---------------------------------------------------------------------------------

_REST: Final = "Everything works in a terminal, too: see `stoker --help`."


def no_icon(environ: Mapping[str, str]) -> Notice:
    """What to tell a user whose desktop shows no tray icons, and how to get one."""
    desktop = environ.get("XDG_CURRENT_DESKTOP", "").lower()
    if "gnome" in desktop:
        advice = (
            "GNOME shows them with the extension “AppIndicator and KStatusNotifierItem Support”."
        )
    elif not environ.get("DBUS_SESSION_BUS_ADDRESS") and not environ.get("XDG_RUNTIME_DIR"):
        advice = "There is no desktop session (no session bus) here."
    else:
        advice = "Add a status tray to the panel; the icon appears by itself."
    return Notice("no-icon", "Stoker runs without an icon", f"{advice} {_REST}")
