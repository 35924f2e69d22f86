"""Which layers go on a GPU: what fits, the dense parts first."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning import placement
from stoker.tuning.placement import Load
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import EIGHT_B, EXPERTS, STARTER


def load(facts: ModelFacts) -> Load:
    return Load(facts, (1_000_000,) * facts.block_count, 50_000_000)


def hardware(*free: int | None, unified: bool | None = None) -> HardwareFacts:
    gpus = tuple(GpuFacts("GPU", "amd", one, one, unified=unified) for one in free)
    return dataclasses.replace(machine(), gpus=gpus)


@given(st.sampled_from((STARTER, EIGHT_B, EXPERTS)), st.integers(0, 40 * GIB))
def test_what_is_placed_fits_and_one_layer_more_would_not(facts: ModelFacts, free: int) -> None:
    found = placement.place(load(facts), free)

    assert found.gpu_bytes <= free
    if found.cpu_experts and found.blocks == facts.block_count:
        more = placement.placed(load(facts), found.layers, found.cpu_experts - 1)
        assert more.gpu_bytes > free
    elif found.layers <= facts.block_count and found is not placement.NOWHERE:
        more = placement.placed(load(facts), found.layers + 1, found.cpu_experts)
        assert more.gpu_bytes > free


def test_experts_leave_before_layers_do() -> None:
    """All experts are 16 GB, everything else 2 GB."""
    found = placement.place(load(EXPERTS), 5 * GIB)

    assert found.layers == 49
    assert 0 < found.cpu_experts < 48


def test_the_output_alone_is_not_worth_a_gpu() -> None:
    assert placement.place(load(EIGHT_B), 120_000_000) is placement.NOWHERE


def test_a_file_without_layer_sizes_is_shared_out_evenly() -> None:
    found = placement.placed(load(EIGHT_B), 17)

    assert found.blocks == 16
    assert found.weights_bytes == 16 * (EIGHT_B.file_bytes // 32)


@pytest.mark.parametrize(
    ("runtime", "is_gpu"),
    [
        ("", False),
        ("xllamacpp-2026.10.11549", False),
        ("llama-cpp-python-0.3.36-avx512", False),
        ("xllamacpp-2026.10.11549-vulkan", True),
        ("llama-cpp-python-0.3.36-cuda12", True),
    ],
)
def test_only_runtimes_for_gpus_use_them(runtime: str, is_gpu: bool) -> None:  # noqa: FBT001
    assert placement.room(hardware(8 * GIB), runtime).usable == is_gpu


def test_a_margin_stays_free_on_each_gpu() -> None:
    assert placement.room(hardware(8 * GIB), "cuda").free_bytes == 7 * GIB
    assert placement.room(hardware(40 * GIB), "cuda").free_bytes == 36 * GIB
    assert placement.room(hardware(8 * GIB, GIB // 2), "cuda").free_bytes == 7 * GIB


def test_a_gpu_whose_memory_is_not_known_gets_nothing() -> None:
    found = placement.room(hardware(None), "cuda")

    assert found.usable
    assert found.free_bytes is None


@pytest.mark.parametrize(
    ("found", "runtime", "blind"),
    [
        (hardware(8 * GIB), "cuda", False),
        (hardware(8 * GIB, None), "cuda", False),
        (hardware(None), "cuda", True),
        (hardware(None), "built-in", False),
        (hardware(None, unified=True), "vulkan", False),
        (hardware(), "vulkan", True),
        (hardware(), "metal", False),
    ],
)
def test_a_runtime_for_gpus_is_blind_where_no_free_memory_is_known(
    found: HardwareFacts,
    runtime: str,
    blind: bool,  # noqa: FBT001
) -> None:
    assert placement.is_blind(found, runtime) == blind


def test_a_gpu_that_shares_memory_takes_all_and_costs_nothing_more() -> None:
    found = placement.room(hardware(4 * GIB, unified=True), "vulkan")

    assert found.shared
    assert placement.placed(load(EIGHT_B), 33, shared=True).gpu_bytes == 0


def test_a_runtime_for_gpus_without_one_is_a_cpu_runtime() -> None:
    assert not placement.room(hardware(), "cuda").usable


def test_on_windows_there_may_be_one_that_nobody_tells_of() -> None:
    """Then the user's own number of layers counts, and nothing is placed there by guess."""
    found = placement.room(dataclasses.replace(hardware(), system="windows"), "vulkan")

    assert found == placement.Room(usable=True)
