"""The memory of several models together: never promised twice, waited for, and learnt from.

The real lifecycle over real processes of the fake engine, on machines made up for each test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from stoker.engine.base import Worker
from stoker.errors import MemoryShort
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import launching
from stoker.lifecycle.planning import Seen, as_told
from stoker.lifecycle.reclaim import Reclaim
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.profiles import Profiles
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour, FakeEngine
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.serving import GIB, add_model, machine, places_in

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
MODELS = ("a", "b", "c")


@dataclass
class Watched(FakeEngine):
    """Adds up what living workers were planned to take, whenever one more is started."""

    planned: dict[int, LaunchPlan] = field(default_factory=dict)  # by process
    sums: list[int] = field(default_factory=list)  # the new one included

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        self.sums.append(self.living_bytes + plan.memory.total_bytes)
        worker = await super().launch(plan, timeout_s=timeout_s)
        self.planned[worker.pid] = plan
        return worker

    @property
    def living_bytes(self) -> int:
        return sum(
            self.planned[worker.pid].memory.total_bytes
            for worker in self.workers
            if worker.pid in self.planned and worker.resident_bytes() is not None
        )

    def plan(self, number: int) -> LaunchPlan:
        return self.launches[number]


@asynccontextmanager
async def living(
    home: Path,
    engine: FakeEngine,
    hardware: Callable[[], HardwareFacts] = machine,
    *,
    known: Profiles | None = None,
    trained: int = 2048,
    seen: Seen = as_told,
    **settings: Any,
) -> AsyncIterator[Lifecycle]:
    """Models a, b and c, which are alike, and a lifecycle; ends with no process."""
    store = Store(home / "store")
    await anyio.to_thread.run_sync(store.open)
    for number, name in enumerate(MODELS):
        if name not in {str(manifest.id) for manifest in store.list()}:
            content = tiny_gguf(name=name, seed=number, context=trained)
            await anyio.to_thread.run_sync(add_model, store, name, content)
    lifecycle = Lifecycle(
        store=store,
        engine=engine,
        hardware=hardware,
        settings=Settings(drain_timeout_s=5, keep_conversations=False, **settings),
        bus=EventBus(),
        metrics=Metrics(),
        places=places_in(home),
        known=known,
        seen=seen,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(lifecycle.run)
        yield lifecycle
        await lifecycle.drain(1)
        tasks.cancel_scope.cancel()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short, for the sockets in it."""
    return tmp_path_factory.mktemp("h")


async def one_plan(home: Path) -> LaunchPlan:
    """What each of the models is planned to take where there is enough."""
    engine = Watched(home, Behaviour())
    async with living(home, engine) as lifecycle:
        await lifecycle.load("a")
    return engine.plan(0)


def ready(lifecycle: Lifecycle) -> set[str]:
    return {str(model) for model, state in lifecycle.states().items() if state is ModelState.READY}


# --- the user's limit --------------------------------------------------------------------------


async def test_models_that_fit_in_the_limit_together_stay_together(home: Path) -> None:
    limit = 4 * (await one_plan(home)).memory.total_bytes
    engine = Watched(home, Behaviour())

    async with living(home, engine, memory_limit_bytes=limit) as lifecycle:
        for name in MODELS:
            await lifecycle.load(name)

        assert ready(lifecycle) == set(MODELS)
    assert max(engine.sums) <= limit


async def test_a_limit_for_one_holds_one_however_much_is_free(home: Path) -> None:
    """Each is answered, the other leaves first, and their plans never add up to more."""
    limit = 3 * (await one_plan(home)).memory.total_bytes // 2
    engine = Watched(home, Behaviour())

    async with living(home, engine, memory_limit_bytes=limit) as lifecycle:
        for name in ("a", "b", "a", "c"):
            await lifecycle.load(name)
            assert ready(lifecycle) == {name}

    assert len(engine.sums) == 4
    assert max(engine.sums) <= limit
    assert {plan.context for plan in engine.launches} == {engine.plan(0).context}


async def test_many_clients_at_once_never_pass_the_limit(home: Path) -> None:
    """The sum of plans is within it at every start, the load on its way included."""
    limit = 5 * (await one_plan(home)).memory.total_bytes // 2
    engine = Watched(home, Behaviour())
    answered: list[str] = []

    async with living(home, engine, memory_limit_bytes=limit) as lifecycle:

        async def client(number: int) -> None:
            for step in range(6):
                name = MODELS[(number + step) % 3]
                async with lifecycle.lease(name):
                    await anyio.sleep(0.002)
                answered.append(name)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as clients:
                for number in range(6):
                    clients.start_soon(client, number)

    assert len(answered) == 36
    assert max(engine.sums) <= limit


async def test_a_limit_that_no_model_fits_in_is_named(home: Path) -> None:
    async with living(home, Watched(home, Behaviour()), memory_limit_bytes=MIB) as lifecycle:
        with pytest.raises(MemoryShort) as caught:
            await lifecycle.load("a")

    assert "memory_limit_bytes" in f"{caught.value.message} {caught.value.hint}"


