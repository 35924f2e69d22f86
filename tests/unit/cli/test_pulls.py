from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker import schemas
from stoker.cli import pulls
from stoker.types import PullState

from .conftest import Run, StubClient, pulling, stored


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "_POLL_S", 0)


def test_a_pull_that_is_done_says_what_to_try(run: Run, client: StubClient) -> None:
    client.stored_models = [stored()]
    client.pull_views = [pulling(), pulling(PullState.DONE)]

    ran = run("pull", "starter")

    assert ran.code == 0
    assert "stoker run starter" in ran.out
    assert "hub scan: unknown, the hub was not asked" in ran.out
    assert ran.err.splitlines()[0] == "starter: fetching"


def test_the_pull_s_error_is_the_command_s_error(run: Run, client: StubClient) -> None:
    """A refusal by policy keeps its exit code across the wire."""
    refusal = schemas.ErrorView(code="scan_refused", message="unsafe", hint="take another")
    client.pull_views = [pulling(), pulling(PullState.FAILED, error=refusal)]

    ran = run("pull", "owner/repo", "--json")

    assert ran.code == 4
    assert ran.err.splitlines()[-2:] == ["error: unsafe", "hint:  take another"]
    assert json.loads(ran.out)["error"]["code"] == "scan_refused"


def test_ctrl_c_leaves_the_pull_running_and_says_how_to_end_it(
    run: Run, client: StubClient
) -> None:
    client.pull_views = [pulling()]
    client.interrupt = True

    ran = run("pull", "starter")

    assert ran.code == 130
    assert "goes on in the background" in ran.err
    assert "stoker pull starter --cancel" in ran.err
    assert [what for what, *_ in client.asked] == ["pull"]


def test_detach_returns_at_once(run: Run, client: StubClient) -> None:
    client.pull_views = [pulling()]

    assert "goes on in the background" in run("pull", "starter", "--detach").out
    assert json.loads(run("pull", "starter", "-d", "--json").out)["state"] == "fetching"


@pytest.mark.parametrize("wanted", ["p1", "starter", "owner/repo:Q4_0"])
def test_a_pull_is_steered_by_id_model_or_reference(
    run: Run, client: StubClient, wanted: str
) -> None:
    client.pull_views = [pulling(reference="owner/repo:Q4_0")]

    assert run("pull", wanted, "--pause").code == 0
    assert run("pull", wanted, "--cancel").code == 0
    assert client.asked == [("pause", "p1"), ("cancel", "p1")]


def test_steering_what_is_not_running_fails(run: Run, client: StubClient) -> None:
    client.pull_views = [pulling(PullState.DONE)]

    assert run("pull", "starter", "--cancel").code == 1


def test_two_ways_to_steer_at_once_are_wrong_usage(run: Run, client: StubClient) -> None:
    assert run("pull", "starter", "--pause", "--cancel").code == 2


def test_pulling_what_is_paused_resumes_it(run: Run, client: StubClient) -> None:
    client.stored_models = [stored()]
    client.pull_views = [pulling(PullState.PAUSED), pulling(PullState.DONE)]

    assert run("pull", "starter").code == 0
    assert ("resume", "p1") in client.asked


def test_import_sends_an_absolute_path(
    run: Run, client: StubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    client.stored_models = [stored()]
    client.pull_views = [pulling(PullState.DONE)]

    assert run("import", "my.gguf", "--name", "mine").code == 0
    assert run("pull", "./my.gguf").code == 0
    path = str(tmp_path / "my.gguf")
    assert client.asked == [("pull", path, "mine"), ("pull", path, None)]


def test_import_of_nothing_or_a_folder_is_told_before_the_daemon_is_asked(
    run: Run, client: StubClient, tmp_path: Path
) -> None:
    assert run("import", str(tmp_path / "absent.gguf")).code == 2
    assert run("import", str(tmp_path)).code == 2
    assert client.asked == []
