"""What a user could gain: only what numbers stand behind, and at most four things."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stoker.errors import MemoryShort
from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning.gains import Offered, Prospect, gains
from stoker.tuning.launch import LaunchPlan, Wishes
from stoker.tuning.plan import make_plan
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import BERT, EIGHT_B, STARTER

NATIVE = Offered("native", "this CPU has AVX-512")
WISHES = Wishes(reserve_bytes=0)


def prospect(facts: ModelFacts, hardware: HardwareFacts, **changes: object) -> Prospect:
    def replan(extra: int) -> LaunchPlan | None:
        free = hardware.memory.available_bytes + extra
        memory = dataclasses.replace(hardware.memory, available_bytes=free)
        try:
            more = dataclasses.replace(hardware, memory=memory)
            return make_plan("m", Path("m"), facts, more, WISHES)
        except MemoryShort:
            return None

    plan = replan(0)
    assert plan is not None
    made = Prospect(plan, facts, hardware, replan, tuned=True)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def changes_of(found: Prospect) -> list[str]:
    return [gain.change for gain in gains(found)]


def test_a_small_model_on_a_measured_machine_has_nothing_to_gain() -> None:
    assert gains(prospect(STARTER, machine())) == ()


def test_more_memory_is_named_with_the_context_that_it_brings() -> None:
    hardware = machine(total=256 * GIB, available=8 * GIB)
    found = prospect(EIGHT_B, hardware)

    (gain,) = gains(found)

    assert gain.change == "memory"
    extra = float(gain.text.split(" GB")[0].split()[-1])
    plan = found.replan(int(extra * 1e9))
    less = found.replan(int((extra - 0.25) * 1e9))
    assert plan is not None
    assert plan.context >= 2 * found.plan.context
    assert less is None or less.context < 2 * found.plan.context
    assert f"{plan.context:,}" in gain.text
    assert f"{found.plan.context:,}" in gain.text


def test_a_context_that_the_user_set_is_not_argued_with() -> None:
    hardware = machine(total=256 * GIB, available=8 * GIB)

    assert gains(prospect(EIGHT_B, hardware, wished_context=4096)) == ()


@pytest.mark.parametrize(("itself", "words"), [(True, "by itself"), (False, "only when you ask")])
def test_measuring_is_offered_until_it_is_done(itself: bool, words: str) -> None:  # noqa: FBT001
    (gain,) = gains(prospect(STARTER, machine(), tuned=False, tunes_itself=itself))

    assert gain.change == "tune"
    assert gain.command == "stoker tune m"
    assert words in gain.text


def test_a_quota_says_how_many_cores_lie_idle() -> None:
    (gain,) = gains(prospect(STARTER, machine(cores=8, quota=2.5)))

    assert gain.change == "quota"
    assert "4.0 times" in gain.text
    assert "2.5" in gain.text


def test_a_quota_that_costs_nothing_is_not_named() -> None:
    assert gains(prospect(STARTER, machine(cores=2, quota=2.0))) == ()


def test_a_large_file_is_slower_than_one_of_four_bits() -> None:
    big = dataclasses.replace(EIGHT_B, quantization="Q8_0", file_bytes=8_540_000_000)
    hardware = machine(total=256 * GIB)

    (gain,) = gains(prospect(big, hardware, repository="owner/repo"))

    assert gain.change == "quantization"
    assert "1.7 times as fast" in gain.text
    assert gain.command == "stoker pull owner/repo:Q4_K_M"


def test_a_tiny_file_could_be_a_better_one_when_there_is_room() -> None:
    tiny = dataclasses.replace(EIGHT_B, quantization="Q2_K", file_bytes=3_180_000_000)
    hardware = machine(total=256 * GIB)

    roomy = gains(prospect(tiny, hardware, spare_bytes=8 * GIB))

    assert [gain.change for gain in roomy] == ["quantization"]
    assert "better answers" in roomy[0].text
    assert gains(prospect(tiny, hardware, spare_bytes=GIB)) == ()


def test_runtimes_are_offered_with_their_command() -> None:
    offers = (Offered("vulkan", "Radeon may be faster"), NATIVE)

    one, two = gains(prospect(STARTER, machine(), offers=offers))

    assert (one.change, one.command) == ("gpu", "stoker runtime install vulkan")
    assert (two.change, two.command) == ("runtime", "stoker runtime install native")
    assert "AVX-512" in two.text


def test_an_embedder_is_neither_tuned_nor_made_smaller() -> None:
    wide = dataclasses.replace(BERT, file_bytes=4 * BERT.parameters)

    assert gains(prospect(wide, machine(), tuned=False)) == ()


def test_at_most_four_are_named_the_greatest_first() -> None:
    big = dataclasses.replace(EIGHT_B, quantization="Q8_0", file_bytes=8_540_000_000)
    hardware = machine(total=256 * GIB, available=12 * GIB, quota=2)
    offers = (Offered("cuda", "a GPU computes many times faster"), NATIVE)

    found = prospect(big, hardware, tuned=False, offers=offers)

    assert changes_of(found) == ["gpu", "quota", "runtime", "memory"]


def test_a_model_of_four_bits_is_not_told_to_become_one() -> None:
    """A small model with a large vocabulary has more than six bits per weight in any file."""
    small = dataclasses.replace(
        EIGHT_B,
        quantization="Q4_K_M",
        parameters=268_000_000,
        file_bytes=253_000_000,
        layer_bytes=(60_000_000,),
    )

    assert "quantization" not in changes_of(prospect(small, machine()))


def test_only_the_layers_of_a_file_become_smaller() -> None:
    """The dictionary stays at six bits and more."""
    whole = dataclasses.replace(EIGHT_B, quantization="Q8_0", file_bytes=8_540_000_000)
    halved = dataclasses.replace(whole, layer_bytes=(4_270_000_000,))

    (gain,) = gains(prospect(halved, machine(total=256 * GIB)))

    assert "1.5 times as fast" in gain.text


def test_a_file_of_one_parameter_is_no_division_by_zero() -> None:
    odd = dataclasses.replace(EIGHT_B, quantization=None, parameters=1)

    assert len(gains(prospect(odd, machine(total=256 * GIB)))) <= 4
