"""Install, test, switch and go back: with real self-tests, over fake workers."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from stoker.engine.base import Worker
from stoker.errors import (
    BadRequest,
    BuildFailed,
    CompilerMissing,
    LabFailed,
    MachineBusy,
    ModelInUse,
    RuntimeRejected,
    RuntimeUnsupported,
    UnknownRuntime,
    WorkerFailed,
)
from stoker.paths import Paths, from_environment
from stoker.runtimes import registry
from stoker.runtimes.compare import judge
from stoker.runtimes.manager import Runtimes
from stoker.schemas import StoreChanged
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import Speeds
from tests.fakes.engine import Behaviour, write_model
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hardware import machine
from tests.fakes.runtime_rig import (
    BUILT_IN,
    DIES,
    NATIVE,
    REQUEST,
    Rig,
    a_plan,
    installed,
    shown,
    speeds,
    until,
)
from tests.fakes.serving import add_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def places(stoker_home: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(registry, "_which", lambda: None)  # the developer's own program
    made = from_environment()
    made.create()
    return made


@pytest.fixture
def rig(places: Paths) -> Rig:
    store = Store(places.store)
    store.open()
    return Rig(places, store)


@pytest.fixture
def stocked(rig: Rig) -> Rig:
    add_model(rig.store, "big", tiny_gguf(name="big", seed=1) + bytes(0))
    add_model(rig.store, "small", tiny_gguf(name="small", seed=2))
    return rig


# --- install ---------------------------------------------------------------------------------


async def test_a_sound_and_faster_runtime_takes_over(stocked: Rig) -> None:
    stocked.lifecycle.ready = ("a", "b")
    async with stocked.running() as manager:
        assert manager.runtime == BUILT_IN
        await installed(manager)
        view = manager.view().runtimes[0]

        assert manager.runtime == view.name == NATIVE
        assert (view.current, view.state, view.speedup) == (True, "ready", 1.5)
        assert "1.50 times as fast" in (view.note or "")
        assert shown(manager, BUILT_IN).previous
        assert stocked.compared == [(NATIVE, BUILT_IN)]
        assert stocked.lifecycle.renewed == ["a", "b"]
        assert manager.usable() == (NATIVE, BUILT_IN)
        assert {one.state for one in stocked.told} >= {"installing", "testing", "ready"}


async def test_the_choice_outlives_the_daemon(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)

    again = stocked.manager()

    assert again.runtime == NATIVE
    assert shown(again, BUILT_IN).previous


async def test_a_slower_one_is_kept_but_not_used(stocked: Rig) -> None:
    stocked.factor = 0.9
    stocked.lifecycle.ready = ("a",)
    async with stocked.running() as manager:
        await installed(manager)
        job = manager._job

        assert job is not None
        assert isinstance(job.error, RuntimeRejected)
        assert job.error.facts["reason"] == "slower"
        assert manager.runtime == BUILT_IN
        assert shown(manager, NATIVE).state == "ready"
        assert shown(manager, NATIVE).speedup == 0.9
        assert stocked.lifecycle.renewed == []
        assert NATIVE in manager.usable(), "the tuner may still find a model it is better for"


async def test_a_slower_one_is_used_when_the_user_insists(stocked: Rig) -> None:
    stocked.factor = 0.9
    async with stocked.running() as manager:
        await installed(manager, force=True)

        assert manager.runtime == NATIVE


@pytest.mark.parametrize(
    ("new", "faster"),
    [
        (Speeds(310, 41.4, 93), True),
        (Speeds(305, 40.5, 91.5), False),  # within noise
        (Speeds(600, 38, 180), False),  # answers come slower: harm
    ],
)
def test_faster_means_by_more_than_noise_and_in_nothing_slower(
    new: Speeds, *, faster: bool
) -> None:
    assert judge([new, new, speeds(9)], [speeds(1)] * 3).faster is faster


async def test_an_unsound_one_is_refused_with_its_reason(stocked: Rig) -> None:
    """As a build with AMX on a machine where that crashes: it works in safe mode only."""
    stocked.normal[NATIVE] = DIES
    async with stocked.running() as manager:
        await installed(manager)
        view = shown(manager, NATIVE)

        assert manager.runtime == BUILT_IN
        assert view.state == "failed"
        assert view.error is not None
        assert view.error.code == "runtime_rejected"
        assert "not sound on this machine: the fast layouts fail" in view.error.message
        assert manager.usable() == (BUILT_IN,)
        assert not manager.has(NATIVE)
        with pytest.raises(RuntimeRejected):
            await manager.use(NATIVE)
    assert not stocked.manager().has(NATIVE), "the verdict is kept"
    assert stocked.compared == []


async def test_one_that_never_works_is_refused_too(stocked: Rig) -> None:
    stocked.normal[NATIVE] = stocked.safe[NATIVE] = Behaviour(crash_at_start="assert")
    async with stocked.running() as manager:
        await installed(manager)

        assert shown(manager, NATIVE).state == "failed"
        assert manager.runtime == BUILT_IN


async def test_one_that_is_built_anew_is_tested_anew(stocked: Rig) -> None:
    stocked.normal[NATIVE] = DIES
    async with stocked.running() as manager:
        await installed(manager)
        del stocked.normal[NATIVE]
        await manager.remove(NATIVE)
        await installed(manager)

        assert manager.runtime == NATIVE


async def test_without_a_model_it_waits_for_one(rig: Rig) -> None:
    async with rig.running() as manager:
        await installed(manager)
        before = shown(manager, NATIVE)
        assert (before.state, before.current) == ("ready", False)
        assert "not tested yet" in (before.note or "")
        assert manager.usable() == (BUILT_IN,)
        with pytest.raises(RuntimeUnsupported):
            await manager.use(NATIVE)

        await run_sync(lambda: add_model(rig.store, "m", tiny_gguf(name="m", seed=3)))
        rig.bus.publish(StoreChanged(id="m", change="added"))
        await until(lambda: manager.runtime == NATIVE)


async def test_what_cannot_be_measured_is_not_taken(stocked: Rig) -> None:
    stocked.compare_error = LabFailed("no")
    async with stocked.running() as manager:
        await installed(manager)

        assert manager.runtime == BUILT_IN
        assert "not measured" in (shown(manager, NATIVE).note or "")
        assert (await manager.use(NATIVE)).runtimes[0].name == NATIVE


@pytest.mark.parametrize("error", [CompilerMissing("none"), BuildFailed("no"), ValueError("bug")])
async def test_a_failed_install_changes_nothing_and_is_shown(
    stocked: Rig, error: Exception
) -> None:
    stocked.install_error = error
    async with stocked.running() as manager:
        await installed(manager)
        view = shown(manager, "native")

        assert view.state == "failed"
        assert view.error is not None
        assert manager.runtime == BUILT_IN
        stocked.install_error = None
        await installed(manager)
        assert manager.runtime == NATIVE, "and may be tried again"


async def test_one_install_at_a_time_and_it_can_be_cancelled(stocked: Rig) -> None:
    stocked.hold_install = anyio.Event()
    async with stocked.running() as manager:
        view = await manager.install(REQUEST)
        with pytest.raises(MachineBusy):
            await manager.install(REQUEST)
        await anyio.wait_all_tasks_blocked()
        assert view.state == "installing"
        assert shown(manager, "native").progress == 0.5

        after = await manager.cancel()

        assert not any(one.state == "installing" for one in after.runtimes)
        stocked.hold_install.set()
        await installed(manager)
        assert manager.runtime == NATIVE


# --- use, roll back, hold, remove ------------------------------------------------------------


async def test_back_and_forth(stocked: Rig) -> None:
    async with stocked.running() as manager:
        with pytest.raises(UnknownRuntime):
            await manager.rollback()
        await installed(manager)

        await manager.rollback()
        assert manager.runtime == BUILT_IN
        assert manager.usable() == (BUILT_IN,), "the user's word counts, also for the tuner"
        await manager.use(NATIVE)
        assert manager.runtime == NATIVE
        with pytest.raises(UnknownRuntime):
            await manager.use("nothing-like-it")


async def test_a_held_choice_does_not_change_by_itself(stocked: Rig) -> None:
    async with stocked.running() as manager:
        assert (await manager.hold(held=True)).held
        await installed(manager)

        assert manager.runtime == BUILT_IN
        assert shown(manager, NATIVE).speedup == 1.5
        await manager.use(NATIVE)
        assert manager.runtime == NATIVE


async def test_the_setting_wins_over_everything(stocked: Rig) -> None:
    async with stocked.running(runtime=BUILT_IN) as manager:
        await installed(manager)

        assert manager.runtime == BUILT_IN
        with pytest.raises(BadRequest):
            await manager.use(NATIVE)


async def test_a_setting_that_cannot_be_followed_is_a_problem(rig: Rig) -> None:
    manager = rig.manager(runtime="gone-1")

    assert manager.runtime == BUILT_IN
    assert any("gone-1" in line for line in manager.problems())


async def test_the_current_one_can_be_removed(stocked: Rig) -> None:
    stocked.lifecycle.ready = ("a",)
    async with stocked.running() as manager:
        await installed(manager)
        stocked.lifecycle.renewed.clear()
        await manager.remove(NATIVE)

        assert manager.runtime == BUILT_IN
        assert not manager.has(NATIVE)
        assert stocked.lifecycle.renewed == ["a"]
        assert list(stocked.places.runtimes.iterdir()) == []


async def test_one_that_still_runs_a_model_is_not_removed(
    stocked: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.runtimes.front._LEAVE_S", 0.05)
    async with stocked.running() as manager:
        await installed(manager)
        worker = await manager.launch(a_plan(stocked.places), timeout_s=30)
        try:
            with pytest.raises(ModelInUse):
                await manager.remove(NATIVE)
        finally:
            await worker.stop(5)
        await manager.remove(NATIVE)
        assert not manager.has(NATIVE)


@pytest.mark.parametrize("name", [BUILT_IN, "../store", "", ".", "unknown"])
async def test_only_what_was_installed_can_be_removed(rig: Rig, name: str) -> None:
    async with rig.running() as manager:
        with pytest.raises((BadRequest, UnknownRuntime)):
            await manager.remove(name)


async def test_a_damaged_one_is_told_and_can_be_removed(rig: Rig) -> None:
    (rig.places.runtimes / "broken").mkdir(parents=True)
    async with rig.running() as manager:
        assert shown(manager, "broken").state == "failed"
        assert any("broken" in line for line in manager.problems())

        await manager.remove("broken")

        assert manager.problems() == ()


async def test_the_choice_lasts_although_it_cannot_be_written(stocked: Rig) -> None:
    stocked.places.runtime_state.mkdir()
    async with stocked.running() as manager:
        await installed(manager)

        assert manager.runtime == NATIVE


# --- going back by itself --------------------------------------------------------------------


def with_behaviour(rig: Rig, **switches: Any) -> None:
    """From now on the compiled one behaves like this."""
    rig.adapters[NATIVE].normal = Behaviour(**switches)


@pytest.mark.parametrize("how", ["assert", "silent"])
async def test_a_runtime_that_cannot_start_a_model_is_given_up_at_once(
    stocked: Rig, how: str
) -> None:
    """And the load that found out is served by the one before."""
    async with stocked.running() as manager:
        await installed(manager)
        with_behaviour(stocked, crash_at_start=how)

        worker = await manager.launch(a_plan(stocked.places, NATIVE), timeout_s=30)
        await worker.stop(5)

        assert worker.runtime == BUILT_IN
        assert manager.runtime == BUILT_IN
        assert not manager.has(NATIVE)
        assert shown(manager, NATIVE).state == "failed"
        assert any(NATIVE in line for line in manager.problems())
        await manager.use(NATIVE)
        assert manager.runtime == NATIVE, "the user may try it again"
        assert manager.problems() == ()


@pytest.mark.parametrize("how", ["oom", "bad-file"])
async def test_a_failure_that_is_not_the_runtime_s_is_just_a_failure(
    stocked: Rig, how: str
) -> None:
    async with stocked.running() as manager:
        await installed(manager)
        with_behaviour(stocked, crash_at_start=how)

        with pytest.raises(WorkerFailed):
            await manager.launch(a_plan(stocked.places), timeout_s=30)

        assert manager.runtime == NATIVE


async def test_a_model_that_is_too_new_for_it_is_served_by_another(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)
        with_behaviour(stocked, crash_at_start="architecture")

        worker = await manager.launch(a_plan(stocked.places), timeout_s=30)
        await worker.stop(5)

        assert worker.runtime == BUILT_IN
        assert manager.runtime == NATIVE, "it is good for all others"


async def test_a_model_that_no_runtime_can_start_is_the_model_s_fault(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)
        with_behaviour(stocked, crash_at_start="assert")
        own = stocked.adapters[BUILT_IN]
        own.normal = own.safe = Behaviour(crash_at_start="assert")

        with pytest.raises(WorkerFailed):
            await manager.launch(a_plan(stocked.places), timeout_s=30)

        assert manager.runtime == NATIVE


async def test_the_other_runtime_s_safe_mode_is_kept(stocked: Rig) -> None:
    """The plan was made for the one that failed."""
    stocked.normal[BUILT_IN] = DIES
    async with stocked.running() as manager:
        await installed(manager)
        with_behaviour(stocked, crash_at_start="assert")

        worker = await manager.launch(a_plan(stocked.places), timeout_s=30)
        await worker.stop(5)

        assert not stocked.adapters[BUILT_IN].launched[-1].extra_buffers


async def crash(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGSEGV)
    await worker.wait()
    await anyio.wait_all_tasks_blocked()


async def test_a_runtime_whose_workers_crash_is_given_up(stocked: Rig) -> None:
    """Once may be a request's fault; twice is not."""
    stocked.lifecycle.ready = ("a",)
    async with stocked.running() as manager:
        await installed(manager)
        stocked.lifecycle.renewed.clear()

        await crash(await manager.launch(a_plan(stocked.places), timeout_s=30))
        assert manager.runtime == NATIVE
        await crash(await manager.launch(a_plan(stocked.places), timeout_s=30))
        await until(lambda: bool(stocked.lifecycle.renewed))

        assert manager.runtime == BUILT_IN
        assert stocked.lifecycle.renewed == ["a"]


