"""A ready model changes over to another worker: nobody waits, nothing is cut, nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import psutil
import pytest

from stoker.engine.base import Worker
from stoker.lifecycle.runtime import Lifecycle
from stoker.schemas import ModelChanged
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour, FakeEngine
from tests.fakes.serving import Serving, serving

pytestmark = pytest.mark.anyio

M = ModelId("m")


class Clients:
    """Ask without pause, some for streams; what went wrong is counted."""

    def __init__(self, served: Serving) -> None:
        self._served = served
        self.answers = 0
        self.failures: list[str] = []

    async def ask(self, *, stream: bool) -> None:
        while True:
            answer = await self._served.chat(stream=stream, max_tokens=8)
            done = "[DONE]" if stream else '"completion_tokens": 8'
            if answer.status_code != 200 or done not in answer.text:
                self.failures.append(f"{answer.status_code} {answer.text[-200:]}")
            self.answers += 1

    async def until_more(self, count: int) -> None:
        wanted = self.answers + count
        with anyio.fail_after(20):
            while self.answers < wanted:  # noqa: ASYNC110  # counted by other tasks
                await anyio.sleep(0.005)


@asynccontextmanager
async def busy(served: Serving, count: int = 4) -> AsyncIterator[Clients]:
    clients = Clients(served)
    async with anyio.create_task_group() as tasks:

        async def ask(number: int) -> None:
            await clients.ask(stream=bool(number % 2))

        for number in range(count):
            tasks.start_soon(ask, number)
        await clients.until_more(count)
        yield clients
        tasks.cancel_scope.cancel()


def another_runtime(served: Serving) -> None:
    served.engine.runtime = "fake-2"


def worker_of(served: Serving, number: int) -> Worker:
    worker: Worker = served.engine.workers[number]
    return worker


@asynccontextmanager
async def loaded(**more: object) -> AsyncIterator[Serving]:
    behaviours = {"m": Behaviour(delay_ms=10)}
    async with serving(behaviours=behaviours, **more) as served:  # type: ignore[arg-type]
        await served.lifecycle.load("m")
        yield served


async def test_the_endpoint_answers_every_request_during_a_renewal() -> None:
    async with loaded() as served, busy(served) as clients:
        before = served.lifecycle.view(M)
        another_runtime(served)

        renewed = await served.lifecycle.renew(M)
        after = served.lifecycle.view(M)
        await clients.until_more(12)
        with anyio.fail_after(10):
            await worker_of(served, 0).wait()

        assert renewed
        assert clients.failures == []
        assert (before.runtime, after.runtime) == ("fake-1", "fake-2")
        assert before.pid != after.pid
        assert len(served.engine.workers) == 2
        assert not psutil.pid_exists(worker_of(served, 0).pid)


async def test_a_stream_that_began_on_the_old_worker_ends_there() -> None:
    """And the old one goes with its last stream, not before."""
    async with loaded() as served:
        texts: list[str] = []

        async def stream() -> None:
            texts.append((await served.chat(stream=True, max_tokens=400)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            another_runtime(served)
            assert await served.lifecycle.renew(M)
            assert psutil.pid_exists(worker_of(served, 0).pid)
            assert served.lifecycle.view(M).in_flight == 1
            assert (await served.chat(max_tokens=1)).status_code == 200
        await served.until(lambda: not psutil.pid_exists(worker_of(served, 0).pid))

        assert "tok399" in texts[0]
        assert "[DONE]" in texts[0]
        assert served.lifecycle.view(M).state is ModelState.READY
        assert served.lifecycle.view(M).in_flight == 0


async def test_nothing_is_started_when_nothing_would_change() -> None:
    async with loaded() as served:
        assert not await served.lifecycle.renew(M)

        assert len(served.engine.launches) == 1


async def test_a_model_that_is_not_ready_is_not_renewed() -> None:
    async with serving() as served:
        another_runtime(served)

        assert not await served.lifecycle.renew(M)
        assert served.engine.launches == []


async def test_without_room_for_both_the_old_one_stays() -> None:
    async with loaded(memory_reserve_bytes=0) as served:
        served.leave_room_for_one()
        another_runtime(served)

        assert not await served.lifecycle.renew(M)
        assert len(served.engine.launches) == 1
        assert (await served.chat()).status_code == 200


async def test_when_the_new_one_does_not_start_the_old_one_stays() -> None:
    async with loaded() as served, busy(served) as clients:
        served.engine.by_model = {"m": Behaviour(crash_at_start="assert")}
        another_runtime(served)

        renewed = await served.lifecycle.renew(M)
        await clients.until_more(8)

        assert not renewed
        assert clients.failures == []
        assert served.lifecycle.view(M).runtime == "fake-1"


async def test_the_context_never_shrinks() -> None:
    """A conversation that fits today fits tomorrow."""
    async with loaded() as served:
        before = served.lifecycle.view(M).context
        need = served.engine.launches[0].memory.total_bytes
        served.free_bytes[:] = [need + need // 2 + (2 << 30)]  # less than at the first load
        another_runtime(served)

        await served.lifecycle.renew(M)

        assert served.lifecycle.view(M).context == before


class SlowSecond(FakeEngine):
    """The second launch takes until it is told."""

    go: anyio.Event

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        worker = await super().launch(plan, timeout_s=timeout_s)
        if len(self.launches) == 2:
            try:
                await self.go.wait()
            except BaseException:
                await worker.stop(0)  # as every engine does
                raise
        return worker


@asynccontextmanager
async def in_the_middle(served: Serving) -> AsyncIterator[list[bool]]:
    """While the new worker starts; the result of the renewal is there after the block."""
    served.engine.__class__ = SlowSecond
    served.engine.go = anyio.Event()
    another_runtime(served)
    results: list[bool] = []

    async def renew() -> None:
        results.append(await served.lifecycle.renew(M))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew)
        await served.until(lambda: len(served.engine.workers) == 2)
        yield results
        served.engine.go.set()


async def test_a_crash_of_the_old_one_meanwhile_is_an_ordinary_crash() -> None:
    async with loaded() as served:
        async with in_the_middle(served) as results:
            os.kill(worker_of(served, 0).pid, signal.SIGKILL)
            await worker_of(served, 0).wait()
            await served.until(lambda: served.lifecycle.view(M).state is not ModelState.READY)
        answer = await served.chat()

        assert results == [False]
        assert answer.status_code == 200
        assert served.lifecycle.view(M).state is ModelState.READY
        assert not psutil.pid_exists(worker_of(served, 1).pid), "nobody used it"


async def test_a_crash_of_the_old_one_afterwards_harms_only_what_it_served() -> None:
    """The model stays ready, and the new worker is not blamed."""
    async with loaded() as served:
        statuses: list[int | str] = []

        async def stream() -> None:
            try:
                text = (await served.chat(stream=True, max_tokens=500)).text
                statuses.append("error" if '"error"' in text else "whole")
            except Exception as error:  # noqa: BLE001  # a cut connection, of whatever kind
                statuses.append(type(error).__name__)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            another_runtime(served)
            assert await served.lifecycle.renew(M)
            os.kill(worker_of(served, 0).pid, signal.SIGKILL)
        view = served.lifecycle.view(M)

        assert "whole" not in statuses
        assert view.state is ModelState.READY
        assert view.in_flight == 0
        assert view.pid == worker_of(served, 1).pid
        assert (await served.chat()).status_code == 200


async def test_a_crash_of_the_new_one_is_a_crash_while_the_old_one_ends_its_work() -> None:
    async with loaded() as served:
        texts: list[str] = []

        async def stream() -> None:
            texts.append((await served.chat(stream=True, max_tokens=80)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            another_runtime(served)
            assert await served.lifecycle.renew(M)
            os.kill(worker_of(served, 1).pid, signal.SIGKILL)
            await worker_of(served, 1).wait()
            assert (await served.chat(max_tokens=1)).status_code == 200

        assert "[DONE]" in texts[0]
        assert served.lifecycle.view(M).in_flight == 0
        assert served.lifecycle.view(M).state is ModelState.READY


async def test_an_unload_meanwhile_leaves_nothing() -> None:
    async with loaded() as served:
        async with in_the_middle(served) as results:
            with anyio.fail_after(10):
                await served.lifecycle.unload("m")
        assert results == [False]
        assert served.lifecycle.view(M).state is ModelState.UNLOADED
        assert not any(psutil.pid_exists(one.pid) for one in served.engine.workers)


async def test_an_unload_afterwards_waits_for_both() -> None:
    async with loaded() as served:

        async def stream() -> None:
            await served.chat(stream=True, max_tokens=40)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            another_runtime(served)
            assert await served.lifecycle.renew(M)
            await served.lifecycle.unload("m")

            assert not any(psutil.pid_exists(one.pid) for one in served.engine.workers)


async def test_the_end_of_the_daemon_meanwhile_leaves_nothing() -> None:
    async with loaded() as served:
        async with in_the_middle(served) as results:
            await served.lifecycle.drain(1)
        workers = list(served.engine.workers)

    assert results == [False]
    assert not any(psutil.pid_exists(one.pid) for one in workers)


async def test_who_gives_up_a_renewal_leaves_the_old_one_serving() -> None:
    async with loaded() as served:
        served.engine.__class__ = SlowSecond
        served.engine.go = anyio.Event()
        another_runtime(served)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.lifecycle.renew, M)
            await served.until(lambda: len(served.engine.workers) == 2)
            tasks.cancel_scope.cancel()

        assert (await served.chat()).status_code == 200
        assert served.lifecycle.view(M).runtime == "fake-1"
        assert not psutil.pid_exists(worker_of(served, 1).pid)


async def test_clients_are_told_of_the_change() -> None:
    async with loaded() as served:
        another_runtime(served)
        with served.bus.subscribe() as changes:
            await served.lifecycle.renew(M)
            with anyio.fail_after(5):
                async for change in changes:
                    if isinstance(change, ModelChanged) and change.model.runtime == "fake-2":
                        break


async def test_who_measures_is_told_of_the_first_and_the_last_request() -> None:
    """At once: before the request goes anywhere."""
    async with loaded() as served:
        told: list[bool] = []
        served.lifecycle.on_busy(told.append)
        served.lifecycle.on_busy(_breaks)

        answers = [await served.chat(max_tokens=1), await served.chat(max_tokens=1)]
        await served.until(lambda: len(told) == 4)

        assert [answer.status_code for answer in answers] == [200, 200]
        assert told == [True, False, True, False]


def _breaks(busy: bool) -> None:  # noqa: FBT001  # as it is called
    raise RuntimeError(str(busy))


async def test_a_loaded_model_tells_its_plan_and_its_content() -> None:
    async with loaded() as served:
        lifecycle: Lifecycle = served.lifecycle
        plan = lifecycle.plan_of(M)

        assert plan is not None
        assert plan.runtime == "fake-1"
        assert lifecycle.digest_of(M) == served.store.find("m").files[0].digest
        await lifecycle.unload("m")
        assert lifecycle.plan_of(M) is None
