"""The tray's program: one per home, an icon on the main thread and the controller beside it.

It ends cleanly on a signal, from the menu, or when it must run again as a newer version. Not for:
what the icon shows or does.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from stoker import __version__, errors, paths
from stoker_tray import prefs, wire
from stoker_tray.actions import Tools
from stoker_tray.controller import QUIT_SIGNALS, Controller
from stoker_tray.single import end_other, only_one

if TYPE_CHECKING:
    from stoker.paths import Paths
    from stoker_service import Autostart, Program, Wish
    from stoker_tray.face import Shell

log = logging.getLogger(__name__)

QUIT_S: Final = 1.5  # for the icon to go; then the process ends without it
GRACE_S: Final = 30.0  # a panel may start later than we do at a login
TERMINAL_GRACE_S: Final = 2.0  # somebody is waiting
HANDOVER_S: Final = 5.0  # for the tray that was upgraded to end
LOG_BYTES: Final = 512 * 1024  # two files of it hold months of a quiet tray

_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]{0,30}")
_USAGE: Final = """\
Usage: stoker-tray [--quit | --replace | --version | --help]

Show Stoker's icon until it is told to quit. A second one for the same home ends at once.

  --quit     end the icon of this home, and return when it is gone
  --replace  end the icon of this home, and take its place
"""


@dataclass(frozen=True, slots=True)
class Words:
    """A command line."""

    text: str | None = None  # to print instead of running
    tried: str | None = None  # the version that the program was started again for
    ends_other: bool = False  # the tray of this home
    runs: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the icon quits; the exit code. Whatever happens, no traceback to the user."""
    logging.lastResort = logging.NullHandler()  # before there is a log, two lines must do
    try:
        words = parse(sys.argv[1:] if argv is None else argv)
        if words.text is not None:
            print(words.text)  # noqa: T201  # that is what was asked for
            return 0
        places = paths.from_environment()
        if words.ends_other:
            end_other(places.tray_lock)
        if not words.runs:
            return 0
        places.create()
        log_to(places.tray_log)
        return serve(places, words.tried)
    except errors.StokerError as error:
        say(error.message, error.hint)
        return 2 if isinstance(error, errors.BadUsage) else 1
    except Exception as error:
        log.exception("a fault in the tray")
        fault = errors.InternalError(f"a fault in the tray: {type(error).__name__}: {error}")
        say(fault.message, fault.hint)
        return 1
    finally:
        logging.shutdown()


def parse(argv: Sequence[str]) -> Words:
    """Raises BadUsage."""
    match list(argv):
        case []:
            return Words()
        case ["--version"]:
            return Words(text=f"stoker-tray {__version__}")
        case ["--help" | "-h"]:
            return Words(text=_USAGE)
        case ["--quit"]:
            return Words(ends_other=True, runs=False)
        case ["--replace"]:
            return Words(ends_other=True)
        case ["--after-upgrade", version]:
            return Words(tried=version)
    raise errors.BadUsage(f"not understood: {' '.join(argv)}", hint="See `stoker-tray --help`.")


def say(message: str, hint: str) -> None:
    """What happened, and what to do next, to whoever started us in a terminal."""
    if sys.stderr is not None:
        print(f"error: {message}\nhint:  {hint}", file=sys.stderr)  # noqa: T201


def serve(places: Paths, tried: str | None) -> int:
    """Be the one tray of this home until it quits."""
    while True:
        with only_one(places.tray_lock, wait_s=HANDOVER_S if tried else 0) as is_ours:
            if not is_ours:
                print("Stoker's icon is there already.")  # noqa: T201  # to a terminal, if any
                return 0
            version = run(places, tried)
        if version is None:
            return 0
        start_again(version)
        tried = version  # it could not be started; this one goes on


def run(places: Paths, tried: str | None) -> str | None:
    """Show the icon until it quits; the version to start again for, if that is why.

    Raises InternalError when the icon or the controller failed.
    """
    from stoker_tray.adapters import open_shell

    terminal = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None
    tray = Controller(
        tools=tools(places),
        connect=partial(wire.EventStream, places.control_socket),
        advice=Advice(places.tray_advice, terminal),
        upgrade=partial(upgrade, __version__, tried=tried),
        muted=prefs.load(places.tray_settings),
        grace_s=TERMINAL_GRACE_S if terminal else GRACE_S,
    )
    try:
        shell = open_shell(tray)
        drive = _Drive(tray, shell)
        with signals_to(tray.bell):
            drive.start()
            log.info("the tray %s has started", __version__)
            try:
                shell.run()
            finally:
                drive.end()
    finally:
        tray.close()
    log.info("the tray has ended")
    if drive.has_failed:
        raise errors.InternalError("a fault ended the tray", hint=f"See {places.tray_log}.")
    return tray.upgraded_to


