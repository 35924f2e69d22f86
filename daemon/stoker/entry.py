"""Where the `stoker` command begins.

The daemon goes its own way: the command line's libraries would stay in its memory (2.5 MB).
"""

from __future__ import annotations

import os
import sys
from typing import Final

_SERVE: Final = "serve"
_TO_STDERR: Final = "--log-to-stderr"


def main() -> int:
    """One command, from `sys.argv`; its exit code."""
    words = sys.argv[1:]
    if words[:1] == [_SERVE] and set(words[1:]) <= {_TO_STDERR}:
        return _serve(log_to_stderr=_TO_STDERR in words)
    from stoker.cli import main as command

    return command()


def have_streams() -> None:
    """Under pythonw.exe, at login on Windows, there are none; nobody reads what is said there."""
    if sys.stdout is None or sys.stderr is None:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115,PTH123  # never closed
        sys.stdout = sys.stdout or nowhere
        sys.stderr = sys.stderr or nowhere


def run_daemon(*, log_to_stderr: bool) -> None:
    """Serve until told to stop. Raises StokerError when it cannot start."""
    if sys.stdout is not None and sys.stdout.isatty():
        print("Stoker is serving; Ctrl-C stops it.", flush=True)  # noqa: T201  # for a person
    # structlog would import it for coloured tracebacks, which a log file has no use for: 5 MB.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None means: not there
    from stoker.serve import main as serve

    serve(log_to_stderr=log_to_stderr)


def _serve(*, log_to_stderr: bool) -> int:
    have_streams()
    try:
        run_daemon(log_to_stderr=log_to_stderr)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells have it
    except Exception as error:  # noqa: BLE001  # the boundary of the program: report and end
        from stoker.cli import boundary

        return boundary.report(error)
    return 0
