"""What is given up after which failure, and what the plan is then."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import MemoryShort, WorkerFailed, WorkerTimeout
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.lifecycle import ladder
from stoker.lifecycle.eviction import Choice
from stoker.lifecycle.ladder import Rung, next_rung
from stoker.store.facts import ModelFacts
from stoker.tuning.launch import LaunchPlan, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import FailureKind
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import BERT, EIGHT_B, EXPERTS, STARTER

OOM, CRASH = FailureKind.OUT_OF_MEMORY, FailureKind.CRASH
GPU = "cuda-1"


def with_gpu(free: int) -> HardwareFacts:
    gpu = GpuFacts("Test GPU", "nvidia", vram_total_bytes=free, vram_free_bytes=free)
    return machine(total=32 * GIB, gpus=(gpu,))


def on(
    rung: int,
    *,
    facts: ModelFacts = STARTER,
    hardware: HardwareFacts | None = None,
    runtime: str = "builtin-1",
    **wishes: Any,
) -> LaunchPlan:
    """The plan of this model on this rung."""

    def ask(wanted: Wishes) -> Choice[LaunchPlan]:
        here = hardware or machine()
        plan = make_plan("m", Path("m.gguf"), facts, here, wanted, runtime=runtime)
        return Choice(plan, (), wait=False)

    return ladder.choose(ask, Wishes(**wishes), rung).plan


def climbed(kind: FailureKind, **how: Any) -> list[int]:
    """Every rung that is tried when each of them fails like this."""
    wishes = {name: how[name] for name in how if name in {one.name for one in WISHES}}
    rung: int | None = 0
    seen: list[int] = []
    while rung is not None:
        seen.append(rung)
        rung = next_rung(rung, kind, on(rung, **how), Wishes(**wishes))
    return seen


WISHES = dataclasses.fields(Wishes)


def why(plan: LaunchPlan, setting: str) -> str:
    return next(reason.why for reason in plan.reasons if reason.setting == setting)


# --- which rung --------------------------------------------------------------------------------


def test_a_crash_without_a_gpu_tries_everything_that_a_cpu_has() -> None:
    assert climbed(CRASH) == [0, 1, 2, 3, 4]


def test_a_crash_on_a_gpu_ends_on_the_cpu() -> None:
    how: dict[str, Any] = {"hardware": with_gpu(24 * GIB), "runtime": GPU, "facts": EIGHT_B}

    assert climbed(CRASH, **how) == [0, 1, 2, 3, 4, 5, 6]
    assert climbed(OOM, **how) == [0, 3, 5, 6]
    assert climbed(FailureKind.BACKEND, **how) == [0, 1, 4, 5, 6]


def test_memory_jumps_to_the_smaller_context() -> None:
    """Other attention takes more, so it is no remedy; what is killed probably had too much."""
    assert climbed(OOM) == [0, 3]
    assert climbed(FailureKind.KILLED) == [0, 3]
    assert climbed(OOM, flash_attention=False) == [0, 3]


@pytest.mark.parametrize("kind", [FailureKind.BAD_FILE, FailureKind.UNSUPPORTED_ARCHITECTURE])
def test_a_bad_file_stays_bad(kind: FailureKind) -> None:
    assert climbed(kind) == [0]
    assert ladder.kind_of(WorkerFailed("x", kind=kind.value)) is None


def test_what_the_user_set_is_the_users_to_change() -> None:
    """The rungs that would overrule him are left out."""
    assert climbed(CRASH, ubatch=512) == [0, 1, 3, 4]
    assert climbed(CRASH, flash_attention=True) == [0, 1, 2, 3]
    assert climbed(CRASH, kv_type="q8_0") == [0, 1, 2, 3]
    how: dict[str, Any] = {"hardware": with_gpu(24 * GIB), "runtime": GPU, "facts": EIGHT_B}
    assert climbed(CRASH, gpu_layers=99, **how) == [0, 1, 2, 3, 4]


def test_the_users_context_is_kept_and_only_what_is_beyond_it_goes() -> None:
    plan = on(Rung.HALF_CONTEXT, context=4096)

    assert on(0, context=4096).cells > 4096
    assert climbed(OOM, context=4096) == [0, 3]
    assert (plan.context, plan.cells, plan.cache_ram_mib) == (4096, 4096, 0)


def test_what_is_so_already_is_no_rung() -> None:
    assert climbed(CRASH, safe_mode=True) == [0, 2, 3, 4]
    small = dataclasses.replace(STARTER, context_length=2048)
    assert climbed(CRASH, facts=small, parallel=1) == [0, 1, 2, 4]


def test_an_embedder_has_no_steps_to_make_smaller() -> None:
    assert climbed(CRASH, facts=BERT) == [0, 1, 4]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerFailed("x", kind="crash"), CRASH),
        (WorkerFailed("x", kind="out_of_memory"), OOM),
        (WorkerFailed("x", kind="no such kind"), None),
        (WorkerFailed("x"), None),
        (WorkerTimeout("x", kind="crash"), None),
        (MemoryShort("x"), None),
    ],
)
def test_only_a_worker_that_failed_climbs(error: Any, kind: FailureKind | None) -> None:
    assert ladder.kind_of(error) is kind


# --- the plan on it ----------------------------------------------------------------------------


def test_each_rung_changes_what_it_says() -> None:
    plans = {rung: on(rung) for rung in Rung}
    normal = plans[Rung.NORMAL]

    assert normal.extra_buffers
    assert not plans[Rung.PLAIN_BUFFERS].extra_buffers
    assert plans[Rung.SMALL_STEPS].ubatch == 128
    assert plans[Rung.HALF_CONTEXT].context == normal.context // 2
    assert plans[Rung.HALF_CONTEXT].cells == normal.context // 2
    assert plans[Rung.OTHER_ATTENTION].flash_attention is not normal.flash_attention
    assert plans[Rung.OTHER_ATTENTION].context == normal.context
    for rung in tuple(Rung)[1:]:
        assert not plans[rung].extra_buffers


def test_layers_leave_the_gpu_by_half_and_then_all() -> None:
    how: dict[str, Any] = {"facts": EIGHT_B, "hardware": with_gpu(24 * GIB), "runtime": GPU}
    layers = [on(rung, **how).gpu_layers for rung in Rung]

    assert layers == [33, 33, 33, 33, 33, 16, 0]
    assert on(Rung.CPU_ONLY, **how).memory.gpu_bytes == 0
    assert "more layers" in why(on(Rung.HALF_GPU, **how), "gpu_layers")


def test_half_the_layers_of_experts_may_be_too_many() -> None:
    """All layers were there without their experts; half of them with experts do not fit."""
    how: dict[str, Any] = {"facts": EXPERTS, "hardware": with_gpu(6 * GIB), "runtime": GPU}
    normal, half = on(0, **how), on(Rung.HALF_GPU, **how)

    assert normal.cpu_experts
    assert 0 < half.gpu_layers < normal.gpu_layers // 2
    assert half.memory.gpu_bytes <= 6 * GIB


def test_memory_is_planned_again_on_each_rung() -> None:
    """Never more than before, but for the attention that takes more; and it always fits."""
    need = {rung: on(rung).memory.total_bytes for rung in Rung}

    assert need[Rung.PLAIN_BUFFERS] <= need[Rung.NORMAL]
    assert need[Rung.SMALL_STEPS] < need[Rung.PLAIN_BUFFERS]
    assert need[Rung.HALF_CONTEXT] < need[Rung.SMALL_STEPS]
    assert need[Rung.OTHER_ATTENTION] > need[Rung.PLAIN_BUFFERS]


def test_what_is_held_back_says_so_and_nothing_else_does() -> None:
    plan = on(Rung.HALF_CONTEXT)
    held = {reason.setting for reason in plan.reasons if "held back" in reason.why}

    memory = {"context", "cells", "kv_unified", "cache_ram_mib"}
    assert held == {"extra_buffers", "ubatch"} | memory
    assert not [reason for reason in on(0).reasons if "held back" in reason.why]
    assert "held back" not in why(on(Rung.SMALL_STEPS, safe_mode=True), "extra_buffers")
    assert "held back" not in why(on(Rung.SMALL_STEPS, facts=BERT), "ubatch")
    for reason in plan.reasons:
        assert reason.value == getattr(plan, reason.setting)


def test_a_model_that_fits_only_without_copies_still_climbs() -> None:
    """The normal plan is refused; the one on the rung needs less."""
    asked: list[Wishes] = []

    def ask(wanted: Wishes) -> Choice[LaunchPlan]:
        asked.append(wanted)
        if not wanted.safe_mode:
            raise MemoryShort("x")
        return Choice(on(0), (), wait=False)

    assert ladder.choose(ask, Wishes(), Rung.PLAIN_BUFFERS).plan.context
    assert len(asked) == 1


def test_the_normal_rung_asks_once_and_changes_nothing() -> None:
    plan = on(0)
    choice = Choice(plan, (), wait=False)

    assert ladder.choose(lambda _: choice, Wishes(), 0) is choice
    assert ladder.choose(lambda _: choice, Wishes(), -3) is choice


@given(
    rung=st.integers(-2, 9),
    facts=st.sampled_from([STARTER, EIGHT_B, EXPERTS, BERT]),
    free=st.integers(1, 48),
    vram=st.integers(0, 48),
    kind=st.sampled_from(FailureKind),
    context=st.none() | st.sampled_from([512, 4096, 8192]),
    flash=st.none() | st.booleans(),
    layers=st.none() | st.integers(0, 40),
)
def test_every_climb_ends_and_every_plan_fits(
    rung: int,
    facts: ModelFacts,
    free: int,
    vram: int,
    kind: FailureKind,
    context: int | None,
    flash: bool | None,  # noqa: FBT001  # drawn by name
    layers: int | None,
) -> None:
    """Rungs only go up; what the user set is never touched; nothing takes more than is free."""
    gpu = GpuFacts("Test GPU", "nvidia", vram_free_bytes=vram * GIB)
    here = machine(total=64 * GIB, available=free * GIB, gpus=(gpu,))
    wishes: dict[str, Any] = {"context": context, "flash_attention": flash, "gpu_layers": layers}
    try:
        plan = on(rung, facts=facts, hardware=here, runtime=GPU, **wishes)
    except MemoryShort:
        return
    after = next_rung(rung, kind, plan, Wishes(**wishes))

    assert after is None or after > max(rung, 0)
    assert plan.memory.total_bytes <= free * GIB
    assert plan.memory.gpu_bytes <= vram * GIB or layers is not None
    assert context is None or plan.context == min(context, facts.context_length)
    assert flash is None or plan.flash_attention is flash
    assert layers is None or plan.gpu_layers == layers
