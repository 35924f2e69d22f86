"""What a stream says while its client waits: comments of server-sent events. Pure.

Every client skips a comment; a person who looks at the bytes learns what goes on. Plain ASCII,
one line, and no text of a client's. Not for: when it is said (`reply`).
"""

from __future__ import annotations

import re
from typing import Final

from stoker.lifecycle.effects import Waiting
from stoker.types import ModelState

_LONGEST_NAME: Final = 100
_NOT_PLAIN: Final = re.compile(r"[^ -~]")

READING: Final = b": reading the prompt\n\n"  # the engine has it, and has not answered yet


def queued(waiting: Waiting | None) -> bytes:
    """For a request that waits for its model; None when it is not known where it stands."""
    if waiting is None:
        return _comment("waiting for the model")
    place = f"queued {waiting.position} of {waiting.queued}" if waiting.queued > 1 else ""
    parts = [place, _what_for(waiting)]
    return _comment(", ".join(part for part in parts if part))


def asking(upstream: str) -> bytes:
    """For a request that another server has."""
    return _comment(f"waiting for {_plain(upstream)}")


def _what_for(waiting: Waiting) -> str:
    if waiting.current is not None:
        time = _progress(waiting.loading_s, waiting.expected_s)
        return f"{_plain(str(waiting.current))} is loading{time}"
    if waiting.ahead:
        busy = len(waiting.ahead)
        who = _plain(str(waiting.ahead[0])) if busy == 1 else f"{busy} models"
        return f"{who} must end {'its' if busy == 1 else 'their'} answers first"
    if waiting.state is ModelState.READY:
        return f"{_plain(str(waiting.model))} is ready"
    return f"{_plain(str(waiting.model))} is not loaded yet"


def _progress(loading_s: float | None, expected_s: float | None) -> str:
    """``, 4 s of about 12 s``; what was expected is left out when it takes longer."""
    if loading_s is None:
        return ""
    so_far = max(0, round(loading_s))
    expected = 0 if expected_s is None else max(1, round(expected_s))
    return f", {so_far} s of about {expected} s" if so_far <= expected else f", {so_far} s so far"


def _plain(name: str) -> str:
    return _NOT_PLAIN.sub("?", name[:_LONGEST_NAME])


def _comment(text: str) -> bytes:
    return f": {text}\n\n".encode("ascii")
