#!/usr/bin/python3 -I
"""What the package's scripts do with processes that run: ``processes stop`` or ``restart``.

Each user's daemon is that user's own. Root only finds it; what happens to it is done by that
user's own `stoker` or service manager, under that user's id and in the environment of the daemon.
Nothing here fails: a package must install and go whatever a process does; what could not be done
is printed.

Run by /usr/bin/python3 with the standard library alone: it works while the package is half there.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAM: Final = "/usr/lib/stoker/bin/python3"
COMMAND: Final = "/usr/bin/stoker"
_PYTHON: Final = re.compile(r"/usr/bin/python3\.\d+( \(deleted\))?")  # deleted: upgraded, too
_DAEMON: Final = ("-I", "-m", "stoker", "serve")
# `stoker restart` lets answers end (15 s), ends what hangs (30 s) and waits for the start (60 s).
_COMMAND_TIMEOUT_S: Final = 120
_SIGNAL_TIMEOUT_S: Final = 10
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class Process:
    """A process of this package, of this system (not of a container on it)."""

    pid: int
    argv: tuple[str, ...]
    uid: int
    gid: int
    groups: tuple[int, ...]
    environ: dict[str, str]
    cgroup: str  # "" when unknown

    @property
    def is_daemon(self) -> bool:
        return self.argv[1:5] == _DAEMON

    @property
    def unit(self) -> str | None:
        """The systemd unit whose main process this is."""
        if self.environ.get("SYSTEMD_EXEC_PID") != str(self.pid):
            return None
        name = self.cgroup.rpartition("/")[2]
        return name if name.endswith(".service") else None

    @property
    def user(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


def running() -> list[Process]:
    """The processes of this package that run now."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, LookupError):  # it has just ended
                process = _read(folder)
                if process is not None:
                    found.append(process)
    return found


def _read(folder: Path) -> Process | None:
    """The process in this folder of /proc, or None when it is another program.

    The name that a process gives itself is not enough: it must be Python, in this root, and all
    its ids those of one user.
    """
    argv = _words(folder / "cmdline")
    if argv[:1] != [PROGRAM] or not _PYTHON.fullmatch(str((folder / "exe").readlink())):
        return None
    if not (folder / "root").samefile("/"):
        return None
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    uids, gids = set(status["Uid"].split()), set(status["Gid"].split())
    if len(uids) != 1 or len(gids) != 1:
        return None
    cgroups = [line for line in (folder / "cgroup").read_text().splitlines() if line[:3] == "0::"]
    return Process(
        pid=int(folder.name),
        argv=tuple(argv),
        uid=int(uids.pop()),
        gid=int(gids.pop()),
        groups=tuple(int(group) for group in status["Groups"].split()),
        environ=dict(word.split("=", 1) for word in _words(folder / "environ") if "=" in word),
        cgroup=cgroups[0][3:] if cgroups else "",
    )


def _words(file: Path) -> list[str]:
    return os.fsdecode(file.read_bytes()).rstrip("\0").split("\0")


def restart() -> None:
    """Every daemon runs the new version, under whoever ran it before."""
    for process in running():
        if process.is_daemon:
            _say(f"restarting the daemon of {process.user}")
            _restart(process)
            if process in running():
                _say(f"that failed; {process.user} can do it with: stoker restart")


def _restart(process: Process) -> None:
    if process.unit is None:
        with _in_cgroup_of(process):
            _as_user(process, [COMMAND, "restart"])
    elif "MANAGERPID" in process.environ:  # systemd sets it for the units of a user
        _as_user(process, ["systemctl", "--user", "try-restart", process.unit])
    elif process.cgroup.startswith("/system.slice/"):  # where only root puts a process
        _run(["systemctl", "try-restart", process.unit])


def stop() -> None:
    """No process of this package is left: daemons, their workers, trays, commands."""
    for process in running():
        if process.is_daemon:
            _say(f"stopping the daemon of {process.user}")
            _as_user(process, [COMMAND, "stop"])
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        deadline = time.monotonic() + _SIGNAL_TIMEOUT_S
        while running() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    for process in running():
        _say(f"process {process.pid} of {process.user} does not end")


def _as_user(process: Process, command: Sequence[str]) -> None:
    """Run a command as the user of a process and in its environment."""
    _run(
        command,
        user=process.uid,
        group=process.gid,
        extra_groups=process.groups,
        env=process.environ,
    )


def _run(
    command: Sequence[str],
    *,
    user: int | None = None,
    group: int | None = None,
    extra_groups: Sequence[int] | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Wait for the command, whatever comes of it."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603  # fixed commands
            command,
            check=False,
            user=user,
            group=group,
            extra_groups=extra_groups,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # no way back to the terminal of the one who upgrades
            timeout=_COMMAND_TIMEOUT_S,
        )


@contextlib.contextmanager
def _in_cgroup_of(process: Process) -> Iterator[None]:
    """What is started here lives where the process does, not where the package manager does.

    The manager may be a service, whose end would be the end of a daemon started in it.
    """
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    _move_to(process.cgroup)
    try:
        yield
    finally:
        _move_to(own)


def _move_to(cgroup: str) -> None:
    with contextlib.suppress(OSError):  # another kind of cgroups, or none
        place = Path("/sys/fs/cgroup", cgroup.lstrip("/"), "cgroup.procs")
        place.write_text(str(os.getpid()))


def _say(text: str) -> None:
    print(f"Stoker: {text}", flush=True)  # noqa: T201  # apt shows it


if __name__ == "__main__":
    {"stop": stop, "restart": restart}[sys.argv[1]]()
