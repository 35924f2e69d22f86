"""Memory by formula, against what llama.cpp's server allocated for the real files."""

from __future__ import annotations

import dataclasses

import pytest

from stoker.store.facts import ModelFacts
from stoker.tuning import memory
from stoker.tuning.launch import KvType
from stoker.tuning.memory import MIB, Sizing
from stoker.tuning.placement import Placement
from tests.fakes.models import BERT, EIGHT_B, GEMMA, HYBRID, MLA, STARTER

# The real files: what of them is copied into another layout on x86.
STARTER_FILE = dataclasses.replace(STARTER, matrix_bytes=(("Q4_1", 66_000_000),))
GEMMA_FILE = dataclasses.replace(GEMMA, matrix_bytes=(("Q4_K", 13_280_000),))


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
        (STARTER, {"cells": 32_768, "unified": False}, 720.0),
        (GEMMA, {"cells": 131_072, "unified": False}, 384.0 + 60.0),
        (STARTER, {"cells": 3000, "parallel": 3, "unified": False}, 67.5),
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
        (STARTER, {"cells": 32_768, "unified": False}, 21.51),
        (GEMMA, {"cells": 131_072, "unified": False}, 50.77),
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
    assert memory.checkpoint_bytes(GEMMA, context=8192) == 7.5 * MIB
    assert memory.checkpoint_bytes(GEMMA, context=256) == 3.75 * MIB


def test_copies_depend_on_tensor_types_and_cpu() -> None:
    sizes = (("Q4_K", 1000), ("Q6_K", 300), ("F32", 7))
    facts = dataclasses.replace(EIGHT_B, matrix_bytes=sizes)

    assert memory.repack_bytes(facts, x86=True) == 1000
    assert memory.repack_bytes(facts, x86=False) == 1300


def test_no_copies_in_safe_mode() -> None:
    facts = dataclasses.replace(EIGHT_B, matrix_bytes=(("Q4_K", 1000),))

    assert memory.memory_need(facts, sizing(extra_buffers=False)).repack_bytes == 0
    assert memory.memory_need(facts, sizing()).repack_bytes == 1000


# --- ways to compute, and precision ------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "changes", "mib"),
    [
        (STARTER, {"cells": 2048}, 46.39),
        (STARTER, {"cells": 2048, "ubatch": 128}, 11.6),
        (GEMMA, {"cells": 2048, "parallel": 2}, 32.78),
    ],
)
def test_scores_without_flash_attention_are_counted(
    facts: ModelFacts, changes: dict[str, object], mib: float
) -> None:
    """The engine's own figures. It copies the scores once more while it computes."""
    settings = sizing(flash_attention=False, **changes)

    assert mib <= memory.scratch_bytes(facts, settings) / MIB <= 1.25 * mib
    assert memory.work_bytes(facts, settings) > 0
    assert memory.work_bytes(facts, sizing(**changes)) == 0


@pytest.mark.parametrize(("kind", "mib"), [("f16", 180.0), ("q8_0", 95.625), ("q4_0", 50.625)])
def test_a_quantised_cache_is_smaller_by_its_blocks(kind: str, mib: float) -> None:
    assert memory.kv_bytes(STARTER, sizing(kv_type=kind)) == mib * MIB


def test_only_whole_blocks_can_be_quantised() -> None:
    assert memory.quantizes_cache(STARTER)
    assert not memory.quantizes_cache(dataclasses.replace(STARTER, value_length=40))
    assert not memory.quantizes_cache(BERT)


def test_the_built_in_runtime_needs_its_python() -> None:
    inside, outside = (
        memory.memory_need(STARTER, sizing(in_python=value)).runtime_bytes
        for value in (True, False)
    )

    assert 10 * MIB < inside - outside < 20 * MIB


def test_an_old_prompt_more_than_the_limit_is_counted() -> None:
    """The engine saves a conversation before it drops another."""
    settings = sizing(prompt_cache_bytes=512 * MIB, context=8192, cells=32_768)

    assert memory.memory_need(STARTER, settings).cache_bytes == (512 + 180) * MIB


def test_what_is_on_the_gpu_is_not_in_memory() -> None:
    away = Placement(layers=17, blocks=16, weights_bytes=2_000_000_000, gpu_bytes=3_000_000_000)
    here = memory.memory_need(EIGHT_B, sizing())
    half = memory.memory_need(EIGHT_B, sizing(placement=away))

    assert half.kv_bytes == here.kv_bytes // 2
    assert here.weights_bytes - half.weights_bytes == 2_000_000_000
    assert half.gpu_bytes == 3_000_000_000
    assert half.total_bytes == sum(
        (half.weights_bytes, half.kv_bytes, half.compute_bytes, half.runtime_bytes)
    )


# --- whole workers -----------------------------------------------------------------------------

# Peak resident memory of real workers after their whole context had been used, in MiB; context
# checkpoints included. Cells, slots, ubatch, flash attention, KV type, in Python, peak.
PEAKS = [
    (STARTER_FILE, 4096, 4, 512, True, "f16", False, 243.7),
    (STARTER_FILE, 4096, 4, 512, True, "f16", True, 258.3),
    (STARTER_FILE, 4096, 1, 512, True, "f16", False, 241.1),
    (STARTER_FILE, 8192, 4, 128, True, "f16", False, 323.4),
    (STARTER_FILE, 2048, 2, 512, True, "f16", True, 209.5),
    (STARTER_FILE, 2048, 4, 128, True, "f16", True, 199.3),
    (STARTER_FILE, 2048, 2, 512, False, "f16", True, 256.6),
    (STARTER_FILE, 2048, 2, 512, True, "q8_0", True, 188.8),
    (GEMMA_FILE, 4096, 4, 512, True, "f16", False, 469.6),
    (GEMMA_FILE, 4096, 4, 512, True, "f16", True, 484.9),
    (GEMMA_FILE, 4096, 1, 512, True, "f16", False, 382.9),
    (GEMMA_FILE, 2048, 2, 512, True, "f16", True, 421.2),
    (GEMMA_FILE, 2048, 4, 128, True, "f16", True, 461.7),
    (GEMMA_FILE, 2048, 2, 512, False, "f16", True, 437.1),
    (GEMMA_FILE, 2048, 2, 512, True, "q8_0", True, 395.4),
]


@pytest.mark.parametrize(
    ("facts", "cells", "slots", "ubatch", "flash", "kind", "in_python", "peak"), PEAKS
)
def test_whole_workers_are_predicted_from_above_and_closely(
    facts: ModelFacts,
    cells: int,
    slots: int,
    ubatch: int,
    flash: bool,  # noqa: FBT001
    kind: KvType,
    in_python: bool,  # noqa: FBT001
    peak: float,
) -> None:
    settings = sizing(
        cells=cells,
        parallel=slots,
        ubatch=ubatch,
        flash_attention=flash,
        kv_type=kind,
        in_python=in_python,
        checkpoints=2 if facts is GEMMA_FILE else 0,
    )

    ratio = memory.memory_need(facts, settings).total_bytes / MIB / peak
    assert 1.0 <= ratio <= 1.08
