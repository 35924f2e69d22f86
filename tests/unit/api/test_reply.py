"""The answer as far as it was sent, without a server."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from starlette.types import Message

from stoker.api import reply as module
from stoker.api.reply import Reply
from stoker.api.routes import ROUTES
from stoker.errors import EngineError, WorkerLost

pytestmark = pytest.mark.anyio

ROUTE = ROUTES["/v1/chat/completions"]


class Sent(list[Message]):
    """What the server was given."""

    async def __call__(self, message: Message) -> None:
        self.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self[0]["headers"])


class Head:
    """The head of an answer."""

    def __init__(self, kind: bytes) -> None:
        self._kind = kind

    def header(self, name: bytes) -> bytes | None:
        return self._kind if name == b"content-type" else None


SSE, PLAIN = Head(b"text/event-stream"), Head(b"application/json")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET_S", 0.01)
    monkeypatch.setattr(module, "_AGAIN_S", 0.001)


async def _until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # what is watched has no event
            await anyio.sleep(0.001)


async def test_while_it_waits_a_stream_says_what_is_to_be_said() -> None:
    """Comments come until the answer does; each is asked for anew."""
    sent, said = Sent(), iter(b": %d\n\n" % number for number in range(10**6))
    reply = Reply(ROUTE, sent)

    async with reply.soothing(lambda: next(said), active=True):
        await _until(lambda: b": 2\n\n" in sent.body)
        await reply.begin(SSE)
        before = sent.body
        await anyio.sleep(0.02)
        await reply.write(b"data: x\n\n")
        await reply.end()

    assert sent[0]["status"] == 200
    assert sent.headers[b"content-type"] == b"text/event-stream"
    assert sent.body == before + b"data: x\n\n"


async def test_what_is_no_stream_hears_nothing() -> None:
    sent = Sent()
    reply = Reply(ROUTE, sent)

    async with reply.soothing(lambda: b": x\n\n", active=False):
        await anyio.sleep(0.03)
        assert sent == []
        await reply.begin(PLAIN)

    assert sent.headers[b"content-type"] == b"application/json"


async def test_after_a_comment_an_error_is_the_last_event() -> None:
    """The status was sent; there is no other way left to say it."""
    sent = Sent()
    reply = Reply(ROUTE, sent)

    async with reply.soothing(lambda: b": x\n\n", active=True):
        await _until(lambda: b": x\n\n" in sent.body)
    await reply.fail(WorkerLost("gone"))

    last = sent.body.split(b"\n\n")[-2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "worker_lost"
    assert sent[-1]["more_body"] is False


async def test_a_stream_cannot_turn_into_something_else() -> None:
    """Another server may answer as it likes; JSON in the middle of events would be nonsense."""
    sent = Sent()
    reply = Reply(ROUTE, sent)

    async with reply.soothing(lambda: b": x\n\n", active=True):
        await _until(lambda: b": x\n\n" in sent.body)
        with pytest.raises(EngineError):
            await reply.begin(PLAIN)
