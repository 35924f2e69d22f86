"""Failed loads in words that a user can act on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.engine.explain import explain
from stoker.errors import WorkerFailed
from stoker.tuning.launch import MemoryNeed, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import FailureKind
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import BERT, EIGHT_B

PLAN = make_plan("owner/m:Q8", Path("m.gguf"), EIGHT_B, machine(), Wishes(context=16384))
ALLOCATION = "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size "


def explained(kind: str, *tail: str, plan: Any = PLAN, **facts: Any) -> WorkerFailed:
    error = WorkerFailed("It failed.", hint="Do it.", kind=kind, tail=list(tail), **facts)
    return explain(error, plan, EIGHT_B, available_bytes=12_000_000_000)


def test_memory_has_numbers_and_ways_out() -> None:
    error = explained("out_of_memory", f"{ALLOCATION}1200000000", returncode=1)

    assert error.message.startswith(
        "The engine ran out of memory: it asked for 1.20 GB more than it got. Planned were "
    )
    assert "with a context of 16,384 tokens; 12.00 GB were free." in error.message
    assert error.hint.startswith(
        "Set a context of at most 8,192 tokens, choose a smaller quantization of it such as IQ3_XS"
        " (about 3.31 GB)"
    )
    assert error.facts["missing_bytes"] == 1_200_000_000
    assert error.facts["needed_bytes"] == PLAN.memory.total_bytes
    assert error.facts["available_bytes"] == 12_000_000_000
    assert error.facts["possible_context"] == 8192
    assert error.facts["smaller_quantization"] == "IQ3_XS"
    assert (error.facts["kind"], error.facts["returncode"]) == ("out_of_memory", 1)


def test_who_saw_the_whole_log_knows_better() -> None:
    error = explained("out_of_memory", f"{ALLOCATION}5", missing_bytes=700_000_000)

    assert "0.70 GB more" in error.message


def test_without_a_number_there_is_none() -> None:
    error = explained("killed")

    assert error.message.startswith("It failed. Planned were ")
    assert error.facts["missing_bytes"] is None


def test_a_gpu_has_its_own_number_and_its_own_way_out() -> None:
    memory = replace(PLAN.memory, gpu_bytes=6_000_000_000)
    error = explained("out_of_memory", plan=replace(PLAN, gpu_layers=33, memory=memory))

    assert "and 6.00 GB on the GPU" in error.message
    assert "set fewer gpu_layers" in error.hint


def test_a_small_model_is_only_told_what_helps() -> None:
    need = MemoryNeed(1, 1, 1, 1, 1, 1)
    plan = replace(PLAN, context=512, embedding=True, memory=need)
    error = WorkerFailed("It failed.", kind="out_of_memory", tail=[])

    found = explain(error, plan, replace(BERT, parameters=0), available_bytes=GIB)

    assert found.hint == "Close other programs or choose a smaller model."


def test_a_bad_file_is_named() -> None:
    error = explained("bad_file")

    assert error.message == "It failed."
    assert "`stoker verify owner/m:Q8`" in error.hint


def test_an_unknown_kind_of_model_is_named() -> None:
    line = "llama_model_load: error loading model: unknown model architecture: 'qwen9'"
    error = explained("unsupported_architecture", line)

    assert error.message == "The engine does not know this kind of model (qwen9)."
    assert error.facts["architecture"] == "qwen9"
    assert error.hint == "Do it."


@pytest.mark.parametrize("kind", ["crash", "assert", "unknown", "backend", "no such kind"])
def test_others_stay_as_they_are(kind: str) -> None:
    error = WorkerFailed("It failed.", kind=kind, tail=["x"])

    assert explain(error, PLAN, EIGHT_B, available_bytes=0) is error


@given(
    st.sampled_from(FailureKind),
    st.none() | st.text() | st.lists(st.text() | st.integers()),
    st.integers(0, 1 << 60),
)
def test_no_words_make_it_fail(kind: FailureKind, tail: object, free: int) -> None:
    error = WorkerFailed("It failed.", kind=kind.value, tail=tail)

    found = explain(error, PLAN, EIGHT_B, available_bytes=free)

    assert found.facts["kind"] == kind.value
    assert found.message.endswith(".")
