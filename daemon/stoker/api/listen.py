"""One app on one bound socket: uvicorn without its signal handlers and its clock.

uvicorn wakes ten times a second to look at its flags; an idle daemon must cost nothing, so the
loop here sleeps until it is told to stop.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import uvicorn

from stoker.errors import BadSetting, PortTaken

KEEP_ALIVE_S: Final = 75  # longer than the clients' own, so that they close first
MAX_HEADER_BYTES: Final = 64 * 1024
BACKLOG: Final = 512
_CLOSE_S: Final = 2  # requests were drained before; what is left is an idle or a stuck peer


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
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


@asynccontextmanager
async def listening(
    app: Any, listener: socket.socket, *, protocol: Any = "httptools"
) -> AsyncIterator[None]:
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
    server = _Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await server.accepting.wait()
        try:
            yield
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
