"""Runs one command in a process group that ends with the daemon, at idle priority if wanted.

Started as ``python -I -m stoker.runtimes.guarded gently|plainly COMMAND…``, as the leader of a
group, with a pipe on stdin. The pipe's end, which also a killed daemon causes, ends the whole
group: pip, the build tool and all compilers. Exits as the command does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Final

from stoker.engine import job_object, lifeline

GENTLY: Final = "gently"
PLAINLY: Final = "plainly"

_NICE: Final = 19
_OOM_SCORE: Final = "800"  # short of memory, a compiler goes before any model
_NOT_STARTED: Final = 127  # as shells have it
_SIGNAL_BASE: Final = 128
# Between the fork and the command, in a process of its own: what it sets lasts over exec.
_STEP_BACK: Final = (
    "import os, sys; from stoker.runtimes import guarded; guarded.step_back(); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def main() -> None:
    """Run the command of the command line to its end, or to that of stdin."""
    lifeline.watch_stdin()
    gently, command = sys.argv[1] == GENTLY, sys.argv[2:]
    if sys.platform == "win32":
        job_object.hold_children()
    try:
        code = _run(command, gently=gently)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        code = _NOT_STARTED
    sys.stderr.flush()
    _end_the_rest()
    os._exit(code if code >= 0 else _SIGNAL_BASE - code)


def _run(command: list[str], *, gently: bool) -> int:
    """Only the command steps back: this process must be quick when the group has to end."""
    if sys.platform == "win32":
        flags = subprocess.IDLE_PRIORITY_CLASS if gently else 0
        return subprocess.call(command, stdin=subprocess.DEVNULL, creationflags=flags)  # noqa: S603  # the daemon's own command
    if gently:
        command = [sys.executable, "-I", "-c", _STEP_BACK, *command]
    return subprocess.call(command, stdin=subprocess.DEVNULL)  # noqa: S603


def step_back() -> None:
    """Run only when nobody else wants to. Best effort: a system may refuse any of it."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123
        stream.write(_OOM_SCORE)
    import psutil

    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _end_the_rest() -> None:
    """What the command left in the group."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main()
