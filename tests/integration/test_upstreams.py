"""Models of other servers, as clients of the endpoint see them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from stoker.types import ModelId
from tests.fakes import openai_server as fake
from tests.fakes.engine import Behaviour
from tests.fakes.openai_server import OpenAiServer, Play, says
from tests.fakes.serving import Serving, serving

pytestmark = pytest.mark.anyio


def _box(base_url: str, **more: Any) -> dict[str, Any]:
    return {"name": "box", "base_url": base_url, "timeout_s": 10, **more}


@asynccontextmanager
async def _serving(*upstreams: dict[str, Any], **more: Any) -> AsyncIterator[Serving]:
    """A Stoker that has looked at these servers."""
    async with serving(upstreams=upstreams, **more) as served:
        with anyio.fail_after(10):
            while len(await _ids(served)) < 2:  # noqa: ASYNC110  # what is watched has no event
                await anyio.sleep(0.01)
        yield served


async def _ids(served: Serving, **headers: str) -> list[str]:
    answer = await served.client.get("/v1/models", headers=headers)
    return [entry["id"] for entry in answer.json()["data"]]


def _events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


# --- what is listed --------------------------------------------------------------------------


async def test_models_of_another_server_are_listed_with_the_own_ones() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        entries = (await served.client.get("/v1/models")).json()["data"]

        assert [entry["id"] for entry in entries] == ["m", "box/qwen"]
        assert entries[1]["owned_by"] == "box"
        assert entries[1]["stoker"]["state"] == "remote"
        one = (await served.client.get("/v1/models/box/qwen")).json()
        assert one == entries[1]


async def test_another_stoker_is_told_of_the_own_models_only() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        assert await _ids(served, **{"X-Stoker-Via": "1"}) == ["m"]


# --- requests --------------------------------------------------------------------------------


async def test_a_request_goes_to_the_server_of_its_model() -> None:
    """Under the name that the server knows; nothing of the client's headers goes along."""
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        headers = {"Authorization": "Bearer clients-own", "Cookie": "a=b", "X-Extra": "1"}
        body = {"model": "box/qwen", "messages": [{"role": "user", "content": "hi"}]}
        answer = await served.client.post("/v1/chat/completions", json=body, headers=headers)

        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "tok0 tok1 tok2"
        sent = server.posts[0]
        assert sent.path == "/v1/chat/completions"
        assert sent.json()["model"] == "qwen"
        assert {"authorization", "cookie", "x-extra"}.isdisjoint(sent.headers)
        assert served.engine.launches == []


async def test_a_stream_comes_back_byte_for_byte() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        answer = await served.chat("box/qwen", stream=True)

        assert answer.headers["content-type"].startswith("text/event-stream")
        assert _events(answer.text)[-1] == "[DONE]"
        assert len(_events(answer.text)) == 4


async def test_a_stored_model_of_the_same_name_goes_first() -> None:
    async with (
        OpenAiServer() as server,
        _serving(_box(server.base_url), models=("m", "box/qwen")) as served,
    ):
        answer = await served.chat("box/qwen", max_tokens=1)

        assert answer.status_code == 200
        assert server.posts == []
        assert (await _ids(served)).count("box/qwen") == 1


async def test_an_upload_names_the_model_as_its_server_does() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(says(200, b'{"text": "hello"}'))
        files = {"file": ("a.wav", b"RIFF", "audio/wav")}
        answer = await served.client.post(
            "/v1/audio/transcriptions", data={"model": "box/qwen"}, files=files
        )

        assert answer.json() == {"text": "hello"}
        sent = server.posts[0].body
        assert b'name="model"\r\n\r\nqwen\r\n' in sent
        assert b"box/qwen" not in sent
        assert b"RIFF" in sent


async def test_a_client_that_leaves_ends_it_there_too() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(fake.goes_silent_in_a_stream)
        hello = [{"role": "user", "content": "hi"}]
        body = {"model": "box/qwen", "messages": hello, "stream": True}
        async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_bytes())

        with anyio.fail_after(5):
            await server.posts[0].gone.wait()


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("play", "status", "code"),
    [
        (says(401, b'{"error": {"message": "who are you"}}'), 502, "upstream_refused"),
        (says(302, b"", {"Location": "http://127.0.0.1:1"}), 502, "upstream_error"),
        (says(200, b"<html>", {"Content-Type": "text/html"}), 502, "upstream_error"),
        (says(400, b'{"error": {"message": "max_tokens is odd"}}'), 400, "bad_request"),
        (says(422, b'{"detail": [{"loc": ["body"]}]}'), 400, "bad_request"),
        (says(404, b'{"error": {"code": "model_not_found"}}'), 404, "model_not_found"),
        (says(404, b'{"detail": "Not Found"}'), 400, "not_capable"),
        (says(429, b"slow down", {"Retry-After": "7"}), 503, "capacity"),
        (says(500, b"\xff\x00\x1b[2J"), 502, "upstream_error"),
        (says(500, b"[" * 100_000), 502, "upstream_error"),
        (says(204), 502, "upstream_error"),
        (fake.hangs_up, 503, "upstream_down"),
        (fake.speaks_nonsense, 503, "upstream_down"),
    ],
)
async def test_what_goes_wrong_there_is_told_as_an_error_of_ours(
    play: Play, status: int, code: str
) -> None:
    """And the next request is answered."""
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(play)

        answer = await served.chat("box/qwen")

        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await served.chat("box/qwen")).status_code == 200


