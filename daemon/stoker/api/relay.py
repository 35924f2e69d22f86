"""The way of a request to a worker and of its answer back: bytes in, bytes out.

A plain ASGI endpoint: the request is parsed once, the answer not at all. What a token costs here
is taken from the engine's own threads, so nothing is done per chunk that can wait until the end.
Not for: which fields may pass (`fields`), who may call (`guard`), which worker (`lifecycle`).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync
from starlette.types import Receive, Scope, Send

from stoker.api import fields, multipart
from stoker.api.errors import headers_of, status_of
from stoker.api.hangup import until_gone
from stoker.api.routes import ROUTES, Route, engine_error, error_body, error_event
from stoker.api.services import Services
from stoker.engine.upstream import UpstreamResponse
from stoker.errors import InternalError, StokerError, WorkerLost
from stoker.lifecycle.running import Lease
from stoker.types import Capability

log = structlog.get_logger(__name__)

_THREAD_BYTES: Final = 256 * 1024  # a body that takes more than a few milliseconds to parse
_MAX_ERROR_BYTES: Final = 1024 * 1024
_QUIET_S: Final = 10.0  # a stream that waits for its model says so after this, and this often
_TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
_SSE: Final = b"text/event-stream"
_JSON: Final = b"application/json"
_EVENT: Final = b"data: "
_COUNTS: Final = (
    # The engine's own timings, then OpenAI's and Anthropic's usage.
    (re.compile(rb'"prompt_n": ?(\d+)'), re.compile(rb'"predicted_n": ?(\d+)')),
    (re.compile(rb'"prompt_tokens": ?(\d+)'), re.compile(rb'"completion_tokens": ?(\d+)')),
    (re.compile(rb'"input_tokens": ?(\d+)'), re.compile(rb'"output_tokens": ?(\d+)')),
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request comes down to, whatever its content type was."""

    model: str
    capability: Capability | None
    stream: bool
    ignored: tuple[str, ...]
    content_type: bytes
    body: Callable[[str], bytes]  # for the engine, given the model's id


