"""Where the control plane listens: its UNIX socket, or a port of loopback with a token.

A port of loopback is open to every user and every web page of this machine. So a request over TCP
must show the token that stands in a file of this user's, before anything else of it is looked at.
Not for: the UNIX socket's guard (`peer`), or finding the way in (`stoker.transport`).
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from stoker import transport
from stoker.api.errors import control_body, status_of
from stoker.api.listen import listening
from stoker.api.peer import PeerCheckedProtocol, bind_control, clear_socket
from stoker.api.protocol import EndpointProtocol
from stoker.errors import (
    DaemonAlreadyRunning,
    HostNotAllowed,
    PeerNotAllowed,
    RefusedError,
    StoreUnsafe,
)
from stoker.paths import Paths
from stoker.store import disk
from stoker.transport import LOOPBACK, ControlFile

log = structlog.get_logger(__name__)

_TOKEN_BYTES: Final = 32
_TEMPORARY: Final = ".new"
_WRITE_TRIES: Final = 20  # Windows does not replace a file that a client is just reading
_WRITE_RETRY_S: Final = 0.05


@asynccontextmanager
async def control_listening(app: ASGIApp, places: Paths) -> AsyncIterator[None]:
    """Serve the control plane while the block runs. Raises DaemonAlreadyRunning, StoreUnsafe.

    What a dead daemon left behind, by either transport, is removed.
    """
    if transport.over_tcp():
        async with _on_loopback(app, places):
            yield
        return
    listener = bind_control(places.control_socket)
    _retract(places.control_file)  # after the socket, which is what clients look for first
    async with listening(app, listener, protocol=PeerCheckedProtocol):
        yield


@asynccontextmanager
async def _on_loopback(app: ASGIApp, places: Paths) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(_check_alone, places)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    listener = bind_loopback()
    port = listener.getsockname()[1]
    async with listening(TokenGuard(app, port, token), listener, protocol=EndpointProtocol):
        await _publish(places.control_file, ControlFile(port, token, os.getpid()))
        try:
            yield
        finally:
            _retract(places.control_file)


def _check_alone(places: Paths) -> None:
    if sys.platform != "win32":
        clear_socket(places.control_socket)
    found = transport.read(places.control_file)
    if found is not None and transport.is_alive(found):
        msg = f"a daemon already answers on port {found.port}"
        raise DaemonAlreadyRunning(msg)


def bind_loopback() -> socket.socket:
    """A bound socket on a free port that no other program can share."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        if exclusive is not None:  # Windows alone lets a second program bind a port that is taken
            listener.setsockopt(socket.SOL_SOCKET, exclusive, 1)
        listener.bind((LOOPBACK, 0))
    except OSError as error:
        listener.close()
        msg = f"cannot listen on {LOOPBACK}: {error.strerror or error}"
        raise StoreUnsafe(msg, hint="Free some ports or descriptors, then start again.") from error
    return listener


async def _publish(path: Path, content: ControlFile) -> None:
    """In one step, readable by this user alone; on Windows by who may enter the folder."""
    for left in reversed(range(_WRITE_TRIES)):
        try:
            disk.write_file(path, content.encode(), _TEMPORARY)
        except OSError as error:
            if not isinstance(error, PermissionError) or not left:
                msg = f"cannot write {path}: {error.strerror or error}"
                raise StoreUnsafe(msg, hint="Move it away, then start Stoker again.") from error
            await anyio.sleep(_WRITE_RETRY_S)
        else:
            return


def _retract(path: Path) -> None:
    with contextlib.suppress(OSError):  # one that stays is found to be stale
        path.unlink(missing_ok=True)


class TokenGuard:
    """Outermost over TCP: lets in who shows the token, and no web page that a name leads here."""

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app = app
        self._host = f"{LOOPBACK}:{port}".encode()
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        log.warning("control_request_refused", code=refusal.code)
        # Its body is never read, so the connection cannot go on.
        head = {"Connection": "close"}
        answer = JSONResponse(control_body(refusal), status_of(refusal), headers=head)
        await answer(scope, receive, send)

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> RefusedError | None:
        shown = [value for name, value in headers if name == b"authorization"]
        # Always one comparison, of a time that does not depend on what is shown.
        given = shown[0] if len(shown) == 1 else b""
        if not hmac.compare_digest(given, self._wanted):
            return PeerNotAllowed("this request does not show the daemon's token")
        if [value for name, value in headers if name == b"host"] != [self._host]:
            return HostNotAllowed("this Host name or port is not served")
        return None