async def test_the_words_of_a_server_are_passed_on_harmless() -> None:
    """A client shows them in a terminal."""
    said = json.dumps({"error": {"message": "max\x1b[2J is\n odd\u202e " + "x" * 5000}}).encode()
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(says(400, said))

        message = (await served.chat("box/qwen")).json()["error"]["message"]

        assert message.isprintable()
        assert "is odd" in message
        assert len(message) < 1500


async def test_a_busy_server_says_when_to_come_back() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(says(503, b"{}", {"Retry-After": "7"}))

        assert (await served.chat("box/qwen")).headers["retry-after"] == "7"


async def test_a_prompt_that_is_too_long_is_told_as_ever() -> None:
    """With the numbers of a llama-server, so that clients shorten it."""
    said = {"code": 400, "message": "too long", "n_prompt_tokens": 9000, "n_ctx": 4096}
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(says(400, json.dumps({"error": said}).encode()))

        error = (await served.chat("box/qwen")).json()["error"]

        assert error["code"] == "context_length_exceeded"
        assert error["n_ctx"] == 4096


async def test_a_stream_that_is_cut_ends_in_an_error_event() -> None:
    """Never in [DONE]."""
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(fake.dies_in_a_stream)

        events = _events((await served.chat("box/qwen", stream=True)).text)

        assert json.loads(events[-1])["error"]["code"] == "upstream_error"
        assert "[DONE]" not in events


async def test_a_plain_answer_that_is_cut_is_seen_to_be_cut() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(fake.lies_about_its_length)

        with pytest.raises(httpx2.RemoteProtocolError):
            await served.chat("box/qwen")


async def test_errors_have_the_shape_of_the_route() -> None:
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        server.on_post.append(says(400, b'{"error": {"message": "no"}}'))
        body = {
            "model": "box/qwen",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "x"}],
        }
        answer = await served.client.post("/v1/messages", json=body)

        assert answer.status_code == 400
        assert answer.json()["type"] == "error"


async def test_a_server_that_is_down_is_told_as_such() -> None:
    """503 and not 404: the model is known, its server is not there."""
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        await server.stop()

        answer = await served.chat("box/qwen")

        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "upstream_down"
        assert answer.json()["error"]["upstream"] == "box"
        assert (await served.chat("m", max_tokens=1)).status_code == 200


# --- another Stoker --------------------------------------------------------------------------


async def test_another_stoker_serves_its_models_here() -> None:
    """Loaded there, listed here with what it can do."""
    async with (
        serving(models=("big",), behaviours={"big": Behaviour(tokens=3)}) as far,
        _serving(_box(f"http://127.0.0.1:{far.port}/v1")) as served,
    ):
        entry = (await served.client.get("/v1/models/box/big")).json()
        answer = await served.chat("box/big", max_tokens=3)
        stream = await served.chat("box/big", max_tokens=3, stream=True)

        assert "chat" in entry["stoker"]["capabilities"]
        assert answer.json()["choices"][0]["message"]["content"] == "tok0 tok1 tok2"
        assert _events(stream.text)[-1] == "[DONE]"
        assert far.lifecycle.view(ModelId("big")).state.value == "ready"
        assert served.engine.launches == []


async def test_what_came_from_a_stoker_is_not_sent_on() -> None:
    """Neither listed nor served: so two that list each other do not go in circles."""
    async with (
        OpenAiServer() as third,
        _serving(_box(third.base_url), models=("b",)) as second,
        _serving(_box(f"http://127.0.0.1:{second.port}/v1"), models=("a",)) as first,
    ):
        answer = await first.chat("box/box/qwen")
        through = await first.chat("box/b", max_tokens=1)

        assert await _ids(first) == ["a", "box/b"]
        assert answer.status_code == 404
        assert through.status_code == 200
        assert third.posts == []


async def test_a_stoker_does_not_send_on_what_is_asked_of_it_by_name() -> None:
    """Whoever sends the mark of a Stoker is answered by this one, or not at all."""
    async with OpenAiServer() as server, _serving(_box(server.base_url)) as served:
        body = {"model": "box/qwen", "messages": [{"role": "user", "content": "x"}]}
        answer = await served.client.post(
            "/v1/chat/completions", json=body, headers={"X-Stoker-Via": "1"}
        )

        assert answer.status_code == 404
        assert server.posts == []
