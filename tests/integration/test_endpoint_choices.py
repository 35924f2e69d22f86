"""What a request may decide and learn: which model, how long it stays, where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from stoker.api import reply
from stoker.errors import StokerError
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.serving import Serving, serving

pytestmark = pytest.mark.anyio

M, A, B = ModelId("m"), ModelId("a"), ModelId("b")
HELLO = [{"role": "user", "content": "hi"}]
SLOW = Behaviour(start_ms=400)


@asynccontextmanager
async def small(**more: Any) -> AsyncIterator[Serving]:
    """Two models on a machine that holds one of them, once a first one is loaded."""
    settings = {"memory_reserve_bytes": 0, "context": 2048, **more}
    async with serving(models=("a", "b"), **settings) as served:
        yield served


async def _ask(served: Serving, model: Any = None, **more: Any) -> httpx2.Response:
    """A chat that names this model, or none."""
    named = {} if model is None else {"model": model}
    body = {"messages": HELLO, "max_tokens": 1, **named, **more}
    return await served.client.post("/v1/chat/completions", json=body)


# --- keep_alive ------------------------------------------------------------------------------


async def test_a_request_says_how_long_its_model_stays() -> None:
    """By its field; the next request that says nothing takes it back."""
    async with serving() as served:
        await _ask(served, "m", keep_alive="2h")
        long = served.lifecycle.view(M).expires_in_s
        await _ask(served, "m", keep_alive=-1)
        ever = served.lifecycle.view(M).expires_in_s
        await _ask(served, "m")
        usual = served.lifecycle.view(M).expires_in_s

    assert long is not None
    assert usual is not None
    assert 1800 < long <= 7200
    assert ever is None
    assert usual <= 1800


async def test_a_header_says_it_for_clients_that_cannot_add_a_field() -> None:
    """The field wins, because it is said for this request alone."""
    async with serving() as served:
        headers = {"X-Stoker-Keep-Alive": "2h"}
        body = {"model": "m", "messages": HELLO, "max_tokens": 1}
        post = served.client.post
        await post("/v1/chat/completions", json=body, headers=headers)
        by_header = served.lifecycle.view(M).expires_in_s
        both = {**body, "keep_alive": "5h"}
        await post("/v1/chat/completions", json=both, headers=headers)
        by_field = served.lifecycle.view(M).expires_in_s
        bad = await post("/v1/chat/completions", json=body, headers={"X-Stoker-Keep-Alive": "soon"})

    assert by_header is not None
    assert by_field is not None
    assert 1800 < by_header <= 7200 < by_field
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "X-Stoker-Keep-Alive"


async def test_keep_alive_zero_unloads_after_the_answer() -> None:
    """The answer is whole, and the worker goes without anybody's help."""
    async with serving() as served:
        answer = await _ask(served, "m", keep_alive=0)

        assert answer.json()["choices"][0]["message"]["content"] == "tok0"
        await served.until(lambda: served.lifecycle.view(M).state is ModelState.UNLOADED)


# --- the default -----------------------------------------------------------------------------


@pytest.mark.parametrize("named", [None, "", "default", "DEFAULT"])
async def test_who_names_no_model_gets_the_default(named: str | None) -> None:
    """It is the one that the user changed to; the answer says which one it was."""
    async with serving(models=("a", "b")) as served:
        await served.lifecycle.use("b")

        answer = await _ask(served, named)

        assert answer.json()["model"] == "b"


async def test_without_a_default_the_error_says_how_to_choose() -> None:
    async with serving(models=("a", "b")) as served:
        answer = await _ask(served)

        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["available"] == ["a", "b"]
        assert "stoker use" in error["hint"]


async def test_the_default_is_marked_and_can_be_looked_up() -> None:
    async with serving(models=("a", "b")) as served:
        none = await served.client.get("/v1/models/default")
        await served.lifecycle.use("b")
        listed = (await served.client.get("/v1/models")).json()["data"]
        one = (await served.client.get("/v1/models/default")).json()

    assert none.status_code == 404
    assert {model["id"]: model["stoker"]["default"] for model in listed} == {"a": False, "b": True}
    assert one["id"] == "b"


