"""How things look in a terminal: sizes, times, tables, colours, JSON. Decides no content."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import IO, Any, Final, Literal

Colour = Literal["bold", "dim", "red", "green", "yellow"]
_COLOURS: Final[dict[Colour, str]] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
}
_HARMLESS: Final = frozenset("\n\t\u200c\u200d")
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400
_THREE_FIGURES: Final = 100
_KILO: Final = 1000  # decimal, as disks and download pages count


def size(count: float | None) -> str:
    """Bytes as a person reads them: ``98 MB``, ``1.2 GB``; ``-`` when unknown."""
    if count is None:
        return "-"
    if count < _KILO:
        return f"{count:.0f} bytes"
    value, units = count / _KILO, ["kB", "MB", "GB", "TB"]
    while round(value) >= _KILO and len(units) > 1:
        value /= _KILO
        del units[0]
    digits = 1 if units[0] in {"GB", "TB"} and value < _THREE_FIGURES else 0
    return f"{value:.{digits}f} {units[0]}"


def duration(seconds: float | None) -> str:
    """Two figures at most: ``5 s``, ``3 min``, ``2 h 5 min``; ``-`` when unknown."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def moment(at: datetime | None) -> str:
    """In local time, to the minute; ``never`` when there was none."""
    return "never" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M")


def clean(text: str) -> str:
    """Without control characters but tab and newline: foreign text must not steer a terminal.

    What languages need stays: wide and unbreakable spaces, and the two joiners of Persian, Hindi
    and emoji.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        for char in text
        if char.isprintable() or char in _HARMLESS or unicodedata.category(char) == "Zs"
    )


def clean_line(text: str) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def in_colour(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(
    text: str,
    colour: Colour,
    stream: IO[str] | None = None,
) -> str:
    """In colour where the stream shows it. The words alone must say everything."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if in_colour(stream or sys.stdout) else text


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()
) -> str:
    """Aligned columns, two spaces apart; the columns named in `right` are right-aligned."""
    lines = [[clean_line(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    texts = [
        "  ".join(
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    texts[0] = paint(texts[0], "bold")
    return "\n".join(texts)


def pairs(rows: Iterable[tuple[str, object]]) -> str:
    """Labels and values, aligned; rows without a value are left out."""
    shown = [(label, clean_line(str(value))) for label, value in rows if value not in {None, ""}]
    width = max((len(label) for label, _ in shown), default=0)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in shown)


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def print_json(value: Any) -> None:
    """One JSON document on stdout; `schemas` models and lists of them included."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def note(text: str) -> None:
    """A remark beside the result: on stderr, so that stdout stays the result."""
    print(clean_line(text), file=sys.stderr)
