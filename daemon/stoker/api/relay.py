"""The way of a request to whoever answers it and of the answer back: bytes in, bytes out.

A plain ASGI endpoint: the request is parsed once, the answer not at all. What a token costs here
is taken from the engine's own threads, so nothing is done per chunk that can wait until the end.
Not for: which fields may pass (`fields`), who may call (`guard`), which worker (`lifecycle`),
other servers (`stoker.upstreams`), or how the answer is sent (`reply`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import structlog
from anyio.to_thread import run_sync
from starlette.types import Receive, Scope, Send

from stoker.api import fields, multipart, waiting
from stoker.api import upstreams as elsewhere
from stoker.api.checks import keep_alive
from stoker.api.default import means_default
from stoker.api.hangup import until_gone
from stoker.api.reply import JSON, Headed, Reply
from stoker.api.routes import ROUTES, engine_error
from stoker.api.services import Services
from stoker.errors import InternalError, StokerError, WorkerLost
from stoker.lifecycle.tickets import Seat
from stoker.metrics import ModelMeters
from stoker.types import Capability, ModelId
from stoker.upstreams import RemoteModel

log = structlog.get_logger(__name__)

_THREAD_BYTES: Final = 256 * 1024  # a body that takes more than a few milliseconds to parse
_MAX_ERROR_BYTES: Final = 1024 * 1024
_TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
_KEEP_ALIVE_HEADER: Final = "X-Stoker-Keep-Alive"  # for clients that cannot add a field
_KEEP_ALIVE_KEY: Final = _KEEP_ALIVE_HEADER.lower().encode()
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
    keep_alive_s: float | None
    content_type: bytes
    body: Callable[[str], bytes]  # for the engine, given the model's id
    body_elsewhere: Callable[[str], bytes]  # the same for a server that has several models


@dataclass(slots=True)
class _Call:
    """One request on its way."""

    path: str
    asked: _Asked
    reply: Reply
    began: float
    seat: Seat = field(default_factory=Seat)
    granted: bool = False  # a worker was, or is, ours
    news: bytes | None = None  # what to say while it waits; None: how it stands in the queue


class _Body(Headed, Protocol):
    """An answer that has begun, from an engine or from another server."""

    async def chunk(self) -> bytes: ...


class Relay:
    """Serves every path of `ROUTES`."""

    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._lifecycle = services.lifecycle
        self._upstreams = services.upstreams
        self._metrics = services.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; a client that goes away ends the wait and the generation at once."""
        body = await _read(receive)
        if body is None:
            return
        reply = Reply(ROUTES[scope["path"]], send)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_gone, receive, tasks.cancel_scope)
            await self._answer(scope, body, reply)
            tasks.cancel_scope.cancel()
        status = str(reply.status or "gone")
        self._metrics.requests.labels(scope["path"], status).inc()
        if reply.upstream is not None:
            self._metrics.upstream(reply.upstream, status)

    async def _answer(self, scope: Scope, body: bytes, reply: Reply) -> None:
        try:
            await self._relay(scope, body, reply)
        except StokerError as error:
            await reply.fail(error)
        except Exception as error:  # task boundary: the client gets an answer, the log the fault
            log.exception("relay_crashed", path=scope["path"])
            await reply.fail(InternalError(f"Stoker failed: {type(error).__name__}"))

    async def _relay(self, scope: Scope, body: bytes, reply: Reply) -> None:
        began = time.perf_counter()
        asked = await _understand(scope, body)
        reply.ignored = asked.ignored
        call = _Call(scope["path"], asked, reply, began)
        async with reply.soothing(lambda: self._news(call), active=asked.stream):
            await self._route(scope, call)

    def _news(self, call: _Call) -> bytes:
        if call.news is not None:
            return call.news
        return waiting.queued(self._lifecycle.waiting(call.seat))

    # --- who answers -------------------------------------------------------------------------

    async def _route(self, scope: Scope, call: _Call) -> None:
        """A stored model of the name comes first, whatever else goes by it."""
        name = call.asked.model
        remote = elsewhere.remote(self._store, self._upstreams, name, scope["headers"])
        if remote is not None:
            await self._ask_elsewhere(call, remote)
        elif means_default(self._store, name):
            await self._ask_default(call)
        else:
            await self._ask(call, name)

    async def _ask_default(self, call: _Call) -> None:
        model = self._default()
        try:
            await self._ask(call, str(model))
        except StokerError:
            # The user changed to a model that cannot be loaded: the one before is the default
            # again, and whoever named none does not care. The change learns it in this moment.
            await asyncio.sleep(0)
            now = self._lifecycle.default_model()
            if call.granted or now is None or now == model:
                raise
            await self._ask(call, str(now))

    def _default(self) -> ModelId:
        """Raises BadRequest, which names what there is."""
        model = self._lifecycle.default_model()
        if model is None:
            raise fields.missing_model([str(manifest.id) for manifest in self._store.list()])
        return model

    async def _ask(self, call: _Call, model: str) -> None:
        try:
            await self._ask_once(call, model)
        except WorkerLost as error:
            if error.facts.get("sent", True):
                raise
            # It died unnoticed while idle; the request has not left us, so it can't repeat.
            await self._ask_once(call, model)

    async def _ask_once(self, call: _Call, model: str) -> None:
        asked, call.news = call.asked, None
        async with self._lifecycle.lease(
            model, capability=asked.capability, keep_alive_s=asked.keep_alive_s, seat=call.seat
        ) as lease:
            call.granted, call.news = True, waiting.READING
            headers = ((b"content-type", asked.content_type),)
            body = asked.body(str(lease.model))
            response = await lease.upstream.open("POST", call.path, headers, body)
            try:
                if response.status != 200:  # noqa: PLR2004  # it answers nothing else that is good
                    told = await response.read(_MAX_ERROR_BYTES)
                    raise engine_error(response.status, told)
                meters = self._metrics.model(str(lease.model))
                await _pass_on(response, call, lease.add_tokens, meters)
            finally:
                await response.aclose()

    async def _ask_elsewhere(self, call: _Call, remote: RemoteModel) -> None:
        """Another server's model; what is sent there is never sent twice."""
        call.news, call.reply.upstream = waiting.asking(remote.upstream), remote.upstream
        headers = ((b"content-type", call.asked.content_type),)
        body = call.asked.body_elsewhere(remote.name)
        response = await self._upstreams.open(remote, "POST", call.path, headers, body)
        try:
            if response.status != 200:  # noqa: PLR2004  # as for an engine
                raise await elsewhere.refusal(remote, response)
            await _pass_on(response, call)
        finally:
            await response.aclose()


