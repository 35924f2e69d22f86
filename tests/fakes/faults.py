"""Every way in which a worker fails, done to a serving app: what clients see, and what is left.

A round: the model is loaded with the fault, the fault happens, the client gets a proper error (or
its answer), then the next request is answered by a sound worker, and no process of the bad one is
left. Used by tests/integration/test_recovery.py and, with clocks, tests/benchmarks/recovery.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import anyio
import httpx2
import psutil

from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.serving import Serving

MODEL = "m"
_ID = ModelId(MODEL)
_GONE_S = 10.0
_ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi there"}]}


@dataclass(frozen=True)
class Fault:
    """A kind of fault. `provoke` returns the moment in which it was noticed."""

    name: str
    behaviour: Behaviour
    provoke: Callable[[Serving], Awaitable[float]]


@contextmanager
def impatient() -> Iterator[None]:
    """Processes that heed nothing are killed sooner; everything else is as it is."""
    with (
        mock.patch("stoker.lifecycle.workers._STOP_GRACE_S", 0.1),
        mock.patch("stoker.engine.worker._TERM_WAIT_S", 0.1),
    ):
        yield


async def suffer(served: Serving, fault: Fault) -> float:
    """One round; seconds from the moment the fault was noticed to the next good answer."""
    await served.lifecycle.unload(MODEL)
    served.engine.by_model = {MODEL: fault.behaviour}
    noticed = await fault.provoke(served)
    served.engine.by_model = {}
    answer = await served.chat(max_tokens=1)
    took = time.monotonic() - noticed
    _expect(answer, 200)
    await only_one_left(served)
    return took


async def load_s(served: Serving) -> float:
    """How long a sound load takes, with its first answer."""
    await served.lifecycle.unload(MODEL)
    served.engine.by_model = {}
    began = time.monotonic()
    _expect(await served.chat(max_tokens=1), 200)
    return time.monotonic() - began


async def only_one_left(served: Serving) -> None:
    """The worker that serves is the only process of ours; fail after ten seconds."""
    pid = served.lifecycle.view(_ID).pid
    left = _children() - {pid}
    with anyio.move_on_after(_GONE_S):
        while left:
            await anyio.sleep(0.01)
            left = _children() - {pid}
    assert not left, [psutil.Process(one).cmdline() for one in left if psutil.pid_exists(one)]


def _children() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True)}


# --- what happens ------------------------------------------------------------------------------


def _expect(answer: httpx2.Response, status: int, code: str = "", **facts: object) -> Any:
    """The status and, of an error, its code and facts; that it says what to do."""
    assert answer.status_code == status, answer.text
    error = answer.json().get("error")
    if not code:
        assert error is None
        return None
    assert error["code"] == code
    assert error["message"].strip()
    assert {name: error.get(name) for name in facts} == facts
    return error


async def _impatient_client(served: Serving) -> float:
    """The client leaves in the middle of a slow start: the load is given up."""
    with anyio.move_on_after(0.3):
        await served.chat()
    noticed = time.monotonic()
    await served.until(lambda: served.lifecycle.view(_ID).state is ModelState.UNLOADED)
    return noticed


async def _patient_client(served: Serving) -> float:
    """A slow start is no fault: the request waits for it, and so does the next one."""
    _expect(await served.chat(max_tokens=1), 200)
    return time.monotonic()


async def _never_ready(served: Serving) -> float:
    _expect(await served.chat(), 504, "worker_timeout")
    return time.monotonic()


async def _out_of_memory(served: Serving) -> float:
    """At its start, with all settings that take less as well."""
    tried = len(served.engine.launches)
    error = _expect(await served.chat(), 502, "worker_failed", kind="out_of_memory")
    noticed = time.monotonic()
    assert len(served.engine.launches) > tried
    assert error["missing_bytes"] == 99_999
    assert error["needed_bytes"] > 0
    assert error["available_bytes"] > 0
    return noticed


async def _lost_answer(served: Serving) -> float:
    """It dies in the middle of a plain answer."""
    _expect(await served.chat(), 502, "worker_lost")
    return time.monotonic()


async def _lost_stream(served: Serving) -> float:
    """It dies in the middle of a stream: what was sent stays, then an error, and no [DONE]."""
    body = {**_ASK, "stream": True}
    async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        text = "".join([part async for part in answer.aiter_text()])
    noticed = time.monotonic()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    assert "tok2" in text
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["code"] == "worker_lost"
    return noticed


async def _helper_left_behind(served: Serving) -> float:
    """Its helper process ends with it."""
    noticed = await _lost_stream(served)
    await served.until(lambda: served.lifecycle.view(_ID).pid is None)
    return noticed


async def _deaf(served: Serving) -> float:
    """It heeds neither the end of stdin nor TERM, and a request comes while it is being killed."""
    _expect(await served.chat(max_tokens=1), 200)
    worker = served.engine.workers[-1]
    ended: list[float] = []

    async def note() -> None:
        await worker.wait()
        ended.append(time.monotonic())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note)
        tasks.start_soon(served.lifecycle.unload, MODEL)
        await served.until(lambda: served.lifecycle.view(_ID).state is not ModelState.READY)
        served.engine.by_model = {}
        _expect(await served.chat(max_tokens=1), 200)
        tasks.cancel_scope.cancel()
    return ended[0]


async def _hung(served: Serving) -> float:
    """It answers no more; looks in a row find out. The looks are not five seconds apart here."""
    answers: list[httpx2.Response] = []
    noticed = 0.0

    async def ask() -> None:
        answers.append(await served.chat())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await served.until(lambda: served.lifecycle.view(_ID).in_flight == 1)
        with anyio.fail_after(30):
            while not answers:  # the worker may still be busy taking the request in
                served.lifecycle.tick()
                if not noticed and served.lifecycle.view(_ID).state is not ModelState.READY:
                    noticed = time.monotonic()
                await anyio.sleep(0.01)
    _expect(answers[0], 502, "worker_lost")
    return noticed or time.monotonic()


FAULTS = (
    Fault("slow start", Behaviour(start_ms=200), _patient_client),
    Fault("slow start, client leaves", Behaviour(start_ms=60_000), _impatient_client),
    Fault("never ready", Behaviour(never_ready=True, limit_ms=700), _never_ready),
    Fault("out of memory at start", Behaviour(crash_at_start="oom"), _out_of_memory),
    Fault("out of memory in a request", Behaviour(crash_after=3, last_words="oom"), _lost_stream),
    Fault("crash in an answer", Behaviour(crash_after=3), _lost_answer),
    Fault("crash in a stream", Behaviour(crash_after=3), _lost_stream),
    Fault("ignores TERM", Behaviour(ignore_stop=True), _deaf),
    Fault("leaves a helper", Behaviour(crash_after=3, grandchild=True), _helper_left_behind),
    Fault("wedged", Behaviour(wedge=True), _hung),
    Fault("wedged, but tells its figures", Behaviour(stuck=True), _hung),
    Fault("wedged and ignores TERM", Behaviour(wedge=True, ignore_stop=True), _hung),
)