class Relay:
    """Serves every path of `ROUTES`."""

    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._lifecycle = services.lifecycle
        self._metrics = services.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; a client that goes away ends the wait and the generation at once."""
        body = await _read(receive)
        if body is None:
            return
        reply = _Reply(ROUTES[scope["path"]], send)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_gone, receive, tasks.cancel_scope)
            await self._answer(scope, body, reply)
            tasks.cancel_scope.cancel()
        self._metrics.requests.labels(scope["path"], str(reply.status or "gone")).inc()

    async def _answer(self, scope: Scope, body: bytes, reply: _Reply) -> None:
        try:
            await self._relay(scope, body, reply)
        except StokerError as error:
            await reply.fail(error)
        except Exception as error:  # task boundary: the client gets an answer, the log the fault
            log.exception("relay_crashed", path=scope["path"])
            await reply.fail(InternalError(f"Stoker failed: {type(error).__name__}"))

    async def _relay(self, scope: Scope, body: bytes, reply: _Reply) -> None:
        began = time.perf_counter()
        asked = await self._understand(scope, body)
        reply.ignored = asked.ignored
        async with reply.soothing(active=asked.stream):
            try:
                await self._ask(scope["path"], asked, reply, began)
            except WorkerLost as error:
                if error.facts.get("sent", True):
                    raise
                # It died unnoticed while idle; the request has not left us, so it can't repeat.
                await self._ask(scope["path"], asked, reply, began)

    async def _ask(self, path: str, asked: _Asked, reply: _Reply, began: float) -> None:
        async with self._lifecycle.lease(asked.model, capability=asked.capability) as lease:
            headers = ((b"content-type", asked.content_type),)
            body = asked.body(str(lease.model))
            response = await lease.upstream.open("POST", path, headers, body)
            try:
                await self._pass_on(response, reply, lease, began)
            finally:
                await response.aclose()

    async def _understand(self, scope: Scope, body: bytes) -> _Asked:
        """Raises BadRequest, NotCapable."""
        parse = _upload if scope["path"] == _TRANSCRIPTIONS else _question
        if len(body) > _THREAD_BYTES:
            asked = await run_sync(parse, scope, body)
        else:
            asked = parse(scope, body)
        if not asked.model:
            raise fields.missing_model([str(manifest.id) for manifest in self._store.list()])
        return asked

    async def _pass_on(
        self, response: UpstreamResponse, reply: _Reply, lease: Lease, began: float
    ) -> None:
        if response.status != 200:  # noqa: PLR2004  # the engine answers nothing else that is good
            raise engine_error(response.status, await response.read(_MAX_ERROR_BYTES))
        before, chunk = b"", await response.chunk()
        await reply.begin(response)
        if reply.streams:
            self._metrics.ttft_seconds.observe(time.perf_counter() - began)
        while chunk:
            await reply.write(chunk)
            lease.add_tokens(chunk.count(_EVENT))
            before, last = chunk, before
            chunk = await response.chunk()
        await reply.end()
        self._count_tokens(last + before if before else b"")

    def _count_tokens(self, tail: bytes) -> None:
        """From the end of the answer, where the engine or the API puts its counts."""
        for prompt, completion in _COUNTS:
            prompts, completions = prompt.findall(tail), completion.findall(tail)
            if prompts or completions:
                self._metrics.count_tokens(
                    prompt=int(prompts[-1]) if prompts else 0,
                    completion=int(completions[-1]) if completions else 0,
                )
                return


class _Reply:
    """The answer as far as it was sent, and how to end it from there."""

    def __init__(self, route: Route, send: Send) -> None:
        self.status: int | None = None  # what the client was told
        self.ignored: tuple[str, ...] = ()
        self._route = route
        self._send = send
        self.streams = False  # the answer is server-sent events
        self._answering = False  # the engine's own bytes are on their way
        self._last = b""

    async def begin(self, response: UpstreamResponse) -> None:
        """Send the head: the engine's content type and length, and nothing else of it."""
        self._answering = True
        if self.status is not None:
            return  # comments came first
        kind = response.header(b"content-type") or _JSON
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
            await self._start(status_of(error), _JSON, extra)
            await self.write(body)
            await self.end()
        elif self.streams:
            separator = b"" if not self._last or self._last.endswith(b"\n\n") else b"\n\n"
            await self.write(separator + error_event(self._route.flavour, error))
            await self.end()

    @asynccontextmanager
    async def soothing(self, *, active: bool) -> AsyncIterator[None]:
        """Until the engine answers, send a comment now and then, so that nobody gives up."""
        if not active:
            yield
            return
        task = asyncio.create_task(self._soothe())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _soothe(self) -> None:
        while True:
            await asyncio.sleep(_QUIET_S)
            if self._answering:
                return
            if self.status is None:
                self.streams = True
                await self._start(200, _SSE, [])
            await self.write(b": the model is being loaded or reads the prompt\n\n")

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


def _question(scope: Scope, body: bytes) -> _Asked:
    """A JSON request. Raises BadRequest, NotCapable."""
    path = scope["path"]
    request = fields.parse(path, body)
    capability = ROUTES[path].capability
    for wanted in (Capability.AUDIO, Capability.VISION):
        capability = wanted if wanted in request.media else capability
    return _Asked(request.model, capability, request.stream, request.ignored, _JSON, request.body)


def _upload(scope: Scope, body: bytes) -> _Asked:
    """A multipart request. Raises BadRequest."""
    kind = next(value for name, value in scope["headers"] if name == b"content-type")
    form = multipart.parse(kind.decode("latin-1"), body)
    return _Asked(
        model=form.model,
        capability=ROUTES[scope["path"]].capability,
        stream=False,
        ignored=form.ignored,
        content_type=kind,
        body=lambda _model: form.body,
    )


async def _read(receive: Receive) -> bytes | None:
    """The whole body (the guard bounds it); None when the client went away before its end."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return bytes(message.get("body", b""))
    parts: list[bytes] = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    return None
