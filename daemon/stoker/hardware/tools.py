"""Ask the system without ever hanging or failing: tools with a deadline, reads with a deadline.

Blocking: call it in a thread.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

log = structlog.get_logger(__name__)

TOOL_TIMEOUT_S: Final = 3.0  # a GPU that sleeps wakes up within two
_READ_TIMEOUT_S: Final = 1.0  # a battery's controller answers within 0.1 s; a broken one never
_NO_WINDOW: Final = 0x08000000  # CREATE_NO_WINDOW

_T = TypeVar("_T")
_given_up: set[str] = set()


def run(*command: str, timeout_s: float | None = None) -> str | None:
    """The tool's output; None when it is absent, fails or is too slow."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed commands, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S if timeout_s is None else timeout_s,
            check=True,
            creationflags=_NO_WINDOW if sys.platform == "win32" else 0,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        log.debug("probe_tool_failed", tool=command[0], reason=type(error).__name__)
        return None
    return done.stdout


def within(what: str, look: Callable[[], _T], otherwise: _T) -> _T:
    """What `look` returns; `otherwise` when it fails or a driver never answers it.

    A look that was given up is not tried again: its thread still hangs.
    """
    if what in _given_up:
        return otherwise
    found: list[_T] = []

    def attempt() -> None:
        try:
            found.append(look())
        except Exception as error:  # noqa: BLE001  # firmware and drivers say anything
            log.debug("probe_failed", what=what, reason=str(error))

    thread = threading.Thread(target=attempt, name=f"probe-{what}", daemon=True)
    thread.start()
    thread.join(_READ_TIMEOUT_S)
    if thread.is_alive():
        log.warning("probe_given_up", what=what)
        _given_up.add(what)
        return otherwise
    return found[0] if found else otherwise
