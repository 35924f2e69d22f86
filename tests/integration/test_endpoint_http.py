"""The endpoint's manners: shapes of answers and errors, limits, hostile callers."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import anyio
import openai
import pytest
from anyio.to_thread import run_sync

from stoker.api import protocol
from stoker.api.routes import ROUTES
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.serving import Serving, raw_request, serving

pytestmark = pytest.mark.anyio


async def _raw(served: Serving, text: str | bytes) -> tuple[int, Any]:
    """Status and JSON body of the answer to exactly these bytes."""
    data = text.encode() if isinstance(text, str) else text
    answer = await run_sync(partial(raw_request, served.port, data))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


def _error(body: Any) -> Any:
    assert set(body["error"]) >= {"message", "type", "param", "code", "hint"}
    return body["error"]


# --- shapes ----------------------------------------------------------------------------------


async def test_official_client_is_served() -> None:
    """Plain, streamed, listed, and told of errors by its own exceptions."""
    async with serving(models=("m", "other")) as served:
        base = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:
            hello: Any = [{"role": "user", "content": "hi"}]
            plain = await client.chat.completions.create(model="m", messages=hello, max_tokens=2)
            stream = await client.chat.completions.create(
                model="m", messages=hello, max_tokens=2, stream=True
            )
            words = [chunk.choices[0].delta.content async for chunk in stream]
            completion = await client.completions.create(model="m", prompt="a", max_tokens=1)
            listed = [model.id async for model in client.models.list()]
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.chat.completions.create(model="nope", messages=hello)
            with pytest.raises(openai.BadRequestError) as incapable:
                await client.embeddings.create(model="m", input="a")

    assert plain.choices[0].message.content == "tok0 tok1"
    assert words == ["tok0", " tok1", None]
    assert completion.choices[0].text == "tok0"
    assert listed == ["m", "other"]
    assert unknown.value.code == "model_not_found"
    assert incapable.value.code == "not_capable"


async def test_models_are_listed_with_their_state() -> None:
    """OpenAI's shape, and what Stoker knows beside it."""
    async with serving() as served:
        body = (await served.client.get("/v1/models")).json()
        one = (await served.client.get("/v1/models/m")).json()

    assert body["object"] == "list"
    assert body["data"] == [one]
    assert one["id"] == "m"
    assert one["object"] == "model"
    assert one["stoker"] == {
        "state": "unloaded",
        "context": 2048,
        "capabilities": ["chat", "completion"],
        "default": True,
    }


@pytest.mark.parametrize("name", ["mistrel", "../../etc/passwd", "a/b/c/d", "\0", "x" * 299])
async def test_unknown_models_are_told_what_there_is(name: str) -> None:
    """404 with the names that exist; a name never becomes a path."""
    async with serving(models=("mistral", "llama")) as served:
        answer = await served.chat(name)

        assert answer.status_code in {400, 404}
        if answer.status_code == 404:
            error = _error(answer.json())
            assert error["code"] == "model_not_found"
            assert set(error["available"]) == {"mistral", "llama"}


async def test_near_names_are_suggested() -> None:
    """A typing error is the usual reason."""
    async with serving(models=("mistral", "llama")) as served:
        error = _error((await served.chat("mistrel")).json())

        assert "mistral" in error["message"]


async def test_missing_model_lists_what_there_is() -> None:
    """Stoker does not guess among several."""
    async with serving(models=("m", "other")) as served:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        answer = await served.client.post("/v1/chat/completions", json=body)

        assert answer.status_code == 400
        assert _error(answer.json())["available"] == ["m", "other"]


async def test_ignored_fields_are_named_in_a_header() -> None:
    """The answer is given, and says what had no effect."""
    async with serving() as served:
        answer = await served.chat(max_tokens=1, user="me", store=True)

        assert answer.status_code == 200
        assert answer.headers["x-stoker-ignored"] == "store, user"


async def test_context_overflow_has_both_numbers() -> None:
    """A clear 400, never a silent truncation."""
    async with serving() as served:
        answer = await served.chat(messages=[{"role": "user", "content": "word " * 5000}])

        error = _error(answer.json())
        assert answer.status_code == 400
        assert error["code"] == "context_length_exceeded"
        assert error["n_prompt_tokens"] > error["n_ctx"] == 2048


