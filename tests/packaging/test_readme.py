"""What the README claims: names, paths, commands and options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from stoker import catalogue, paths
from stoker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def _shell_lines() -> list[str]:
    lines = [line for block in CODE.findall(README) for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines]


def test_every_command_shown_exists() -> None:
    """Each `stoker …` in the README, in a block or in a sentence, is a command of the program."""
    from stoker.cli import app

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

    shown = set(re.findall(r"(?:^|`)stoker ([a-z]+)", README, re.MULTILINE))

    assert len(shown) > 5
    assert shown - known == set()


def test_every_script_shown_is_there_and_can_be_run() -> None:
    """The two commands and the removal are files with the execute bit."""
    scripts = {line.split()[0] for line in _shell_lines() if line.startswith("./")}

    assert scripts == {"./installers/install.sh", "./installers/uninstall.sh", "./tests/run.sh"}
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111


def test_the_endpoint_shown_is_the_default() -> None:
    """Every address in the README is the endpoint's default one."""
    addresses = set(re.findall(r"http://127\.0\.0\.1:(\d+)", README))

    assert addresses == {str(Settings.model_fields["port"].default)}


def test_the_model_shown_is_in_the_catalogue() -> None:
    """`starter` exists and is as large as the README says."""
    entry = catalogue.load().find("starter")

    assert entry is not None
    assert f"{round(entry.bytes / 1e6)} MB" in README


def test_the_idle_time_shown_is_the_default() -> None:
    """Half an hour is what the setting says."""
    assert "half an hour" in README
    assert Settings.model_fields["keep_alive_s"].default == 1800


@pytest.mark.parametrize("name", ["store", "config_file", "state", "run"])
def test_the_places_shown_are_real(name: str) -> None:
    """The table's last column is what `STOKER_HOME` does."""
    places = paths.from_environment({"STOKER_HOME": "/DIR"})

    place = getattr(places, name)

    assert f"`{str(place).removeprefix('/')}`" in README


def test_the_supported_python_is_the_one_of_the_package() -> None:
    """README and pyproject.toml name the same oldest Python."""
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "Python 3.11 or newer" in README
