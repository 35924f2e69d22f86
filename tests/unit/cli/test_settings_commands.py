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


# --- settings that are tables ----------------------------------------------------------------

TABLES = """\
port = 5000

[[upstreams]]
name = "box"
base_url = "https://box.example/v1"
key = "very-secret"

[[upstreams]]
name = "lab"
base_url = "http://127.0.0.1:9/v1"

[models."starter"]
priority = 5
"""


@pytest.mark.parametrize("key", ["upstreams", "upstreams.0.key", "models.starter.priority"])
def test_a_table_is_not_set_by_a_value(run: Run, config: Path, key: str) -> None:
    """The refusal shows what to write, and where."""
    ran = run("config", "set", key, "x")

    assert ran.code == 2
    assert f"[{key.partition('.')[0]}" in ran.err
    assert str(config) in ran.err
    assert config.read_text() == FILE


def test_a_table_can_be_removed_whole_only(run: Run, config: Path) -> None:
    config.write_text(TABLES)

    assert run("config", "set", "models.starter.priority", "--unset").code == 2
    assert run("config", "set", "models", "--unset").code == 0
    assert "starter" not in config.read_text()


def test_another_setting_stays_outside_of_the_tables(run: Run, config: Path) -> None:
    """A key written below a table would belong to it."""
    config.write_text(TABLES)

    assert run("config", "set", "max_queue", "7").code == 0

    assert json.loads(run("config", "show", "max_queue", "--json").out)[0]["value"] == 7


def test_tables_are_shown_by_name(run: Run, config: Path) -> None:
    config.write_text(TABLES)

    lines = run("config", "show").out.splitlines()

    assert next(line for line in lines if line.startswith("upstreams")).split()[1] == "box,lab"
    assert next(line for line in lines if line.startswith("models")).split()[1] == "starter"


def test_a_table_alone_is_shown_as_it_stands_in_the_file(run: Run, config: Path) -> None:
    config.write_text(TABLES)

    shown = run("config", "show", "upstreams").out

    assert 'base_url = "https://box.example/v1"' in shown
    assert shown.count("[[upstreams]]") == 2
    assert 'key = "(hidden)"' in shown


@pytest.mark.parametrize("words", [(), ("upstreams",), ("--json",), ("upstreams", "--json")])
def test_a_key_is_never_shown(run: Run, config: Path, words: tuple[str, ...]) -> None:
    """What is printed may be copied into a question to strangers."""
    config.write_text(TABLES)

    assert "very-secret" not in run("config", "show", *words).out


@pytest.mark.parametrize(
    "broken",
    [
        TABLES.replace('name = "lab"', 'name = "box"'),
        TABLES.replace('"https://box.example/v1"', '"ftp://box"'),
        TABLES.replace("base_url", "url"),
        TABLES.replace('"very-secret"', '"very-secret two words"'),
    ],
)
def test_a_broken_table_is_told_without_its_key(run: Run, config: Path, broken: str) -> None:
    config.write_text(broken)

    ran = run("config", "check")

    assert ran.code == 2
    assert "upstreams" in ran.err
    assert "very-secret" not in ran.out + ran.err


def test_no_tables_are_shown_as_empty(run: Run, config: Path) -> None:
    rows = {row["key"]: row for row in json.loads(run("config", "show", "--json").out)}

    assert (rows["upstreams"]["value"], rows["models"]["value"]) == ([], {})
    assert rows["models"]["default"] == {}
    assert run("config", "show", "models").out.splitlines()[1].split()[1] == "(empty)"
