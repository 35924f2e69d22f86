"""The memory of a GPU that several models want: who gets it, who waits, who stays where it is.

The real lifecycle over real processes of the fake engine; the GPU is made up, and has as much free
as the living workers' plans leave of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.lifecycle.runtime import Lifecycle
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId
from tests.fakes.engine import Behaviour
from tests.fakes.serving import GIB, machine
from tests.integration.test_memory_budget import Watched, living, ready

pytestmark = pytest.mark.anyio

MARGIN = GIB  # what a plan leaves free on a GPU of this size
ROOMY = 20 * GIB
FIRST, SECOND = "fake-1-cuda", "fake-2-cuda"


def engine_in(home: Path, behaviour: Behaviour | None = None) -> Watched:
    return Watched(home, behaviour or Behaviour(), runtime=FIRST, others=frozenset({SECOND}))


@asynccontextmanager
async def with_gpu(
    home: Path, engine: Watched, gpu_bytes: int, *, told: bool = True, **settings: Any
) -> AsyncIterator[Lifecycle]:
    """A machine with memory for all models, and a GPU with so much for them.

    ``told``: by the system. Else only the runtime's own library sees it.
    """
    total = gpu_bytes + MARGIN

    def gpu() -> GpuFacts:
        taken = sum(
            engine.planned[worker.pid].memory.gpu_bytes
            for worker in engine.workers
            if worker.pid in engine.planned and worker.resident_bytes() is not None
        )
        return GpuFacts("GPU", "nvidia", total, total - taken)

    def hardware() -> HardwareFacts:
        return dataclasses.replace(machine(), gpus=(gpu(),) if told else ())

    async def seen(hardware: HardwareFacts, runtime: str) -> HardwareFacts:
        assert runtime in {FIRST, SECOND}
        return dataclasses.replace(hardware, gpus=(gpu(),))

    async with living(home, engine, hardware, seen=seen, **settings) as lifecycle:
        yield lifecycle


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short, for the sockets in it."""
    return tmp_path_factory.mktemp("h")


@pytest.fixture
async def alone(home: Path) -> LaunchPlan:
    """The plan of each of the models where a GPU has room for all."""
    engine = engine_in(home)
    async with with_gpu(home, engine, ROOMY) as lifecycle:
        await lifecycle.load("a")
    plan = engine.plan(0)
    assert plan.gpu_layers > 0
    assert plan.memory.gpu_bytes > 0
    return plan


async def test_an_idle_model_leaves_the_gpu_to_the_one_that_is_asked(
    home: Path, alone: LaunchPlan
) -> None:
    """Although the system's memory holds both: on the processor it would be many times slower."""
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 3 // 2) as lifecycle:
        await lifecycle.load("a")
        await lifecycle.load("b")

        assert ready(lifecycle) == {"b"}
    assert [engine.plan(n).gpu_layers for n in range(2)] == [alone.gpu_layers] * 2


async def test_a_gpu_that_only_the_runtime_sees_is_used_and_shared(
    home: Path, alone: LaunchPlan
) -> None:
    engine = engine_in(home)
    room = alone.memory.gpu_bytes * 3 // 2
    async with with_gpu(home, engine, room, told=False) as lifecycle:
        await lifecycle.load("a")
        await lifecycle.load("b")

        assert ready(lifecycle) == {"b"}
    assert [engine.plan(n).gpu_layers for n in range(2)] == [alone.gpu_layers] * 2


async def test_models_that_fit_on_the_gpu_together_stay(home: Path, alone: LaunchPlan) -> None:
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 5 // 2) as lifecycle:
        await lifecycle.load("a")
        await lifecycle.load("b")

        assert ready(lifecycle) == {"a", "b"}
    assert [engine.plan(n).gpu_layers for n in range(2)] == [alone.gpu_layers] * 2


async def test_a_pinned_model_keeps_the_gpu(home: Path, alone: LaunchPlan) -> None:
    """The other one takes what is left of it, and the processor."""
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 3 // 2) as lifecycle:
        await lifecycle.load("a")
        await lifecycle.pin("a", pinned=True)
        await lifecycle.load("b")

        assert ready(lifecycle) == {"a", "b"}
    assert engine.plan(1).gpu_layers < alone.gpu_layers


async def test_a_busy_model_is_waited_for(home: Path, alone: LaunchPlan) -> None:
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 3 // 2) as lifecycle:
        async with anyio.create_task_group() as tasks, lifecycle.lease("a"):
            tasks.start_soon(lifecycle.load, "b")
            await anyio.sleep(0.3)
            assert ready(lifecycle) == {"a"}
            assert len(engine.launches) == 1

        assert ready(lifecycle) == {"b"}
    assert engine.plan(1).gpu_layers == alone.gpu_layers


async def test_a_renewal_never_takes_a_model_off_the_gpu(home: Path, alone: LaunchPlan) -> None:
    """Beside its present worker there is no room; it does not go to the processor instead."""
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 3 // 2) as lifecycle:
        await lifecycle.load("a")
        engine.runtime = SECOND

        assert not await lifecycle.renew(ModelId("a"))
        assert ready(lifecycle) == {"a"}
    assert len(engine.launches) == 1


async def test_a_renewal_keeps_the_layers_where_both_fit(home: Path, alone: LaunchPlan) -> None:
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 5 // 2) as lifecycle:
        await lifecycle.load("a")
        engine.runtime = SECOND

        assert await lifecycle.renew(ModelId("a"))
    assert [plan.gpu_layers for plan in engine.launches] == [alone.gpu_layers] * 2
    assert [plan.runtime for plan in engine.launches] == [FIRST, SECOND]


async def test_nothing_is_renewed_because_its_own_worker_fills_the_gpu(
    home: Path, alone: LaunchPlan
) -> None:
    engine = engine_in(home)
    async with with_gpu(home, engine, alone.memory.gpu_bytes * 3 // 2) as lifecycle:
        await lifecycle.load("a")

        assert not await lifecycle.renew(ModelId("a"))
        room, candidates = lifecycle.room_for(ModelId("b"), machine())
        assert [one.gpu_bytes for one in candidates] == [alone.memory.gpu_bytes]
        assert room.hardware == machine()
    assert len(engine.launches) == 1
