"""Sockets that systemd opened for us (socket activation, sd_listen_fds(3)). Not for: using them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import Final

_FIRST: Final = 3  # after stdin, stdout and stderr
_MOST: Final = 64  # a socket unit of ours has one; more is a mistake
_NAMES: Final = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take(environ: MutableMapping[str, str] = os.environ) -> tuple[socket.socket, ...]:
    """The TCP sockets to accept on that were handed to this process; from now on ours. Once.

    The variables are removed and no child inherits a socket, so that none takes them for its own.
    What is no such socket is left alone. Never raises.
    """
    count = handed_over(environ, os.getpid())
    for name in _NAMES:
        environ.pop(name, None)
    found = (_listener(descriptor) for descriptor in range(_FIRST, _FIRST + count))
    return tuple(listener for listener in found if listener is not None)


def handed_over(environ: Mapping[str, str], pid: int) -> int:
    """How many descriptors, from 3 on, are meant for the process ``pid``. Pure."""
    if sys.platform != "linux" or environ.get("LISTEN_PID") != str(pid):
        return 0
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and len(count) <= len(str(_MOST))):
        return 0
    return int(count) if int(count) <= _MOST else 0


def _listener(descriptor: int) -> socket.socket | None:
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003  # it takes no keyword
        found = socket.socket(fileno=descriptor)
    except OSError:  # not open, or no socket
        return None
    if _accepts(found):
        return found
    found.detach()
    return None


def _accepts(found: socket.socket) -> bool:
    """Whether it is a TCP socket with an address and no peer.

    It may not listen now: a daemon that was killed while its server was off left it so.
    """
    if found.family not in {socket.AF_INET, socket.AF_INET6} or found.type != socket.SOCK_STREAM:
        return False
    try:
        found.getpeername()
    except OSError:
        return bool(found.getsockname()[1])
    return False
