"""Where things live. Nothing else computes a base path.

With ``STOKER_HOME`` set, everything is below that one folder; otherwise the platform's own data,
config and state folders are used. What only some paths need is imported late: OpenSSL alone would
cost the tray 4 MB.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stoker.errors import StoreUnsafe

# sockaddr_un.sun_path holds 104 bytes on macOS and 108 on Linux, with the final NUL.
_MAX_SOCKET_PATH: Final = 100
_LONGEST_SOCKET_NAME: Final = "w-0123456789abcdef.sock"
CONTROL_FILE: Final = "control.json"  # beside the control socket


@dataclass(frozen=True, slots=True)
class Paths:
    """Every place Stoker reads or writes."""

    data: Path
    config: Path
    state: Path
    run: Path

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def store(self) -> Path:
        return self.data / "store"

    @property
    def runtimes(self) -> Path:
        return self.data / "runtimes"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def log_file(self) -> Path:
        return self.logs / "stoker.log"

    @property
    def history(self) -> Path:
        return self.state / "history.sqlite3"

    @property
    def canary(self) -> Path:
        """Results of the runtimes' self-tests on this machine."""
        return self.state / "canary.json"

    @property
    def runtime_state(self) -> Path:
        """Which runtime is current, which one was before it, and whether it may change."""
        return self.state / "runtimes.json"

    @property
    def tuning(self) -> Path:
        """Tuned settings and dry runs, a file per model and runtime; safe to delete."""
        return self.state / "tuning"

    @property
    def measured_hardware(self) -> Path:
        """What was measured once of this machine: memory bandwidth, disk speed."""
        return self.state / "hardware.json"

    @property
    def last_served(self) -> Path:
        """The model that served last; loaded again at the next start."""
        return self.state / "last-served.json"

    @property
    def default_model(self) -> Path:
        """The model that the user changed to: requests that name none go there."""
        return self.state / "default.json"

    @property
    def rungs(self) -> Path:
        """Which models were held back after crashes, and how far."""
        return self.state / "rungs.json"

    @property
    def conversations(self) -> Path:
        """What models computed of the last conversations; 0700, its files 0600."""
        return self.state / "conversations"

    @property
    def pulls(self) -> Path:
        """Pulls that had not ended when the daemon stopped."""
        return self.state / "pulls.json"

    @property
    def server_state(self) -> Path:
        """Whether the server is switched on, and what to load when it is again."""
        return self.state / "server.json"

    @property
    def lock(self) -> Path:
        """Held while a daemon runs on this home."""
        return self.state / "daemon.lock"

    @property
    def tray_lock(self) -> Path:
        """Held while a tray runs on this home."""
        return self.run / "tray.lock"

    @property
    def tray_log(self) -> Path:
        return self.logs / "tray.log"

    @property
    def tray_settings(self) -> Path:
        """What the user chose in the tray's menu."""
        return self.state / "tray.json"

    @property
    def tray_advice(self) -> Path:
        """What the user was told about a desktop without icons, so that it is told once."""
        return self.state / "tray-advice.txt"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def control_file(self) -> Path:
        """Where the control plane is, and its token, when it listens on TCP (Windows)."""
        return self.run / CONTROL_FILE

    @property
    def worker_cwd(self) -> Path:
        """An empty folder: an engine scans its working folder for plug-in libraries."""
        return self.run / "empty"

    def create(self) -> None:
        """Make all folders, closed to other users. Raises StoreUnsafe when one is not ours."""
        for folder in (self.data, self.config, self.state, self.logs, self.run, self.worker_cwd):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                msg = f"cannot make the folder {folder}: {error.strerror or error}"
                hint = "Free the place, or set STOKER_HOME to a folder that you may write to."
                raise StoreUnsafe(msg, hint=hint) from error
        if sys.platform != "win32":
            _check_private(self.run)


def from_environment(environ: Mapping[str, str] = os.environ) -> Paths:
    """The paths for this user, or for ``STOKER_HOME`` when that is set.

    The sockets lie beside the state, not in the session's runtime folder: a command under cron,
    ssh or su, which has no such folder or another one, must find the same daemon.
    """
    home = environ.get("STOKER_HOME")
    if home:
        root = Path(home).expanduser().absolute()
        return Paths(root, root, root / "state", _run_folder(root / "run"))
    import platformdirs

    dirs = platformdirs.PlatformDirs("stoker", appauthor=False)
    state = Path(dirs.user_state_path)
    data, config = Path(dirs.user_data_path), Path(dirs.user_config_path)
    return Paths(data, config, state, _run_folder(state / "run"))


def _run_folder(wanted: Path) -> Path:
    """The wanted folder, or a short one when a socket's path would not fit in it."""
    if sys.platform == "win32":  # no sockets lie in it
        return wanted
    if len(os.fsencode(wanted / _LONGEST_SOCKET_NAME)) <= _MAX_SOCKET_PATH:
        return wanted
    import hashlib

    key = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    # Short, and the same in every session; the folder in it is ours alone, see `create`.
    return Path("/tmp") / f"stoker-{os.getuid()}-{key}"  # noqa: S108


def _check_private(folder: Path) -> None:
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        msg = f"{folder} is not a folder of this user"
        raise StoreUnsafe(msg)
    if stat.S_IMODE(info.st_mode) & 0o077:
        folder.chmod(0o700)
