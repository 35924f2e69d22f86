"""One app on one bound socket: uvicorn without its signal handlers and its clock.

uvicorn wakes ten times a second to look at its flags; an idle daemon must cost nothing, so the
loop here sleeps until it is told to stop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import anyio
import uvicorn

from stoker.errors import BadSetting, PortTaken

KEEP_ALIVE_S: Final = 75  # longer than the clients' own, so that they close first
MAX_HEADER_BYTES: Final = 64 * 1024
BACKLOG: Final = 512
_CLOSE_S: Final = 2  # requests were drained before; what is left is an idle or a stuck peer
_HEAR_S: Final = 0.25  # a client sends its request as soon as it is connected
_LOOK_S: Final = 0.01


class Server(uvicorn.Server):
    """uvicorn's server, whose end no client feels as a reset."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaves_rest = False  # who waits in the socket is for another process that holds it
        self.accepting = anyio.Event()
        self.stopping = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The daemon has one signal handler, in `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def main_loop(self) -> None:
        await self.stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse from now on, but hear who has just connected: closing on it would be a reset."""
        rest = [] if self.leaves_rest else [one for each in sockets or () for one in _rest(each)]
        for server in self.servers:
            server.close()
        for one in rest:
            one.settimeout(0)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, one)
        with anyio.move_on_after(_HEAR_S):
            while any(map(_has_not_asked, self.server_state.connections)):  # noqa: ASYNC110  # uvicorn has no event
                await anyio.sleep(_LOOK_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn does it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _has_not_asked(connection: Any) -> bool:
    return connection.cycle is None  # uvicorn's word for the first request


def _rest(listener: socket.socket) -> list[socket.socket]:
    """Who is connected and was not accepted yet; then the socket refuses."""
    found: list[socket.socket] = []
    if sys.platform == "win32":  # there the loop has asked for the next one already
        return found
    with suppress(OSError):  # nobody is left, or the port is a UNIX socket that is gone
        while len(found) < BACKLOG:
            found.append(listener.accept()[0])
    shut(listener)
    return found


def shut(listener: socket.socket) -> None:
    """Let a socket refuse connections, also for others that hold it. Does nothing to a shut one.

    Linux would remember a second shutdown although it fails: after the next `listen`, every
    connection that is accepted would look ended as long as no byte has come.
    """
    with suppress(OSError):  # a UNIX socket, which cannot be asked everywhere
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listener.shutdown(socket.SHUT_RD)


@asynccontextmanager
async def listening(
    app: Any, listener: socket.socket, *, protocol: Any = "httptools"
) -> AsyncIterator[Server]:
    """Serve `app` on a bound socket while the block runs; inside it, the socket accepts.

    On leaving, the socket is closed first, then open connections get `_CLOSE_S` seconds.
    """
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await server.accepting.wait()
        try:
            yield server
        finally:
            server.stopping.set()


def address_of(host: str) -> str:
    """The number to bind for a host of the settings."""
    return "127.0.0.1" if host == "localhost" else host


def bind_endpoint(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises PortTaken, or BadSetting for an address this machine lacks."""
    address = address_of(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_REUSEPORT"):  # on Windows SO_REUSEADDR would share a taken port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise taken(address, port) from error
        msg = f"cannot listen on {address}: {error.strerror or error}"
        raise BadSetting(msg, hint="Set host in config.toml to 127.0.0.1.") from error
    listener.set_inheritable(False)
    return listener


def taken(address: str, port: int) -> PortTaken:
    """The error for a port that somebody else listens on."""
    return PortTaken(f"port {port} on {address} is taken by another program", port=port)
