from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from stoker.api import guard
from stoker.api.guard import Guard, Rules

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
JSON = (b"content-type", b"application/json")
RULES = Rules.of(["box.example", "proxy.example:8443"], ["https://chat.example"], 1000)


class _App:
    """Remembers whether it was reached, and with what body."""

    def __init__(self) -> None:
        self.body: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        self.body = body
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def _call(
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    path: str = "/v1/models",
    host: bytes | None = b"127.0.0.1:4328",
    pieces: tuple[bytes, ...] = (b"",),
    kind: str = "http",
) -> tuple[int, dict[bytes, bytes], bytes, _App]:
    app = _App()
    given = [*([(b"host", host)] if host is not None else []), *headers]
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": given,
        "server": ("127.0.0.1", 4328),
    }
    todo = [
        {"type": "http.request", "body": piece, "more_body": n < len(pieces) - 1}
        for n, piece in enumerate(pieces)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if todo:
            return todo.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await Guard(app, RULES)(scope, receive, send)
    if kind == "websocket":
        return sent[0]["code"], {}, b"", app
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body, app


def _code(body: bytes) -> Any:
    return json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:4328",
        b"localhost:4328",
        b"LocalHost:4328",
        b"[::1]:4328",
        b"box.example",
        b"BOX.example:99",
        b"proxy.example:8443",
    ],
)
async def test_our_own_names_are_served(host: bytes) -> None:
    """Loopback names with the right port, and what the user added."""
    status, _, _, app = await _call(host=host)

    assert status == 200
    assert app.body == b""


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (None, 400),
        (b"", 400),
        (b"evil.com", 403),
        (b"evil.com:4328", 403),
        (b"localhost.evil.com:4328", 403),
        (b"127.0.0.1.nip.io:4328", 403),
        (b"127.0.0.1", 403),
        (b"127.0.0.1:80", 403),
        (b"127.0.0.1:4329", 403),
        (b"127.0.0.2:4328", 403),
        (b"0.0.0.0:4328", 403),
        (b"2130706433:4328", 403),
        (b"proxy.example:8444", 403),
        (b"localhost.:4328", 400),
        (b"user@127.0.0.1:4328", 400),
        (b"127.0.0.1:4328:1", 400),
        (b"127.0.0.1:99999999", 400),
        (b"[::1", 400),
        (b"127.0.0.1:4328, evil.com", 400),
        (b"127.0.0.1:4328/x", 400),
        (b"\xff", 400),
    ],
)
async def test_foreign_hosts_are_refused(host: bytes | None, status: int) -> None:
    """DNS rebinding ends here; nothing of the name is reflected."""
    answered, headers, body, app = await _call(host=host)

    assert answered == status
    assert app.body is None
    assert _code(body) in {"bad_request", "host_not_allowed"}
    assert b"evil" not in body
    assert headers[b"x-content-type-options"] == b"nosniff"


async def test_two_hosts_are_refused() -> None:
    """Whichever one a proxy believed."""
    status, _, _, app = await _call((b"host", b"127.0.0.1:4328"))

    assert status == 400
    assert app.body is None


@pytest.mark.parametrize(
    "headers",
    [
        ((b"origin", b"https://evil.example"),),
        ((b"origin", b"null"),),
        ((b"origin", b""),),
        ((b"origin", b"http://localhost:3000"),),
        ((b"origin", b"http://127.0.0.1:4328"),),
        ((b"origin", b"chrome-extension://abcdef"),),
        ((b"origin", b"https://chat.example.evil.com"),),
        ((b"origin", b"http://chat.example"),),
        ((b"sec-fetch-site", b"cross-site"),),
        ((b"sec-fetch-site", b"same-site"),),
        ((b"origin", b"https://chat.example"), (b"origin", b"https://evil.example")),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_web_pages_are_refused(headers: Any, method: str) -> None:
    """Unless the user named them; and then still never with a reflected header."""
    status, answer, _, app = await _call(*headers, JSON, method=method, path=CHAT)

    assert status in {400, 403}
    assert app.body is None
    assert b"access-control-allow-origin" not in answer


@pytest.mark.parametrize("site", [b"none", b"same-origin"])
async def test_typed_addresses_are_served(site: bytes) -> None:
    """A user who opens /v1/models in the browser sees it."""
    status, answer, _, _ = await _call((b"sec-fetch-site", site))

    assert status == 200
    assert b"access-control-allow-origin" not in answer


async def test_allowed_origin_gets_its_own_cors_headers() -> None:
    """Exact origin, no credentials, no private-network grant."""
    origin = (b"origin", b"https://chat.example")

    status, answer, _, _ = await _call(origin, (b"sec-fetch-site", b"cross-site"))

    assert status == 200
    assert answer[b"access-control-allow-origin"] == b"https://chat.example"
    assert answer[b"vary"] == b"origin"
    assert b"access-control-allow-credentials" not in answer
    assert b"access-control-allow-private-network" not in answer


async def test_preflight_of_an_allowed_origin() -> None:
    """The browser may then send JSON with a key."""
    status, answer, body, app = await _call(
        (b"origin", b"https://chat.example"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"content-type, x-evil"),
        method="OPTIONS",
        path=CHAT,
    )

    assert (status, body) == (204, b"")
    assert b"POST" in answer[b"access-control-allow-methods"]
    assert answer[b"access-control-allow-headers"] == b"authorization, *"
    assert app.body is None


async def test_options_without_a_page_says_what_is_possible() -> None:
    """No CORS header is given to a program."""
    status, answer, _, _ = await _call(method="OPTIONS", path=CHAT)

    assert status == 204
    assert b"POST" in answer[b"allow"]
    assert not any(name.startswith(b"access-control") for name in answer)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"content-type", b"text/plain"),),
        ((b"content-type", b"application/x-www-form-urlencoded"),),
        ((b"content-type", b"multipart/form-data; boundary=x"),),
        ((b"content-type", b"application/json-patch+json"),),
        ((b"content-type", b"application/json; charset=utf-16"),),
        (JSON, (b"content-type", b"text/plain")),
        (JSON, (b"content-encoding", b"gzip")),
    ],
)
async def test_only_json_is_taken(headers: Any) -> None:
    """What an HTML form can send is not JSON; compressed bodies are bombs."""
    status, _, body, app = await _call(*headers, method="POST", path=CHAT, pieces=(b"{}",))

    assert status == 415
    assert _code(body) == "unsupported_media_type"
    assert app.body is None


