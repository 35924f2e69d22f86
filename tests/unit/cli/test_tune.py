from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stoker import schemas, schemas_machine
from stoker.cli import tune

from .conftest import Run, StubClient


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_POLL_S", 0)


def speeds(prefill: float = 300, decode: float = 40, batch: float = 60) -> schemas.SpeedsView:
    return schemas.SpeedsView(
        prefill_tokens_per_s=prefill, decode_tokens_per_s=decode, batch_tokens_per_s=batch
    )


def view(state: Any = "done", **changes: Any) -> schemas.TuneView:
    facts: dict[str, Any] = {"model": "starter", "state": state, "profile": "chat"}
    if state == "done":
        facts |= {
            "trials": 14,
            "spent_s": 61.0,
            "budget_s": 61.0,
            "settings": {
                "runtime": "native-1",
                "threads": 2,
                "threads_batch": 2,
                "ubatch": 256,
                "flash_attention": False,
                "extra_buffers": True,
            },
            "baseline": speeds(),
            "speeds": speeds(390, 41, 60.1),
            "measured_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        }
    return schemas.TuneView(**{**facts, **changes})


class Tunes:
    """The part of the client that this command uses; each look takes the next view."""

    def __init__(self, *views: schemas.TuneView) -> None:
        self.views = list(views)
        self.asked: list[object] = []
        self.interrupt = False
        self.document: dict[str, Any] = {"kind": "stoker-tuning", "version": 1, "models": [{}]}

    def __call__(self) -> list[schemas.TuneView]:
        if self.interrupt:
            raise KeyboardInterrupt
        return [self.views.pop(0) if len(self.views) > 1 else self.views[0]]

    def start(self, request: schemas_machine.TuneRequest) -> schemas.TuneView:
        self.asked.append(request)
        return self()[0] if not self.interrupt else self.views[0]

    def cancel(self, model: str) -> schemas.TuneView:
        self.asked.append(("cancel", model))
        return view("cancelled")

    def export(self) -> dict[str, Any]:
        return self.document

    def take(self, document: object) -> schemas_machine.TakenView:
        self.asked.append(document)
        return schemas_machine.TakenView(taken=2)


@pytest.fixture
def tunes(client: StubClient, monkeypatch: pytest.MonkeyPatch) -> Tunes:
    stand_in = Tunes(view())
    for name, call in (
        ("tunes", stand_in),
        ("tune", stand_in.start),
        ("tune_cancel", stand_in.cancel),
        ("tune_export", stand_in.export),
        ("tune_import", stand_in.take),
    ):
        monkeypatch.setattr(client, name, call, raising=False)
    return stand_in


# --- one model -------------------------------------------------------------------------------


def test_progress_and_then_before_and_after(run: Run, tunes: Tunes) -> None:
    tunes.views = [
        view("waiting", note="waits for the end of a runtime's build"),
        view("running", note="tries 1 threads", budget_s=90),
        view("paused", note="a request is being answered"),
        view(),
    ]

    ran = run("tune", "starter")

    assert ran.code == 0
    assert ran.err.splitlines() == [
        "starter: waits for the end of a runtime's build",
        "starter: tries 1 threads",
        "starter: a request is being answered",
    ]
    assert "14 settings measured in 1 min, for the profile chat." in ran.out
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["reads", "a", "prompt", "300.0", "390.0", "+30%"] in lines
    assert ["four", "answers", "at", "once", "60.0", "60.1", "the", "same"] in lines
    assert "from now on" in ran.out
    assert ["flash", "attention", "no"] in lines
    assert "It was measured" not in ran.out


def test_the_request_carries_the_options(run: Run, tunes: Tunes) -> None:
    run("tune", "starter", "--seconds", "20", "--again")

    assert tunes.asked == [schemas_machine.TuneRequest(model="starter", seconds=20, again=True)]


def test_what_was_known_says_when_and_how_to_measure_anew(run: Run, tunes: Tunes) -> None:
    ran = run("tune", "starter")

    assert "It was measured 2026-01-02" in ran.out
    assert "--again" in ran.out


def test_nothing_better_was_found(run: Run, tunes: Tunes) -> None:
    tunes.views = [view(speeds=speeds(), note="the time was up before everything had been tried")]

    ran = run("tune", "starter")

    assert "fastest already; nothing changes" in ran.out
    assert "Note: the time was up" in ran.out


def test_json_is_the_last_view(run: Run, tunes: Tunes) -> None:
    tunes.views = [view("running"), view()]

    ran = run("tune", "starter", "--json")

    assert json.loads(ran.out)["settings"]["ubatch"] == 256


def test_a_failure_is_the_commands_own(run: Run, tunes: Tunes) -> None:
    error = schemas.ErrorView(code="lab_failed", message="it died", hint="look")
    tunes.views = [view("running"), view("failed", error=error)]

    ran = run("tune", "starter")

    assert ran.code == 1
    assert "error: it died" in ran.err


def test_a_search_that_somebody_cancelled(run: Run, tunes: Tunes) -> None:
    tunes.views = [view("running"), view("cancelled")]

    ran = run("tune", "starter")

    assert ran.code == 1
    assert "stoker tune starter" in ran.err


def test_ctrl_c_leaves_it_running(run: Run, tunes: Tunes) -> None:
    tunes.views = [view("running")]
    tunes.interrupt = True

    ran = run("tune", "starter")

    assert ran.code == 130
    assert "goes on in the background" in ran.err
    assert "--cancel" in ran.err


def test_detach_and_cancel(run: Run, tunes: Tunes) -> None:
    tunes.views = [view("waiting")]

    assert "goes on in the background" in run("tune", "starter", "-d").out
    assert json.loads(run("tune", "starter", "-d", "--json").out)["state"] == "waiting"
    assert run("tune", "starter", "--cancel").out == "starter: cancelled\n"
    assert tunes.asked[-1] == ("cancel", "starter")


# --- all models ------------------------------------------------------------------------------


def test_all_models_in_a_table(
    run: Run, tunes: Tunes, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [view(), view("none", model="other"), view("paused", model="third", note="waits")]
    monkeypatch.setattr(client, "tunes", lambda: views, raising=False)

    ran = run("tune")
    rows = ran.out.splitlines()

    assert rows[0].split()[:3] == ["MODEL", "STATE", "PROFILE"]
    assert "measured" in rows[1]
    assert "up to +30%" in rows[1]
    assert "not measured yet" in rows[2]
    assert "interrupted" in rows[3]
    assert rows[3].endswith("  waits")
    assert "tokens per second" in ran.out
    assert len(json.loads(run("tune", "--json").out)) == 3


def test_a_long_note_stays_in_the_terminal(
    run: Run, tunes: Tunes, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    views = [view("paused", note="a note in many words " * 12)]
    monkeypatch.setattr(client, "tunes", lambda: views, raising=False)

    out = run("tune").out

    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(out.split()).count("a note in many words") == 12


def test_no_models(
    run: Run, tunes: Tunes, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "tunes", list, raising=False)

    assert "stoker pull" in run("tune").out


@pytest.mark.parametrize("option", ["--again", "--cancel", "--detach", "--seconds=5"])
def test_options_of_a_model_need_one(run: Run, tunes: Tunes, option: str) -> None:
    assert run("tune", option).code == 2


def test_two_things_at_once_are_refused(run: Run, tunes: Tunes, tmp_path: Path) -> None:
    assert run("tune", "--export", "a", "--import", "b").code == 2


# --- files -----------------------------------------------------------------------------------


def test_export_and_import(run: Run, tunes: Tunes, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"

    exported = run("tune", "--export", str(file))
    imported = run("tune", "--import", str(file))

    assert "1 model is in" in exported.out
    assert "2 models were taken over" in imported.out
    assert tunes.asked == [tunes.document]
    assert json.loads(run("tune", "--import", str(file), "--json").out) == {"taken": 2}
    assert json.loads(run("tune", "--export", "-").out) == tunes.document


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b" " * (5 << 20), None])
def test_a_file_that_holds_no_settings(
    run: Run, tunes: Tunes, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "tuned.json"
    if content is not None:
        file.write_bytes(content)

    ran = run("tune", "--import", str(file))

    assert ran.code == 1
    assert "stoker tune --export" in ran.err
    assert tunes.asked == []


def test_an_export_to_nowhere(run: Run, tunes: Tunes, tmp_path: Path) -> None:
    ran = run("tune", "--export", str(tmp_path / "no" / "folder"))

    assert ran.code == 2
    assert "cannot write" in ran.err
