"""The endpoint over fake workers: loading, streaming, dying, queueing, leaving."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest

from stoker.schemas import ModelChanged
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.serving import serving

pytestmark = pytest.mark.anyio

M, A, B = ModelId("m"), ModelId("a"), ModelId("b")


def _events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def _accepts(path: Path | None) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(str(path))
        except OSError:
            return False
    return True


async def test_first_request_loads_and_is_answered() -> None:
    """Nothing is loaded before; the answer carries the public model id."""
    async with serving() as served:
        before = served.lifecycle.view(M).state

        answer = await served.chat(max_tokens=3)

        assert before is ModelState.UNLOADED
        assert answer.status_code == 200
        body = answer.json()
        assert body["model"] == "m"
        assert body["choices"][0]["message"]["content"] == "tok0 tok1 tok2"
        assert served.lifecycle.view(M).state is ModelState.READY


async def test_stream_is_passed_byte_for_byte() -> None:
    """Events come as the engine wrote them and end with [DONE]; no engine header leaks."""
    async with serving() as served:
        answer = await served.chat(max_tokens=4, stream=True)

        events = _events(answer.text)
        assert answer.headers["content-type"] == "text/event-stream"
        assert events[-1] == "[DONE]"
        words = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
        assert words == ["tok0", " tok1", " tok2", " tok3", None]
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_concurrent_first_requests_share_one_load() -> None:
    """Eight at once start one worker."""
    async with serving(behaviours={"m": Behaviour(start_ms=100)}) as served:
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await served.chat(max_tokens=1)).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)

        assert answers == [200] * 8
        assert len(served.engine.launches) == 1


async def test_killed_worker_ends_the_stream_and_the_next_request_is_answered() -> None:
    """kill -9 in the middle: a last error event without [DONE], then a new worker."""
    async with serving(behaviours={"m": Behaviour(delay_ms=10)}) as served:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        received = ""
        async with served.client.stream(
            "POST", "/v1/chat/completions", json={**body, "max_tokens": 1000}
        ) as answer:
            async for text in answer.aiter_text():
                if not received:
                    os.kill(served.engine.workers[0].pid, signal.SIGKILL)
                received += text

        events = _events(received)
        assert json.loads(events[-1])["error"]["code"] == "worker_lost"
        assert "[DONE]" not in events
        again = await served.chat(max_tokens=1)
        assert again.status_code == 200
        assert len(served.engine.launches) == 2


async def test_hung_worker_is_replaced() -> None:
    """A worker that does nothing under a request is stopped; its client gets an error."""
    async with serving(behaviours={"m": Behaviour(wedge=True)}) as served:
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await served.chat()).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            with anyio.fail_after(20):
                while not statuses:  # the worker may still be busy taking the request in
                    served.lifecycle.tick()
                    await anyio.sleep(0.01)

        assert statuses == [502]
        served.engine.by_model = {}
        assert (await served.chat(max_tokens=1)).status_code == 200


async def test_worker_killed_while_idle_is_not_noticed_by_the_client() -> None:
    """The request goes to a new worker, because nothing of it was sent to the dead one."""
    async with serving() as served:
        await served.chat(max_tokens=1)
        worker = served.engine.workers[0]
        os.kill(worker.pid, signal.SIGKILL)
        await served.until(lambda: not _accepts(worker.address.socket))

        answer = await served.chat(max_tokens=1)

        assert answer.status_code == 200


async def test_worker_that_dies_before_the_first_byte_is_a_bad_gateway() -> None:
    """JSON with a status, since nothing was sent yet."""
    async with serving(behaviours={"m": Behaviour(no_first_byte=True)}) as served:
        answer = await served.chat()

        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "worker_lost"


async def test_load_failure_tells_why() -> None:
    """The classified reason reaches the client; a second failure is remembered only briefly."""
    async with serving(behaviours={"m": Behaviour(crash_at_start="oom")}) as served:
        answer = await served.chat()

        error = answer.json()["error"]
        assert answer.status_code == 502
        assert error["code"] == "worker_failed"
        assert error["kind"] == "out_of_memory"
        assert served.lifecycle.view(M).state is ModelState.FAILED


async def test_disconnect_cancels_the_generation() -> None:
    """A client that goes away frees the worker at once."""
    async with serving(behaviours={"m": Behaviour(delay_ms=20)}) as served:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with served.client.stream(
            "POST", "/v1/chat/completions", json={**body, "max_tokens": 100_000}
        ) as answer:
            await anext(answer.aiter_text())

        await served.until_idle()
        assert served.lifecycle.view(M).in_flight == 0


async def test_disconnect_while_loading_cancels_the_load() -> None:
    """A load that nobody waits for any more is cancelled, and no process is left of it."""
    async with serving(behaviours={"m": Behaviour(start_ms=30_000)}) as served:
        with pytest.raises(httpx2.ReadTimeout):
            await served.client.post(
                "/v1/completions", json={"model": "m", "prompt": "a"}, timeout=0.5
            )

        await served.until_idle()
        assert served.lifecycle.view(M).state is ModelState.UNLOADED
        assert served.engine.workers == []


async def test_two_models_are_served_side_by_side() -> None:
    """Both fit, so both stay."""
    async with serving(models=("a", "b")) as served:
        first, second = await served.chat("a", max_tokens=1), await served.chat("b", max_tokens=1)

        assert (first.json()["model"], second.json()["model"]) == ("a", "b")
        states = {view.id: view.state for view in served.lifecycle.views()}
        assert states == {"a": ModelState.READY, "b": ModelState.READY}


async def test_idle_model_makes_room() -> None:
    """When only one fits, the idle one goes; its process is gone before the other starts."""
    async with serving(models=("a", "b"), memory_reserve_bytes=0, context=2048) as served:
        await served.chat("a", max_tokens=1)
        served.leave_room_for_one()

        answer = await served.chat("b", max_tokens=1)

        assert answer.status_code == 200
        assert served.lifecycle.view(A).state is ModelState.UNLOADED
        assert not psutil.pid_exists(served.engine.workers[0].pid)


async def test_busy_model_is_waited_for() -> None:
    """The second model's request waits until the first one's answer has ended, then is served."""
    async with serving(
        models=("a", "b"),
        memory_reserve_bytes=0,
        context=2048,
        behaviours={"a": Behaviour(delay_ms=20)},
    ) as served:
        await served.lifecycle.load("a")
        served.leave_room_for_one()
        order: list[str] = []

        async def ask(model: str, count: int) -> None:
            answer = await served.chat(model, max_tokens=count)
            assert answer.status_code == 200
            order.append(model)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "a", 20)
            await served.until(lambda: served.lifecycle.view(A).in_flight == 1)
            tasks.start_soon(ask, "b", 1)
            await served.until(lambda: served.lifecycle.view(B).state is ModelState.QUEUED)
            assert served.lifecycle.view(A).in_flight == 1

        assert order == ["a", "b"]


async def test_model_that_cannot_fit_is_refused_with_numbers() -> None:
    """507 at once, not a time-out, and the next request is judged anew."""
    async with serving(available_bytes=1 << 20, memory_reserve_bytes=0) as served:
        answer = await served.chat()

        assert answer.status_code == 507
        assert answer.json()["error"]["code"] == "memory_short"
        served.free_bytes.append(8 << 30)
        assert (await served.chat(max_tokens=1)).status_code == 200


async def test_full_queue_is_refused() -> None:
    """A request beyond max_queue learns at once that it should come back."""
    async with serving(max_queue=1, behaviours={"m": Behaviour(start_ms=400)}) as served:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.chat)
            await served.until(lambda: served.lifecycle.view(M).queued == 1)

            answer = await served.chat()

        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0


async def test_wait_has_a_deadline() -> None:
    """A model that takes too long is a clear answer, and the load is cancelled."""
    async with serving(wait_timeout_s=0.2, behaviours={"m": Behaviour(start_ms=9000)}) as served:
        answer = await served.chat()

        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "wait_timeout"
        await served.until_idle()
        assert served.engine.workers == []


async def test_unload_waits_for_the_answer() -> None:
    """A running answer ends in peace; when unload returns the process is gone."""
    async with serving(behaviours={"m": Behaviour(delay_ms=10)}) as served:
        await served.lifecycle.load("m")
        lines: list[str] = []

        async def ask() -> None:
            lines.append((await served.chat(stream=True, max_tokens=20)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            view = await served.lifecycle.unload("m")

        assert view.state is ModelState.UNLOADED
        assert not psutil.pid_exists(served.engine.workers[0].pid)
        assert lines[0].endswith("[DONE]\n\n")


async def test_drain_refuses_and_leaves_no_worker() -> None:
    """After a drain requests are answered with 503, and no process is left."""
    async with serving() as served:
        await served.chat(max_tokens=1)

        await served.lifecycle.drain(5)

        answer = await served.chat()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
        assert not psutil.pid_exists(served.engine.workers[0].pid)


async def test_drain_cuts_what_does_not_end() -> None:
    """After its time the stream is ended with an error, and the worker is gone."""
    async with serving(behaviours={"m": Behaviour(delay_ms=50)}) as served:
        await served.lifecycle.load("m")
        texts: list[str] = []

        async def ask() -> None:
            texts.append((await served.chat(stream=True, max_tokens=10_000)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            await served.lifecycle.drain(0.1)

        assert json.loads(_events(texts[0])[-1])["error"]["code"] == "worker_lost"
        assert not psutil.pid_exists(served.engine.workers[0].pid)


async def test_idle_model_expires() -> None:
    """keep_alive of a load is honoured by the next tick."""
    async with serving() as served:
        view = await served.lifecycle.load("m", keep_alive_s=0.01)
        assert view.expires_in_s is not None

        await anyio.sleep(0.02)
        served.lifecycle.tick()

        await served.until(lambda: not served.lifecycle.in_use(M))


async def test_an_unload_does_not_cut_who_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the worker of that moment; the next request begins another one, and that serves."""
    monkeypatch.setattr("stoker.lifecycle.workers._STOP_GRACE_S", 0.1)
    slow = {"m": Behaviour(delay_ms=20, ignore_stop=True)}
    async with serving(behaviours=slow, drain_timeout_s=0.2) as served:
        await served.chat(max_tokens=1)
        first = served.lifecycle.view(M).pid
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.lifecycle.unload, "m")
            await anyio.sleep(0.01)

            answer = await served.chat(max_tokens=60, stream=True)

        assert answer.text.rstrip().endswith("data: [DONE]")
        assert served.lifecycle.view(M).pid not in {first, None}


