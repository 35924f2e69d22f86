from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run, StubClient

FILE = """\
# my settings
port = 5000  # not the usual one

# quiet
log_level = "warning"
"""


@pytest.fixture
def config(stoker_home: Path, client: StubClient) -> Path:
    file = stoker_home / "config.toml"
    file.write_text(FILE)
    return file


def test_set_changes_one_value_and_keeps_the_comments(run: Run, config: Path) -> None:
    ran = run("config", "set", "port", "5001")

    assert ran.code == 0
    assert config.read_text() == FILE.replace("5000", "5001")


def test_set_says_that_a_running_daemon_must_restart(run: Run, config: Path) -> None:
    assert "stoker restart" in run("config", "set", "port", "5001").err


def test_unset_goes_back_to_the_default(run: Run, config: Path) -> None:
    assert run("config", "set", "port", "--unset").code == 0
    assert "port" not in config.read_text()
    assert "# quiet" in config.read_text()


def test_set_makes_the_file_when_there_is_none(run: Run, client: StubClient) -> None:
    assert run("config", "set", "allowed_hosts", "box.local, other").code == 0

    rows = json.loads(run("config", "show", "allowed_hosts", "--json").out)
    assert rows[0]["value"] == ["box.local", "other"]
    assert rows[0]["source"] == "file"


@pytest.mark.parametrize(
    ("key", "value"),
    [("port", "70000"), ("port", "many"), ("log_level", "loud"), ("hub_endpoint", "http://x.org")],
)
def test_a_wrong_value_leaves_the_file_untouched(
    run: Run, config: Path, key: str, value: str
) -> None:
    ran = run("config", "set", key, value)

    assert ran.code == 2
    assert ran.err.startswith(f"error: {key}: ")
    assert config.read_text() == FILE
    assert list(config.parent.glob(".config-*")) == []


def test_a_wrong_key_names_the_nearest(run: Run, config: Path) -> None:
    ran = run("config", "set", "prot", "1")

    assert ran.code == 2
    assert "Did you mean port?" in ran.err
    assert "Did you mean port?" in run("config", "set", "prot", "--unset").err


def test_a_stale_key_can_be_removed(run: Run, config: Path) -> None:
    config.write_text("stale = 1\n")

    assert run("config", "check").code == 2
    assert run("config", "set", "stale", "--unset").code == 0
    assert run("config", "check").code == 0


def test_a_file_with_another_fault_is_named_itself(run: Run, config: Path) -> None:
    config.write_text("stale = 1\n")

    ran = run("config", "set", "port", "5001")

    assert ran.code == 2
    assert f"in {config}" in ran.err


def test_set_without_a_value_is_wrong_usage(run: Run, config: Path) -> None:
    assert run("config", "set", "port").code == 2
    assert run("config", "set", "port", "1", "--unset").code == 2


def test_a_linked_file_stays_a_link(run: Run, config: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    config.rename(real)
    config.symlink_to(real)

    run("config", "set", "port", "5001")

    assert config.is_symlink()
    assert "5001" in real.read_text()


def test_show_tells_where_each_value_comes_from(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_MAX_QUEUE", "7")

    rows = {row["key"]: row for row in json.loads(run("config", "show", "--json").out)}

    assert (rows["port"]["value"], rows["port"]["source"]) == (5000, "file")
    assert (rows["max_queue"]["value"], rows["max_queue"]["source"]) == (7, "environment")
    assert (rows["offline"]["value"], rows["offline"]["source"]) == (False, "default")
    assert all(row["description"] for row in rows.values())


def test_set_warns_when_the_environment_wins(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_PORT", "7")

    assert "STOKER_PORT is set and wins" in run("config", "set", "port", "5001").err


def test_show_of_one_setting(run: Run, config: Path) -> None:
    assert run("config", "show", "port").out.splitlines()[1].split()[:3] == ["port", "5000", "file"]
    assert run("config", "show", "prot").code == 2
