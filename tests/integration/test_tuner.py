"""The tuner over a real lifecycle: real requests stop it, and what it finds replaces the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import anyio
import pytest

from stoker import paths
from stoker.engine.lab import Library
from stoker.events import EventBus
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.lifecycle.planning import Seen, as_told
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.profiles import Profiles
from stoker.schemas import RuntimesView
from stoker.schemas_machine import TuneRequest
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuner import Tuner, policy, session
from stoker.tuner.parts import Engines
from stoker.tuning.launch import Speeds, Trial
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour, FakeEngine
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.lab import FakeLabs
from tests.fakes.serving import GIB, add_model, machine

pytestmark = pytest.mark.anyio

M = ModelId("m")
DEADLINE_S = 60
REST_S = 0.05


class OneRuntime:
    """What the fake engine is, seen as the runtimes of this machine."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def usable(self) -> tuple[str, ...]:
        return (self._engine.runtime, *sorted(self._engine.others))

    def library(self, runtime: str) -> Library:
        return Library(runtime, Path("/nowhere"), None)

    def has(self, runtime: str, *, measured_at: str | None = None) -> bool:
        return self._engine.has(runtime, measured_at=measured_at)

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        return await self._engine.prepare(model, runtime)

    def view(self) -> RuntimesView:
        return RuntimesView(held=False, runtimes=())


@dataclass
class World:
    lifecycle: Lifecycle
    engine: FakeEngine
    tuner: Tuner
    labs: FakeLabs
    profiles: Profiles

    def state(self) -> str:
        return self.tuner.list()[0].state

    async def until(self, state: str) -> None:
        with anyio.fail_after(DEADLINE_S):
            while self.state() != state:  # noqa: ASYNC110  # of another task
                await anyio.sleep(0.005)


def smaller_steps_are_faster(trial: Trial) -> Speeds:
    return Speeds(420.0 if trial.ubatch == 256 else 300.0, 40.0, 60.0)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RESUME_S", REST_S)
    monkeypatch.setattr(policy, "RESUME_S", REST_S)


