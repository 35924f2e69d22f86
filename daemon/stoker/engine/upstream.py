"""HTTP/1.1 from the daemon to one worker: a request out, the bytes of its answer back.

Every request has its own connection. On a UNIX socket a connection costs about 0.1 ms, and an
idle kept one would hold one of the engine's few HTTP threads, race with the engine's own idle
close, and need a resend rule. Closing the connection is also how a generation is cancelled.
Not for: choosing a worker (`lifecycle`), or judging what it answers (`api.relay`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Final, Protocol, Self

import httptools

from stoker.engine.base import Address
from stoker.errors import EngineError, WorkerLost

_CONNECT_TIMEOUT_S: Final = 10.0  # the socket exists; a worker that swaps may need seconds
_CONNECT_RETRY_S: Final = 0.02  # the engine's accept queue holds five; it empties in milliseconds
_HEAD_TIMEOUT_S: Final = 3600.0  # a plain answer has no byte before the generation has ended
_STALL_TIMEOUT_S: Final = 600.0  # between bytes; the engine pings a silent stream every 30 s
_HIGH_WATER: Final = 1024 * 1024  # bytes kept for a slow client before the engine must wait
_MAX_HEADERS: Final = 100

Headers = Iterable[tuple[bytes, bytes]]


class _Flow(Protocol):
    """What is used of a transport; the loops' own types disagree on the rest."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _Exchange(asyncio.Protocol):
    """One request and its answer; the parser calls the ``on_`` methods."""

    def __init__(self, on_end: Callable[[_Exchange], None]) -> None:
        self._on_end = on_end
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_done = False
        self.complete = False
        self.failure: str | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._transport: _Flow | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- called by the event loop ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream transport, by contract

    def data_received(self, data: bytes) -> None:
        if self.complete or self.failure:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("it sent something that is not HTTP")
            return
        if self._buffered > _HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        if not self.complete:
            self._fail("it closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        _ = exc
        self._transport = None
        if not self.complete:
            self._fail("it closed the connection")
        if self._timer is not None:
            self._timer.cancel()
        self._on_end(self)

    # --- called by the parser ----------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) < _MAX_HEADERS:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.head_done = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        self.complete = True

    # --- called by the response --------------------------------------------------------------

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
        self._watch(_HEAD_TIMEOUT_S)

    async def head(self) -> None:
        """Return when the head is there. Raises WorkerLost."""
        while not self.head_done:
            await self._wait()
        self._watch(_STALL_TIMEOUT_S)

    async def chunk(self) -> bytes:
        """What arrived since the last call; b"" at the end. Raises WorkerLost."""
        while not self._chunks:
            if self.complete:
                return b""
            await self._wait()
        chunks, self._chunks = self._chunks, []
        self._buffered = 0
        self._deadline = self._loop.time() + _STALL_TIMEOUT_S
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def abort(self) -> None:
        """Close at once; the engine takes it as a cancel."""
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self) -> None:
        if self.failure is not None:
            raise WorkerLost(f"the engine was lost: {self.failure}")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self.abort()
        self._wake()

    def _watch(self, seconds: float) -> None:
        """One timer per exchange that looks again when bytes came: nothing is armed per token."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        if self._deadline is not None and self._loop.time() < self._deadline - 0.01:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        elif not self.complete and not self._chunks:
            self._fail("it stopped answering")


class UpstreamResponse:
    """An answer that has begun. Iterate for its body; ``aclose`` cancels what still runs."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self.status = exchange.status
        self.headers = tuple(exchange.headers)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; ``name`` in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raw body bytes, already de-chunked, as they came. Raises WorkerLost when cut."""
        while chunk := await self._exchange.chunk():
            yield chunk

    async def chunk(self) -> bytes:
        """The next body bytes; b"" at the end. Raises WorkerLost when cut."""
        return await self._exchange.chunk()

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises EngineError beyond ``limit`` bytes, WorkerLost when cut."""
        parts: list[bytes] = []
        size = 0
        while part := await self._exchange.chunk():
            size += len(part)
            if size > limit:
                raise EngineError("the engine's answer is too large")
            parts.append(part)
        return b"".join(parts)

    async def aclose(self) -> None:
        self._exchange.abort()


class Upstream:
    """The way to one worker. Leaving the context cuts every exchange that still runs."""

    def __init__(self, address: Address, key: str) -> None:
        self._address = address
        self._key = key.encode("ascii")
        self._running: set[_Exchange] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for exchange in tuple(self._running):
            exchange.abort()

    async def open(self, method: str, path: str, headers: Headers, body: bytes) -> UpstreamResponse:
        """Send a request; return when the head of the answer is there.

        ``path`` is one of our own constants, never a client's text. Nothing is ever sent twice.
        Raises WorkerLost when the worker goes away first, or cannot be reached; with the fact
        ``sent`` false the request may go to another worker.
        """
        exchange = await self._connect()
        self._running.add(exchange)
        try:
            exchange.send(self._head(method, path, headers, len(body)) + body)
            await exchange.head()
        except BaseException:
            exchange.abort()
            raise
        return UpstreamResponse(exchange)

    def _head(self, method: str, path: str, headers: Headers, length: int) -> bytes:
        lines = [
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode("ascii"),
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n" % (self._key, length),
        ]
        lines += [b"%b: %b\r\n" % pair for pair in headers]
        lines.append(b"\r\n")
        return b"".join(lines)

    async def _connect(self) -> _Exchange:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                while True:
                    try:
                        return await self._connect_once()
                    except BlockingIOError:  # the accept queue is full: a burst, not a fault
                        await asyncio.sleep(_CONNECT_RETRY_S)
        except (OSError, TimeoutError) as error:
            raise WorkerLost(f"the engine cannot be reached: {error}", sent=False) from error

    async def _connect_once(self) -> _Exchange:
        loop = asyncio.get_running_loop()
        exchange = _Exchange(self._running.discard)
        if self._address.socket is not None:
            peer = _connected(str(self._address.socket))
            await loop.create_unix_connection(lambda: exchange, sock=peer)
        else:
            port = self._address.port or 0
            await loop.create_connection(lambda: exchange, "127.0.0.1", port)
        return exchange


def _connected(path: str) -> socket.socket:
    """A non-blocking socket, connected. Raises BlockingIOError when the accept queue is full.

    On a UNIX socket that is an answer to ask again; asyncio takes it for "in progress" and goes
    on with a socket that is not connected.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.settimeout(0)
        peer.connect(path)
    except OSError:
        peer.close()
        raise
    return peer
