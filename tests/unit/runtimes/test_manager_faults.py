"""The manager when files vanish, memory is short, or two things happen at once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import anyio
import pytest

from stoker.engine.xllamacpp import XllamacppEngine
from stoker.errors import MachineBusy, MemoryShort, RuntimeUnsupported
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
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
    until,
)
from tests.unit.runtimes.test_manager import places, rig, stocked

pytestmark = pytest.mark.anyio
__all__ = ["places", "rig", "stocked"]  # fixtures


async def test_the_current_one_tested_anew_is_not_measured_against_itself(stocked: Rig) -> None:
    """On another processor it waits for its test, and the built-in one serves meanwhile."""
    async with stocked.running() as manager:
        await installed(manager)
    stocked.places.canary.unlink()
    stocked.compared.clear()
    stocked.lifecycle.ready = ("a",)
    stocked.lifecycle.renewed.clear()

    async with stocked.running() as manager:
        await until(lambda: manager._job is not None and not manager._job.active)
        await anyio.wait_all_tasks_blocked()

        assert manager.runtime == NATIVE
        assert manager._job is not None
        assert manager._job.error is None
        assert stocked.compared == [(NATIVE, BUILT_IN)]
        assert stocked.lifecycle.renewed == ["a"]


async def test_the_current_one_goes_when_it_is_slow_on_another_processor(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)
    stocked.places.canary.unlink()
    stocked.factor = 0.8

    async with stocked.running() as manager:
        await until(lambda: manager._job is not None and not manager._job.active)

        assert manager.runtime == BUILT_IN
        assert shown(manager, NATIVE).state == "ready"


async def test_a_chosen_one_stays_although_it_is_slow_on_another_processor(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)
        await manager.use(NATIVE)
    stocked.places.canary.unlink()
    stocked.factor = 0.8

    async with stocked.running() as manager:
        await until(lambda: manager._job is not None and not manager._job.active)

        assert manager.runtime == NATIVE


async def test_a_model_that_is_being_loaded_changes_over_too(stocked: Rig) -> None:
    """It was planned for the runtime of a moment ago."""
    states = {ModelId("busy"): ModelState.LOADING, ModelId("gone"): ModelState.FAILED}
    stocked.lifecycle.states = lambda: states  # type: ignore[method-assign]
    async with stocked.running() as manager:
        await installed(manager)

    assert stocked.lifecycle.renewed == ["busy"]


async def test_a_plan_for_a_runtime_that_is_gone_keeps_the_other_one_s_safe_mode(
    stocked: Rig,
) -> None:
    stocked.normal[BUILT_IN] = DIES  # its fast layouts are not sound here
    async with stocked.running() as manager:
        plan = a_plan(stocked.places, "removed-since")
        worker = await manager.launch(plan, timeout_s=10)
        await worker.stop(0)

        assert worker.runtime == BUILT_IN
        assert not stocked.adapters[BUILT_IN].launched[-1].extra_buffers


async def test_a_start_on_its_way_counts_as_a_worker(stocked: Rig) -> None:
    """So that nobody deletes the program under it."""
    async with stocked.running() as manager:
        await installed(manager)
        stocked.adapters[NATIVE].normal = Behaviour(start_ms=500)
        async with anyio.create_task_group() as tasks:

            async def start() -> None:
                worker = await manager.launch(a_plan(stocked.places, NATIVE), timeout_s=10)
                await worker.stop(0)

            tasks.start_soon(start)
            await until(lambda: bool(stocked.adapters[NATIVE].launched))
            assert manager._front._live[NATIVE] == 1
        await until(lambda: not manager._front._live[NATIVE])


async def test_a_folder_that_is_deleted_by_hand_is_left_at_the_next_load(stocked: Rig) -> None:
    async with stocked.running() as manager:
        await installed(manager)
        stocked.adapters[NATIVE].normal = Behaviour(crash_at_start="silent")  # no program
        shutil.rmtree(stocked.places.runtimes / NATIVE)

        worker = await manager.launch(a_plan(stocked.places, NATIVE), timeout_s=10)
        await worker.stop(0)

        assert worker.runtime == manager.runtime == BUILT_IN


def test_a_gpu_wheel_whose_folder_is_gone_is_not_replaced_by_the_built_in_one(
    places: Paths,
) -> None:
    """Python would find the built-in package of the same name, and nobody would notice."""
    folder = places.runtimes / "xllamacpp-vulkan"
    (folder / "xllamacpp").mkdir(parents=True)
    hardware = machine(cores=2)
    hardware = replace(hardware, cpu=replace(hardware.cpu, flags=frozenset(_BASELINE)))
    engine = XllamacppEngine(places, hardware, runtime=folder.name, folder=folder)
    engine.check_supported()

    shutil.rmtree(folder)

    with pytest.raises(RuntimeUnsupported):
        engine.check_supported()


_BASELINE = ("sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "ssse3", "sse3")


async def test_a_test_for_the_user_is_a_job_like_any_other(stocked: Rig) -> None:
    """One at a time, seen, and given up when the user says so."""
    async with stocked.running() as manager:
        await installed(manager)
        stocked.places.canary.unlink()
        await manager._shelf.retest(NATIVE)
        stocked.adapters[NATIVE].normal = Behaviour(start_ms=3000)
        failures: list[Exception] = []

        async def use() -> None:
            try:
                await manager.use(NATIVE)
            except RuntimeUnsupported as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await until(lambda: shown(manager, NATIVE).state == "testing")
            with pytest.raises(MachineBusy):
                await manager.install(REQUEST)
            with pytest.raises(MachineBusy):
                await manager.use(NATIVE)
            await manager.cancel()

        assert len(failures) == 1
        assert manager.runtime == BUILT_IN


async def test_nothing_is_tested_without_memory_for_the_test(
    stocked: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that the kernel ends may end a user's program, too."""
    free = [1 << 20]

    def probe() -> HardwareFacts:
        hardware = machine(cores=2)
        return replace(hardware, memory=replace(hardware.memory, available_bytes=free[0]))

    monkeypatch.setattr("stoker.runtimes.trial.probe", probe)
    async with stocked.running() as manager:
        await installed(manager)

        assert stocked.adapters[NATIVE].launched == []
        assert "not tested yet" in (shown(manager, NATIVE).note or "")
        assert "memory" in str(manager._job and manager._job.error)
        with pytest.raises(MemoryShort):
            await manager.use(NATIVE)
        free[0] = 8 << 30
        await manager.use(NATIVE)
        assert manager.runtime == NATIVE
