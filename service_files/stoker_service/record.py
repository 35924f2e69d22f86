"""What our own files remember: one line of JSON that the system's tools ignore.

It marks a file as ours, and tells `off` how many folders to remove with it. ASCII, and without two
hyphens in a row, so that it fits into unit files, desktop entries and XML comments alike.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from stoker_service.base import Record

KEY: Final = "X-Stoker-Record"
_LINE: Final = re.compile(rb"X-Stoker-Record=(\{[^\r\n]*\})")
_MOST_BYTES: Final = 64 * 1024  # our files have about two thousand


def line(record: Record) -> str:
    """``X-Stoker-Record={…}``."""
    value = {
        "made": list(record.made),
        "program": list(record.program),
        "environment": dict(record.environment),
        "on_demand": record.on_demand,
        "linger": record.linger,
        "hardened": record.hardened,
    }
    text = json.dumps(value, separators=(",", ":")).replace("-", "\\u002d")
    return f"{KEY}={text}"


def parse(content: bytes) -> Record | None:
    """The record in a file; None when the file is not ours. A broken record is an empty one."""
    found = _LINE.search(content)
    if found is None:
        return None
    try:
        value: Any = json.loads(found[1])
    except (ValueError, RecursionError):
        return Record()
    return Record(
        made=tuple(n for n in _list(value.get("made")) if type(n) is int and n >= 0),
        program=tuple(word for word in _list(value.get("program")) if isinstance(word, str)),
        environment=_pairs(value.get("environment")),
        on_demand=value.get("on_demand") is True,
        linger=value.get("linger") is True,
        hardened=value.get("hardened") is True,
    )


def read(path: Path) -> Record | None:
    """The record of a file; None when there is no such file or it is not ours."""
    if path.is_symlink():  # somebody put another file in this place
        return None
    try:
        with path.open("rb") as stream:
            return parse(stream.read(_MOST_BYTES))
    except OSError:
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        return ()
    return tuple((str(name), word) for name, word in value.items() if isinstance(word, str))