@pytest.mark.parametrize("kind", [b"application/json", b"Application/JSON; charset=UTF-8"])
async def test_json_is_taken(kind: bytes) -> None:
    """With or without a charset."""
    status, _, _, app = await _call(
        (b"content-type", kind), method="POST", path=CHAT, pieces=(b"{", b"}")
    )

    assert status == 200
    assert app.body == b"{}"


async def test_audio_is_multipart_and_nothing_else_is() -> None:
    """The one route that takes a file."""
    path = "/v1/audio/transcriptions"
    form = (b"content-type", b"multipart/form-data; boundary=x")

    assert (await _call(form, method="POST", path=path))[0] == 200
    assert (await _call(JSON, method="POST", path=path))[0] == 415


@pytest.mark.parametrize(
    "headers",
    [
        ((b"content-length", b"1001"),),
        ((b"content-length", b"9" * 18),),
        ((b"transfer-encoding", b"chunked"),),
    ],
)
async def test_large_bodies_are_refused(headers: Any) -> None:
    """By the declared length, or by counting; the connection is closed after."""
    status, answer, body, app = await _call(
        JSON, *headers, method="POST", path=CHAT, pieces=(b"x" * 600, b"x" * 600, b"x")
    )

    assert status == 413
    assert _code(body) == "body_too_large"
    assert answer[b"connection"] == b"close"
    assert app.body is None


@pytest.mark.parametrize(
    "headers",
    [
        ((b"content-length", b"-1"),),
        ((b"content-length", b"1e3"),),
        ((b"content-length", b"5"), (b"content-length", b"6")),
        ((b"content-length", b"5"), (b"transfer-encoding", b"chunked")),
    ],
)
async def test_ambiguous_lengths_are_refused(headers: Any) -> None:
    """Two readings of one length are a smuggled request."""
    status, _, _, app = await _call(JSON, *headers, method="POST", path=CHAT)

    assert status == 400
    assert app.body is None


async def test_too_many_headers_are_refused() -> None:
    """Ten thousand, or a single one of a megabyte."""
    many = [(b"x-%d" % n, b"1") for n in range(guard.MAX_HEADERS)]

    assert (await _call(*many))[0] == 400
    assert (await _call((b"authorization", b"k" * 1_000_000)))[0] == 400


async def test_websockets_are_refused() -> None:
    """In whichever form the server passes them on."""
    assert (await _call(kind="websocket", pieces=(b"",)))[0] == 1008
    status, _, _, app = await _call((b"upgrade", b"WebSocket"), (b"connection", b"upgrade"))
    assert status == 400
    assert app.body is None


async def test_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stops in the middle does not hold a place."""
    monkeypatch.setattr(guard, "_BODY_STALL_S", 0.02)
    monkeypatch.setattr(guard, "_DISCARD_S", 0.02)
    app = Guard(_App(), RULES)
    sent: list[Message] = []
    first = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        if first:
            return first.pop()
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:4328"), JSON]
    server = ("127.0.0.1", 4328)
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "server": server}
    await app(scope, receive, send)

    assert sent[0]["status"] == 400
    assert b"slowly" in sent[1]["body"]
