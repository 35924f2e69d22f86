"""The answer to one request, as far as it was sent: its head, its body, its end, its failure.

Not for: where the answer comes from (`relay`), or what is said while one waits (`waiting`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from starlette.types import Send

from stoker.api import fields
from stoker.api.errors import headers_of, status_of
from stoker.api.routes import Route, error_body, error_event
from stoker.errors import EngineError, StokerError

JSON: Final = b"application/json"
_SSE: Final = b"text/event-stream"
# A stream that waits says so after this time; before it an error is a status, which more clients
# understand than an event.
_QUIET_S: Final = 5.0
_AGAIN_S: Final = 2.0


class Headed(Protocol):
    """The head of an answer, from whichever server it came."""

    def header(self, name: bytes) -> bytes | None: ...


class Reply:
    """The answer as far as it was sent, and how to end it from there."""

    def __init__(self, route: Route, send: Send) -> None:
        self.status: int | None = None  # what the client was told
        self.ignored: tuple[str, ...] = ()
        self.upstream: str | None = None  # the other server that was asked; None: it was ours
        self._route = route
        self._send = send
        self.streams = False  # the answer is server-sent events
        self._answering = False  # the engine's own bytes are on their way
        self._last = b""

    async def begin(self, response: Headed) -> None:
        """Send the head: the engine's content type and length, and nothing else of it.

        Raises EngineError when a stream was begun and this is none.
        """
        kind = response.header(b"content-type") or JSON
        if self.status is not None:  # comments came first
            if not kind.startswith(_SSE):
                raise EngineError("the server did not answer with a stream")
            self._answering = True
            return
        self._answering = True
        self.streams = kind.startswith(_SSE)
        length = response.header(b"content-length")
        await self._start(200, kind, [(b"content-length", length)] if length else [])

    async def write(self, chunk: bytes) -> None:
        self._last = chunk
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: StokerError) -> None:
        """Say what went wrong in the way that is still possible.

        Before the head: a status and a body. In a stream: a last event, without ``[DONE]``. In
        any other body: nothing; the server cuts the connection, so that it is seen to be cut.
        """
        if self.status is None:
            body = json.dumps(error_body(self._route.flavour, error)).encode()
            extra = [(k.lower().encode(), v.encode()) for k, v in headers_of(error).items()]
            extra.append((b"content-length", b"%d" % len(body)))
            await self._start(status_of(error), JSON, extra)
            await self.write(body)
            await self.end()
        elif self.streams:
            separator = b"" if not self._last or self._last.endswith(b"\n\n") else b"\n\n"
            await self.write(separator + error_event(self._route.flavour, error))
            await self.end()

    @asynccontextmanager
    async def soothing(self, say: Callable[[], bytes], *, active: bool) -> AsyncIterator[None]:
        """Until the engine answers, send what is to be said now and then, so nobody gives up."""
        if not active:
            yield
            return
        task = asyncio.create_task(self._soothe(say))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _soothe(self, say: Callable[[], bytes]) -> None:
        await asyncio.sleep(_QUIET_S)
        while not self._answering:
            if self.status is None:
                self.streams = True
                await self._start(200, _SSE, [])
            if self._answering:  # it came while the head was sent
                return
            await self.write(say())
            await asyncio.sleep(_AGAIN_S)

    async def _start(self, status: int, kind: bytes, extra: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers = [(b"content-type", kind), *extra]
        if self.streams:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        else:
            headers.append((b"cache-control", b"no-store"))
        if self.ignored:
            headers.append((b"x-stoker-ignored", fields.ignored_header(self.ignored)))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
