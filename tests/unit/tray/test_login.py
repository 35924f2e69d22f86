"""The tray's few lines about settings agree with those of the `stoker` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker import paths, settings
from stoker.cli import autostart
from stoker.errors import BadSetting
from stoker.paths import Paths
from stoker_service import Program, Record, Wish
from stoker_tray import login

PROGRAM = Program(("/s", "serve"), ("/s",), ("/s-tray",))


class Manager:
    """What is installed already."""

    def __init__(self, record: Record | None = None) -> None:
        self.record = record

    def installed(self) -> Record | None:
        return self.record


def wish(file: Path, record: Record | None = None) -> Wish:
    manager: Any = Manager(record)
    return login.wish(PROGRAM, manager, file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


@pytest.fixture
def places(stoker_home: Path) -> Paths:
    return paths.from_environment({"STOKER_HOME": str(stoker_home)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        'host = "::1"\nport = 0\ndrain_timeout_s = 2',
        "drain_timeout_s = 2.5\noffline = true",
        'port = "4329"\ndrain_timeout_s = "3"',
        "port = 4329.0\ndrain_timeout_s = 100000",
        "port = 65535\ndrain_timeout_s = true",
    ],
)
def test_the_values_are_those_of_the_command(
    places: Paths, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stoker autostart on` reads the file, too, and not this session's variables."""
    places.config_file.write_text(text)
    for name, value in (("HOST", "::1"), ("PORT", "5"), ("DRAIN_TIMEOUT_S", "7")):
        monkeypatch.setenv(f"STOKER_{name}", value)

    found = wish(places.config_file)

    assert settings.load(places.config_file).port == 5  # for a daemon of this session
    assert found == autostart.wish_of(places, PROGRAM)
    assert found.port != 5


def test_without_a_file_all_is_by_default(places: Paths) -> None:
    assert wish(places.config_file) == autostart.wish_of(places, PROGRAM)


@pytest.mark.parametrize(
    "text",
    [
        'host = "0.0.0.0"',
        "host = 5",
        "port = 65536",
        "port = -1",
        "port = 1.5",
        "port = []",
        "port = nan",
        'port = "x"',
        "port =",
        "drain_timeout_s = -1",
        'drain_timeout_s = "x"',
        "drain_timeout_s = nan",
    ],
)
def test_what_the_command_refuses_is_refused(places: Paths, text: str) -> None:
    """An entry with it would fail at every login."""
    places.config_file.write_text(text)
    with pytest.raises(BadSetting):
        autostart.wish_of(places, PROGRAM)

    with pytest.raises(BadSetting) as caught:
        wish(places.config_file)

    assert str(places.config_file) in caught.value.message


def test_a_time_without_end_is_no_time(places: Paths) -> None:
    """No service manager could be told of it."""
    places.config_file.write_text("drain_timeout_s = inf")

    with pytest.raises(BadSetting):
        wish(places.config_file)


def test_what_was_chosen_before_stays(places: Paths) -> None:
    """The menu has one switch; the choices on the command line are not lost by it."""
    record = Record(on_demand=True, linger=True, hardened=True)

    found = wish(places.config_file, record)

    assert (found.on_demand, found.linger, found.hardened) == (True, True, True)
