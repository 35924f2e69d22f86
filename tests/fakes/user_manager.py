"""A real `systemd --user`, with a home and a runtime folder of its own, on a machine without one.

The manager refuses to run where systemd is not the first process; all it looks at is whether the
folder /run/systemd/system exists. In a mount namespace of its own it does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_PROGRAMS = (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/systemd"))
# unit-root is where it builds what a confined unit sees; usually the system's manager made it.
_START = """\
mount -t tmpfs -o mode=755 tmpfs /run/systemd && mkdir /run/systemd/system /run/systemd/unit-root
for group in "$@"; do echo $$ >"$group/cgroup.procs"; done
exec {program} --user
"""
_START_S = 15.0
_COMMAND_S = 120.0
_END_S = 60.0
_POLL_S = 0.05
_NAMED = ("/sys/fs/cgroup/systemd",)
_FOREIGN = ("XDG_", "DBUS_", "STOKER_", "HF_", "SYSTEMD_", "LISTEN_")


@dataclass(frozen=True)
class UserManager:
    """``environ`` is what a terminal of this user has."""

    home: Path
    environ: dict[str, str]

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemctl", "--user", "--no-pager", *words],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name, unit).stdout.strip()

    def state(self, unit: str) -> str:
        return self.property(unit, "ActiveState")


@contextmanager
def user_manager(home: Path, **variables: str) -> Iterator[UserManager]:
    """Start one for this home, with these variables in the login and in the terminal.

    Skips the test, with the reason, where that cannot be.
    """
    program = next((path for path in _PROGRAMS if path.exists()), None)
    if program is None or shutil.which("unshare") is None or shutil.which("systemctl") is None:
        pytest.skip("NOT TESTED with a real user manager: systemd and unshare are needed")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    with tempfile.TemporaryDirectory(prefix="um-", dir="/tmp") as folder:
        runtime = Path(folder)  # short: a socket's path holds about 100 bytes
        environ = {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": folder, **variables}
        log = runtime / "manager.log"
        groups = _own_groups(runtime.name)
        script = ("sh", "-c", _START.format(program=program), "sh", *map(str, groups))
        with log.open("wb") as output:
            manager = subprocess.Popen(
                ["unshare", *as_root, "--mount", *script],
                env={name: value for name, value in environ.items() if name != "NOTIFY_SOCKET"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            _wait_for(runtime / "systemd" / "private", manager, log)
            yield UserManager(home, environ)
        finally:
            _end(manager)
            _remove(groups)


def _own_groups(name: str) -> list[Path]:
    """Control groups for this manager alone: two managers in one would end each other's units."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        roots = {"": ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"), "name=systemd": _NAMED}
        for root in map(Path, roots.get(controllers, ())):
            if (root / "cgroup.procs").exists():
                group = root / path.lstrip("/") / name
                with contextlib.suppress(OSError):  # not ours to make: a machine of its own kind
                    group.mkdir()
                    found.append(group)
                break
    return found


def _remove(groups: list[Path]) -> None:
    for group in groups:
        for folder in sorted(group.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()


def _wait_for(address: Path, manager: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not address.exists():
        if manager.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()
            pytest.skip(f"NOT TESTED with a real user manager: it does not run here: {said}")
        time.sleep(_POLL_S)


def _end(manager: subprocess.Popen[bytes]) -> None:
    """As at a logout: it stops all its units first."""
    if manager.poll() is None:
        manager.send_signal(signal.SIGTERM)
    try:
        manager.wait(_END_S)
    finally:
        manager.kill()
        manager.wait()
