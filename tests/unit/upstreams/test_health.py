"""When a server counts as up or down, and when it is looked at next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import UpstreamDown, UpstreamError, UpstreamRefused
from stoker.upstreams.health import APART_S, LONGEST_RETRY_S, Health

DOWN = UpstreamDown("gone")


def _up(now: float = 100.0) -> Health:
    health = Health(30)
    health.answered(now, 0.1, 0.5)
    return health


def test_nothing_is_known_before_the_first_look() -> None:
    health = Health(30)

    assert (health.state, health.due_at, health.error) == ("unknown", 0.0, None)


def test_an_answer_makes_it_up_until_the_next_look() -> None:
    health = _up()

    assert (health.state, health.latency_s, health.due_at) == ("up", 0.1, 130.0)


def test_the_first_failure_of_a_server_that_was_never_up_is_a_verdict() -> None:
    health = Health(30)

    health.failed(100, DOWN, 0.5)

    assert (health.state, health.error, health.due_at) == ("down", DOWN, 101.0)


def test_one_failure_is_no_verdict_over_a_server_that_was_up() -> None:
    """It is looked at again at once; the second failure counts."""
    health = _up()

    health.failed(130, DOWN, 0.5)
    after_one = health.state, health.due_at
    health.failed(131, DOWN, 0.5)

    assert after_one == ("up", 131.0)
    assert health.state == "down"


def test_a_refused_key_is_a_verdict_at_once() -> None:
    health = _up()

    health.failed(130, UpstreamRefused("no"), 0.5)

    assert health.state == "down"


def test_pauses_grow_while_it_is_down_and_have_an_end() -> None:
    health, pauses, now = Health(30), [], 0.0
    for _ in range(10):
        health.failed(now, DOWN, 0.5)
        pauses.append(health.due_at - now)
        now = health.due_at

    assert pauses == sorted(pauses)
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == LONGEST_RETRY_S


def test_an_answer_forgets_the_failures() -> None:
    health = _up()
    health.failed(130, UpstreamError("once"), 0.5)

    health.answered(131, 0.2, 0.5)
    health.failed(161, UpstreamError("once more"), 0.5)

    assert health.state == "up"


@given(chance=st.floats(0, 1, exclude_max=True))
def test_looks_are_spread(chance: float) -> None:
    """Many Stokers that began together do not stay together."""
    health = Health(30)

    health.answered(0, 0.1, chance)

    assert 27 <= health.due_at <= 33


def test_a_doubt_brings_the_next_look_forward_but_not_too_often() -> None:
    health = _up(now=100)

    assert health.doubt(101)
    assert health.due_at == 100 + APART_S
    assert not health.doubt(102)


def test_a_doubt_after_a_while_means_now() -> None:
    health = _up(now=100)

    assert health.doubt(120)
    assert health.due_at == 120


def test_a_doubt_never_delays_a_look() -> None:
    health = Health(30)
    health.failed(100, DOWN, 0.5)

    assert not health.doubt(100.5)
    assert health.due_at == 101


@pytest.mark.parametrize("every", [5.0, 30.0, 3600.0])
@given(st.lists(st.tuples(st.sampled_from("afd"), st.floats(0, 1000)), max_size=50))
def test_the_next_look_is_always_near(every: float, steps: list[tuple[str, float]]) -> None:
    """Whatever happens in whatever order, a look is due within the longest pause."""
    health, now = Health(every), 0.0
    for kind, passed in steps:
        now += passed
        if kind == "a":
            health.answered(now, 0.1, 0.99)
        elif kind == "f":
            health.failed(now, DOWN, 0.99)
        else:
            health.doubt(now)

        assert health.due_at <= now + max(every, LONGEST_RETRY_S, APART_S) * 1.1