async def test_last_served_model_is_restored() -> None:
    """The file is written by a request, and read by the next start."""
    async with serving(models=("a", "b")) as served:
        await served.chat("b", max_tokens=1)
        await served.until(served.last_served.exists)
        await served.lifecycle.drain(5)

        restarted = served.restarted()
        async with anyio.create_task_group() as tasks:
            await tasks.start(restarted.run)
            await restarted.restore()
            states = {view.id: view.state for view in restarted.views()}
            await restarted.drain(5)
            tasks.cancel_scope.cancel()

        assert states == {"a": ModelState.UNLOADED, "b": ModelState.READY}


async def test_unloaded_model_is_not_remembered() -> None:
    """What the user unloads is not loaded again at the next start."""
    async with serving() as served:
        await served.chat(max_tokens=1)
        await served.until(served.last_served.exists)

        await served.lifecycle.unload("m")

        await served.until(lambda: not served.last_served.exists())


async def test_changes_are_published() -> None:
    """A subscriber sees the model go from loading to ready to unloaded."""
    async with serving() as served:
        with served.bus.subscribe() as subscription:
            await served.lifecycle.load("m")
            await served.lifecycle.unload("m")

            states = []
            async for event in subscription:
                if isinstance(event, ModelChanged):
                    states.append(event.model.state)
                if states[-1] is ModelState.UNLOADED:
                    break

        assert [state for n, state in enumerate(states) if state not in states[:n]] == [
            ModelState.LOADING,
            ModelState.READY,
            ModelState.DRAINING,
            ModelState.UNLOADED,
        ]


