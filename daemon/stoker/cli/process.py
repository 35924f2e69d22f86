"""The daemon as a process: start it on its own, find it, and be sure that it is gone."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from stoker import errors
from stoker.cli import autostart, connection
from stoker.cli.output import note

if TYPE_CHECKING:
    import psutil

    from stoker.paths import Paths
    from stoker.schemas import StatusView

START_TIMEOUT_S: Final = 60.0  # a cold disk and a busy login; usually a second
_POLL_S: Final = 0.05
_GRACE_S: Final = 1.0  # another start may have won; its daemon answers within this
_STOP_MARGIN_S: Final = 20.0  # beyond the drain time: workers end, sockets close
_DEFAULT_DRAIN_S: Final = 15.0
_TERM_S: Final = 5.0
_KILL_S: Final = 5.0
_OUT_BYTES: Final = 1024 * 1024  # the output file starts again beyond this
_PAINT: Final = re.compile(r"\x1b\[[0-9;]*m")


def running() -> StatusView | None:
    """The daemon's status, or None when there is none."""
    try:
        with connection.daemon() as client:
            return client.status()
    except errors.DaemonNotRunning:
        return None


def start(places: Paths, *, timeout_s: float = START_TIMEOUT_S) -> tuple[StatusView, bool]:
    """A daemon that answers, and whether it was started here. Raises what kept it from starting.

    Two starts at once: the second waits for the first.
    """
    from filelock import FileLock, Timeout

    places.create()
    try:
        with FileLock(places.state / "start.lock", timeout=timeout_s):
            status = running()
            if status is not None:
                return status, False
            deadline = time.monotonic() + timeout_s
            view = _start_supervised(places, deadline)
            return view or _spawn_and_wait(places, deadline - time.monotonic()), True
    except Timeout as error:
        msg = "another `stoker start` has not ended yet"
        raise errors.DaemonNotReady(msg, hint="Wait a minute, then see `stoker status`.") from error


def _start_supervised(places: Paths, deadline: float) -> StatusView | None:
    """Start it as it starts at login; None when it must be started without a service manager."""
    try:
        manager = autostart.manager()
        if manager is None:
            return None
        unseen = autostart.own_settings()
        if unseen:
            names = " and ".join(unseen)
            note(f"{names} of this terminal is not seen by {manager.name}: started without it.")
        else:
            if autostart.renew(manager, places):
                note("The settings have changed; what starts at login was brought up to date.")
            if manager.start(max(1, deadline - time.monotonic())):
                return _wait_for_answer(deadline)
    except (errors.AutostartFailed, errors.AutostartBlocked) as error:
        if error.facts.get("timed_out"):
            raise errors.DaemonNotReady(error.message) from error
        note(f"{error.message}. It is started without it.")
    _stop_supervised(places)  # the port must be free
    return None


def _wait_for_answer(deadline: float) -> StatusView:
    while True:
        status = running()
        if status is not None:
            return status
        if time.monotonic() >= deadline:
            raise errors.DaemonNotReady("the daemon was started but does not answer yet")
        time.sleep(_POLL_S)


def _stop_supervised(places: Paths) -> None:
    """Stop what the service manager runs for this home; it does not start it again."""
    try:
        manager = autostart.manager()
        if manager is not None:
            manager.stop(_drain_s(places))
    except errors.AutostartFailed as error:
        note(f"{error.message}. It may be started again.")


def _spawn_and_wait(places: Paths, timeout_s: float) -> StatusView:
    target = places.logs / "daemon.out"
    big = target.exists() and target.stat().st_size > _OUT_BYTES
    with target.open("wb" if big else "ab") as output:
        begin = output.tell()
        child = _spawn(places, output)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = running()
        if status is not None:
            return status
        if child.poll() is not None:
            deadline = min(deadline, time.monotonic() + _GRACE_S)
        time.sleep(_POLL_S)
    if child.poll() is None:
        _end(child)
        msg = f"the daemon did not answer within {timeout_s:.0f} s and was stopped"
        raise errors.DaemonNotReady(msg)
    raise _why_it_ended(target, begin, child.returncode)