class _Drive(threading.Thread):
    """Runs the controller; then the icon must go, whatever it is stuck in."""

    def __init__(self, tray: Controller, shell: Shell) -> None:
        super().__init__(name="controller", daemon=True)
        self.has_failed = False
        self._tray, self._shell = tray, shell
        self._is_gone = threading.Event()  # the icon

    def run(self) -> None:
        try:
            self._tray.run(self._shell)
        except Exception:
            self.has_failed = True
            log.exception("the controller has failed")
        self._shell.stop()
        if not self._is_gone.wait(QUIT_S):
            log.warning("the icon did not go in time")
            if self._tray.upgraded_to is not None:
                start_again(self._tray.upgraded_to)
            logging.shutdown()
            os._exit(1 if self.has_failed else 0)

    def end(self) -> None:
        """The icon is gone; so the controller must be."""
        self._is_gone.set()
        self._tray.quit()
        self.join(QUIT_S)


def upgrade(own: str, daemons: str, tried: str | None) -> str | None:
    """The version to start the tray's program again for; None when this one should go on.

    A daemon of another version tells that Stoker was upgraded on disk. Once for each version: the
    program that starts may still be the same one.
    """
    if daemons in {own, tried} or not _VERSION.fullmatch(daemons):
        return None
    return daemons


def start_again(version: str) -> None:
    """Become the tray's program as it is on disk now; returns only when that cannot be done."""
    from stoker_service import find

    log.info("starting again: the daemon is of version %s", version)
    try:
        program = find()
        command = (*program.tray, "--after-upgrade", version)
        os.execve(command[0], command, _environ(program))  # noqa: S606  # our own program
    except (OSError, errors.StokerError) as error:
        log.warning("cannot start again: %s", error)


def _environ(program: Program) -> dict[str, str]:
    return {**os.environ, **dict(program.environment)}


@contextmanager
def signals_to(bell: int) -> Iterator[None]:
    """In this block a signal that ends programs is a byte to `bell`, and nothing more.

    The byte is written at once, also while the main thread is inside a system's own loop. What is
    ignored stays ignored: that is how `nohup` works.
    """
    heard = [number for number in QUIT_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _do_nothing) for number in heard}
    bell_before = signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(bell_before)
        for number, handler in before.items():
            signal.signal(number, handler)


def _do_nothing(number: int, frame: object) -> None:
    _ = number, frame


# --- what jobs touch -------------------------------------------------------------------------


def tools(places: Paths) -> Tools:
    """The real ones. What few jobs need is imported by the first that does."""
    return Tools(
        call=partial(wire.call, places.control_socket),
        run=_run,
        open=_Opener(),
        copy=_copy,
        save_muted=partial(prefs.save, places.tray_settings),
        program=_program,
        autostart=_autostart,
        wish=partial(_wish, places.config_file),
        logs=str(places.logs),
    )


def _program() -> Program:
    from stoker_service import find

    return find()


def _autostart() -> Autostart:
    from stoker_service import choose

    return choose()


def _wish(config_file: Path) -> Wish:
    from stoker_tray import login

    return login.wish(_program(), _autostart(), config_file)


def _run(command: tuple[str, ...], timeout_s: float) -> None:
    from stoker_tray import desktop

    desktop.run(command, timeout_s, _environ(_program()))


def _copy(text: str) -> None:
    from stoker_tray import desktop

    desktop.copy(text)


class _Opener:
    """A `desktop.Opener`, made when it is needed."""

    def __call__(self, target: str) -> None:
        from stoker_tray import desktop

        self._opener = getattr(self, "_opener", None) or desktop.Opener()
        self._opener(target)


# --- advice and log --------------------------------------------------------------------------


class Advice:
    """Tells why there is no icon: in a terminal, and on a desktop once until there was one."""

    def __init__(self, told: Path, terminal: TextIO | None) -> None:
        self._told = told
        self._terminal = terminal

    def give(self, shell: Shell) -> None:
        from stoker_tray import desktop

        notice = desktop.no_icon(os.environ)
        with suppress(OSError):  # the terminal may be gone
            if self._terminal is not None:
                print(f"{notice.title}.\n{notice.text}", file=self._terminal)
        with suppress(OSError):
            if self._told.exists() and self._told.read_bytes() == notice.text.encode():
                return
            self._told.write_bytes(notice.text.encode())
        shell.notify(notice)

    def forget(self) -> None:
        with suppress(OSError):
            self._told.unlink(missing_ok=True)


class _LogFile(logging.FileHandler):
    """Starts again when it is full; one older file is kept. The standard one costs 0.4 MB."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        with suppress(OSError):
            if self.stream is not None and self.stream.tell() > LOG_BYTES:
                self.stream.close()
                self.stream = None  # opened again by the next record
                Path(self.baseFilename).replace(f"{self.baseFilename}.1")


def log_to(file: Path) -> None:
    """Send all logging of this process to this file; without a writable one, nowhere."""
    logging.raiseExceptions = False  # a full disk costs records, not tracebacks
    try:
        handler: logging.Handler = _LogFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError:
        handler = logging.NullHandler()
    formatter = logging.Formatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
