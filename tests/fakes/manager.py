"""A service manager as systemd is one: it reads what it is told, and hands over a socket."""

from __future__ import annotations

import os
import select
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PATIENCE_S: Final = 30.0

# The child becomes the program: same process, so that LISTEN_PID is right, and descriptor 3.
_BECOME: Final = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="stoker.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """``with Manager() as manager:``; its address is what a service gets as NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="st-", dir="/tmp")
        self.address = str(Path(self._folder.name) / "notify")
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(self.address)
        self._inbox.settimeout(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inbox.close()
        self._folder.cleanup()

    def next(self) -> str:
        """The next message; what comes with it is closed, as systemd does."""
        data, descriptors, _, _ = socket.recv_fds(self._inbox, 4096, 8)
        for descriptor in descriptors:
            os.close(descriptor)
        return data.decode()

    def until(self, beginning: str) -> str:
        """Read on to the message that begins so."""
        while not (message := self.next()).startswith(beginning):
            pass
        return message

    def has_message(self) -> bool:
        return bool(select.select([self._inbox], [], [], 0)[0])

    def drain(self) -> list[str]:
        """Everything that is there to be read."""
        messages = []
        while self.has_message():
            messages.append(self.next())
        return messages


def activated(command: Sequence[str], listener: socket.socket) -> list[str]:
    """The command as systemd starts it for a socket unit; pass the socket's descriptor on."""
    return [sys.executable, "-I", "-c", _BECOME, str(listener.fileno()), *command]