async def test_unknown_paths_and_methods_are_openai_shaped() -> None:
    """404 and 405 say where to read; HEAD is GET without a body; OPTIONS is answered."""
    async with serving() as served:
        client = served.client
        missing = await client.get("/v1/nothing")
        wrong = await client.get("/v1/chat/completions")
        head = await client.head("/v1/models")

        assert (missing.status_code, _error(missing.json())["code"]) == (404, "not_found")
        assert (wrong.status_code, _error(wrong.json())["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        assert (head.status_code, head.content) == (200, b"")
        for path in (*ROUTES, "/v1/models", "/health", "/metrics", "/"):
            assert (await client.options(path)).status_code == 204
            assert (await client.delete(path)).status_code in {404, 405}
            assert (await client.head(path)).status_code in {200, 404, 405}


async def test_the_engines_own_paths_are_not_served() -> None:
    """They show or change its insides; only what is in our table gets through."""
    async with serving() as served:
        for path in ("/slots", "/props", "/v1/../slots", "/lora-adapters", "/completion"):
            assert (await served.client.get(path)).status_code in {403, 404}
        for path in ("/slots/0?action=save", "/slots/0?action=restore", "/props", "/completion"):
            answer = await served.client.post(path, json={"filename": "x"})
            assert answer.status_code in {404, 405}


async def test_health_says_ok() -> None:
    """For a monitor, with the version."""
    async with serving() as served:
        body = (await served.client.get("/health")).json()

        assert body["status"] == "ok"
        assert body["version"]


async def test_anthropic_errors_have_their_own_shape() -> None:
    """Its clients look at the outer type."""
    async with serving() as served:
        body = {"model": "nope", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
        answer = await served.client.post("/v1/messages", json=body)

        assert answer.status_code == 404
        assert answer.json()["type"] == "error"


async def test_undecodable_bodies_are_bad_requests() -> None:
    """In our shape, whatever the bytes."""
    async with serving() as served:
        headers = {"Content-Type": "application/json"}
        for content in (b"", b"\xff\xfe", b"{", b"[" * 100_000):
            answer = await served.client.post("/v1/completions", content=content, headers=headers)
            assert answer.status_code == 400
            assert _error(answer.json())["code"] == "bad_request"


async def test_long_wait_is_bridged_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that waits for its model hears something, and then its answer or an error event."""
    monkeypatch.setattr("stoker.api.reply._QUIET_S", 0.05)
    slow, broken = Behaviour(start_ms=300), Behaviour(start_ms=300, crash_at_start="oom")
    async with serving(models=("m", "x"), behaviours={"m": slow, "x": broken}) as served:
        good = await served.chat(stream=True, max_tokens=1)
        bad = await served.chat("x", stream=True, max_tokens=1)

        assert good.text.startswith(": ")
        assert good.text.endswith("data: [DONE]\n\n")
        assert bad.status_code == 200
        assert '"code": "worker_failed"' in bad.text
        assert "[DONE]" not in bad.text


# --- hostile callers -------------------------------------------------------------------------


async def test_foreign_page_never_reaches_a_model() -> None:
    """By name, by origin, by form: refused before anything is loaded."""
    body = '{"model":"m","prompt":"a"}'
    tail = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    kind = "Content-Type: application/json\r\n"
    async with serving() as served:
        own = f"Host: 127.0.0.1:{served.port}\r\n"
        post = "POST /v1/completions HTTP/1.1\r\n"
        answers = [
            await _raw(served, post + f"Host: evil.com:{served.port}\r\n" + kind + tail),
            await _raw(served, post + own + "Origin: https://evil.com\r\n" + kind + tail),
            await _raw(served, post + own + "Origin: null\r\n" + kind + tail),
            await _raw(served, post + own + "Sec-Fetch-Site: cross-site\r\n" + kind + tail),
            await _raw(served, post + own + "Content-Type: text/plain\r\n" + tail),
            await _raw(served, post + own + tail),
            await _raw(served, post + own + own + kind + tail),
            await _raw(served, post + kind + tail),
        ]

        assert [status for status, _ in answers] == [403, 403, 403, 403, 415, 415, 400, 400]
        assert served.lifecycle.view(ModelId("m")).state is ModelState.UNLOADED


async def test_body_limit_counts_what_comes() -> None:
    """Declared or chunked, the answer is 413 and the connection ends; the next one is served."""
    async with serving(max_body_bytes=2000) as served:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
            "Content-Type: application/json\r\n"
        )
        chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
        declared = head.encode() + b"Content-Length: 3000\r\n\r\n" + b"x" * 3000
        chunked = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n"

        for data in (declared, chunked):
            status, body = await _raw(served, data)
            assert (status, _error(body)["code"]) == (413, "body_too_large")
        assert (await served.chat(max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-A: 1\r\n" * 20_000,
    ],
    ids=["short", "tls", "two-lengths", "smuggle", "star", "long-path", "headers"],
)  # fmt: skip
async def test_what_is_not_a_request_is_refused_and_closed(data: bytes) -> None:
    """In our shape, also before there is a request; then the connection ends."""
    async with serving() as served:
        answer = await run_sync(partial(raw_request, served.port, data))

        head, _, body = answer.partition(b"\r\n\r\n")
        if len(data) < protocol.MAX_HEAD_BYTES or answer:  # else it may be lost in the reset
            assert head.split()[1] in {b"400", b"403"}
            _error(json.loads(body))


async def test_head_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: a connection that does not ask is closed."""
    monkeypatch.setattr(protocol, "_HEAD_TIMEOUT_S", 0.1)
    async with serving() as served:
        with anyio.fail_after(5):
            answer = await run_sync(partial(raw_request, served.port, b"GET / HTTP/1.1\r\nX: "))

        assert answer == b""


async def test_a_fault_of_ours_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the relay or in a route is a 500 in our shape, without its insides."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    async with serving() as served:
        monkeypatch.setattr("stoker.api.relay._question", broken)
        answer = await served.chat()

        assert answer.status_code == 500
        assert _error(answer.json())["code"] == "internal_error"
        assert "secret" not in answer.text
