"""Answers that go on: the event stream and the verify stream, written line by line.

Not for: the relay of model answers (`relay`), which passes bytes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stoker.api.hangup import until_gone
from stoker.api.services import Services
from stoker.schemas import Event, Goodbye, Snapshot, VerifyProgress, VerifyView
from stoker.store.manifest import Manifest
from stoker.store.store import FileResult
from stoker.verification import Verifier

PING_S: Final = 15.0  # how long a client hears nothing; it gives up after three of them
PROGRESS_S: Final = 0.1  # between two progress lines: smooth for an eye, nothing for a CPU

Emit = Callable[[bytes], Awaitable[None]]


class Streamed(Response):
    """An answer that `write` sends piece by piece; it is cancelled when the client goes away."""

    def __init__(self, write: Callable[[Emit], Awaitable[None]], media_type: str) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]  # of the empty body that this is not
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, all pieces and the end, unless the client leaves before."""
        _ = scope
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_gone, receive, tasks.cancel_scope)
            await send(self._head())
            await self._write(lambda piece: send(_body(piece, more=True)))
            await send(_body(b"", more=False))
            tasks.cancel_scope.cancel()

    def _head(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


def _body(piece: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


# --- events ----------------------------------------------------------------------------------


def event_stream(services: Services, *, resources: bool) -> Response:
    """A snapshot, then every change, as server-sent events; ends with a goodbye."""
    return Streamed(partial(write_events, services, resources), "text/event-stream")


async def write_events(services: Services, resources: bool, emit: Emit) -> None:  # noqa: FBT001  # partial() fills it
    """Return after the goodbye; a client that was too slow gets a new snapshot."""
    with services.bus.subscribe(resources=resources) as subscription:
        await emit(_sse(Snapshot(status=services.status())))
        events = aiter(subscription)
        while True:
            with anyio.move_on_after(PING_S) as wait:
                event = await anext(events)
            if wait.cancelled_caught:
                events = aiter(subscription)  # a cancelled wait has ended the generator
                await emit(b": ping\n\n")
                continue
            await emit(_sse(event or Snapshot(status=services.status())))
            if isinstance(event, Goodbye):
                return


def _sse(event: Event) -> bytes:
    return b"data: " + event.model_dump_json().encode() + b"\n\n"


# --- verify ----------------------------------------------------------------------------------


def verify_stream(services: Services, manifests: Sequence[Manifest]) -> Response:
    """Hash the models one after the other: lines of progress, one result per file."""
    return Streamed(partial(write_verification, services, manifests), "application/x-ndjson")


async def write_verification(services: Services, manifests: Sequence[Manifest], emit: Emit) -> None:
    """Emit `VerifyProgress` lines; cancelling stops the hashing at its next chunk."""
    verifier = Verifier(services.store, services.lifecycle, services.bus)
    tally = _Tally(sum(manifest.size_bytes for manifest in manifests))

    async def verify_all() -> None:
        with tally.outbox:
            for manifest in manifests:
                await verifier.verify(manifest, progress=tally.hashed, found=tally.found)

    async with anyio.create_task_group() as tasks, tally.lines:
        tasks.start_soon(verify_all)
        async for line in tally.lines:
            await emit(line.model_dump_json().encode() + b"\n")


class _Tally:
    """Counts in the hashing thread, and hands lines over to the event loop."""

    def __init__(self, bytes_total: int) -> None:
        # Without a bound: at most ten lines a second wait, and one per file.
        self.outbox, self.lines = anyio.create_memory_object_stream[VerifyProgress](math.inf)
        self._loop = asyncio.get_running_loop()
        self._total = bytes_total
        self._finished = 0  # bytes of the files before this one
        self._done = 0
        self._next_s = 0.0

    def hashed(self, count: int) -> None:
        """So many bytes more of the present file."""
        self._done += count
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + PROGRESS_S
            self._put(None)

    def found(self, result: FileResult) -> None:
        """The present file is finished, however much of it was there to hash."""
        self._finished += result.size
        self._done = self._finished
        self._put(
            VerifyView(
                id=str(result.id),
                file=str(result.name),
                sha256=result.digest.hex,
                ok=result.ok,
                finding=result.finding,
            )
        )

    def _put(self, result: VerifyView | None) -> None:
        line = VerifyProgress(bytes_done=self._done, bytes_total=self._total, result=result)
        self._loop.call_soon_threadsafe(self._send, line)

    def _send(self, line: VerifyProgress) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):  # the client is gone
            self.outbox.send_nowait(line)
