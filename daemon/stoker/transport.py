"""The way to the control plane: a UNIX socket, or loopback TCP where Python has none (Windows).

Over TCP the kernel does not tell who calls. There the daemon writes its port and a token into a
file that only this user can read; who shows the token may come in. Shared by the daemon and its
clients, the small tray included: standard library only. Not for: HTTP, or who is let in
(`api.control_transport`, `api.peer`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from stoker import errors
from stoker.paths import CONTROL_FILE

LOOPBACK: Final = "127.0.0.1"

_FORCED: Final = "STOKER_TEST_CONTROL"  # "tcp": as on Windows, so that it is tested anywhere
_FILE_BYTES: Final = 4096  # it has 90
_TOKEN_CHARACTERS: Final = range(43, 129)  # 43 of base64 hold 256 bits
_PORTS: Final = range(1, 1 << 16)


def over_tcp(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a daemon with this environment, and its workers, listen on loopback TCP."""
    return sys.platform == "win32" or environ.get(_FORCED) == "tcp"


# --- the file of a daemon on TCP -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What it says: where the daemon listens, and what to show there."""

    port: int
    token: str = field(repr=False)
    pid: int

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def parse(raw: bytes) -> ControlFile | None:
    """None when it is not what a daemon wrote; a newer daemon may have written more."""
    try:
        found: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    port, token, pid = found.get("port"), found.get("token"), found.get("pid")
    if type(port) is not int or port not in _PORTS or type(pid) is not int or pid <= 0:
        return None
    if not isinstance(token, str) or not _is_token(token):
        return None
    return ControlFile(port, token, pid)


def _is_token(text: str) -> bool:
    """Only characters that may stand in a header."""
    bare = text.replace("-", "").replace("_", "")
    return len(text) in _TOKEN_CHARACTERS and bare.isascii() and bare.isalnum()


def read(path: Path) -> ControlFile | None:
    """None when it is not there, not ours alone, or garbled."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)  # O_NONBLOCK: a FIFO in its place must not hang us
        with open(descriptor, "rb") as stream:  # noqa: PTH123  # a descriptor, not a path
            ours = _is_ours(os.fstat(descriptor))
            raw = stream.read(_FILE_BYTES + 1) if ours else b""
    except OSError:
        return None
    return parse(raw) if len(raw) <= _FILE_BYTES else None


def _is_ours(info: os.stat_result) -> bool:
    if not stat.S_ISREG(info.st_mode):
        return False
    if sys.platform == "win32":
        return True  # the access list of the user's folder is the guard
    return info.st_uid == os.getuid() and not stat.S_IMODE(info.st_mode) & 0o077


def is_alive(found: ControlFile) -> bool:
    """Whether that process still listens there, and is this user's.

    The port and the number of a dead daemon's process may be anybody's by now. What cannot be
    found out counts as no.
    """
    import psutil

    try:
        process = psutil.Process(found.pid)
        listens = any(
            one.status == psutil.CONN_LISTEN and tuple(one.laddr) == (LOOPBACK, found.port)
            for one in process.net_connections("tcp4")
        )
        return listens and process.username() == psutil.Process().username()
    except (psutil.Error, OSError):
        return False


# --- for clients -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """Where the daemon of a home should listen, and what a request to it must carry."""

    socket_path: Path | None  # None: over TCP
    port: int = 0
    token: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        return "stoker" if self.socket_path is not None else f"{LOOPBACK}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        if self.socket_path is not None:
            return {}
        return {"Authorization": f"Bearer {self.token}"}

    def connect(self, timeout_s: float) -> socket.socket:
        """A connected socket with this time-out. Raises OSError; TimeoutError is one."""
        if self.socket_path is not None and sys.platform != "win32":
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            where: Any = os.fspath(self.socket_path)
        else:
            channel = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            where = (LOOPBACK, self.port)
        with contextlib.ExitStack() as stack:
            stack.callback(channel.close)
            channel.settimeout(timeout_s)
            channel.connect(where)
            stack.pop_all()
        return channel


def find(control_socket: Path) -> Route:
    """By the socket when there is one, else by the file beside it. Raises DaemonNotRunning.

    Nobody but a living daemon is ever shown its token, or believed.
    """
    if sys.platform != "win32" and os.path.exists(control_socket):  # noqa: PTH110  # never raises
        return Route(control_socket)
    found = read(control_socket.with_name(CONTROL_FILE))
    if found is None or not is_alive(found):
        raise errors.DaemonNotRunning("Stoker is not running")
    return Route(None, found.port, found.token)
