"""What a person is told without asking."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types import ModelState, PullState
from stoker_tray.face import Notice
from stoker_tray.notices import LONGEST_TEXT, LONGEST_TITLE, SAME_FAILURE_S, Kind, Memory, notices
from stoker_tray.shapes import Daemon, Server
from stoker_tray.state import State, damaged_text
from tests.fakes import tray_states
from tests.fakes.tray_states import URL, connected, failed, model, pull, ready

LOADING = model("a", ModelState.LOADING)
LAN = Server(enabled=True, base_url=URL, lan=True)


def told(*states: State, now_s: float = 0.0) -> list[Notice]:
    """All that is told on the way through these states, one second after the other."""
    memory, found = None, []
    for number, (before, after) in enumerate(pairwise(states)):
        some, memory = notices(before, after, now_s + number, memory)
        found += some
    return found


def titles(*states: State, now_s: float = 0.0) -> list[str]:
    return [one.title for one in told(*states, now_s=now_s)]


# --- each kind -------------------------------------------------------------------------------


def test_a_model_is_ready_after_a_long_load() -> None:
    found = told(connected(LOADING), connected(ready("a", load_s=75.0)))

    assert found == [Notice("ready", "a is ready", "It took 1 min to load.")]


@pytest.mark.parametrize("was", [LOADING, ready("a"), model("a", ModelState.DRAINING)])
def test_a_short_load_is_no_news(was: object) -> None:
    before = connected(was)  # type: ignore[arg-type]

    assert told(before, connected(ready("a", load_s=10.0 if was is LOADING else 99.0))) == []


def test_without_the_daemons_figure_the_trays_own_clock_counts() -> None:
    before = connected(LOADING, loading_since={"a": 100.0})
    after = connected(ready("a", load_s=None))

    assert titles(before, after, now_s=111.0) == ["a is ready"]
    assert titles(before, after, now_s=109.0) == []


def test_a_download_that_ends() -> None:
    before = connected(pulls=(pull(state=PullState.VERIFYING),))
    after = connected(pulls=(pull(state=PullState.DONE),))

    assert told(before, after) == [
        Notice("downloaded", "qwen3-0.6b is downloaded", "639 MB, verified and ready to use.")
    ]


def test_a_download_that_fails() -> None:
    broken = pull(state=PullState.FAILED, error=failed().error)

    found = told(connected(pulls=(pull(),)), connected(pulls=(broken,)))

    assert found == [
        Notice("failed", "qwen3-0.6b could not be downloaded", "not enough memory. Close some.")
    ]


def test_a_download_that_is_cancelled_or_paused_is_no_news() -> None:
    for state in (PullState.CANCELLED, PullState.PAUSED):
        assert told(connected(pulls=(pull(),)), connected(pulls=(pull(state=state),))) == []


def test_a_load_that_fails() -> None:
    found = told(connected(LOADING), connected(failed("a")))

    assert found == [Notice("failed", "a could not be loaded", "not enough memory. Close some.")]


def test_a_failure_without_words_points_to_the_logs() -> None:
    silent = replace(failed("a"), error=None)

    assert [one.text for one in told(connected(LOADING), connected(silent))] == ["See the logs."]


def test_something_asked_for_here_that_did_not_happen() -> None:
    found = told(connected(), connected(note="Could not load a: not enough memory"))

    assert found == [Notice("failed", "That did not work", "Could not load a: not enough memory.")]
    assert titles(State(), State(note="Could not start Stoker")) == ["That did not work"]


def test_damage_is_told_with_what_to_do() -> None:
    found = told(connected(problems=("x",)), connected(problems=("x", damaged_text("a"), "y")))

    assert found == [
        Notice(
            "damaged",
            "Something is wrong",
            "a is damaged and is not served; pull it again to repair it. And 1 more.",
        )
    ]


def test_an_endpoint_that_is_opened_to_the_network() -> None:
    closed, hidden = connected(), connected(server=replace(LAN, enabled=False))
    is_open = connected(server=LAN)

    assert [one.kind for one in told(closed, is_open)] == ["exposed"]
    assert [one.kind for one in told(hidden, is_open)] == ["exposed"]
    assert told(is_open, is_open, hidden, closed) == []


def test_a_newer_version_is_told_once() -> None:
    old = connected()
    new = connected(daemon=Daemon("0.1.0", 7, 1.0, "/h", update="0.2.0"))
    newer = connected(daemon=Daemon("0.1.0", 7, 1.0, "/h", update="0.3.0"))

    found = titles(old, new, old, new, State(), old, new, newer)

    assert found == ["Stoker 0.2.0 is there", "Stoker 0.3.0 is there"]


# --- manners ---------------------------------------------------------------------------------

EVERYTHING = connected(
    failed("a"),
    ready("b", load_s=99.0),
    pulls=(pull("p", PullState.DONE), pull("q", PullState.FAILED)),
    problems=("x",),
    server=LAN,
    daemon=Daemon("0.1.0", 7, 1.0, "/h", update="0.2.0"),
)


def test_what_is_there_at_the_start_is_no_news() -> None:
    assert told(State(), EVERYTHING) == []


def test_nothing_is_repeated_after_a_reconnect() -> None:
    assert told(State(), EVERYTHING, State.disconnected(EVERYTHING), EVERYTHING, EVERYTHING) == []


def test_a_model_that_fails_again_and_again_is_told_once() -> None:
    """A client may ask for it every second."""
    again = [connected(LOADING), connected(failed("a"))] * 20

    assert titles(*again) == ["a could not be loaded"]


def test_a_model_that_worked_in_between_is_told_again() -> None:
    good = connected(ready("a"))
    bad = connected(failed("a"))
    lost = State.disconnected()
    fresh = connected(model("a"))

    assert len(titles(good, bad, good, bad)) == 2
    assert len(titles(good, bad, lost, fresh, bad)) == 2


def test_one_failure_is_told_once_though_it_is_heard_twice() -> None:
    """From the daemon's event and from the answer to the tray's own call, in any order."""
    loading, event = connected(LOADING), connected(failed("a"))
    answer = replace(event, note="Could not load a")
    early = replace(loading, note="Could not load a")

    assert titles(loading, event, answer) == ["a could not be loaded"]
    assert titles(loading, answer) == ["a could not be loaded"]
    assert titles(loading, early, answer) == ["That did not work"]


def test_a_failure_that_comes_later_is_another_one() -> None:
    bad = connected(failed("a"))
    some, memory = notices(connected(LOADING), bad, 0.0)
    later, _ = notices(bad, replace(bad, note="Could not start b"), SAME_FAILURE_S, memory)

    assert [one.title for one in (*some, *later)] == ["a could not be loaded", "That did not work"]


def test_a_download_that_fails_is_told_beside_a_load_that_fails() -> None:
    before = connected(LOADING, pulls=(pull(),))
    half = connected(failed("a"), pulls=(pull(),))
    after = connected(failed("a"), pulls=(pull(state=PullState.FAILED),))

    assert titles(before, half, after) == [
        "a could not be loaded",
        "qwen3-0.6b could not be downloaded",
    ]


@pytest.mark.parametrize("kind", list(Kind))
def test_a_muted_kind_is_silent_and_does_not_catch_up(kind: Kind) -> None:
    before = connected(
        LOADING, model("b", ModelState.LOADING), pulls=(pull("p"), pull("q", reference="q"))
    )
    muted = replace(EVERYTHING, muted=frozenset({kind.value}))

    kinds = [one.kind for one in told(before, muted, EVERYTHING)]

    assert set(kinds) == set(Kind) - {kind}


@given(st.lists(tray_states.states(), min_size=2, max_size=4))
def test_any_step_gives_short_and_harmless_notices(states: list[State]) -> None:
    memory = Memory()
    for before, after in pairwise(states):
        found, memory = notices(before, after, 1.0, memory)
        for one in found:
            assert Kind(one.kind) not in after.muted
            assert 0 < len(one.title) <= LONGEST_TITLE
            assert len(one.text) <= LONGEST_TEXT
            assert "\n" not in one.title + one.text
            (one.title + one.text).encode()
        assert notices(after, after, 2.0, memory)[0] == []