async def test_a_renewal_beside_the_old_worker_keeps_to_the_limit(home: Path) -> None:
    """It is given up when both together would pass it; the old one serves on."""
    total = (await one_plan(home)).memory.total_bytes
    engine = Watched(home, Behaviour())

    async with living(home, engine, memory_limit_bytes=3 * total // 2) as lifecycle:
        await lifecycle.load("a")
        engine.runtime = "fake-2"
        renewed = await lifecycle.renew(ModelId("a"))

        assert not renewed
        assert ready(lifecycle) == {"a"}
    assert len(engine.launches) == 1


# --- memory that comes back late ---------------------------------------------------------------


class Slow:
    """A machine that sees the memory of a dead process come back in ten looks."""

    def __init__(self, engine: FakeEngine, free_bytes: int) -> None:
        self._engine = engine
        self._free_bytes = free_bytes
        self._had: dict[int, int] = {}  # by process
        self._looks: dict[int, int] = {}  # since its end

    def __call__(self) -> HardwareFacts:
        used = 0
        for worker in self._engine.workers:
            resident = worker.resident_bytes()
            if resident is not None:
                self._had[worker.pid] = resident
            else:
                self._looks[worker.pid] = self._looks.get(worker.pid, 0) + 1
            gone = min(10, self._looks.get(worker.pid, 0))
            used += self._had.get(worker.pid, 0) * (10 - gone) // 10
        return machine(max(0, self._free_bytes - used))


async def test_the_next_plan_waits_for_memory_that_comes_back_late(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made at once it would find too little, and refuse or shorten the context.

    On a system that counts memory late, as Linux does not.
    """
    monkeypatch.setattr(launching, "Reclaim", partial(Reclaim, at_once=False))
    long: dict[str, Any] = {
        "context": 1 << 20,
        "parallel": 1,
        "ubatch": 32,
    }  # a third of a gigabyte
    engine = Watched(home, Behaviour(resident_mib=400))
    room = machine().memory.total_bytes // 10 + 600 * MIB  # the reserve, and not two of them
    slow = Slow(engine, room)

    async with living(home, engine, slow, trained=1 << 20, **long) as lifecycle:
        with anyio.fail_after(30):
            await lifecycle.load("a")
            await lifecycle.unload("a")
            await lifecycle.load("b")
            await lifecycle.load("c")  # in place of b

    assert engine.plan(0).memory.total_bytes > 300 * MIB
    assert {plan.memory for plan in engine.launches} == {engine.plan(0).memory}
    assert len(engine.launches) == 3


# --- what was learnt ---------------------------------------------------------------------------


async def test_a_worker_that_took_more_than_planned_is_planned_higher(home: Path) -> None:
    """For the next load of this model, and of no other; also after a restart."""
    engine = Watched(home, by_model={"a": Behaviour(resident_mib=256)}, behaviour=Behaviour())
    known = Profiles(home / "tuning")
    async with living(home, engine, known=known) as lifecycle:
        digest = lifecycle.digest_of(ModelId("a"))
        await lifecycle.load("a")
        await lifecycle.unload("a")
        with anyio.fail_after(10):
            while known.correction(digest, "fake-1") == 1.0:  # noqa: ASYNC110  # it has no event
                await anyio.sleep(0.01)

    async with living(home, engine, known=Profiles(home / "tuning")) as lifecycle:
        await lifecycle.load("a")
        await lifecycle.load("b")

    first, again, other = engine.launches
    assert first.correction == other.correction == 1.0
    assert again.correction > 1.0
    assert again.memory.anonymous_bytes > first.memory.anonymous_bytes
    assert again.memory.weights_bytes == first.memory.weights_bytes


async def test_what_was_learnt_counts_against_the_limit(home: Path) -> None:
    """Two that fitted by their predictions do not fit by what they took."""
    one = await one_plan(home)
    limit = 9 * one.memory.total_bytes // 4
    known = Profiles(home / "tuning")
    engine = Watched(home, Behaviour())
    async with living(home, engine, known=known, memory_limit_bytes=limit) as lifecycle:
        for name in ("a", "b"):
            await lifecycle.load(name)
        assert ready(lifecycle) == {"a", "b"}
    for name in ("a", "b"):
        digest = lifecycle.digest_of(ModelId(name))
        known.keep_peak(digest, "fake-1", one.memory, one.memory.computed_bytes * 3 // 2)

    async with living(home, engine, known=known, memory_limit_bytes=limit) as lifecycle:
        for name in ("a", "b"):
            await lifecycle.load(name)

        assert ready(lifecycle) == {"b"}
    assert max(engine.sums) <= limit


# --- other programs ----------------------------------------------------------------------------


async def test_idle_models_leave_when_other_programs_need_the_memory(home: Path) -> None:
    """Not at the first look, not the pinned and not the busy one."""
    free = [8 * GIB]

    def hardware() -> HardwareFacts:
        return machine(free[0])

    async with living(home, Watched(home, Behaviour()), hardware) as lifecycle:
        for name in MODELS:
            await lifecycle.load(name)
        async with lifecycle.lease("b"):
            free[0] = 100 * MIB
            await lifecycle.relieve()
            untouched = ready(lifecycle)
            await lifecycle.relieve()
            with anyio.fail_after(10):
                while ready(lifecycle) != {"b"}:  # noqa: ASYNC110  # what is watched has no event
                    await anyio.sleep(0.01)

            assert untouched == set(MODELS)


async def test_a_short_peak_of_others_sends_nobody_away(home: Path) -> None:
    free = [8 * GIB]
    hardware = machine()

    def now() -> HardwareFacts:
        memory = dataclasses.replace(hardware.memory, available_bytes=free[0])
        return dataclasses.replace(hardware, memory=memory)

    async with living(home, Watched(home, Behaviour()), now) as lifecycle:
        await lifecycle.load("a")
        for available in (100 * MIB, 8 * GIB, 100 * MIB, 8 * GIB):
            free[0] = available
            await lifecycle.relieve()

        assert ready(lifecycle) == {"a"}
