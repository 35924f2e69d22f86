"""The tray's few lines about settings agree with the daemon's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker import settings
from stoker.errors import BadSetting
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


@pytest.mark.parametrize(
    "text",
    ["", 'host = "::1"\nport = 0\ndrain_timeout_s = 2', "drain_timeout_s = 2.5\noffline = true"],
)
def test_the_values_are_those_of_the_daemon(
    file: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the file, or by default. A variable of this session is not seen at login."""
    file.write_text(text)
    daemons = settings.load(file, {})
    monkeypatch.setenv("STOKER_PORT", "5")

    found = wish(file)

    assert (found.host, found.port) == (daemons.host, daemons.port)
    assert found.drain_s == daemons.drain_timeout_s
    assert wish(file.with_name("none")) == wish(file.parent / "nothing")


@pytest.mark.parametrize(
    "text",
    [
        'host = "0.0.0.0"',
        "host = 5",
        "port = 65536",
        "port = -1",
        'port = "x"',
        "port = true",
        "port =",
        "drain_timeout_s = -1",
        'drain_timeout_s = "x"',
        "drain_timeout_s = nan",
    ],
)
def test_what_the_daemon_refuses_is_refused(file: Path, text: str) -> None:
    """An entry with it would fail at every login."""
    file.write_text(text)
    if "nan" not in text and "true" not in text:  # stricter than the daemon, on purpose
        with pytest.raises(BadSetting):
            settings.load(file, {})

    with pytest.raises(BadSetting) as caught:
        wish(file)

    assert str(file) in caught.value.message


def test_what_was_chosen_before_stays(file: Path) -> None:
    """The menu has one switch; the choices on the command line are not lost by it."""
    record = Record(on_demand=True, linger=True, hardened=True)

    found = wish(file, record)

    assert (found.on_demand, found.linger, found.hardened) == (True, True, True)
