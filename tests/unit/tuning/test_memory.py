"""Memory by formula, against what llama.cpp's server allocated for the real files."""

from __future__ import annotations

import dataclasses

import pytest

from stoker.store.facts import ModelFacts
from stoker.tuning import memory
from stoker.tuning.memory import MIB, Sizing
from tests.fakes.models import BERT, EIGHT_B, GEMMA, HYBRID, MLA, STARTER


def sizing(**changes: object) -> Sizing:
    base = Sizing(cells=8192, parallel=4, ubatch=512, checkpoints=0, extra_buffers=True, x86=True)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "changes", "mib"),
    [
        (STARTER, {}, 180.0),
        (STARTER, {"cells": 2048}, 45.0),
        (STARTER, {"cells": 32_768, "parallel": 8}, 720.0),
        (GEMMA, {}, 24.0 + 37.5),
        (GEMMA, {"parallel": 1}, 24.0 + 15.0),
        (GEMMA, {"cells": 2048, "ubatch": 128}, 6.0 + 30.0),
        (BERT, {"cells": 512}, 0.0),
    ],
)
def test_kv_is_what_the_engine_allocates(
    facts: ModelFacts, changes: dict[str, object], mib: float
) -> None:
    """The figures are the engine's own, from its log."""
    assert memory.kv_bytes(facts, sizing(**changes)) == mib * MIB


def test_kv_of_compressed_attention_counts_one_vector_per_layer() -> None:
    per_token = memory.kv_bytes(MLA, sizing(cells=256)) / 256

    assert per_token == 27 * 576 * 2


def test_a_compressed_model_in_an_old_file_is_counted_in_full() -> None:
    """Old conversions keep full keys and values for every head."""
    old = dataclasses.replace(MLA, kv_heads=(16,) * 27, key_length=192, value_length=128)

    assert memory.kv_bytes(old, sizing(cells=256)) == 27 * 16 * (192 + 128) * 2 * 256


def test_only_attention_layers_of_a_hybrid_grow_with_the_context() -> None:
    short, long = (memory.kv_bytes(HYBRID, sizing(cells=cells)) for cells in (1024, 2048))

    assert long == 2 * short == 8 * 4 * 512 * 2 * 2048


def test_recurrent_state_is_paid_per_slot() -> None:
    one = memory.memory_need(HYBRID, sizing(parallel=1))
    four = memory.memory_need(HYBRID, sizing(parallel=4))

    state = memory.state_bytes(HYBRID)
    assert 40 * MIB < state < 80 * MIB  # 53 MB are published for a real model of this shape
    assert four.kv_bytes - one.kv_bytes == 3 * state


def test_plain_attention_has_no_state() -> None:
    assert memory.state_bytes(STARTER) == 0
    assert memory.checkpoint_bytes(STARTER) == 0


@pytest.mark.parametrize(
    ("facts", "changes", "mib"),
    [
        (STARTER, {}, 22.64),
        (STARTER, {"ubatch": 128}, 5.66),
        (STARTER, {"ubatch": 2048}, 90.57),
        (STARTER, {"cells": 32_768}, 46.64),
        (GEMMA, {}, 28.78),
        (GEMMA, {"cells": 32_768}, 52.78),
    ],
)
def test_compute_buffers_are_predicted_and_never_too_small(
    facts: ModelFacts, changes: dict[str, object], mib: float
) -> None:
    """Against the engine's own figures; the outputs of all slots come on top."""
    settings = sizing(**changes)

    predicted = memory.compute_bytes(facts, settings) / MIB
    outputs = settings.parallel * facts.vocab_size * 16 / MIB
    assert mib <= predicted - outputs <= 1.25 * mib


def test_experts_need_more_scratch_space() -> None:
    dense = dataclasses.replace(MLA, expert_count=None)

    assert memory.compute_bytes(MLA, sizing()) > memory.compute_bytes(dense, sizing())


def test_a_projector_is_counted() -> None:
    plain = memory.compute_bytes(STARTER, sizing())

    assert memory.compute_bytes(STARTER, sizing(mmproj_bytes=100 * MIB)) >= plain + 110 * MIB


def test_a_checkpoint_of_windows_is_what_the_engine_saves() -> None:
    """15 windowed layers of 512 tokens; 7.5 MiB each was measured."""
    assert memory.checkpoint_bytes(GEMMA) == 7.5 * MIB


def test_copies_depend_on_tensor_types_and_cpu() -> None:
    sizes = (("Q4_K", 1000), ("Q6_K", 300), ("F32", 7))
    facts = dataclasses.replace(EIGHT_B, matrix_bytes=sizes)

    assert memory.repack_bytes(facts, x86=True) == 1000
    assert memory.repack_bytes(facts, x86=False) == 1300


def test_no_copies_in_safe_mode() -> None:
    facts = dataclasses.replace(EIGHT_B, matrix_bytes=(("Q4_K", 1000),))

    assert memory.memory_need(facts, sizing(extra_buffers=False)).repack_bytes == 0
    assert memory.memory_need(facts, sizing()).repack_bytes == 1000
