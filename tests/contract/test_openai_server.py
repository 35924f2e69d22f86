"""What a server must do to be an upstream: a real Stoker, and the double that stands for others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stoker.upstreams import Upstreams
from tests.fakes.engine import Behaviour
from tests.fakes.openai_server import OpenAiServer
from tests.fakes.serving import serving
from tests.fakes.upstreams import running, settled, until, wishes

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
JSON = ((b"content-type", b"application/json"),)
HELLO = b'"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3'


@pytest.fixture(params=["double", "stoker"])
async def upstreams(request: pytest.FixtureRequest) -> AsyncIterator[Upstreams]:
    """Looked at already; the server has one model, "m", which answers `tok0 tok1 tok2`."""
    if request.param == "double":
        async with OpenAiServer() as double:
            double.models = ["m"]
            async with running(wishes(double.base_url)) as seen:
                await settled(seen)
                yield seen
    else:
        async with (
            serving(behaviours={"m": Behaviour(tokens=3)}) as served,
            running(wishes(f"http://127.0.0.1:{served.port}/v1")) as seen,
        ):
            await settled(seen)
            yield seen


async def _ask(upstreams: Upstreams, more: bytes = b"") -> tuple[int, bytes | None, bytes]:
    remote = upstreams.find("box/m")
    assert remote is not None
    body = b'{"model": "m", ' + HELLO + more + b"}"
    response = await upstreams.open(remote, "POST", CHAT, JSON, body)
    try:
        return response.status, response.header(b"content-type"), await response.read(100_000)
    finally:
        await response.aclose()


async def test_it_lists_its_models(upstreams: Upstreams) -> None:
    assert [model.name for model in upstreams.models()] == ["m"]
    assert upstreams.models()[0].created > 0


async def test_it_answers_a_chat(upstreams: Upstreams) -> None:
    status, kind, body = await _ask(upstreams)

    assert (status, kind) == (200, b"application/json")
    assert b"tok0 tok1 tok2" in body


async def test_it_streams_events_up_to_the_last(upstreams: Upstreams) -> None:
    status, kind, body = await _ask(upstreams, b', "stream": true')

    assert (status, kind) == (200, b"text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")
    assert body.count(b"tok") == 3


async def test_a_connection_serves_more_than_one_request(upstreams: Upstreams) -> None:
    assert [(await _ask(upstreams))[0] for _ in range(3)] == [200] * 3


async def test_a_client_that_leaves_is_no_trouble(upstreams: Upstreams) -> None:
    remote = upstreams.find("box/m")
    assert remote is not None
    body = b'{"model": "m", "stream": true, ' + HELLO + b"}"
    response = await upstreams.open(remote, "POST", CHAT, JSON, body)

    await response.aclose()

    await until(lambda: upstreams.views()[0].in_flight == 0)
    assert (await _ask(upstreams))[0] == 200
