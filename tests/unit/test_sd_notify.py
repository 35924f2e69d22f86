from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path

import pytest

from stoker.sd_notify import notify

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no service manager of this kind")


def test_nobody_asked() -> None:
    assert notify("READY=1", {}) is False


def test_the_message_arrives() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            receiver.settimeout(5)

            sent = notify("READY=1\nSTATUS=ok", {"NOTIFY_SOCKET": str(path)})

            assert sent is True
            assert receiver.recv(100) == b"READY=1\nSTATUS=ok"


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0stoker-test-notify")
        receiver.settimeout(5)

        assert notify("STOPPING=1", {"NOTIFY_SOCKET": "@stoker-test-notify"}) is True
        assert receiver.recv(100) == b"STOPPING=1"


def test_a_dead_manager_is_no_error(tmp_path: Path) -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")}) is False
    assert notify("READY=1", {"NOTIFY_SOCKET": "relative"}) is False