async def test_the_built_in_one_is_never_given_up(stocked: Rig) -> None:
    async with stocked.running() as manager:
        for _ in range(3):
            await crash(await manager.launch(a_plan(stocked.places), timeout_s=30))

        assert manager.runtime == BUILT_IN
        assert manager.problems() == ()


async def test_a_self_test_that_fails_later_goes_back_before_the_load(stocked: Rig) -> None:
    """As after a move to another machine whose verdict says no."""
    async with stocked.running() as manager:
        await installed(manager)
        stocked.places.canary.unlink()
        stocked.adapters[NATIVE].normal = stocked.adapters[NATIVE].safe = Behaviour(
            crash_at_start="assert"
        )
        model = write_model(stocked.places.data / "m.gguf")

        assert not await manager.prepare(model, NATIVE)
        assert manager.runtime == BUILT_IN


async def test_on_another_processor_it_is_tested_again(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)
    stocked.places.canary.unlink()  # as a verdict for another processor

    again = stocked.manager()

    assert again.runtime == BUILT_IN
    async with stocked.running() as manager:
        await until(lambda: manager.runtime == NATIVE)


# --- what measurements may still decide --------------------------------------------------------


async def test_an_old_measurement_does_not_undo_a_change(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)

        assert manager.has(BUILT_IN)
        assert not manager.has(BUILT_IN, measured_at="2020-01-01T00:00:00+00:00")
        assert manager.has(BUILT_IN, measured_at="2999-01-01T00:00:00+00:00")
        assert manager.has(NATIVE, measured_at="2020-01-01T00:00:00+00:00")
        assert not manager.has(BUILT_IN, measured_at="nonsense")


async def test_each_can_be_measured(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)

        library = manager.library(NATIVE)
        own = manager.library(BUILT_IN)

    assert library is not None
    assert library.bindings == stocked.places.runtimes / NATIVE
    assert own is not None
    with pytest.raises(UnknownRuntime):
        manager.library("other")


async def test_offers_are_listed_until_they_are_taken(stocked: Rig) -> None:
    from stoker.hardware.facts import CpuFacts
    from tests.fakes.hardware import BASELINE

    facts = machine(cores=2)
    cpu = dataclasses.replace(facts.cpu, flags=BASELINE | {"avx512f", "avx512bw", "avx512vl"})
    assert isinstance(cpu, CpuFacts)
    manager = Runtimes(
        stocked.places,
        dataclasses.replace(facts, cpu=cpu),
        Settings(),
        stocked.bus,
        stocked.store,
        make=stocked.make,
    )

    offers = [one for one in manager.view().runtimes if one.state == "offered"]

    assert [one.name for one in offers] in ([], ["native"])
    assert all(one.note for one in offers)
