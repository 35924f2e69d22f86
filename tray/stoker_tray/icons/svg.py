"""The application's mark as SVG, from the same scenes as the pictures."""

from __future__ import annotations

from stoker_tray.face import IconKey, IconState
from stoker_tray.icons.outline import Outline, Point
from stoker_tray.icons.palette import INKS
from stoker_tray.icons.scene import Ink, Layer, ground, inset, scene

MARK = IconKey(IconState.READY)  # nothing is cut out of it: plain paths are enough

_SYMBOLIC_SIZE = 16  # the grid that desktops draw symbolic icons on
_COLOUR_SIZE = 128


def symbolic() -> str:
    """One colour, which a desktop replaces by its own: it recolours plain filled paths only."""
    layers = [layer for layer in scene(MARK, _SYMBOLIC_SIZE) if layer.ink is not Ink.CORE]
    return _document(_SYMBOLIC_SIZE, "".join(_path(layer, "#bebebe") for layer in layers))


def colour() -> str:
    edge = inset(_COLOUR_SIZE)
    mark = "".join(_coloured(layer) for layer in scene(MARK, _COLOUR_SIZE - 2 * edge))
    floor = _coloured(ground(_COLOUR_SIZE))
    return _document(_COLOUR_SIZE, f'{floor}<g transform="translate({edge} {edge})">{mark}</g>')


def _document(size: int, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}"'
        f' viewBox="0 0 {size} {size}"><title>Stoker</title>{body}</svg>\n'
    )


def _coloured(layer: Layer) -> str:
    return _path(layer, "#{:02x}{:02x}{:02x}".format(*INKS[layer.ink or Ink.GROUND]))


def _path(layer: Layer, fill: str) -> str:
    return f'<path fill="{fill}" d="{_commands(layer.outline)}"/>'


def _commands(outline: Outline) -> str:
    steps = [f"{'L' if len(points) == 1 else 'C'}{_numbers(points)}" for points in outline.segments]
    return f"M{_numbers((outline.start,))}{''.join(steps)}Z"


def _numbers(points: tuple[Point, ...]) -> str:
    return " ".join(f"{value:.3f}".rstrip("0").rstrip(".") for point in points for value in point)
