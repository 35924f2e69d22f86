"""A runtimes manager over fake workers: what its tests look at and wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.runtimes import manifest, registry
from stoker.runtimes.compare import Comparison, Contender, judge
from stoker.runtimes.manager import Runtimes
from stoker.runtimes.manifest import Runtime
from stoker.schemas import RuntimeChanged, RuntimeView
from stoker.schemas_machine import RuntimeInstallRequest
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan, MemoryNeed, Speeds
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour, FakeAdapter, write_model
from tests.fakes.hardware import machine

NATIVE = "llama-cpp-python-0.3.36-avx512"
BUILT_IN = registry.built_in().name
FAST = Behaviour()
DIES = Behaviour(crash_after=1)  # the readiness decode works, the first prompt does not
REQUEST = RuntimeInstallRequest(kind="native")


def speeds(factor: float) -> Speeds:
    return Speeds(300 * factor, 40 * factor, 90 * factor)


@dataclass
class FakeLifecycle:
    """Models that change over; each renewal is counted."""

    ready: tuple[str, ...] = ()
    renewed: list[str] = field(default_factory=list)
    callbacks: list[Callable[[bool], None]] = field(default_factory=list)

    def states(self) -> dict[ModelId, ModelState]:
        known = {ModelId(name): ModelState.READY for name in self.ready}
        return {**known, ModelId("asleep"): ModelState.UNLOADED}

    async def renew(self, model: ModelId) -> bool:
        self.renewed.append(str(model))
        return True

    def on_busy(self, callback: Callable[[bool], None]) -> None:
        self.callbacks.append(callback)


@dataclass
class Rig:
    """A manager and everything that a test wants to decide."""

    places: Paths
    store: Store
    bus: EventBus = field(default_factory=EventBus)
    lifecycle: FakeLifecycle = field(default_factory=FakeLifecycle)
    normal: dict[str, Behaviour] = field(default_factory=dict)
    safe: dict[str, Behaviour] = field(default_factory=dict)
    factor: float = 1.5  # speed of the new one
    compare_error: Exception | None = None
    install_error: Exception | None = None
    hold_install: anyio.Event | None = None
    compared: list[tuple[str, str]] = field(default_factory=list)
    adapters: dict[str, FakeAdapter] = field(default_factory=dict)
    told: list[RuntimeView] = field(default_factory=list)
    number: int = 0

    def make(self, runtime: Runtime, places: Paths, hardware: HardwareFacts) -> FakeAdapter:
        adapter = FakeAdapter(
            places,
            hardware,
            runtime.name,
            build=runtime.created_at,
            normal=self.normal.get(runtime.name),
            safe=self.safe.get(runtime.name),
        )
        self.adapters[runtime.name] = adapter
        return adapter

    async def compare(self, new: Contender, old: Contender, model: Path) -> Comparison:
        assert model.name
        self.compared.append((new.library.runtime, old.library.runtime))
        if self.compare_error is not None:
            raise self.compare_error
        return judge([speeds(self.factor)], [speeds(1)])

    async def install(self, kind: str, *, progress: Any, **_: Any) -> Runtime:
        progress(0.5, "compiling")
        if self.hold_install is not None:
            await self.hold_install.wait()
        if self.install_error is not None:
            raise self.install_error
        assert kind == "native"
        return await run_sync(self.place, NATIVE)

    def place(self, name: str) -> Runtime:
        self.number += 1
        folder = self.places.runtimes / name
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "lib").mkdir(exist_ok=True)
        (folder / "bin" / manifest.server_name()).touch()
        for library in ("lib/libllama.so", "lib/libllama.dylib", "bin/llama.dll"):
            (folder / library).touch()
        runtime = Runtime(
            name=name,
            kind="native",
            engine="llama-server",
            version="0.3.36",
            variant="avx512",
            folder=None,
            created_at=f"2026-11-22T09:00:{self.number:02}+00:00",
            cpu="",
        )
        manifest.write(runtime, folder)
        return manifest.read(folder)

    def manager(self, **settings: Any) -> Runtimes:
        return Runtimes(
            self.places,
            machine(cores=2),
            Settings(**settings),
            self.bus,
            self.store,
            install=self.install,
            make=self.make,
            compare=self.compare,
        )

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Runtimes]:
        manager = self.manager(**settings)
        manager.serves(self.lifecycle)
        async with anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            tasks.start_soon(self._listen)
            yield manager
            tasks.cancel_scope.cancel()

    async def _listen(self) -> None:
        with self.bus.subscribe() as changes:
            async for change in changes:
                if isinstance(change, RuntimeChanged):
                    self.told.append(change.runtime)


def shown(manager: Runtimes, name: str) -> RuntimeView:
    return next(one for one in manager.view().runtimes if one.name == name)


async def installed(manager: Runtimes, *, force: bool = False) -> None:
    await manager.install(REQUEST.model_copy(update={"force": force}))
    await finished(manager)


async def finished(manager: Runtimes) -> None:
    job = manager._job
    assert job is not None
    with anyio.fail_after(30):
        await job.done.wait()
        await anyio.wait_all_tasks_blocked()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # what is watched has no event
            await anyio.sleep(0.02)


def a_plan(places: Paths, runtime: str = "") -> LaunchPlan:
    model = write_model(places.data / "m.gguf")
    need = MemoryNeed(0, 0, 0, 0, 0, 0)
    return LaunchPlan(
        model_id="m",
        model_path=model,
        mmproj_path=None,
        context=512,
        parallel=2,
        threads=1,
        threads_batch=1,
        batch=512,
        ubatch=128,
        n_outputs_max=2,
        cache_ram_mib=0,
        checkpoints=0,
        kv_unified=True,
        embedding=False,
        pooling=None,
        extra_buffers=True,
        gpu_layers=0,
        memory=need,
        runtime=runtime,
    )
