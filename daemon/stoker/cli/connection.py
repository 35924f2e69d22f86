"""The way to the daemon, for every command that needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stoker import errors, paths

if TYPE_CHECKING:
    from stoker.client import StokerClient


@contextmanager
def daemon() -> Iterator[StokerClient]:
    """A client of this user's daemon. Raises DaemonNotRunning, at the latest at its first call."""
    places = paths.from_environment()
    if not (
        places.control_socket.exists() or places.control_file.exists()
    ):  # told at once, without loading a client
        raise errors.DaemonNotRunning("Stoker is not running")
    from stoker.client import StokerClient

    with StokerClient(places) as client:
        yield client
