"""How fast a model will be, from bytes and bandwidth."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.tuning.reading import reading
from stoker.tuning.speed import (
    Calibration,
    Measured,
    Reading,
    calibrate,
    predict,
    predict_prefill,
)
from tests.fakes.models import EIGHT_B, GEMMA, HYBRID, STARTER

GB = 1_000_000_000
SEVEN_B = Reading(weights_bytes=4.4 * GB, parameters=7e9)


def test_memory_sets_the_pace() -> None:
    """A 4.4 GB model on memory of 40 GB/s: 40 x 0.6 / 4.4, less a millisecond a token."""
    found = predict(SEVEN_B, 40 * GB, 8)

    assert found.tokens_per_s == pytest.approx(1 / (4.4 / (0.6 * 40) + 0.001))
    assert found.label == "estimated"


@pytest.mark.parametrize(
    ("bandwidth", "cpus", "measured"),
    [(21.7 * GB, 2, 43.6), (12.9 * GB, 1, 24.9), (11.8 * GB, 2, 31.0)],
)
def test_a_real_model_is_predicted_within_a_quarter(
    bandwidth: float, cpus: int, measured: float
) -> None:
    """Gemma 3 270M by llama-bench, with the bandwidth of the same hour: twice quiet, once busy."""
    facts = dataclasses.replace(
        GEMMA,
        layer_bytes=(3_795_968,) * 18,
        matrix_bytes=(("F32", 221_184), ("Q4_K", 68_106_240)),
    )

    found = predict(reading(facts), bandwidth, cpus).tokens_per_s

    assert found == pytest.approx(measured, rel=0.25)


def test_without_a_measured_bandwidth_cores_count_up_to_what_memory_gives() -> None:
    speeds = [predict(SEVEN_B, None, cpus).tokens_per_s for cpus in (1, 2, 4, 8, 16)]

    assert speeds == sorted(speeds)
    assert speeds[1] > speeds[0] * 1.8
    assert speeds[3] == speeds[4]


def test_experts_count_by_what_works_and_read_worse() -> None:
    dense = Reading(2 * GB)
    scattered = dataclasses.replace(dense, experts=True)

    assert predict(scattered, 40 * GB, 8).tokens_per_s < predict(dense, 40 * GB, 8).tokens_per_s


@given(
    weights=st.floats(1e6, 1e12),
    kv=st.floats(0, 1e11),
    bandwidth=st.floats(1e8, 1e12),
)
def test_more_to_read_is_never_faster(weights: float, kv: float, bandwidth: float) -> None:
    first = predict(Reading(weights), bandwidth, 4).tokens_per_s
    deeper = predict(Reading(weights, kv), bandwidth, 4).tokens_per_s
    faster = predict(Reading(weights, kv), bandwidth * 2, 4).tokens_per_s

    assert 0 < deeper <= first <= 1000
    assert faster >= deeper


# --- what was measured here ------------------------------------------------------------------


def _measured(
    size: float, decode: float, prefill: float = 0.0, parameters: float = 0.0
) -> Measured:
    return Measured(Reading(size, parameters=parameters), decode, prefill)


def test_a_measured_model_calibrates_the_others() -> None:
    """One that is 1.3 times as fast as predicted says so of all."""
    plain = predict(Reading(1 * GB), 20 * GB, 4).tokens_per_s
    found = calibrate([_measured(1 * GB, plain * 1.3)], 20 * GB, 4)

    other = predict(SEVEN_B, 20 * GB, 4, found)

    assert other.tokens_per_s == pytest.approx(predict(SEVEN_B, 20 * GB, 4).tokens_per_s * 1.3)
    assert other.label == "calibrated"


def test_the_median_counts_and_small_models_tell_nothing() -> None:
    """One that lives in the caches is fast for another reason."""

    def model(size: float, ratio: float) -> Measured:
        return _measured(size, predict(Reading(size), 20 * GB, 4).tokens_per_s * ratio)

    found = calibrate(
        [model(0.09 * GB, 9.0), model(1 * GB, 0.8), model(2 * GB, 1.0), model(3 * GB, 1.1)],
        20 * GB,
        4,
    )

    assert found.decode == pytest.approx(1.0)
    assert calibrate([model(0.09 * GB, 9.0)], 20 * GB, 4).decode is None
    assert calibrate([], 20 * GB, 4) == Calibration()


def test_nothing_measured_leaves_the_estimate() -> None:
    assert predict(SEVEN_B, 20 * GB, 4, Calibration()) == predict(SEVEN_B, 20 * GB, 4)


def test_reading_a_prompt_is_only_predicted_from_a_measured_model() -> None:
    """Twice the parameters, half the speed."""
    found = calibrate([_measured(1 * GB, 10, prefill=300, parameters=1e9)], None, 4)

    assert predict_prefill(SEVEN_B, None) is None
    assert predict_prefill(SEVEN_B, Calibration()) is None
    assert predict_prefill(Reading(1 * GB), found) is None  # its parameters are not known
    prefill = predict_prefill(SEVEN_B, found)
    assert prefill is not None
    assert prefill.tokens_per_s == pytest.approx(300 / 7)
    assert prefill.label == "calibrated"


# --- what a file's facts say -----------------------------------------------------------------


def test_a_shared_embedding_is_read_and_a_looked_up_one_is_not() -> None:
    """Starter's output is its embedding again; a model with its own output reads that instead."""
    layers = (2_211_840,) * 30
    tied = dataclasses.replace(STARTER, layer_bytes=layers, matrix_bytes=(("Q4_1", sum(layers)),))
    own = dataclasses.replace(
        tied, file_bytes=128_000_000, matrix_bytes=(("Q4_1", sum(layers) + 30_000_000),)
    )

    assert reading(tied).weights_bytes == pytest.approx(96_000_000, rel=0.02)
    assert reading(own).weights_bytes == sum(layers) + 30_000_000


def test_only_the_experts_that_work_are_read() -> None:
    """Two of eight: a quarter of the experts, and everything else."""
    facts = dataclasses.replace(
        EIGHT_B,
        layer_bytes=(140_000_000,) * 32,
        expert_bytes=(120_000_000,) * 32,
        matrix_bytes=(("Q4_K", 32 * 140_000_000 + 100_000_000),),
        expert_count=8,
        experts_used=2,
    )

    found = reading(facts)

    assert found.weights_bytes == 32 * (20_000_000 + 30_000_000) + 100_000_000
    assert found.experts
    assert found.parameters < facts.parameters / 2


def test_a_longer_conversation_is_more_to_read() -> None:
    """128 KiB a token; a window reads no more than itself; a state is read at any depth."""
    per_token = 128 * 1024

    assert reading(EIGHT_B).kv_bytes == 0
    assert reading(EIGHT_B, 4096).kv_bytes == 4096 * per_token
    assert reading(GEMMA, 32768).kv_bytes < 32768 * 18 * 1024 / 3
    assert reading(HYBRID).kv_bytes > 0


def test_facts_without_layers_count_the_file() -> None:
    assert reading(EIGHT_B).weights_bytes == EIGHT_B.file_bytes
