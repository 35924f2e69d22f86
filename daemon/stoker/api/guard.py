"""The outermost layer of the endpoint: who may call, with what, how large and how slowly.

Pure ASGI, before any routing. A browser page that the user happens to visit can reach loopback;
what it cannot do is forge the Host header, hide its Origin or send JSON without asking first.
Nothing from a request is ever reflected. Not for: what the body says (`fields`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker.api.errors import headers_of, openai_body, status_of
from stoker.errors import (
    BadRequest,
    BodyTooLarge,
    HostNotAllowed,
    OriginNotAllowed,
    StokerError,
    UnsupportedMediaType,
)

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
_BODY_STALL_S: Final = 30.0  # between two pieces of a body
_BODY_TOTAL_S: Final = 300.0  # for all of it; 64 MiB at 0.2 MB/s
_DISCARD_S: Final = 2.0  # a client that still sends reads our answer only when it is taken
_MULTIPART: Final = frozenset(("/v1/audio/transcriptions",))
_METHODS: Final = "GET, HEAD, POST, OPTIONS"

_LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))
_AUTHORITY: Final = re.compile(
    r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?)(?::([0-9]{1,5}))?"
)
_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed beyond the defaults. Names in lower case."""

    hosts: frozenset[str]
    origins: frozenset[str]
    max_body_bytes: int

    @classmethod
    def of(
        cls, allowed_hosts: Iterable[str], allowed_origins: Iterable[str], max_body_bytes: int
    ) -> Rules:
        return cls(
            frozenset(host.lower() for host in allowed_hosts),
            frozenset(origin.lower().rstrip("/") for origin in allowed_origins),
            max_body_bytes,
        )


