"""The worker process of a server program: it ties itself to the daemon and becomes the program.

Started as ``python -I -m stoker.engine.server_child``; one JSON line on stdin says what to run.
On Linux this process replaces itself by the program: the parent-death signal outlives that, and
no second process takes memory. The program reads no stdin, so there only a signal stops it.
Elsewhere this process stays, as the one that sees stdin's end. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import Any, Final

from stoker.engine import lifeline

_ANY_PORT: Final = 0
_LOOPBACK: Final = "127.0.0.1"
_NO_EXIT_STATUS: Final = 1  # a signal's number is no exit status on every system


def main() -> None:
    """Do what the order says until stdin ends, or the program does."""
    order = lifeline.read_order()
    stdout = lifeline.private_stdout()
    port = None if order["socket"] else free_port()
    command = [order["program"], *order["arguments"]]
    if port is not None:
        command += ["--port", str(port)]
    greeting: dict[str, Any] = {} if port is None else {"port": port}
    if order["in_place"]:
        become(command, order["environment"], stdout, greeting)
    else:
        watch_over(command, order, stdout, greeting)


def become(
    command: list[str], environment: dict[str, str], stdout: Any, greeting: dict[str, Any]
) -> None:
    """Replace this process by the program. Does not return."""
    lifeline.tell(stdout, pid=os.getpid(), **greeting)
    try:
        os.execve(command[0], command, environment)  # noqa: S606  # the daemon's own order
    except OSError as error:
        _say_and_end(error)


def watch_over(
    command: list[str], order: dict[str, Any], stdout: Any, greeting: dict[str, Any]
) -> None:
    """Run the program, and end with it, or end it with stdin."""
    try:
        process = subprocess.Popen(  # noqa: S603  # the daemon's own order, no shell
            command, env=order["environment"], stdin=subprocess.DEVNULL
        )
    except OSError as error:
        _say_and_end(error)
        return
    lifeline.watch_stdin(lambda: _end(process, order["socket"]))
    lifeline.greet(stdout, pid=process.pid, **greeting)
    status = process.wait()
    if status < 0 and sys.platform != "win32":
        _die_as(-status)
    os._exit(status if status >= 0 else _NO_EXIT_STATUS)


def free_port() -> int:
    """A port that was free a moment ago; the daemon checks who listens there before it speaks."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((_LOOPBACK, _ANY_PORT))
        port: int = probe.getsockname()[1]
        return port


def _die_as(number: int) -> None:
    """End by the same signal, so that the daemon sees how the program ended."""
    import resource
    import signal

    with contextlib.suppress(OSError, ValueError):  # one core file is enough
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _end(process: subprocess.Popen[bytes], socket_path: str | None) -> None:
    with contextlib.suppress(OSError):
        process.kill()
    if socket_path:
        with contextlib.suppress(OSError):
            os.unlink(socket_path)  # noqa: PTH108  # as in `engine.child`


def _say_and_end(error: OSError) -> None:
    sys.stderr.write(f"cannot start the server program: {error.strerror or error}\n")
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
