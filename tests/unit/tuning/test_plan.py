"""The launch plan: what it promises for every machine, and what it chooses on some."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import MemoryShort
from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning.plan import LaunchPlan, Wishes, make_plan
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import BERT, EIGHT_B, GEMMA, HYBRID, MLA, STARTER

MODELS = (STARTER, GEMMA, EIGHT_B, HYBRID, MLA, BERT)


def plan(
    facts: ModelFacts, hardware: HardwareFacts, wishes: Wishes | None = None, **more: int
) -> LaunchPlan:
    return make_plan("m", Path("m.gguf"), facts, hardware, wishes or Wishes(), **more)  # type: ignore[arg-type]


def plan_or_none(facts: ModelFacts, hardware: HardwareFacts, wishes: Wishes) -> LaunchPlan | None:
    try:
        return plan(facts, hardware, wishes)
    except MemoryShort:
        return None


def reason(made: LaunchPlan, setting: str) -> str:
    return next(item.why for item in made.reasons if item.setting == setting)


def with_free(free: int) -> HardwareFacts:
    """A 256 GiB machine of which so much is left."""
    return machine(total=256 * GIB, available=free)


NO_RESERVE = Wishes(reserve_bytes=0)


# --- for every machine -----------------------------------------------------------------------


@given(st.sampled_from(MODELS), st.integers(0, 64 * GIB), st.integers(0, 8 * GIB))
def test_a_plan_never_needs_more_than_is_free(facts: ModelFacts, free: int, reserve: int) -> None:
    made = plan_or_none(facts, with_free(free), Wishes(reserve_bytes=reserve))

    assert made is None or made.memory.total_bytes <= free - reserve


@given(st.sampled_from(MODELS), st.integers(0, 48 * GIB), st.integers(0, 48 * GIB))
def test_more_memory_never_gives_a_shorter_context(facts: ModelFacts, one: int, two: int) -> None:
    made = [plan_or_none(facts, with_free(free), NO_RESERVE) for free in sorted((one, two))]

    contexts = [one.context if one else 0 for one in made]
    assert contexts == sorted(contexts)


@given(st.sampled_from(MODELS), st.integers(8 * GIB, 200 * GIB), st.integers(1, 16))
def test_settings_agree_with_each_other(facts: ModelFacts, free: int, slots: int) -> None:
    made = plan(facts, with_free(free), Wishes(parallel=slots, reserve_bytes=0))

    assert made.parallel == slots
    assert made.context <= facts.context_length
    assert made.context <= made.cells <= made.context * slots
    assert 1 <= made.ubatch <= made.batch
    assert made.n_outputs_max == (made.ubatch if made.embedding else slots)
    assert made.cache_ram_mib == 0
    assert made.kv_unified


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.05, 64))
def test_threads_never_exceed_what_can_run(cores: int, affinity: int, quota: float) -> None:
    made = plan(STARTER, machine(cores=cores, affinity=affinity, quota=quota))

    assert made.threads == made.threads_batch
    assert 1 <= made.threads <= max(1, min(cores, affinity, int(quota)))


@pytest.mark.parametrize("facts", MODELS)
def test_every_setting_has_a_reason_with_its_value(facts: ModelFacts) -> None:
    made = plan(facts, machine())

    for item in made.reasons:
        assert item.value == getattr(made, item.setting), item.setting
        assert item.why
    assert {"context", "threads", "threads_batch", "parallel", "ubatch", "checkpoints"} <= {
        item.setting for item in made.reasons
    }


# --- on some machines ------------------------------------------------------------------------


def test_a_small_model_gets_its_whole_context_for_every_slot() -> None:
    made = plan(STARTER, machine())

    assert (made.context, made.parallel, made.cells) == (8192, 4, 32_768)
    assert "trained for" in reason(made, "context")


def test_a_long_context_takes_half_of_what_is_free_beyond_a_roomy_one() -> None:
    """A 131072-token context would fit 24 GiB entirely, and leave nothing."""
    made = plan(EIGHT_B, with_free(24 * GIB), NO_RESERVE)
    roomy = plan(EIGHT_B, with_free(24 * GIB), Wishes(context=16_384, reserve_bytes=0))

    assert 16_384 < made.context < 131_072
    left = 24 * GIB - made.memory.total_bytes
    assert left >= 0.4 * (24 * GIB - roomy.memory.total_bytes)
    assert "half" in reason(made, "context")


def test_speed_goes_before_context_when_memory_is_short() -> None:
    made = [
        plan(EIGHT_B, with_free(free), NO_RESERVE) for free in range(5 * GIB, 6 * GIB, GIB // 64)
    ]

    hurried = [one for one in made if one.context < 4096]
    assert all(one.ubatch == 128 for one in hurried)
    assert any(one.ubatch < 512 and one.context == 4096 for one in made)


def test_the_context_shrinks_last_but_not_below_a_useful_one() -> None:
    sizes = range(int(4.5 * GIB), int(6.5 * GIB), GIB // 64)

    made = [plan_or_none(EIGHT_B, with_free(free), NO_RESERVE) for free in sizes]

    contexts = [one.context if one else 0 for one in made]

    assert contexts[0] == 0
    assert min(value for value in contexts if value) >= 2048
    assert any(2048 <= value < 4096 for value in contexts)
    assert all(a <= b for a, b in itertools.pairwise(contexts))


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, machine(total=4 * GIB))

    assert caught.value.facts["needed_bytes"] > caught.value.facts["free_bytes"]  # type: ignore[operator]
    assert caught.value.message.count("GiB") == 3
    assert "smaller" in caught.value.hint


def test_a_wish_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, with_free(8 * GIB), Wishes(context=131_072, reserve_bytes=0))

    possible = caught.value.facts["possible_context"]
    assert isinstance(possible, int)
    assert str(possible) in caught.value.hint
    made = plan(EIGHT_B, with_free(8 * GIB), Wishes(context=possible, reserve_bytes=0))
    assert made.context == possible


def test_wishes_win() -> None:
    made = plan(STARTER, machine(), Wishes(context=1024, threads=3, parallel=2))

    assert (made.context, made.threads, made.threads_batch, made.parallel) == (1024, 3, 3, 2)
    sources = {item.setting: item.source for item in made.reasons}
    assert sources["context"] == sources["threads"] == sources["parallel"] == "user"


def test_a_wish_beyond_the_training_is_held_to_it() -> None:
    made = plan(STARTER, machine(), Wishes(context=100_000))

    assert made.context == 8192
    assert "100000" in reason(made, "context")


def test_too_many_threads_are_named() -> None:
    assert "more than the 8" in reason(plan(STARTER, machine(), Wishes(threads=9)), "threads")


def test_safe_mode_turns_the_extra_buffers_off() -> None:
    assert plan(STARTER, machine()).extra_buffers
    assert not plan(STARTER, machine(), Wishes(safe_mode=True)).extra_buffers


def test_models_that_cannot_go_back_get_checkpoints() -> None:
    assert plan(STARTER, machine()).checkpoints == 0
    assert plan(GEMMA, machine()).checkpoints > 0
    assert plan(HYBRID, machine(total=32 * GIB)).memory.cache_bytes > 0


def test_an_embedder_reads_a_text_in_one_step() -> None:
    made = plan(BERT, machine())

    assert made.embedding
    assert made.pooling == 1
    assert made.context == made.batch == made.ubatch == made.n_outputs_max == 512


def test_an_embedder_with_a_huge_context_is_held_to_a_bound() -> None:
    """Its scratch space grows with the square of the step."""
    causal = dataclasses.replace(EIGHT_B, pooling=3)

    made = plan(causal, with_free(64 * GIB), NO_RESERVE)

    assert made.context == made.ubatch == 8192
    assert "embedders" in reason(made, "context")


def test_the_reserve_is_the_larger_of_1_gib_and_a_tenth() -> None:
    for total, reserve in ((8 * GIB, GIB), (64 * GIB, 64 * GIB // 10), (2 * GIB, GIB // 2)):
        with pytest.raises(MemoryShort) as caught:
            plan(EIGHT_B, machine(total=total, available=0))

        assert caught.value.facts["reserve_bytes"] == reserve


def test_the_reserve_of_a_container_follows_its_limit() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, machine(total=64 * GIB, limit=4 * GIB, headroom=4 * GIB))

    assert caught.value.facts["reserve_bytes"] == GIB
    assert caught.value.facts["free_bytes"] == 3 * GIB


def test_a_file_that_tells_no_training_length_gets_a_modest_context() -> None:
    assert plan(dataclasses.replace(STARTER, context_length=0), machine()).context == 4096


def test_a_projector_is_passed_on_and_counted() -> None:
    made = make_plan(
        "m",
        Path("m.gguf"),
        STARTER,
        machine(),
        Wishes(),
        mmproj_path=Path("p.gguf"),
        mmproj_bytes=GIB,
    )

    assert made.mmproj_path == Path("p.gguf")
    assert made.memory.compute_bytes > GIB