def _spawn(places: Paths, output: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if environment.get("STOKER_HOME"):  # may be relative to a folder that the daemon leaves
        environment["STOKER_HOME"] = str(places.data)
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        detached = {"creationflags": flags}
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "stoker", "serve"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=places.state,
        env=environment,
        **detached,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_TERM_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(_KILL_S)


def _why_it_ended(output: Path, begin: int, code: int | None) -> errors.StokerError:
    """The two lines that `stoker serve` printed, as an error of this program."""
    with output.open("rb") as stream:
        stream.seek(begin)
        text = _PAINT.sub("", stream.read(_OUT_BYTES).decode(errors="replace"))
    message, hint = f"the daemon ended at once (exit code {code})", f"See {output}."
    for line in text.splitlines():
        if line.startswith("error:"):
            message = line.removeprefix("error:").strip()
        elif line.startswith("hint:"):
            hint = line.removeprefix("hint:").strip()
    return errors.DaemonNotReady(message, hint=hint)


def stop(places: Paths) -> int | None:
    """End the daemon; its pid, or None when none ran. When this returns, the process is gone."""
    process, answers = _find(places)
    _stop_supervised(places)  # also the socket that would start it again
    if process is None:
        return None
    if gone(process, 0):
        return process.pid
    patience_s = _drain_s(places) + _STOP_MARGIN_S if answers and _ask_to_stop() else 0
    if not gone(process, patience_s):
        end_by_force(process)
    return process.pid


def _ask_to_stop() -> bool:
    """False when it listens but does not answer."""
    try:
        with connection.daemon() as client:
            client.stop()
    except errors.DaemonNotRunning:
        return True  # it is on its way out
    except errors.DaemonError:
        return False
    return True


def _find(places: Paths) -> tuple[psutil.Process | None, bool]:
    """The daemon's process and whether it answers; it may hang, or speak another version."""
    import psutil

    try:
        status = running()
        pid = None if status is None else status.daemon.pid
        answers = True
    except errors.DaemonError as error:
        pid = owner(places)
        if pid is None:
            raise
        answers = not isinstance(error, errors.DaemonNotReady)
    try:
        return None if pid is None else psutil.Process(pid), answers
    except psutil.NoSuchProcess:
        return None, answers


def _drain_s(places: Paths) -> float:
    from stoker import settings

    try:
        return settings.load(places.config_file).drain_timeout_s
    except errors.BadSetting:
        return _DEFAULT_DRAIN_S  # the file changed under the daemon; stopping must still work


def end_by_force(process: psutil.Process) -> None:
    """TERM, then KILL, to a daemon that does not go by itself; never to anything else."""
    import psutil

    try:
        if "serve" not in process.cmdline():
            msg = f"process {process.pid} is not a Stoker daemon; it was left alone"
            raise errors.DaemonError(msg, hint="See what it is with `ps`, and end it yourself.")
        for signal_it, patience_s in ((process.terminate, _TERM_S), (process.kill, _KILL_S)):
            signal_it()
            if gone(process, patience_s):
                return
    except psutil.NoSuchProcess:
        return
    msg = f"the daemon (pid {process.pid}) cannot be ended"
    raise errors.DaemonError(msg, hint="It hangs in the system; restart the machine.")


def gone(process: psutil.Process, patience_s: float) -> bool:
    """Whether it ended in this time.

    A dead process that nobody has reaped yet is gone, too: in a container the first process may
    be slow at that, or never do it.
    """
    import psutil

    deadline = time.monotonic() + patience_s
    while True:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)


def owner(places: Paths) -> int | None:
    """The pid of the daemon that listens on the control plane; None when it cannot be told."""
    from stoker import transport

    found = transport.read(places.control_file)
    if found is not None and transport.is_alive(found):
        return found.pid
    return socket_owner(places.control_socket)


def socket_owner(path: Path) -> int | None:
    """The pid of the process that listens on a UNIX socket; None when it cannot be told."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(1)
            channel.connect(str(path))
            raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    pid, _uid, _gid = struct.unpack("3i", raw)
    return int(pid) or None
