"""The way in for clients: a port that is opened and closed while the daemon runs.

A port of our own is bound anew at each opening. A socket that systemd handed over cannot be
closed for good, for systemd holds it too; it is made to refuse connections and to listen again.
Not for: when it is open (`switch`), or what is served there (`inference`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from stoker.api.listen import BACKLOG, address_of, bind_endpoint, listening, shut, taken
from stoker.api.protocol import EndpointProtocol
from stoker.errors import ShuttingDown

log = structlog.get_logger(__name__)


class Endpoint:
    """One per daemon; from the event loop only. Use it in a `with` block and, in it, `running`."""

    def __init__(self, host: str, port: int, inherited: Iterable[socket.socket] = ()) -> None:
        """``inherited`` sockets are ours from now on; the one of this address is served.

        The others refuse connections: the settings decide the address.
        """
        self._host = host
        self._port: _Port = _OwnPort(host, port)
        self._strays: list[_InheritedPort] = []
        for one in map(_InheritedPort, inherited):
            if isinstance(self._port, _OwnPort) and one.is_at(address_of(host), port):
                self._port = one
            else:
                self._strays.append(one)
        self._may_refuse = False
        self._claimed: socket.socket | None = None  # listens, and nobody accepts yet
        self._serving: _Serving | None = None
        self._app: Any = None
        self._tasks: TaskGroup | None = None
        self._lock = anyio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unclaim()
        for port in (self._port, *self._strays):
            port.release()

    @property
    def base_url(self) -> str:
        """For clients. With a free port of the system's choice, true once it was claimed."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port.number}/v1"

    @property
    def inherits(self) -> bool:
        """Whether `may_refuse` makes a difference."""
        return bool(self._strays) or isinstance(self._port, _InheritedPort)

    def problems(self) -> tuple[str, ...]:
        """A line for each socket of systemd's that the settings no longer agree with."""
        wanted = f"{address_of(self._host)} port {self._port.number}"
        return tuple(
            f"systemd listens on {stray.address} port {stray.number} for Stoker, but the settings"
            f" say {wanted}; `stoker autostart on` writes the socket unit anew"
            for stray in self._strays
        )

    def claim(self) -> None:
        """Take the port; who connects from now on waits until it is opened.

        Raises PortTaken, BadSetting.
        """
        if self._claimed is None and self._serving is None:
            self._claimed = self._port.listen()

    @asynccontextmanager
    async def running(self, app: Any) -> AsyncIterator[None]:
        """Inside the block the port can be opened, for this app. At its end nothing is served.

        An inherited socket goes on listening then, for the daemon that systemd starts next.
        """
        async with anyio.create_task_group() as tasks:
            self._app, self._tasks = app, tasks
            try:
                yield
            finally:
                self._tasks = None
                with anyio.CancelScope(shield=True):  # bounded by `listening`
                    async with self._lock:
                        await self._end(leave_rest=isinstance(self._port, _InheritedPort))

    def may_refuse(self) -> None:
        """The service manager knows that we run: inherited sockets may refuse from now on.

        Before that it listens on them itself, and takes one that is shut for a broken one.
        """
        self._may_refuse = True
        for stray in self._strays:
            stray.refuse()
        if self._claimed is None and self._serving is None:
            self._port.refuse()

    async def open(self) -> None:
        """Serve. Does nothing when it is open. Raises PortTaken, BadSetting, ShuttingDown."""
        async with self._lock:
            if self._tasks is None:
                raise ShuttingDown("Stoker is stopping")
            self.claim()
            if self._claimed is not None:
                serving = _Serving(self._claimed)
                self._claimed = None
                await self._tasks.start(serving.run, self._app)
                self._serving = serving

    async def close(self) -> None:
        """Refuse connections; requests that are being answered get a moment to end."""
        async with self._lock:
            may_refuse = self._may_refuse or isinstance(self._port, _OwnPort)
            await self._end(leave_rest=not may_refuse)
            self._unclaim()
            if may_refuse:
                self._port.refuse()

    async def _end(self, *, leave_rest: bool) -> None:
        """With ``leave_rest`` who is not accepted yet waits for the daemon that starts next."""
        if self._serving is not None:
            self._serving.leaves_rest = leave_rest
            self._serving.stop.set()
            await self._serving.ended.wait()
            self._serving = None

    def _unclaim(self) -> None:
        if self._claimed is not None:
            self._claimed.close()
            self._claimed = None


class _Serving:
    """The app on a listening socket, which it closes at its end."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.leaves_rest = False
        self.stop = anyio.Event()
        self.ended = anyio.Event()

    async def run(self, app: Any, *, task_status: TaskStatus[None]) -> None:
        try:
            with self._listener:
                async with listening(app, self._listener, protocol=EndpointProtocol) as server:
                    task_status.started()
                    await self.stop.wait()
                    server.leaves_rest = self.leaves_rest
        finally:
            self.ended.set()


# --- ports -----------------------------------------------------------------------------------


class _Port(Protocol):
    @property
    def number(self) -> int: ...

    def listen(self) -> socket.socket:
        """A listening socket, to be closed by the caller. Raises PortTaken, BadSetting."""
        ...

    def refuse(self) -> None:
        """Once that socket is closed: refuse connections."""
        ...

    def release(self) -> None: ...


class _OwnPort:
    """One that nobody but us opens; closed when its socket is."""

    def __init__(self, host: str, number: int) -> None:
        self._host = host
        self.number = number  # the one that was found when 0 was asked for: it stays the same

    def listen(self) -> socket.socket:
        listener = bind_endpoint(self._host, self.number)
        self.number = listener.getsockname()[1]
        try:
            listener.listen(BACKLOG)
        except OSError as error:  # two may bind it, but only one may listen
            listener.close()
            raise taken(address_of(self._host), self.number) from error
        return listener

    def refuse(self) -> None:
        """Nothing listens any more."""

    def release(self) -> None:
        """Nothing is held."""


class _InheritedPort:
    """A socket that systemd holds as well, and that must listen when we are gone.

    Linux: a listening socket that is shut down for reading refuses connections, keeps its
    address, and can listen again.
    """

    def __init__(self, held: socket.socket) -> None:
        self._held = held
        self.address, self.number = held.getsockname()[:2]

    def is_at(self, address: str, number: int) -> bool:
        """Whether it has the wanted address; number 0 is any."""
        return self.address == address and number in {0, self.number}

    def listen(self) -> socket.socket:
        try:
            self._listen()
        except OSError as error:  # another program took the port while it was shut
            raise taken(self.address, self.number) from error
        return self._held.dup()

    def refuse(self) -> None:
        shut(self._held)

    def release(self) -> None:
        """Let systemd have it in good order: its socket unit fails when it does not listen."""
        try:
            self._listen()
        except OSError as error:
            log.warning("inherited_socket_lost", port=self.number, reason=str(error))
        self._held.close()

    def _listen(self) -> None:
        try:  # a port that the system had chosen is lost when the socket is shut
            self._held.bind((self.address, self.number))
        except OSError as error:
            if error.errno != errno.EINVAL:  # that means: it has its address
                raise
        self._held.listen(BACKLOG)
