"""How things are said in a menu: names made harmless and short, sizes, times, rates. Pure.

The figures look as in the `stoker` command (tests/contract/test_tray_shapes.py compares them).
A number that cannot be true gives no text at all.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final

LONGEST_NAME: Final = 44  # characters; owner/repository:QUANT of most models
_MOST_READ: Final = 1000  # characters of a foreign text that are looked at; both its ends
_JOINERS: Final = frozenset("\u200c\u200d")  # Persian, Hindi and emoji need them
_ISOLATE: Final = ("\u2068", "\u2069")  # what is between has its own direction
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})

_KILO: Final = 1000  # decimal, as disks and download pages count
_MOST_BYTES: Final = 10**18
_MOST_S: Final = 100 * 86400.0
_MOST_RATE: Final = 10**7
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400
_THREE_FIGURES: Final = 100
_TEN: Final = 10


# --- foreign text ----------------------------------------------------------------------------


def clean(text: str) -> str:
    """On one line, without control characters: nothing that moves, hides or reverses others."""
    if len(text) > _MOST_READ:
        text = text[: _MOST_READ // 2] + text[-_MOST_READ // 2 :]
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            char for char in text if char.isprintable() or char in _JOINERS or char.isspace()
        )
    return " ".join(text.split()).strip("\u200c\u200d")


def line(text: str, longest: int) -> str:
    """Cleaned, and cut at its end to at most so many characters."""
    text = clean(text)
    if len(text) <= longest:
        return text
    return f"{text[: _boundary(text, longest - 1)].rstrip()}…"


def name(text: str, longest: int = LONGEST_NAME) -> str:
    """A name as a part of a sentence: cut in its middle, because both ends tell models apart.

    At most two characters longer than ``longest``, when its script runs from right to left.
    """
    text = clean(text)
    if len(text) > longest:
        tail = longest // 3
        head = text[: _boundary(text, longest - tail - 1)]
        text = f"{head}…{text[_boundary(text, len(text) - tail) :]}"[:longest]
    return _isolated(text) if text else "unnamed"


def _boundary(text: str, at: int) -> int:
    """The place at or before ``at`` where no mark is torn from its letter."""
    while at > 0 and _belongs_to_the_last(text[at]):
        at -= 1
    return at


def _belongs_to_the_last(char: str) -> bool:
    return char in _JOINERS or unicodedata.category(char).startswith("M")


def _isolated(text: str) -> str:
    """So that a name from right to left does not turn the figures around it."""
    if text.isascii() or not any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in text):
        return text
    return text.join(_ISOLATE)


def listed(parts: Iterable[str]) -> str:
    """The parts that say something, with commas."""
    return ", ".join(part for part in parts if part)


# --- figures ---------------------------------------------------------------------------------


def known(number: float | None, most: float) -> float | None:
    """The number, when it can be true: not negative, not endless, at most ``most``."""
    return number if number is not None and 0 <= number <= most else None


def size(count: float | None) -> str:
    """Bytes: ``98 MB``, ``1.2 GB``; nothing when not known."""
    value = known(count, _MOST_BYTES)
    if value is None:
        return ""
    if value < _KILO:
        return f"{value:.0f} bytes"
    value, units = value / _KILO, ["kB", "MB", "GB", "TB"]
    while round(value) >= _KILO and len(units) > 1:
        value /= _KILO
        del units[0]
    digits = 1 if units[0] in {"GB", "TB"} and value < _THREE_FIGURES else 0
    return f"{value:.{digits}f} {units[0]}"


def part(used: float | None, total: float | None) -> str:
    """``5.1 of 24.0 GB``, ``512 MB of 8.2 GB``; the part alone when the whole is not known."""
    some, whole = size(used), size(total)
    if not some or not whole:
        return some
    figure, _, unit = some.partition(" ")
    return f"{figure if whole.endswith(f' {unit}') else some} of {whole}"


def duration(seconds: float | None) -> str:
    """``5 s``, ``3 min``, ``2 h 5 min``; nothing when not known."""
    value = known(seconds, _MOST_S)
    if value is None:
        return ""
    whole = round(value)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def left(seconds: float | None) -> str:
    """``about 3 s``; in steps of five from ten seconds on, so that it does not flicker."""
    value = known(seconds, _MOST_S)
    if value is None:
        return ""
    whole = max(1, round(value))
    return f"about {duration(whole if whole <= _TEN else 5 * round(whole / 5))}"


def speed(tokens_per_s: float | None) -> str:
    """``31 tokens/s``, ``4.2 tokens/s``; nothing when there are none."""
    value = known(tokens_per_s, _MOST_RATE)
    if not value:
        return ""
    return f"{value:.{0 if value >= _TEN else 1}f} tokens/s"


def percent(done: float, total: float | None) -> str:
    """``37 %``; 100 only when it is done, nothing when the whole is not known."""
    value, whole = known(done, _MOST_BYTES), known(total, _MOST_BYTES)
    if value is None or not whole:
        return ""
    return f"{min(100 * value // whole, 100):.0f} %"


def plural(count: int, one: str) -> str:
    return f"{count} {one}{'' if count == 1 else 's'}"
