"""Text and tables in the width of the terminal. Decides no content."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Final

from stoker.cli.output import clean_line, table

_READABLE: Final = 96  # columns; longer lines are hard to read
_NARROWEST: Final = 40  # columns; below, wrapping helps nobody
_LEAST_LAST: Final = 28  # columns that a wrapped last column needs to be readable
_INDENT: Final = "    "


def columns() -> int | None:
    """Of the terminal; None when the output goes elsewhere, where lines stay whole."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def wrapped(text: str, indent: str = "") -> list[str]:
    """A paragraph; its own leading spaces stay, further lines begin with `indent`."""
    limit = columns()
    start = text[: len(text) - len(text.lstrip())]
    if limit is None:
        return [start + clean_line(text)]
    return textwrap.wrap(
        clean_line(text),
        min(limit, _READABLE),
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fitted(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[str] = ()
) -> str:
    """A table whose last column is text: wrapped in its place, or below its row if need be."""
    limit = columns()
    cells = [[clean_line(str(cell)) for cell in row] for row in rows]
    lengths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    room = (limit or 0) - sum(lengths[:-1]) - 2 * (len(headers) - 1)
    if limit is None or lengths[-1] <= room:
        return table(headers, cells, right=right)
    if room >= _LEAST_LAST:
        return table(headers, _continued(cells, room), right=right)
    head, *lines = table(headers[:-1], [row[:-1] for row in cells], right=right).splitlines()
    found = [head]
    for line, row in zip(lines, cells, strict=True):
        found += [line, *_below(row[-1], limit)]
    return "\n".join(found)


def _continued(rows: Sequence[Sequence[str]], room: int) -> list[list[str]]:
    """With further lines, empty but for the last column."""
    found: list[list[str]] = []
    for row in rows:
        first, *more = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        found.append([*row[:-1], first])
        found += [[*("" for _ in row[:-1]), part] for part in more]
    return found


def _below(text: str, limit: int) -> list[str]:
    return textwrap.wrap(
        text, limit, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )
