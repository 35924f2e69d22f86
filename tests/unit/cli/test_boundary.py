from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker import errors
from stoker.cli import boundary, connection

from .conftest import Run, StubClient


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnknownModel("x"), 1),
        (errors.MemoryShort("x"), 1),
        (errors.BadUsage("x"), 2),
        (errors.BadReference("x"), 2),
        (errors.BadSetting("x"), 2),
        (errors.DaemonNotRunning("x"), 3),
        (errors.ScanRefused("x"), 4),
        (errors.PeerNotAllowed("x"), 4),
    ],
)
def test_exit_code_says_whose_move_it_is(error: errors.StokerError, code: int) -> None:
    assert boundary.exit_code(error) == code


@pytest.mark.parametrize("error", errors.all_errors().values())
def test_every_error_is_exactly_two_lines(
    error: type[errors.StokerError], capsys: pytest.CaptureFixture[str]
) -> None:
    boundary.report(error("first\nsecond \x1b[31m"))

    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: first second [31m", f"hint:  {error.hint}"]


def test_an_error_inside_a_task_group_is_told_as_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [errors.PortTaken("taken")])])

    assert boundary.report(group) == 1
    assert capsys.readouterr().err.startswith("error: taken\n")


def test_json_puts_the_error_on_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    boundary.report(errors.UnknownModel("no such model", available=["starter"]), as_json=True)

    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "code": "model_not_found",
            "message": "no such model",
            "hint": errors.UnknownModel.hint,
            "facts": {"available": ["starter"]},
        }
    }
    assert len(captured.err.splitlines()) == 2


@pytest.mark.parametrize(
    "words", [("bogus",), ("show",), ("pull", "a", "--bogus"), ("logs", "-n", "x"), ("config",)]
)
def test_wrong_usage_is_two_lines_and_exit_code_2(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words)

    assert ran.code == 2
    error, hint = ran.err.splitlines()
    assert error.startswith("error: ")
    assert "--help`" in hint


def test_a_fault_leaves_its_traceback_in_a_file(
    run: Run, stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user sees two lines that name the file; the traceback is in the file."""
    monkeypatch.setattr(connection, "daemon", lambda: 1 / 0)

    ran = run("list")

    log = stoker_home / "state" / "logs" / "cli-crash.log"
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 2
    assert str(log) in ran.err
    assert "ZeroDivisionError" in log.read_text()


def test_a_folder_that_cannot_be_written_is_no_fault_of_ours(
    run: Run, stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lines say what is in the way; nobody is asked to report it."""
    taken = stoker_home / "file"
    taken.touch()
    monkeypatch.setenv("STOKER_HOME", str(taken))

    ran = run("config", "set", "port", "4000")

    error, hint = ran.err.splitlines()
    assert ran.code == 1
    assert error == f"error: {taken}: File exists"
    assert "stoker doctor" in hint


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "daemon", lambda: 1 / 0)

    ran = run("--debug", "list")

    assert "Traceback" in ran.err


def test_ctrl_c_ends_quietly(run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "models", interrupted)

    ran = run("list")

    assert (ran.code, ran.err.strip()) == (130, "")


def test_no_command_prints_the_help(run: Run) -> None:
    ran = run()

    assert ran.code == 0
    assert "Usage: stoker" in ran.out


def test_help_names_every_command(run: Run) -> None:
    commands = (
        "serve start stop restart status logs doctor pull list show rm verify import load unload "
        "use ps run config"
    )

    text = run("--help").out

    assert all(f"\n  {command} " in text for command in commands.split())
