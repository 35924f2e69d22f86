"""The control socket's own guard: file modes, the kernel's word on who calls, stale sockets.

Not for: what a caller may do. Everyone who gets through is the user who started the daemon; or
for systems without UNIX sockets (`control_transport` has a token there).
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Final

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stoker.errors import DaemonAlreadyRunning, RuntimeUnsupported, StoreUnsafe

log = structlog.get_logger(__name__)

_PROBE_S: Final = 1.0  # a live daemon accepts at once; the kernel does it for a busy one
_UCRED: Final = struct.Struct("iII")  # Linux: pid, uid, gid
_XUCRED: Final = struct.Struct("II")  # macOS and the BSDs: version, uid, then groups we skip
_XUCRED_BYTES: Final = 76
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1


class PeerCheckedProtocol(HttpToolsProtocol):
    """Drops a connection, before a byte is read from it, unless our own user made it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Abort the transport of a stranger; the rest of the protocol never sees it."""
        uid = peer_uid(transport.get_extra_info("socket").fileno())
        if uid == os.getuid():
            super().connection_made(transport)
            return
        log.warning("control_peer_refused", uid=uid)
        self.transport = transport  # connection_lost() needs it
        transport.abort()


def peer_uid(descriptor: int) -> int | None:
    """The user at the other end of a connected UNIX socket; None when the system can't tell."""
    # A second descriptor: the transport's own may be a stand-in without getsockopt (uvloop).
    with socket.socket(fileno=os.dup(descriptor)) as peer:
        try:
            if sys.platform == "linux":
                raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                return int(_UCRED.unpack(raw)[1])
            raw = peer.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
            return int(_XUCRED.unpack_from(raw)[1])
        except (OSError, struct.error):
            return None


def bind_control(path: Path) -> socket.socket:
    """A bound socket, mode 0600, in a folder that only this user can enter.

    What a dead daemon left behind is removed. Raises DaemonAlreadyRunning when somebody answers
    there, and StoreUnsafe when the folder or the file is not ours; then nothing is touched.
    """
    if sys.platform == "win32":
        raise RuntimeUnsupported("Python has no UNIX sockets on Windows")
    _make_private(path.parent)
    clear_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        msg = f"cannot create {path}: {error.strerror or error}"
        raise StoreUnsafe(msg) from error
    return listener


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        msg = f"{folder} is not a folder of this user"
        raise StoreUnsafe(msg)
    if stat.S_IMODE(info.st_mode) & 0o077:
        folder.chmod(0o700)


def clear_socket(path: Path) -> None:
    """Remove what a dead daemon left there. Raises DaemonAlreadyRunning, StoreUnsafe."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.getuid():
        msg = f"{path} is in the way and is not a socket of Stoker"
        raise StoreUnsafe(msg, hint="Move it away, then start Stoker again.")
    if _answers(path):
        msg = f"a daemon already answers on {path}"
        raise DaemonAlreadyRunning(msg)
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # a full backlog or a time-out: somebody listens, however slowly
    return True