# --- the answer ------------------------------------------------------------------------------


async def _pass_on(
    response: _Body,
    call: _Call,
    add_tokens: Callable[[int], None] = lambda _tokens: None,
    meters: ModelMeters | None = None,
) -> None:
    """Every byte as it came; with ``meters`` it is counted for its model."""
    reply = call.reply
    before, chunk = b"", await response.chunk()
    await reply.begin(response)
    if reply.streams and meters is not None:
        meters.first_byte(time.perf_counter() - call.began)
    while chunk:
        await reply.write(chunk)
        add_tokens(chunk.count(_EVENT))
        before, last = chunk, before
        chunk = await response.chunk()
    await reply.end()
    if before and meters is not None:
        _count_tokens(last + before, meters)


def _count_tokens(tail: bytes, meters: ModelMeters) -> None:
    """From the end of the answer, where the engine or the API puts its counts."""
    for prompt, completion in _COUNTS:
        prompts, completions = prompt.findall(tail), completion.findall(tail)
        if prompts or completions:
            meters.tokens(
                prompt=int(prompts[-1]) if prompts else 0,
                completion=int(completions[-1]) if completions else 0,
            )
            return


# --- the request -----------------------------------------------------------------------------


async def _understand(scope: Scope, body: bytes) -> _Asked:
    """Raises BadRequest, NotCapable."""
    parse = _upload if scope["path"] == _TRANSCRIPTIONS else _question
    if len(body) > _THREAD_BYTES:
        return await run_sync(parse, scope, body)
    return parse(scope, body)


def _question(scope: Scope, body: bytes) -> _Asked:
    """A JSON request. Raises BadRequest, NotCapable."""
    path = scope["path"]
    request = fields.parse(path, body)
    capability = ROUTES[path].capability
    for wanted in (Capability.AUDIO, Capability.VISION):
        capability = wanted if wanted in request.media else capability
    return _Asked(
        model=request.model,
        capability=capability,
        stream=request.stream,
        ignored=request.ignored,
        keep_alive_s=_kept(scope, request.keep_alive_s),
        content_type=JSON,
        body=request.body,
        body_elsewhere=request.body,
    )


def _upload(scope: Scope, body: bytes) -> _Asked:
    """A multipart request. Raises BadRequest."""
    kind = next(value for name, value in scope["headers"] if name == b"content-type")
    form = multipart.parse(kind.decode("latin-1"), body)
    return _Asked(
        model=form.model,
        capability=ROUTES[scope["path"]].capability,
        stream=False,
        ignored=form.ignored,
        keep_alive_s=_kept(scope, form.keep_alive_s),
        content_type=kind,
        body=lambda _model: form.body,
        body_elsewhere=form.named,
    )


def _kept(scope: Scope, asked_s: float | None) -> float | None:
    """How long the model is to stay: as the field says, else as the header. Raises BadRequest."""
    if asked_s is not None:
        return asked_s
    for name, value in scope["headers"]:
        if name == _KEEP_ALIVE_KEY:
            return keep_alive(_KEEP_ALIVE_HEADER, value.decode("latin-1"))
    return None


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