async def test_when_a_change_fails_who_named_no_model_is_served_by_the_one_before() -> None:
    """The request went to the new model, which cannot be loaded; nobody but the user is told."""
    broken = Behaviour(start_ms=300, crash_at_start="oom")
    async with serving(models=("a", "b"), behaviours={"b": broken}) as served:
        await served.lifecycle.use("a")
        failed: list[str] = []
        answers: list[httpx2.Response] = []

        async def change() -> None:
            try:
                await served.lifecycle.use("b")
            except StokerError as error:
                failed.append(error.code)

        async def ask() -> None:
            answers.append(await _ask(served))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change)
            await served.until(lambda: served.lifecycle.default_model() == B)
            tasks.start_soon(ask)

        assert failed == ["worker_failed"]
        assert (answers[0].status_code, answers[0].json()["model"]) == (200, "a")
        assert served.lifecycle.default_model() == A


async def test_a_model_that_fails_by_name_is_told_as_such() -> None:
    """Only who did not choose is moved to another model."""
    broken = Behaviour(crash_at_start="oom")
    async with serving(models=("a", "b"), behaviours={"b": broken}) as served:
        await served.lifecycle.use("a")

        answer = await _ask(served, "b")

        assert answer.status_code == 502


# --- where it stands -------------------------------------------------------------------------


def _comments(text: str) -> list[str]:
    return [line.removeprefix(": ") for line in text.splitlines() if line.startswith(": ")]


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams say at once and often what they wait for."""
    monkeypatch.setattr(reply, "_QUIET_S", 0.02)
    monkeypatch.setattr(reply, "_AGAIN_S", 0.02)


@pytest.mark.usefixtures("talkative")
async def test_a_stream_says_what_it_waits_for() -> None:
    """First the load, then that the prompt is read; then the answer, and no comment in it."""
    slow = Behaviour(start_ms=400, delay_ms=200)
    async with serving(behaviours={"m": slow}) as served:
        text = (await served.chat(stream=True, max_tokens=1)).text

    said = _comments(text)
    assert re.fullmatch(r"m is loading, \d+ s (so far|of about \d+ s)", said[0])
    assert said[-1] == "reading the prompt"
    assert text.index("data: ") > text.rindex("\n: ")
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.usefixtures("talkative")
async def test_requests_in_a_queue_know_their_place() -> None:
    async with serving(behaviours={"m": SLOW}) as served:
        texts: list[str] = []

        async def ask() -> None:
            texts.append((await served.chat(stream=True, max_tokens=1)).text)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)

        places = {_comments(text)[0].partition(",")[0] for text in texts}
        assert places == {"queued 1 of 3", "queued 2 of 3", "queued 3 of 3"}


@pytest.mark.usefixtures("talkative")
async def test_who_waits_for_a_busy_model_is_told_which() -> None:
    """It is not evicted for the other one; its answer ends first."""
    async with small(behaviours={"a": Behaviour(delay_ms=20)}) as served:
        await served.lifecycle.load("a")
        served.leave_room_for_one()
        texts: list[str] = []

        async def ask(model: str, count: int) -> None:
            texts.append((await served.chat(model, stream=True, max_tokens=count)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "a", 40)
            await served.until(lambda: served.lifecycle.view(A).in_flight == 1)
            tasks.start_soon(ask, "b", 1)

        assert "a must end its answers first" in _comments(texts[-1])
        assert all(text.endswith("data: [DONE]\n\n") for text in texts)


async def test_a_full_queue_says_when_to_come_back() -> None:
    """In the header that clients heed, and as numbers."""
    async with (
        serving(max_queue=1, behaviours={"m": SLOW}) as served,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(served.chat)
        await served.until(lambda: served.lifecycle.view(M).queued == 1)

        answer = await served.chat()

    error = answer.json()["error"]
    assert answer.status_code == 503
    assert (error["queued"], error["limit"], error["position"]) == (1, 1, 2)
    assert answer.headers["retry-after"] == str(error["retry_after_s"])


@pytest.mark.usefixtures("talkative")
async def test_an_error_after_comments_is_an_event() -> None:
    async with serving(behaviours={"m": Behaviour(start_ms=300, crash_at_start="oom")}) as served:
        text = (await served.chat(stream=True, max_tokens=1)).text

    events = [line for line in text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "worker_failed"
    assert "[DONE]" not in text
