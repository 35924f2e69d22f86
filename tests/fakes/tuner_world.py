"""A tuner over fakes: the lifecycle, the runtimes and the labs are made up, the rest is real."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from stoker import paths
from stoker.engine.lab import Library
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.profiles import Profiles
from stoker.schemas import ModelView, RuntimesView, RuntimeView, TuneChanged, TuneView
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuner import Tuner
from stoker.tuning.launch import LaunchPlan, Speeds, Trial, Tuned, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import ModelId, ModelState
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.lab import FakeLabs
from tests.fakes.models import STARTER
from tests.fakes.serving import add_model, machine

DEADLINE_S = 60


@dataclass
class FakeModels:
    """Stands for the lifecycle."""

    plan: LaunchPlan | None = None
    state: ModelState = ModelState.READY
    model: ModelId = field(default_factory=lambda: ModelId("m"))
    idle: float = 1e6
    rate: float | None = None
    renewed: list[ModelId] = field(default_factory=list)
    _callbacks: list[Callable[[bool], None]] = field(default_factory=list)

    def on_busy(self, callback: Callable[[bool], None], /) -> None:
        self._callbacks.append(callback)

    def busy(self, now: bool) -> None:  # noqa: FBT001  # as the lifecycle calls back
        for callback in self._callbacks:
            callback(now)

    def idle_s(self) -> float:
        return self.idle

    def states(self) -> Mapping[ModelId, ModelState]:
        return {self.model: self.state}

    def view(self, model: ModelId) -> ModelView:
        return ModelView(id=str(model), state=self.state, in_flight=1, tokens_per_s=self.rate)

    def plan_of(self, model: ModelId) -> LaunchPlan | None:
        return self.plan if model == self.model and self.state is ModelState.READY else None

    async def renew(self, model: ModelId) -> bool:
        self.renewed.append(model)
        return True


@dataclass
class FakeEngines:
    names: tuple[str, ...] = ("a", "b")
    safe: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()  # runtimes whose library is not there
    building: bool = False

    def usable(self) -> tuple[str, ...]:
        return self.names

    def library(self, runtime: str) -> Library | None:
        found = Library(runtime, Path("/nowhere"), None)
        return None if runtime in self.missing else found

    def has(self, runtime: str, *, measured_at: str | None = None) -> bool:
        assert measured_at is not None
        return runtime not in self.gone

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        assert model.name
        await anyio.lowlevel.checkpoint()
        return runtime in self.safe

    def view(self) -> RuntimesView:
        state: Any = "installing" if self.building else "ready"
        return RuntimesView(
            held=False, runtimes=(RuntimeView(name="a", kind="native", state=state),)
        )


@dataclass
class World:
    tuner: Tuner
    models: FakeModels
    engines: FakeEngines
    labs: FakeLabs
    profiles: Profiles
    store: Store
    manifest: Manifest
    facts: list[HardwareFacts]
    events: list[TuneView]
    now: list[float]
    cpu: list[float]

    def tuned(self) -> Tuned | None:
        return self.profiles.tuned(self.manifest.model_file.digest, self.facts[0], "chat")

    def view(self) -> TuneView:
        return next(view for view in self.tuner.list() if view.model == "m")

    async def until(self, *states: str) -> TuneView:
        with anyio.fail_after(DEADLINE_S):
            while (view := self.view()).state not in states:  # noqa: ASYNC110  # of another task
                await anyio.sleep(0.005)
        return view


def faster_b(trial: Trial) -> Speeds:
    gain = 1.4 if trial.runtime == "b" else 1.0
    return Speeds(300.0 * gain, 40.0 * gain, 60.0 * gain)


@asynccontextmanager
async def world_in(folder: Path, *, running: bool = True, **settings: Any) -> AsyncIterator[World]:
    places = paths.from_environment({"STOKER_HOME": str(folder)})
    places.create()
    store = Store(places.store)
    store.open()
    manifest = add_model(store, "m", tiny_gguf())
    bus, models, engines, labs = EventBus(), FakeModels(), FakeEngines(), FakeLabs(faster_b)
    facts, now, cpu = [machine()], [1e5], [3.0]
    models.plan = make_plan("m", folder, STARTER, machine(), Wishes(), runtime="a")
    profiles = Profiles(places.tuning)
    tuner = Tuner(
        store=store,
        lifecycle=models,
        runtimes=engines,
        profiles=profiles,
        settings=Settings(**settings),
        bus=bus,
        places=places,
        hardware=lambda: facts[0],
        opener=labs,
        clock=lambda: now[0],
        cpu_percent=lambda: cpu[0],
    )
    world = World(tuner, models, engines, labs, profiles, store, manifest, facts, [], now, cpu)
    with bus.subscribe() as subscription:

        async def listen() -> None:
            async for event in subscription:
                if isinstance(event, TuneChanged):
                    world.events.append(event.tune)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            if running:
                await tasks.start(tuner.run)
            yield world
            tasks.cancel_scope.cancel()
    assert labs.open == []


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # anything may make it true
            await anyio.sleep(0.002)