class Guard:
    """Wraps the endpoint's app; see the module."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            headers = scope["headers"]
            origin = _checked(scope, headers, self._rules)
            if origin is not None:
                answer.allow(origin)
            if scope["method"] == "OPTIONS":
                await _preflight(origin, headers, answer)
                return
            body = _Body(receive, self._rules.max_body_bytes)
            body.check_head(scope["method"], scope["path"], headers)
        except StokerError as error:
            await _discard(receive)
            await _refuse(scope, receive, answer, error)
            return
        await self._serve(scope, receive, body, answer)

    async def _serve(self, scope: Scope, receive: Receive, body: _Body, answer: _Answer) -> None:
        try:
            await self._app(scope, body, answer)
        except StokerError as error:
            if answer.started:
                raise
            if not body.done:
                await _discard(receive)
            await _refuse(scope, receive, answer, error)


# --- who calls -------------------------------------------------------------------------------


def _checked(scope: Scope, headers: list[tuple[bytes, bytes]], rules: Rules) -> str | None:
    """The caller's allowed origin, or None for a program. Raises InputError or RefusedError."""
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise BadRequest(f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them")
    port = (scope.get("server") or ("", None))[1]
    check_host(_values(headers, b"host"), port, rules)
    origin = check_origin(_values(headers, b"origin"), _values(headers, b"sec-fetch-site"), rules)
    if b"websocket" in b",".join(_values(headers, b"upgrade")).lower():
        raise BadRequest(
            "WebSocket is not offered", hint="Use HTTP; streams are server-sent events."
        )
    return origin


def check_host(values: list[bytes], port: int | None, rules: Rules) -> None:
    """Raises BadRequest for none, several or nonsense, HostNotAllowed for a foreign name.

    A page on evil.example whose name resolves to 127.0.0.1 is told apart by this alone.
    """
    if len(values) != 1:
        raise BadRequest("exactly one Host header is needed")
    host = values[0].decode("latin-1").lower()
    match = _AUTHORITY.fullmatch(host)
    if match is None:
        raise BadRequest("the Host header is not a host")
    name, given = match[1], int(match[2]) if match[2] else 80
    if host in rules.hosts or name in rules.hosts:
        return
    if name not in _LOOPBACK or given != port:
        raise HostNotAllowed("this Host name or port is not served")


def check_origin(origins: list[bytes], sites: list[bytes], rules: Rules) -> str | None:
    """The allowed origin, or None when no web page calls. Raises OriginNotAllowed."""
    if len(origins) > 1 or len(sites) > 1:
        raise BadRequest("a header that may stand once stands twice")
    if origins:
        origin = origins[0].decode("latin-1").lower()
        if origin not in rules.origins:
            raise OriginNotAllowed("web pages may not call Stoker")
        return origin
    if sites and sites[0].lower() not in {b"none", b"same-origin"}:
        raise OriginNotAllowed("web pages may not call Stoker")
    return None


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


# --- with what -------------------------------------------------------------------------------


class _Body:
    """The receive channel, with a limit on bytes and on time."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self.done = False
        self._deadline = anyio.current_time() + _BODY_TOTAL_S

    def check_head(self, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        """What can be refused before a byte of the body. Raises InputError."""
        lengths = _values(headers, b"content-length")
        if len(lengths) > 1 or (lengths and _values(headers, b"transfer-encoding")):
            raise BadRequest("the length of the body is given twice")
        if lengths and (not lengths[0].isdigit() or len(lengths[0]) > 18):  # noqa: PLR2004
            raise BadRequest("Content-Length is not a length")
        if lengths and int(lengths[0]) > self._limit:
            raise self._too_large()
        if method == "POST":
            check_content(path, headers)

    async def __call__(self) -> Message:
        if self.done:
            return await self._receive()  # waits for the disconnect
        left = self._deadline - anyio.current_time()
        try:
            with anyio.fail_after(min(_BODY_STALL_S, left)):
                message = await self._receive()
        except TimeoutError as error:
            raise BadRequest("the body came too slowly") from error
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self.done = not message.get("more_body", False)
            if self._size > self._limit:
                raise self._too_large()
        return message

    def _too_large(self) -> BodyTooLarge:
        message = f"the body is larger than {self._limit} bytes"
        return BodyTooLarge(message, limit_bytes=self._limit)


def check_content(path: str, headers: list[tuple[bytes, bytes]]) -> None:
    """JSON and nothing else: a form of a web page cannot send it. Raises UnsupportedMediaType."""
    encodings = [value for value in _values(headers, b"content-encoding") if value != b"identity"]
    if encodings:
        raise UnsupportedMediaType("compressed bodies are not accepted")
    types = _values(headers, b"content-type")
    kind, _, rest = (types[0] if len(types) == 1 else b"").decode("latin-1").partition(";")
    wanted = "multipart/form-data" if path in _MULTIPART else "application/json"
    if kind.strip().lower() != wanted:
        message = f"the body must be {wanted}"
        raise UnsupportedMediaType(message, hint=f"Send the header Content-Type: {wanted}.")
    charset = re.search(r"charset=\"?([A-Za-z0-9_-]+)", rest)
    if charset and charset[1].lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType("the body must be UTF-8")


# --- answers ---------------------------------------------------------------------------------


class _Answer:
    """The send channel: adds our headers, and knows when it is too late for another answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._extra = list(_ALWAYS)
        self.started = False

    def allow(self, origin: str) -> None:
        """Let pages of this origin read the answer."""
        self._extra += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"origin"),
        ]

    async def __call__(self, message: Message) -> None:
        if not self.started:  # the head comes first, once
            self.started = True
            message = {**message, "headers": [*message.get("headers", ()), *self._extra]}
        await self._send(message)


async def _preflight(origin: str | None, headers: list[tuple[bytes, bytes]], send: Send) -> None:
    """The answer to OPTIONS: what is possible, and to an allowed page that it may ask."""
    answer = [(b"allow", _METHODS.encode())]
    if origin is not None and _values(headers, b"access-control-request-method"):
        answer += [
            (b"access-control-allow-methods", _METHODS.encode()),
            (b"access-control-allow-headers", b"authorization, *"),
            (b"access-control-max-age", b"600"),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    """Take what the client still sends; before that it would not read an answer."""
    with anyio.move_on_after(_DISCARD_S):
        while (await receive()).get("more_body", False):
            pass


async def _refuse(scope: Scope, receive: Receive, send: Send, error: StokerError) -> None:
    """Answer with the error and close: the rest of a body must not be taken for a request."""
    headers = {**headers_of(error), "Connection": "close"}
    response = JSONResponse(openai_body(error), status_of(error), headers=headers)
    await response(scope, receive, send)