async def test_traffic_is_told_to_who_listens() -> None:
    """That a model became busy, and in the end that it is not."""
    async with serving(behaviours={"m": Behaviour(delay_ms=20)}) as served:
        await served.lifecycle.load("m")
        with served.bus.subscribe() as subscription, anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: served.chat(stream=True, max_tokens=60))
                told = []
                async for event in subscription:
                    if isinstance(event, ModelChanged):
                        told.append(event.model.in_flight)
                    if told[-2:] == [1, 0]:
                        break

        assert set(told) == {0, 1}


async def test_changing_models_lets_a_running_answer_end() -> None:
    """The other one leaves after it; whoever it was loaded for got everything."""
    async with serving(models=("a", "b"), behaviours={"a": Behaviour(delay_ms=10)}) as served:
        await served.lifecycle.load("a")
        a = ModelId("a")
        lines: list[str] = []

        async def ask() -> None:
            lines.append((await served.chat("a", stream=True, max_tokens=60)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(a).in_flight == 1)

            used = await served.lifecycle.use("b")
            freed = await served.lifecycle.free()

            assert used.state is ModelState.READY
            assert freed.models == ("b",)
            assert served.lifecycle.view(a).in_flight == 1

        assert lines[0].endswith("[DONE]\n\n")
        await served.until(lambda: not served.lifecycle.in_use(a))


async def test_damaged_model_is_not_served() -> None:
    """A byte flipped on disk is found before the load; the file goes to quarantine."""
    async with serving() as served:
        blob = served.store.path(served.store.find("m").model_file.digest)
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(content)

        answer = await served.chat()

        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "blob_damaged"
        assert served.engine.launches == []


async def test_metrics_count() -> None:
    """Requests, tokens, loads and memory are there under their documented names."""
    async with serving() as served:
        await served.chat(max_tokens=5)
        served.lifecycle.tick()

        text = (await served.client.get("/metrics")).text

        assert 'stoker_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
        assert 'stoker_tokens_total{kind="completion",model="m"} 5.0' in text
        assert 'stoker_loads_total{model="m",result="ok"} 1.0' in text
        assert 'stoker_load_seconds_count{model="m"} 1.0' in text
        assert 'stoker_worker_resident_bytes{model="m"}' in text
        assert 'stoker_queue{model="m"} 0.0' in text