@asynccontextmanager
async def daemon_in(
    home: Path,
    hardware: Callable[[], HardwareFacts] = machine,
    *runtimes: str,
    seen: Seen = as_told,
) -> AsyncIterator[World]:
    """The part of a daemon that loads and measures; ends with no process."""
    places = paths.from_environment({"STOKER_HOME": str(home)})
    places.create()
    store, bus, settings = Store(places.store), EventBus(), Settings()
    store.open()
    if not store.list():
        add_model(store, "m", tiny_gguf())
    first, *others = runtimes or ("fake-1",)
    engine = FakeEngine(
        places.run, behaviour=Behaviour(delay_ms=20), runtime=first, others=frozenset(others)
    )
    profiles, labs = Profiles(places.tuning), FakeLabs(smaller_steps_are_faster, takes_s=0.005)
    lifecycle = Lifecycle(
        store=store,
        engine=engine,
        hardware=hardware,
        settings=settings,
        bus=bus,
        metrics=Metrics(),
        places=places,
        known=profiles,
        seen=seen,
    )
    tuner = Tuner(
        store=store,
        lifecycle=lifecycle,
        runtimes=cast("Engines", OneRuntime(engine)),
        profiles=profiles,
        settings=settings,
        bus=bus,
        places=places,
        hardware=hardware,
        seen=seen,
        opener=labs,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(lifecycle.run)
        await tasks.start(tuner.run)
        yield World(lifecycle, engine, tuner, labs, profiles)
        await lifecycle.drain(1)
        tasks.cancel_scope.cancel()
    assert labs.open == []


@pytest.fixture
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    with anyio.fail_after(DEADLINE_S):
        async with daemon_in(tmp_path_factory.mktemp("t")) as found:
            yield found


async def test_what_was_found_replaces_the_worker(world: World) -> None:
    await world.lifecycle.load("m")
    before = world.lifecycle.view(M)

    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")
    with anyio.fail_after(DEADLINE_S):
        while world.lifecycle.view(M).pid == before.pid:  # noqa: ASYNC110  # of another task
            await anyio.sleep(0.01)

    plan = world.lifecycle.plan_of(M)
    assert plan is not None
    assert plan.ubatch == 256
    assert world.lifecycle.view(M).state is ModelState.READY
    assert [launch.ubatch for launch in world.engine.launches] == [512, 256]


async def test_a_lease_stops_the_labs_before_it_is_granted(world: World) -> None:
    await world.lifecycle.load("m")
    await world.tuner.start(TuneRequest(model="m"))
    with anyio.fail_after(DEADLINE_S):
        while not world.labs.running:  # noqa: ASYNC110  # of another task
            await anyio.sleep(0.001)

    async with world.lifecycle.lease("m"):
        assert world.labs.open
        assert all(lab.paused for lab in world.labs.open)
        count = len(world.labs.measured)
        await anyio.sleep(4 * REST_S)
        assert len(world.labs.measured) == count
        assert world.state() == "paused"
    await world.until("done")


async def test_a_load_gets_the_memory_of_the_labs(world: World) -> None:
    """A model that is not loaded is measured; then somebody wants it."""
    await world.tuner.start(TuneRequest(model="m"))
    with anyio.fail_after(DEADLINE_S):
        while not world.labs.running:  # noqa: ASYNC110  # of another task
            await anyio.sleep(0.001)

    await world.lifecycle.load("m")
    assert world.labs.open == []
    await world.until("done")

    assert world.lifecycle.view(M).state is ModelState.READY


async def test_the_next_daemon_begins_with_what_this_one_found(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("t")
    with anyio.fail_after(DEADLINE_S):
        async with daemon_in(home) as first:
            await first.tuner.start(TuneRequest(model="m"))
            await first.until("done")
        async with daemon_in(home) as second:
            await second.lifecycle.load("m")

            assert second.state() == "done"
            assert [launch.ubatch for launch in second.engine.launches] == [256]
            assert second.labs.opened == []


# --- on a GPU --------------------------------------------------------------------------------


def with_gpu(free: int) -> HardwareFacts:
    return replace(machine(), gpus=(GpuFacts("GPU", "nvidia", 24 * GIB, free),))


async def test_a_runtime_for_a_gpu_is_measured_with_its_layers_there(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """And nothing for the processor takes its place, whatever it achieves."""
    home = tmp_path_factory.mktemp("t")
    async with daemon_in(home, lambda: with_gpu(8 * GIB), "one-cuda", "two") as world:
        await world.lifecycle.load("m")
        await world.tuner.start(TuneRequest(model="m"))
        await world.until("done")

        plan = world.lifecycle.plan_of(M)
        assert plan is not None
        assert plan.gpu_layers > 0
        measured = {(trial.runtime, trial.gpu_layers) for trial in world.labs.measured}
        assert measured == {("one-cuda", plan.gpu_layers)}


async def test_a_gpu_that_only_the_runtime_sees_is_measured_too(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """What was found is kept for the machine as the system tells of it, and used there again."""
    home = tmp_path_factory.mktemp("t")

    async def seen(hardware: HardwareFacts, runtime: str) -> HardwareFacts:
        assert runtime == "one-vulkan"
        return replace(hardware, gpus=with_gpu(8 * GIB).gpus)

    async with daemon_in(home, machine, "one-vulkan", seen=seen) as world:
        await world.tuner.start(TuneRequest(model="m"))
        await world.until("done")
        await world.lifecycle.load("m")

        plan = world.lifecycle.plan_of(M)
        assert plan is not None
        assert plan.gpu_layers > 0
        assert {trial.gpu_layers for trial in world.labs.measured} == {plan.gpu_layers}
        assert plan.ubatch == 256


async def test_runtimes_for_a_gpu_are_not_measured_on_the_processor(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("t")
    async with daemon_in(home, lambda: with_gpu(8 * GIB), "one", "two", "three-cuda") as world:
        await world.tuner.start(TuneRequest(model="m"))
        await world.until("done")

        assert {trial.runtime for trial in world.labs.measured} == {"one", "two"}


async def test_a_gpu_that_the_model_fills_is_left_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its layers would be there twice."""
    home = tmp_path_factory.mktemp("t")
    free = [8 * GIB]
    async with daemon_in(home, lambda: with_gpu(free[0]), "one-cuda") as world:
        await world.lifecycle.load("m")
        free[0] = GIB  # no more than what always stays free
        await world.tuner.start(TuneRequest(model="m"))
        with anyio.fail_after(DEADLINE_S):
            while world.tuner.list()[0].error is None:  # noqa: ASYNC110  # of another task
                await anyio.sleep(0.005)

        error = world.tuner.list()[0].error
        assert error is not None
        assert error.code == "memory_short"
        assert "GPU" in error.message
        assert world.labs.opened == []
