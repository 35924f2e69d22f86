"""A home in a bad state: the daemon starts all the same, or says in one line why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.types import ModelState
from tests.fakes.daemon import Daemon


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is not running, with all its folders."""
    daemon = Daemon(tmp_path / "home")
    daemon.paths.create()
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 500, b"[]", b"[1, 2]", b'{"a": ', b"5"])
def test_garbage_in_what_is_only_remembered_is_forgotten(idle: Daemon, content: bytes) -> None:
    """History, verdicts, open pulls and the last model are conveniences, not conditions."""
    places = idle.paths
    for file in (places.history, places.canary, places.pulls, places.last_served):
        file.write_bytes(content)

    idle.start()

    assert idle.status().pulls == ()
    assert idle.stop() == 0


def test_a_last_model_that_is_gone_is_forgotten(idle: Daemon) -> None:
    """The daemon is up without it."""
    idle.paths.last_served.write_text('{"model": "gone"}')

    idle.start()

    assert all(model.state is ModelState.UNLOADED for model in idle.status().models)


def test_without_a_log_file_it_serves(idle: Daemon) -> None:
    """A folder in its place is told on stderr."""
    idle.paths.log_file.mkdir()

    idle.start()

    idle.stop()
    assert "the log file cannot be written" in (idle.home / "daemon.out").read_text()


def test_a_lock_that_cannot_be_taken_is_a_clear_error(idle: Daemon) -> None:
    """Not a fault of ours, and not a traceback."""
    idle.paths.lock.mkdir()

    result = idle.cli("serve")

    assert result.returncode == 1
    assert "cannot lock" in result.stderr
    assert "a fault in Stoker" not in result.stderr


def test_a_home_with_a_long_odd_name_works(tmp_path: Path) -> None:
    """Spaces, an emoji and more than a socket's path can hold."""
    with Daemon(tmp_path / f"my home \N{FIRE} {'x' * 150}") as daemon:
        result = daemon.cli("status")

        assert result.returncode == 0
        assert daemon.paths.control_socket.is_socket()
