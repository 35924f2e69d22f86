from __future__ import annotations

import json

import pytest

from stoker import errors

from .conftest import Run, StubClient, recommended


@pytest.fixture
def rows(client: StubClient) -> StubClient:
    client.recommendations = [
        recommended("best", title="The Best", why="The best, and quick."),
        recommended("second", pinned=False, bytes=2_000_000_000),
        recommended("slow", quick=False, why="It fits, but crawls."),
        recommended("huge", fits=False, fits_now=False, quick=False),
        recommended("vectors", use="embedding", speed=None),
        recommended("coder", use="coding"),
        recommended("second-coder", use="coding"),
    ]
    return client


def test_the_best_comes_first_with_its_reason_and_its_command(run: Run, rows: StubClient) -> None:
    out = run("recommend").out

    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["best", "second"]
    assert "40 tokens/s, estimated" in lines[2]
    assert "~2.0 GB" in lines[3]
    assert "The Best: The best, and quick." in out
    assert "stoker pull best" in out
    assert "slow" not in out
    assert "huge" not in out


def test_other_uses_are_a_line_each(run: Run, rows: StubClient) -> None:
    out = run("recommend").out

    assert "for programming:" in out
    assert "coder" in out
    assert "second-coder" not in out
    assert "stoker recommend --use embedding" in out
    assert "--use speech" not in out


def test_all_shows_what_would_be_slow_or_is_too_large(run: Run, rows: StubClient) -> None:
    out = run("recommend", "--all").out

    assert "(slow here)" in out
    assert "(too large)" in out
    assert "It fits, but crawls." in out


def test_one_use_at_a_time(run: Run, rows: StubClient) -> None:
    """A model that writes nothing has no writing speed."""
    out = run("recommend", "--use", "embedding").out

    assert "vectors" in out
    assert "coder" not in out
    assert "tokens/s" not in out.splitlines()[2]


def test_json_is_the_wire_shape(run: Run, rows: StubClient) -> None:
    short = json.loads(run("recommend", "--json").out)
    every = json.loads(run("recommend", "--all", "--json").out)

    assert [row["name"] for row in short][:2] == ["best", "second"]
    assert len(every) == len(rows.recommendations)
    assert short[0]["speed"]["label"] == "estimated"
    assert {"fits", "fits_now", "quick", "why", "pinned", "source"} <= set(short[0])


def test_a_stored_model_is_run_not_pulled(run: Run, client: StubClient) -> None:
    client.recommendations = [recommended("mine", stored=True)]

    out = run("recommend").out

    assert "stoker run mine" in out
    assert "(in the store)" in out


def test_nothing_that_runs_well_is_said_so(run: Run, client: StubClient) -> None:
    client.recommendations = [recommended("slow", quick=False)]

    assert "No model to talk with runs well here" in run("recommend").out
    assert "No model for programming" in run("recommend", "--use", "coding").out


def test_an_unknown_use_is_wrong_usage(run: Run, client: StubClient) -> None:
    ran = run("recommend", "--use", "dancing")

    assert ran.code == 2
    assert "embedding" in ran.err


def test_an_offer_must_not_break_another_command(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older daemon does not know the question; `list` works all the same."""

    def unknown(_self: StubClient, _use: str | None = None) -> list[object]:
        raise errors.DaemonError("not found")

    monkeypatch.setattr(StubClient, "recommend", unknown)

    ran = run("list")

    assert (ran.code, "stoker pull starter" in ran.out) == (0, True)


def test_a_use_without_any_model_is_told_as_such(run: Run, client: StubClient) -> None:
    client.recommendations = [recommended("chatter")]

    assert "stoker recommend --use speech --all" in run("recommend", "--use", "speech").out
    assert "no model to understand speech" in run("recommend", "--use", "speech", "--all").out


def test_speed_is_explained_only_where_it_is_shown(run: Run, rows: StubClient) -> None:
    assert "SPEED is how many tokens" in " ".join(run("recommend").out.split())
    assert "SPEED is" not in run("recommend", "--use", "embedding").out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_it_fits_in_the_terminal(
    run: Run, rows: StubClient, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rows.recommendations = [recommended("best", summary="a summary in many words " * 8)]

    out = run("recommend").out

    prose = [line for line in out.splitlines() if "many words" in line]
    assert prose
    assert max(map(len, prose)) <= columns
