"""Dry runs: which are asked for, and what they say between and beyond their points."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.store.facts import ModelFacts
from stoker.tuning import memory, surveys
from stoker.tuning.launch import Survey, SurveyPoint, Wishes
from stoker.tuning.memory import MIB, Sizing
from stoker.tuning.plan import LaunchPlan, make_plan
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import BERT, EIGHT_B, EXPERTS, GEMMA, HYBRID, MLA, STARTER

MODELS = (STARTER, GEMMA, EIGHT_B, EXPERTS, HYBRID, MLA)


def sizing(**changes: object) -> Sizing:
    base = Sizing(cells=8192, parallel=4, ubatch=512, checkpoints=0, extra_buffers=True, x86=True)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def plan(facts: ModelFacts, wishes: Wishes | None = None) -> LaunchPlan:
    hardware = machine(total=128 * GIB)
    return make_plan("m", Path("m"), facts, hardware, wishes or Wishes())


def engine_of(facts: ModelFacts, made: LaunchPlan, factor: float = 0.8) -> Survey:
    """A survey as an engine would answer that needs `factor` of what the formulas say."""
    points = []
    for cells, parallel, ubatch, flash, kind in surveys.survey_grid(facts, made):
        settings = sizing(
            cells=cells, parallel=parallel, ubatch=ubatch, flash_attention=flash, kv_type=kind
        )
        scratch = memory.scratch_bytes(facts, settings) + 4 * parallel * facts.vocab_size
        kv = memory.kv_bytes(facts, settings) + memory.state_bytes(facts) * parallel
        points.append(SurveyPoint(cells, parallel, ubatch, flash, kind, int(scratch * factor), kv))
    return Survey("native-1", facts.file_bytes, 0, tuple(points))


@pytest.mark.parametrize("profile", ["chat", "coding", "batch", "quiet"])
@pytest.mark.parametrize("facts", [*MODELS, BERT])
def test_the_grid_is_small_and_covers_the_plan(facts: ModelFacts, profile: str) -> None:
    made = plan(facts, Wishes(profile=profile))  # type: ignore[arg-type]

    grid = surveys.survey_grid(facts, made)

    assert 0 < len(grid) <= 40
    assert len(set(grid)) == len(grid)
    cells = max(made.cells, made.context)
    assert (cells, made.parallel, made.ubatch, True, "f16") in grid
    assert any(not flash for *_, flash, _ in grid) or made.embedding


def test_at_a_point_the_dry_run_is_taken_as_it_is() -> None:
    survey = engine_of(STARTER, plan(STARTER), 0.5)
    settings = sizing(cells=32_768)

    said = surveys.dry_compute_bytes(survey, settings, formula=0)

    assert said == pytest.approx(
        0.5 * (memory.scratch_bytes(STARTER, settings) + 16 * STARTER.vocab_size), rel=0.001
    )


@given(
    st.sampled_from(MODELS),
    st.integers(4, 128),
    st.integers(1, 4),
    st.integers(128, 512),
)
def test_between_its_points_a_dry_run_is_close(
    facts: ModelFacts, steps: int, parallel: int, ubatch: int
) -> None:
    """The engine's needs are nearly straight between the points that are asked for."""
    made = plan(facts, Wishes(context=min(32_768, facts.context_length)))
    survey = engine_of(facts, made, 1.0)
    settings = sizing(cells=256 * steps, parallel=parallel, ubatch=ubatch)

    formula = memory.scratch_bytes(facts, settings) + 4 * parallel * facts.vocab_size
    said = surveys.dry_compute_bytes(survey, settings, formula=0)

    assert 0.9 * formula <= said + MIB
    assert said <= 1.2 * formula + MIB


