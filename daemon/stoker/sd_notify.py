"""Tell a service manager how we are (sd_notify(3)): a datagram to the socket it named.

That we are ready or stopping, that we live (the watchdog), and in a line what is served.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import anyio
from anyio.abc import TaskStatus

from stoker.events import EventBus
from stoker.schemas import ModelChanged, ServerChanged, ServerView
from stoker.types import ModelId, ModelState

_SEND_S: Final = 1.0  # a manager that hangs must not hang us for long
_READ_S: Final = 5.0
_EXTEND_EVERY_S: Final = 10.0
_EXTENSION_S: Final = 30.0
_EXTENSIONS: Final = 60  # ten minutes; a store that takes longer to open will not open
_LONGEST_USEC: Final = 18  # digits; thirty thousand years
_SHOWN: Final = (ModelState.READY, ModelState.LOADING, ModelState.DRAINING, ModelState.FAILED)


def notify(message: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send e.g. ``READY=1``; False when nobody asked for it or nobody listens. Never raises."""
    try:
        with _manager(environ) as manager:
            manager.sendall(message.encode())
    except OSError:
        return False
    return True


def wait_until_read(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the manager has read and done all that it was told before. Blocking, bounded.

    It is given one end of a pipe, which it closes when it comes to it.
    """
    ours, theirs = os.pipe()
    try:
        with _manager(environ) as manager:
            socket.send_fds(manager, [b"BARRIER=1"], [theirs])
    except OSError:
        return False
    else:
        os.close(theirs)
        theirs = -1
        return bool(select.select([ours], [], [], _READ_S)[0])
    finally:
        for end in (ours, theirs):
            if end >= 0:
                os.close(end)


@contextmanager
def _manager(environ: Mapping[str, str]) -> Iterator[socket.socket]:
    """A socket connected to the manager. Raises OSError when there is none."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        raise FileNotFoundError(address)
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(_SEND_S)
        manager.connect(address)
        yield manager


def time_to_stop(seconds: float) -> str:
    """The message for a stop that may take so long."""
    return f"STOPPING=1\nSTATUS=Stopping\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


async def extend_start() -> None:
    """While the daemon is slow to start (a store on a cold disk), ask for more time; cancel it."""
    for _ in range(_EXTENSIONS):
        await anyio.sleep(_EXTEND_EVERY_S)
        notify(f"EXTEND_TIMEOUT_USEC={int(_EXTENSION_S * 1e6)}")


# --- the watchdog ----------------------------------------------------------------------------


def watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """How long the manager waits for a sign of life; None when it does not watch ``pid``."""
    usec = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    if not (usec.isascii() and usec.isdigit() and len(usec) <= _LONGEST_USEC):
        return None
    return int(usec) / 1e6 or None


async def keep_alive(*, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Give signs of life until cancelled. From the event loop: when that is stuck, so are we."""
    task_status.started()
    limit_s = watchdog_s(os.environ, os.getpid())
    while limit_s is not None:
        notify("WATCHDOG=1")
        await anyio.sleep(limit_s / 2)


# --- what is served --------------------------------------------------------------------------


def status_line(server: ServerView, models: Mapping[ModelId, ModelState]) -> str:
    """What a service manager shows of us, in a line. Pure."""
    if not server.enabled:
        return "The server is off"
    parts = [f"Serving {server.base_url}"]
    for state in _SHOWN:
        names = sorted(str(model) for model, its in models.items() if its is state)
        if names:
            parts.append(f"{state}: {', '.join(names)}")
    return "; ".join(parts)


async def tell_status(bus: EventBus, line: Callable[[], str], told: str) -> None:
    """Keep the manager's line true until cancelled; ``told`` is what it was told already."""
    if "NOTIFY_SOCKET" not in os.environ:
        return
    with bus.subscribe(client=False) as subscription:
        events = aiter(subscription)
        while True:
            now = line()
            if now != told:
                notify(f"STATUS={now}")
                told = now
            while not isinstance(await anext(events), ModelChanged | ServerChanged | None):
                pass
