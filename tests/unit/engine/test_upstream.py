"""The client to a worker, against a server that sends exactly what a test wants."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from stoker.engine import upstream
from stoker.engine.base import Address
from stoker.engine.upstream import Upstream, UpstreamResponse
from stoker.errors import EngineError, WorkerLost

pytestmark = pytest.mark.anyio

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@asynccontextmanager
async def _worker(serve: Serve) -> AsyncIterator[Upstream]:
    """A worker that reads the request's head, then does what `serve` does."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as folder:
        path = Path(folder) / "w.sock"
        server = await asyncio.start_unix_server(handle, path)
        try:
            async with Upstream(Address(socket=path), "key") as up:
                yield up
        finally:
            server.close()


def _says(*pieces: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return serve


async def _post(up: Upstream) -> UpstreamResponse:
    return await up.open("POST", "/v1/x", [(b"content-type", b"application/json")], b"{}")


async def test_request_carries_key_length_and_headers() -> None:
    """One connection per request, and the worker is told so."""
    seen = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n"))
        seen.extend(await reader.readexactly(2))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with _worker(serve) as up:
        response = await _post(up)
        body = await response.read(10)

    assert body == b"ok"
    assert bytes(seen) == (
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Authorization: Bearer key\r\nContent-Length: 2\r\n"
        b"content-type: application/json\r\n\r\n{}"
    )


async def test_chunks_are_decoded_wherever_they_are_cut() -> None:
    """A byte at a time gives the same body."""
    whole = CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"

    async with _worker(_says(*(whole[n : n + 1] for n in range(len(whole))))) as up:
        response = await _post(up)
        chunks = [chunk async for chunk in response]

    assert response.status == 200
    assert response.header(b"content-type") == b"text/event-stream"
    assert b"".join(chunks) == b"hello world"


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"HTTP/1.1 200",),
        (b"nonsense\r\n\r\n",),
    ],
)
async def test_worker_that_goes_before_the_head_is_lost(pieces: tuple[bytes, ...]) -> None:
    """The request may have been acted on, so it is not sent again."""
    async with _worker(_says(*pieces)) as up:
        with pytest.raises(WorkerLost) as caught:
            await _post(up)

    assert "sent" not in caught.value.facts


@pytest.mark.parametrize(
    "body", [CHUNKED + b"5\r\nhello\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]
)
async def test_cut_body_is_an_error_after_what_came(body: bytes) -> None:
    """An answer that ends early is never taken for a whole one."""
    async with _worker(_says(body)) as up:
        response = await _post(up)
        first = await response.chunk()

        with pytest.raises(WorkerLost):
            await response.chunk()

    assert first == b"hello"


async def test_nobody_there_means_nothing_was_sent(tmp_path: Path) -> None:
    """The caller may use another worker."""
    async with Upstream(Address(socket=tmp_path / "none.sock"), "key") as up:
        with pytest.raises(WorkerLost) as caught:
            await _post(up)

    assert caught.value.facts["sent"] is False


async def test_closing_a_response_closes_the_connection() -> None:
    """That is how a generation is cancelled."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await reader.read()
        ended.set()

    async with _worker(serve) as up:
        response = await _post(up)
        await response.chunk()
        await response.aclose()
        with anyio.fail_after(5):
            await ended.wait()


async def test_slow_reader_holds_the_worker_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client does not take is not piled up in the daemon."""
    monkeypatch.setattr(upstream, "_HIGH_WATER", 1000)
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n")
        for _ in range(8000):
            writer.write(b"x" * 1000)
            await writer.drain()
            sent += 1000

    async with _worker(serve) as up:
        response = await _post(up)
        stalled = -1
        while stalled != sent:  # until the worker makes no progress any more
            stalled = sent
            await asyncio.sleep(0.05)
        assert sent < 4_000_000

        size = sum([len(chunk) async for chunk in response])

    assert size == 8_000_000


async def test_silent_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs is lost, before the head and in the middle."""
    monkeypatch.setattr(upstream, "_HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(upstream, "_STALL_TIMEOUT_S", 0.1)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await reader.read()

    async with _worker(hang) as up:
        with pytest.raises(WorkerLost, match="stopped answering"):
            await _post(up)
    monkeypatch.setattr(upstream, "_HEAD_TIMEOUT_S", 30)
    async with _worker(stall) as up:
        response = await _post(up)
        with pytest.raises(WorkerLost, match="stopped answering"):
            await response.read(10)


async def test_endless_error_body_is_bounded() -> None:
    """An error is read whole, but not without limit."""
    async with _worker(_says(CHUNKED, b"fff\r\n" + b"x" * 0xFFF + b"\r\n")) as up:
        response = await _post(up)

        with pytest.raises(EngineError, match="too large"):
            await response.read(1000)


async def test_burst_of_connections_waits_for_its_turn() -> None:
    """More than the accept queue holds is a wait, not an error."""
    async with _worker(_says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as up:
        bodies: list[bytes] = []

        async def ask() -> None:
            bodies.append(await (await _post(up)).read(10))

        async with anyio.create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(ask)

    assert bodies == [b"ok"] * 300
