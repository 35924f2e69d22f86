from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.lifecycle.eviction import (
    COMFORTABLE_CONTEXT,
    Candidate,
    choose,
    cost,
    relieve,
    shrink_after,
)
from stoker.types import ModelId

A = Candidate(ModelId("a"), 10, busy=False)
B = Candidate(ModelId("b"), 30, busy=False)
C = Candidate(ModelId("c"), 5, busy=False)
BUSY = Candidate(ModelId("busy"), 50, busy=True)


@dataclass(frozen=True)
class _Plan:
    context: int
    gpu_layers: int = 0
    cpu_experts: int = 0
    embedding: bool = False


def _fits(need: int, *, free: int = 0, context: int = 8192) -> Callable[[int, int], _Plan | None]:
    return lambda extra, _: _Plan(context) if need <= free + extra else None


def test_nothing_goes_when_it_fits() -> None:
    """Room is room."""
    choice = choose((A, B), _fits(10, free=10))

    assert choice is not None
    assert (choice.victims, choice.wait) == ((), False)


def test_cheapest_go_first() -> None:
    """In the order given, and no more than needed."""
    choice = choose((A, B, C), _fits(10))

    assert choice is not None
    assert choice.victims == (A.model,)


def test_small_one_is_spared_when_a_later_one_is_enough() -> None:
    """Two are not evicted where one is enough."""
    choice = choose((A, B), _fits(30))

    assert choice is not None
    assert choice.victims == (B.model,)


def test_busy_ones_are_named_for_waiting_only() -> None:
    """And only when the idle ones are not enough."""
    choice = choose((A, BUSY), _fits(55))

    assert choice is not None
    assert choice.wait
    assert BUSY.model in choice.victims
    idle = choose((A, BUSY), _fits(10))
    assert idle is not None
    assert (idle.victims, idle.wait) == ((A.model,), False)


def test_what_never_fits_is_none() -> None:
    """Nobody is evicted for nothing."""
    assert choose((A, B, C, BUSY), _fits(96)) is None


def test_idle_model_goes_for_a_usable_context_only() -> None:
    """A cramped context evicts; more than comfortable does not."""

    def grows(extra: int, _: int) -> _Plan:
        return _Plan(2048 + extra * 1000)

    def comfortable(extra: int, _: int) -> _Plan:
        return _Plan(COMFORTABLE_CONTEXT + extra * 1000)

    cramped, roomy = choose((A, B), grows), choose((A, B), comfortable)

    assert cramped is not None
    assert roomy is not None
    assert cramped.victims == (A.model,)
    assert roomy.victims == ()


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=5),
    st.integers(0, 200),
    st.integers(0, 60),
)
def test_choice_is_sound_and_minimal(sizes: list[tuple[int, bool]], need: int, free: int) -> None:
    """It frees enough, no victim is superfluous, and busy ones only where idle ones are short."""
    candidates = [
        Candidate(ModelId(f"m{n}"), size, busy=busy) for n, (size, busy) in enumerate(sizes)
    ]
    choice = choose(candidates, _fits(need, free=free))

    if choice is None:
        assert free + sum(size for size, _ in sizes) < need
        return
    by_model = {one.model: one for one in candidates}
    victims = [by_model[victim] for victim in choice.victims]
    freed = sum(one.size_bytes for one in victims)
    assert free + freed >= need
    assert all(free + freed - one.size_bytes < need for one in victims)
    idle = sum(one.size_bytes for one in candidates if not one.busy)
    assert choice.wait == (free + idle < need)
    assert choice.wait or not any(one.busy for one in victims)


# --- the memory of a GPU ---------------------------------------------------------------------

ON_GPU = Candidate(ModelId("on-gpu"), 1, busy=False, gpu_bytes=20)
AT_WORK = Candidate(ModelId("at-work"), 1, busy=True, gpu_bytes=20)


def _layers(free: int, *, layers: int = 33, **more: bool) -> Callable[[int, int], _Plan | None]:
    """A model of so many layers of one byte each, which the system's memory holds in any case."""
    return lambda _, gpu: _Plan(8192, min(layers, free + gpu), **more)


def test_an_idle_model_goes_for_layers_on_the_gpu() -> None:
    """And the one that has nothing there stays, although it would be the cheaper one."""
    choice = choose((A, ON_GPU), _layers(15))

    assert choice is not None
    assert (choice.victims, choice.wait) == ((ON_GPU.model,), False)
    assert choice.plan.gpu_layers == 33


def test_nobody_goes_where_the_gpu_has_room() -> None:
    choice = choose((A, ON_GPU, AT_WORK), _layers(33))

    assert choice is not None
    assert (choice.victims, choice.wait) == ((), False)


def test_a_busy_model_on_the_gpu_is_waited_for() -> None:
    choice = choose((ON_GPU, AT_WORK), _layers(0))

    assert choice is not None
    assert choice.wait
    assert set(choice.victims) == {ON_GPU.model, AT_WORK.model}


def test_an_embedder_sends_nobody_off_the_gpu() -> None:
    """It is called between the answers of the very model that would have to go each time."""
    choice = choose((ON_GPU, AT_WORK), _layers(3, embedding=True))

    assert choice is not None
    assert (choice.victims, choice.wait) == ((), False)


def test_experts_on_the_gpu_count() -> None:
    """All layers are there in any case; their experts only when there is room."""
    choice = choose((ON_GPU,), lambda _, gpu: _Plan(8192, 49, 48 - gpu))

    assert choice is not None
    assert choice.victims == (ON_GPU.model,)


# --- what going costs ------------------------------------------------------------------------


def _cost(*, idle_s: float = 60, load_s: float | None = 2, size_bytes: int = 10**9) -> float:
    return cost(idle_s=idle_s, load_s=load_s, size_bytes=size_bytes)


def test_long_idle_and_quickly_back_is_cheap() -> None:
    """Who was not wanted for long is hardly missed, and who loads fast is back fast."""
    assert _cost(idle_s=600) < _cost(idle_s=60)
    assert _cost(load_s=1) < _cost(load_s=9)
    assert _cost(idle_s=600, load_s=9) < _cost(idle_s=10, load_s=1)


def test_a_load_that_was_never_measured_follows_from_the_size() -> None:
    assert _cost(load_s=None, size_bytes=10**8) < _cost(load_s=None, size_bytes=10**10)


def test_cost_is_sound_for_a_clock_that_runs_backwards() -> None:
    assert _cost(idle_s=-100) == _cost(idle_s=0)


@pytest.mark.parametrize(("keep_alive_s", "expected"), [(-1, 300), (3600, 300), (100, 50), (0, 0)])
def test_memory_is_given_back_at_half_time(keep_alive_s: float, expected: float) -> None:
    """And after five minutes at the latest, also when the model stays for ever."""
    assert shrink_after(keep_alive_s) == expected


def test_pressure_takes_the_cheapest_that_are_enough() -> None:
    """None for nothing, none in vain, never a busy one, and all when all are too little."""
    assert relieve((A, B, C), 0) == ()
    assert relieve((A, B, C), -5) == ()
    assert relieve((A, B, C), 10) == (A.model,)
    assert relieve((A, B, C), 30) == (B.model,)
    assert relieve((A, BUSY, B), 50) == (A.model, B.model)
