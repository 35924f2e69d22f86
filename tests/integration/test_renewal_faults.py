"""A renewal meets something else at the wrong moment: nothing hangs, nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import psutil
import pytest

from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.serving import Serving, serving
from tests.integration.test_renewal import (
    M,
    another_runtime,
    in_the_middle,
    loaded,
    worker_of,
)

pytestmark = pytest.mark.anyio

N = ModelId("n")


@asynccontextmanager
async def a_stream_whose_model_lost_its_new_worker(served: Serving) -> AsyncIterator[None]:
    """The old worker serves one long stream, and the scheduler knows of no worker at all."""

    async def stream() -> None:
        await served.chat(stream=True, max_tokens=5000)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream)
        await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
        another_runtime(served)
        assert await served.lifecycle.renew(M)
        os.kill(worker_of(served, 1).pid, signal.SIGKILL)
        await served.until(lambda: served.lifecycle.view(M).state is not ModelState.READY)
        yield
        tasks.cancel_scope.cancel()


async def test_an_unload_cuts_a_long_stream_on_the_old_worker_when_the_new_one_is_gone() -> None:
    async with (
        loaded(drain_timeout_s=0.2) as served,
        a_stream_whose_model_lost_its_new_worker(served),
    ):
        assert psutil.pid_exists(worker_of(served, 0).pid)

        with anyio.fail_after(10):
            await served.lifecycle.unload("m")

        assert not psutil.pid_exists(worker_of(served, 0).pid)


async def test_the_end_of_the_daemon_cuts_it_too() -> None:
    async with loaded() as served, a_stream_whose_model_lost_its_new_worker(served):
        with anyio.fail_after(10):
            await served.lifecycle.drain(0.2)

        assert not psutil.pid_exists(worker_of(served, 0).pid)


async def test_a_load_does_not_fail_for_memory_that_a_renewal_wants() -> None:
    """Somebody waits for the load, and nobody for the renewal."""
    behaviours = {"m": Behaviour(delay_ms=10)}
    async with serving(models=("m", "n"), behaviours=behaviours, memory_reserve_bytes=0) as served:
        await served.lifecycle.load("m")
        need = served.engine.launches[0].memory
        served.free_bytes[:] = [need.total_bytes + need.anonymous_bytes * 3 // 2 + (4 << 20)]
        async with in_the_middle(served) as results:
            with anyio.fail_after(10):
                await served.lifecycle.load("n")

            assert results == [False]
            states = served.lifecycle.states()
        assert (states[M], states[N]) == (ModelState.READY, ModelState.READY)
        assert not psutil.pid_exists(worker_of(served, 1).pid)


async def test_a_renewal_does_not_take_memory_that_a_load_was_promised() -> None:
    behaviours = {"n": Behaviour(start_ms=1500)}
    async with serving(models=("m", "n"), behaviours=behaviours, memory_reserve_bytes=0) as served:
        await served.lifecycle.load("m")
        need = served.engine.launches[0].memory
        served.free_bytes[:] = [need.total_bytes * 2 + need.anonymous_bytes // 2]
        another_runtime(served)
        renew = served.lifecycle._workers.renew  # as one that had waited for its turn
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.lifecycle.load, "n")
            await served.until(lambda: len(served.engine.launches) == 2)

            assert not await renew(M)
        assert [plan.model_id for plan in served.engine.launches] == ["m", "n"]
