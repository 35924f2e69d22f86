"""The small decisions of the tuner."""

from __future__ import annotations

from dataclasses import replace

import anyio
import psutil
import pytest

from stoker.schemas import ModelView
from stoker.tuner import policy
from stoker.tuner.drift import Drift
from stoker.tuner.gate import Gate
from stoker.tuner.live import LiveSpeeds
from stoker.tuner.policy import SHAPES, TASTE, lab_bytes, largest_ubatch, room_bytes, shape_for
from stoker.tuning.launch import Speeds, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import ModelId, ModelState
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import EIGHT_B, STARTER

# --- how much is measured --------------------------------------------------------------------


def test_a_fast_model_is_measured_in_full() -> None:
    assert shape_for(Speeds(700, 90, 150), 90) == SHAPES[0]


def test_a_slow_model_is_measured_in_parts_that_fit_the_time() -> None:
    eight_b = shape_for(Speeds(20, 5, 8), 90)

    assert eight_b.prompt < SHAPES[0].prompt
    assert shape_for(Speeds(1, 0.2, 0.3), 90) == TASTE
    assert shape_for(Speeds(20, 5, 8), 900).prompt > eight_b.prompt


def test_a_lab_beside_a_loaded_model_costs_no_weights() -> None:
    plan = make_plan("m", __file__, EIGHT_B, machine(), Wishes(), runtime="a")  # type: ignore[arg-type]

    beside, alone = lab_bytes(plan, loaded=True), lab_bytes(plan, loaded=False)

    assert alone - beside == plan.memory.weights_bytes
    assert plan.memory.repack_bytes < beside < plan.memory.anonymous_bytes + GIB


def test_a_plan_that_saved_memory_is_not_tuned_to_spend_it() -> None:
    plan = make_plan("m", __file__, STARTER, machine(), Wishes(), runtime="a")  # type: ignore[arg-type]

    assert largest_ubatch(plan) == 1024
    assert largest_ubatch(replace(plan, ubatch=128)) == 128
    assert largest_ubatch(replace(plan, ubatch=2048)) == 2048


def test_room_is_what_nobody_would_miss() -> None:
    assert room_bytes(machine(available=4 * GIB), 2 * GIB) == 3 * GIB
    assert room_bytes(machine(available=GIB // 2), 2 * GIB) == 0


# --- drift -----------------------------------------------------------------------------------


def seen(*rates: float, tuned: float = 40.0) -> bool:
    drift = Drift()
    return any(drift.see(rate, tuned) for rate in rates)


def test_slow_for_long_is_drift() -> None:
    assert seen(*[30.0] * 12)
    assert not seen(*[30.0] * 11)


def test_one_fast_moment_says_that_the_machine_still_can() -> None:
    """The slow ones were long conversations."""
    assert not seen(*[20.0] * 6, 35.0, *[20.0] * 5)


def test_a_little_slower_is_no_drift() -> None:
    assert not seen(*[33.0] * 100)


def test_each_stretch_is_judged_alone() -> None:
    assert not seen(*[20.0] * 6, 39.0, *[20.0] * 6)
    assert seen(*[39.0] * 12, *[20.0] * 12)


def writing(rate: float = 20.0, pid: int | None = None, in_flight: int = 1) -> ModelView:
    return ModelView(
        id="m",
        state=ModelState.READY,
        in_flight=in_flight,
        tokens_per_s=rate,
        pid=pid or psutil.Process().pid,
    )


def watch(live: LiveSpeeds, view: ModelView, now: list[float], times: int = 30) -> bool:
    for _ in range(times):
        now[0] += 1e6  # so long that whatever other programs use is nothing
        live.look(view, 40.0)
    return live.is_slow(ModelId("m"))


def test_a_slow_model_is_noticed_and_forgotten() -> None:
    now = [0.0]
    live = LiveSpeeds(lambda: now[0])

    assert watch(live, writing(), now)
    live.forget(ModelId("m"))
    assert not live.is_slow(ModelId("m"))


def test_several_answers_at_once_are_no_measure() -> None:
    now = [0.0]
    assert not watch(LiveSpeeds(lambda: now[0]), writing(in_flight=2), now)


def test_a_worker_that_is_gone_is_no_measure() -> None:
    now = [0.0]
    assert not watch(LiveSpeeds(lambda: now[0]), writing(pid=2**22 - 3), now)


def test_a_busy_machine_is_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs use a whole processor."""
    now = [0.0]
    live = LiveSpeeds(lambda: now[0])
    real = psutil.cpu_times()

    def times() -> object:
        return real._replace(user=real.user + now[0])

    monkeypatch.setattr(psutil, "cpu_times", times)

    assert not watch(live, writing(), now)


# --- the gate --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_quiet_means_quiet_for_the_whole_time() -> None:
    gate = Gate()
    with anyio.fail_after(20):
        await gate.until_quiet(0)
        gate.set(busy=True)
        done: list[str] = []

        async def wait() -> None:
            await gate.until_quiet(0.05)
            done.append("quiet")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for _ in range(5):
                gate.set(busy=False)
                await anyio.sleep(0.01)
                gate.set(busy=True)
                await anyio.sleep(0.01)
            assert done == []
            gate.set(busy=False)

    assert done == ["quiet"]


@pytest.mark.anyio
async def test_somebody_waits_for_business() -> None:
    gate = Gate()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate.until_busy)
            await anyio.lowlevel.checkpoint()
            gate.set(busy=True)


def test_a_person_does_not_wait_for_half_a_minute_after_each_answer() -> None:
    assert policy.RESUME_S < policy.IDLE_S < policy.GIVE_UP_S
