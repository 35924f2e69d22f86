"""Telling a service manager how we are."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from stoker.sd_notify import notify

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="UNIX sockets")


def test_a_message_reaches_the_manager(stoker_home: Path) -> None:
    """The datagram holds the message as it is."""
    address = str(stoker_home / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)

        assert notify("READY=1", {"NOTIFY_SOCKET": address})

        assert manager.recv(100) == b"READY=1"


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_an_abstract_address_works(stoker_home: Path) -> None:
    """systemd may name a socket that is not a file."""
    name = f"stoker-test-{stoker_home.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)

        assert notify("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})

        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "/nobody/listens/here"])
def test_without_a_manager_nothing_happens(address: str) -> None:
    """Nobody asked, or nobody listens: no error."""
    assert not notify("READY=1", {"NOTIFY_SOCKET": address})


def test_without_the_variable_nothing_happens() -> None:
    """Started by hand, there is nobody to tell."""
    assert not notify("READY=1", {})
