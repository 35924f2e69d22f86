"""Writes the icon files that installers put in place, and a sheet of all pictures to look at."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from stoker_tray.face import PROGRESS_STEPS, Badge, IconKey, IconState
from stoker_tray.icons import Theme, svg
from stoker_tray.icons.ico import ico
from stoker_tray.icons.paint import Picture, picture

PNG_SIZES: Final = (16, 22, 24, 32, 48, 64, 128, 256, 512)
ICO_SIZES: Final = (16, 20, 24, 32, 40, 48, 64, 128, 256)
ICNS_SIZES: Final = (32, 64, 128, 256, 512, 1024)  # those that a macOS icon file has a name for


def export(folder: Path) -> tuple[Path, ...]:
    """Write every file below a folder and return their paths, sorted.

    `hicolor/` is laid out as a desktop's icon theme: copy it into /usr/share/icons.
    """
    files = {
        "hicolor/scalable/apps/stoker.svg": svg.colour().encode(),
        "hicolor/symbolic/apps/stoker-symbolic.svg": svg.symbolic().encode(),
        "stoker.ico": ico([_mark(size) for size in ICO_SIZES]),
        "stoker.icns": _icns([_mark(size) for size in ICNS_SIZES]),
        "contact-sheet.png": _png(contact_sheet()),
    }
    for size in PNG_SIZES:
        files[f"hicolor/{size}x{size}/apps/stoker.png"] = _png(_mark(size))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tuple(sorted(folder / name for name in files))


def _mark(size: int) -> Picture:
    return picture(svg.MARK, size, Theme.COLOUR)


def _png(drawn: Picture) -> bytes:
    out = io.BytesIO()
    drawn.save(out, "PNG", optimize=True)
    return out.getvalue()


def _icns(pictures: list[Picture]) -> bytes:
    out = io.BytesIO()
    pictures[-1].save(out, "ICNS", append_images=pictures)
    return out.getvalue()


# --- contact sheet ---------------------------------------------------------------------------

_SHEET_SIZES = (16, 22, 24, 32, 48)
_ZOOM = 4  # the size of most panels, enlarged to judge single pixels
_ZOOMED = 22
_CELL = _ZOOM * _ZOOMED + 8
_TITLE = 44  # px of height for a column's names


_drawn = cache(picture)  # most stand on the sheet twice


def contact_sheet() -> Picture:
    """All states, badges and steps in every theme, each on the ground it is made for."""
    panels = (
        (Theme.LIGHT, (255, 255, 255)),
        (Theme.DARK, (0, 0, 0)),
        (Theme.TEMPLATE, (222, 222, 222)),
        (Theme.COLOUR, (255, 255, 255)),
        (Theme.COLOUR, (40, 40, 44)),
    )
    keys = _sheet_keys()
    rows = [(size, 1) for size in _SHEET_SIZES] + [(_ZOOMED, _ZOOM)]
    height = sum(size * zoom + 8 for size, zoom in rows)
    sheet = Image.new("RGB", (_CELL * len(keys), _TITLE + height * len(panels)), (255, 255, 255))
    _write_titles(sheet, keys)
    top = _TITLE
    for theme, ground in panels:
        sheet.paste(ground, (0, top, sheet.width, top + height))
        for size, zoom in rows:
            _draw_row(sheet, top + 4, keys, (theme, size, zoom))
            top += size * zoom + 8
    return sheet


def _sheet_keys() -> list[IconKey]:
    steps = (0, PROGRESS_STEPS // 2, PROGRESS_STEPS)
    return [
        *(IconKey(state) for state in IconState),
        *(IconKey(IconState.LOADING, None, step) for step in steps),
        *(IconKey(state, Badge.EXPOSED) for state in IconState if state is not IconState.OFF),
        *(IconKey(state, Badge.DOWNLOADING) for state in IconState),
        *(IconKey(IconState.READY, Badge.DOWNLOADING, step) for step in steps),
        *(IconKey(state, Badge.DOWNLOADING, 5) for state in IconState),
    ]


def _write_titles(sheet: Picture, keys: list[IconKey]) -> None:
    pen = ImageDraw.Draw(sheet)
    for column, key in enumerate(keys):
        step = "" if key.progress is None else f"{key.progress}/{PROGRESS_STEPS}"
        pen.text((column * _CELL + 4, 2), f"{key.state}\n{key.badge or ''}\n{step}", fill=(0, 0, 0))


def _draw_row(sheet: Picture, top: int, keys: list[IconKey], how: tuple[Theme, int, int]) -> None:
    theme, size, zoom = how
    for column, key in enumerate(keys):
        side = size * zoom
        drawn = _drawn(key, size, theme).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(drawn, (column * _CELL + 4, top), drawn)