@given(
    st.sampled_from(MODELS),
    st.integers(4, 128),
    st.integers(1, 4),
    st.integers(128, 512),
    st.booleans(),
)
def test_caches_are_never_said_to_be_smaller_than_they_are(
    facts: ModelFacts,
    steps: int,
    parallel: int,
    ubatch: int,
    unified: bool,  # noqa: FBT001
) -> None:
    survey = engine_of(facts, plan(facts, Wishes(context=min(32_768, facts.context_length))))
    settings = sizing(cells=256 * steps, parallel=parallel, ubatch=ubatch, unified=unified)
    true = memory.kv_bytes(facts, settings) + memory.state_bytes(facts) * parallel

    said = memory.memory_need(facts, settings, survey).kv_bytes

    assert said >= 0.999 * true


@pytest.mark.parametrize("facts", MODELS)
def test_a_step_in_a_divided_cache_looks_at_one_slot_only(facts: ModelFacts) -> None:
    survey = engine_of(facts, plan(facts), 1.0)
    divided = sizing(cells=32_768, unified=False)

    said = memory.compute_bytes(facts, divided, survey)

    assert said < memory.compute_bytes(facts, sizing(cells=32_768), survey)
    assert memory.compute_bytes(facts, divided) <= said + MIB
    assert said <= 1.2 * memory.compute_bytes(facts, divided) + MIB


def test_beyond_the_last_point_the_line_goes_on() -> None:
    survey = engine_of(STARTER, plan(STARTER), 1.0)
    settings = sizing(cells=65_536)

    said = surveys.dry_compute_bytes(survey, settings, formula=0)

    formula = memory.scratch_bytes(STARTER, settings) + 16 * STARTER.vocab_size
    assert said == pytest.approx(formula, rel=0.02)


@pytest.mark.parametrize("changes", [{"parallel": 8}, {"ubatch": 2048}, {"kv_type": "q4_0"}])
def test_where_no_dry_run_reaches_the_formula_is_kept(changes: dict[str, object]) -> None:
    survey = engine_of(STARTER, plan(STARTER), 0.5)

    assert surveys.dry_compute_bytes(survey, sizing(**changes), formula=123) == 123


def test_an_engine_that_does_not_tell_its_cache_leaves_it_to_the_formula() -> None:
    told = engine_of(GEMMA, plan(GEMMA))
    silent = dataclasses.replace(
        told, points=tuple(dataclasses.replace(point, kv_bytes=None) for point in told.points)
    )

    need = memory.memory_need(GEMMA, sizing(), silent)

    assert need.kv_bytes == memory.kv_bytes(GEMMA, sizing())


@pytest.mark.parametrize("facts", [STARTER, GEMMA, EIGHT_B, MLA])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_short_cache_takes_no_more_than_its_share(facts: ModelFacts, factor: float) -> None:
    """The shortest dry run has 1,024 cells; a cache of half as many is not said to be as large."""
    told = engine_of(facts, plan(facts))
    points = [
        dataclasses.replace(one, kv_bytes=int((one.kv_bytes or 0) * factor)) for one in told.points
    ]
    survey = dataclasses.replace(told, points=tuple(points))
    settings = sizing(cells=512, parallel=1)

    said = memory.memory_need(facts, settings, survey).kv_bytes

    true = memory.kv_bytes(facts, settings)
    assert true <= said <= true * factor + 1
    if not facts.sliding_window:
        assert said == pytest.approx(true * factor, rel=0.001)


def test_a_recurrent_state_is_the_engines_own() -> None:
    """The formula guesses it upwards."""
    made = plan(HYBRID, Wishes(context=8192))
    told = engine_of(HYBRID, made)
    real = tuple(
        dataclasses.replace(
            point,
            kv_bytes=(point.kv_bytes or 0) - point.parallel * memory.state_bytes(HYBRID) // 2,
        )
        for point in told.points
    )

    need = memory.memory_need(HYBRID, sizing(), dataclasses.replace(told, points=real))

    assert need.kv_bytes < memory.memory_need(HYBRID, sizing()).kv_bytes
