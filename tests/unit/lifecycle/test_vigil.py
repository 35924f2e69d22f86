"""Which workers are judged to have hung."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import pytest

from stoker.engine.heartbeat import NOT_ASKED, Beat, Heard
from stoker.lifecycle.vigil import PATIENCE, Vigil

GPU_PATIENCE = 60
IDLE_S, STEADY_S = 0.0, 5.0  # processor time per look
STILL = Beat(marks=(7.0,), busy=1)


def first_hang(
    *,
    used_s: float,
    beats: Iterable[Heard] = (),
    requests: int = 1,
    tokens: Iterator[int] | None = None,
    on_gpu: bool = False,
    looks: int = 200,
    vigil: Vigil | None = None,
) -> int | None:
    """The look at which it is judged to have hung; None when never."""
    vigil, heard = vigil or Vigil(), iter(beats)
    for look in range(1, looks + 1):
        cpu_s = 1.0 + look * used_s
        came = 0 if tokens is None else next(tokens)
        beat = next(heard, NOT_ASKED)
        if vigil.has_hung(cpu_s, requests, came, beat, on_gpu=on_gpu):
            return look
    return None


def always(beat: Heard) -> Sequence[Heard]:
    return [beat] * 200


MOVING = [Beat(marks=(float(n),), busy=1) for n in range(200)]


# --- without a heartbeat -----------------------------------------------------------------------


def test_idle_processor_under_a_request_is_a_hang() -> None:
    """After six looks in a row; any work, any token or no request begins anew."""
    assert first_hang(used_s=0) == PATIENCE + 1
    assert first_hang(used_s=0.1) is None
    assert first_hang(used_s=0, tokens=count()) is None
    vigil = Vigil()
    assert not any(vigil.has_hung(1.0, n % 3, 0) for n in range(20))
    assert not any(vigil.has_hung(None, 1, 0) for _ in range(20))


def test_endless_work_that_nobody_asked_for_is_a_hang() -> None:
    """After five minutes of looks in a row; a request, or a rest, begins anew."""
    assert first_hang(used_s=5.0, requests=0) == 61
    vigil = Vigil()
    assert not any(vigil.has_hung(n * 5.0, n % 50 == 0, 0) for n in range(200))
    assert first_hang(used_s=0.2, requests=0) is None


# --- with one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("used_s", [IDLE_S, STEADY_S])
def test_counters_that_move_are_life(on_gpu: bool, used_s: float) -> None:  # noqa: FBT001
    assert first_hang(used_s=used_s, beats=MOVING, on_gpu=on_gpu) is None


@pytest.mark.parametrize("used_s", [IDLE_S, 1.0])
def test_an_engine_that_owes_nothing_is_well(used_s: float) -> None:
    """A client that does not read its answer keeps the connection, not the engine."""
    beats = always(Beat(marks=(7.0,), busy=0))

    assert first_hang(used_s=used_s, beats=beats) is None
    assert first_hang(used_s=used_s, beats=beats, on_gpu=True) is None
    assert first_hang(used_s=used_s, beats=always(Beat(busy=0))) is None


def test_without_a_gpu_the_processor_tells() -> None:
    """A step of a long prompt may take minutes, and no counter moves meanwhile."""
    assert first_hang(used_s=STEADY_S, beats=always(STILL)) is None
    assert first_hang(used_s=STEADY_S, beats=always(None)) is None
    assert first_hang(used_s=IDLE_S, beats=always(None)) == PATIENCE + 1
    # The first beat shows counters that were never seen before.
    assert first_hang(used_s=IDLE_S, beats=always(STILL)) == PATIENCE + 1


def test_our_own_questions_are_no_life() -> None:
    """Their answers cost the engine a little processor time."""
    assert first_hang(used_s=0.02, beats=always(STILL)) == PATIENCE + 1
    assert first_hang(used_s=0.02, beats=always(None)) == PATIENCE + 1
    assert first_hang(used_s=0.02) is None


def test_a_gpu_may_work_alone_for_five_minutes() -> None:
    assert first_hang(used_s=IDLE_S, beats=always(STILL), on_gpu=True) == GPU_PATIENCE + 1


def test_a_processor_that_only_waits_for_a_gpu_is_no_life() -> None:
    assert first_hang(used_s=STEADY_S, beats=always(STILL), on_gpu=True) == GPU_PATIENCE + 1
    assert first_hang(used_s=STEADY_S, beats=always(None), on_gpu=True) == GPU_PATIENCE + 1


def test_silence_and_stillness_are_death_also_on_a_gpu() -> None:
    assert first_hang(used_s=IDLE_S, beats=always(None), on_gpu=True) == PATIENCE + 1


def test_an_engine_that_tells_nothing_of_itself_is_judged_as_before() -> None:
    for silent in (Beat(), Beat(busy=2)):
        assert first_hang(used_s=STEADY_S, beats=always(silent), on_gpu=True) is None
        assert first_hang(used_s=IDLE_S, beats=always(silent), on_gpu=True) == PATIENCE + 1
        assert first_hang(used_s=0.02, beats=always(silent)) is None


def test_one_step_forward_begins_anew() -> None:
    beats = [STILL] * 40 + [Beat(marks=(8.0,), busy=1)] * 160

    assert first_hang(used_s=STEADY_S, beats=beats, on_gpu=True) == 41 + GPU_PATIENCE


def test_a_machine_that_slept_begins_anew() -> None:
    vigil = Vigil()
    assert first_hang(used_s=IDLE_S, looks=PATIENCE, vigil=vigil) is None

    vigil.refresh()

    assert first_hang(used_s=IDLE_S, vigil=vigil) == PATIENCE + 1
