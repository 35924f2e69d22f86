"""Another OpenAI-compatible server, in this event loop: well-behaved, or hostile on demand.

``async with OpenAiServer() as server:`` serves at ``server.base_url``. Entries of ``on_models``
and ``on_post`` are used up by one request each. tests/contract/test_openai_server.py holds it to
what a real Stoker answers.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import anyio

JSON = {"Content-Type": "application/json"}
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}


@dataclass
class Exchange:
    """One request that came in, and the way to answer it."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # the client hung up

    def json(self) -> Any:
        return json.loads(self.body)

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Status", *(f"{k}: {v}" for k, v in headers.items())]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] = JSON) -> None:
        await self.head(status, {**headers, "Content-Length": str(len(body))})
        await self.raw(body)

    async def event(self, data: str) -> None:
        """One server-sent event, as a chunk of a chunked body."""
        await self.chunk(f"data: {data}\n\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def until_gone(self) -> None:
        """Wait until the client hangs up; it sends nothing more."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass
        self.gone.set()


Play = Callable[[Exchange], Awaitable[None]]


class OpenAiServer:
    """See the module. ``key`` is what it asks for."""

    def __init__(self, *, key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.models: list[Any] = ["qwen"]  # names, or whole entries
        self.tokens = ["tok0", " tok1", " tok2"]
        self.key = key
        self.seen: list[Exchange] = []
        self.on_models: deque[Play] = deque()
        self.on_post: deque[Play] = deque()
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Exchange]:
        return [one for one in self.seen if one.method == "POST"]

    @property
    def looks(self) -> list[Exchange]:
        return [one for one in self.seen if one.path == "/v1/models"]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the port of before, when there was one."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        if self._server is None:
            return
        self._server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        with anyio.move_on_after(2):
            await self._server.wait_closed()
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client or the test has left
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = (line.partition(": ") for line in head[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        exchange = Exchange(method, path, headers, body, reader, writer)
        self.seen.append(exchange)
        script = self.on_models if path == "/v1/models" else self.on_post
        if script:
            await script.popleft()(exchange)
            return False
        await self._behave(exchange)
        return True

    async def _behave(self, exchange: Exchange) -> None:
        if self.key and exchange.headers.get("authorization") != f"Bearer {self.key}":
            await exchange.answer(401, b'{"error": {"message": "no such key"}}')
        elif exchange.path == "/v1/models":
            await exchange.answer(200, json.dumps(self._list()).encode())
        elif exchange.json().get("stream"):
            await self._stream(exchange)
        else:
            await exchange.answer(200, json.dumps(self._completion(exchange.json())).encode())

    def _list(self) -> dict[str, Any]:
        entries = [
            {"id": one, "object": "model", "created": 1_700_000_000, "owned_by": "them"}
            if isinstance(one, str)
            else one
            for one in self.models
        ]
        return {"object": "list", "data": entries}

    def _completion(self, request: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.tokens)}
        return {
            "object": "chat.completion",
            "model": request.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": len(self.tokens)},
        }

    async def _stream(self, exchange: Exchange) -> None:
        await exchange.head(200, {**SSE, "Transfer-Encoding": "chunked"})
        for token in self.tokens:
            choice = {"index": 0, "delta": {"content": token}, "finish_reason": None}
            await exchange.event(json.dumps({"choices": [choice]}))
        await exchange.event("[DONE]")
        await exchange.raw(b"0\r\n\r\n")


# --- misbehaviours ---------------------------------------------------------------------------


def says(status: int, body: bytes = b"", headers: Mapping[str, str] = JSON) -> Play:
    """Something else altogether."""

    async def play(exchange: Exchange) -> None:
        await exchange.answer(status, body, headers)

    play.__name__ = f"says-{status}-{body[:20]!r}"
    return play


def endless(piece: bytes, headers: Mapping[str, str] = JSON) -> Play:
    """A head, and then the same piece again and again until the client hangs up."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {**headers, "Transfer-Encoding": "chunked"})
        while True:
            await exchange.chunk(piece)

    play.__name__ = "endless"
    return play


async def silence(exchange: Exchange) -> None:
    """Take the request, and never answer."""
    await exchange.until_gone()


async def hangs_up(exchange: Exchange) -> None:
    """Take the request, and close the connection."""
    _ = exchange


async def dies_in_a_stream(exchange: Exchange) -> None:
    """Two events, then the connection is closed."""
    await exchange.head(200, {**SSE, "Transfer-Encoding": "chunked"})
    await exchange.event('{"choices": [{"delta": {"content": "one"}}]}')
    await exchange.event('{"choices": [{"delta": {"content": "two"}}]}')


async def goes_silent_in_a_stream(exchange: Exchange) -> None:
    """One event, then nothing."""
    await exchange.head(200, {**SSE, "Transfer-Encoding": "chunked"})
    await exchange.event('{"choices": [{"delta": {"content": "one"}}]}')
    await exchange.until_gone()


async def lies_about_its_length(exchange: Exchange) -> None:
    """Less than it promised."""
    await exchange.head(200, {**JSON, "Content-Length": "1000"})
    await exchange.raw(b'{"half": ')


async def speaks_nonsense(exchange: Exchange) -> None:
    """No HTTP at all."""
    await exchange.raw(b"\x00\x01 nonsense \r\n\r\n" * 100)


async def sends_an_endless_head(exchange: Exchange) -> None:
    """Header lines without end."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.raw(b"X-More: " + b"a" * 8000 + b"\r\n")
