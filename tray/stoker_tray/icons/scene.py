"""The one description of the icon: a flame on a grate, and what each state makes of it.

Pure. A scene is a list of layers, the lowest first, in pixels of one size. Edges that run along
the pixel grid are placed on it and strokes keep a whole or half width, so that the small sizes
stay sharp. A state is told by its shape; inks only say which part a layer belongs to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from stoker_tray.face import PROGRESS_STEPS, Badge, IconKey, IconState
from stoker_tray.icons.outline import Box, Outline, bar, bow, disc, polygon, rectangle


class Ink(StrEnum):
    FLAME = "flame"
    CORE = "core"  # the flame's hot heart: only a picture in colours shows it
    GRATE = "grate"
    RING = "ring"
    MARK = "mark"
    GROUND = "ground"  # behind a picture in colours


@dataclass(frozen=True, slots=True)
class Layer:
    """A filled outline. Without ink it cuts away what lies below it."""

    outline: Outline
    ink: Ink | None
    faint: bool = False


FLAME = Outline(
    (0.56, 0.0),
    (
        ((0.64, 0.19), (0.92, 0.36), (0.92, 0.66)),
        ((0.92, 0.87), (0.74, 1.00), (0.50, 1.00)),
        ((0.26, 1.00), (0.08, 0.86), (0.08, 0.64)),
        ((0.08, 0.47), (0.17, 0.38), (0.22, 0.24)),
        ((0.25, 0.34), (0.30, 0.40), (0.38, 0.42)),
        ((0.47, 0.33), (0.53, 0.18), (0.56, 0.00)),
    ),
)
CORE = Outline(
    (0.50, 0.0),
    (
        ((0.55, 0.25), (0.85, 0.42), (0.85, 0.66)),
        ((0.85, 0.86), (0.70, 1.00), (0.50, 1.00)),
        ((0.30, 1.00), (0.15, 0.86), (0.15, 0.66)),
        ((0.15, 0.42), (0.45, 0.25), (0.50, 0.00)),
    ),
)
HEARTH = Outline(  # what lies behind the mark in a picture in colours: the door of a furnace
    (0.0, 0.40),
    (
        ((0.0, 0.15), (0.20, 0.0), (0.50, 0.0)),
        ((0.80, 0.0), (1.0, 0.15), (1.0, 0.40)),
        ((1.0, 0.90),),
        ((1.0, 0.96), (0.96, 1.0), (0.90, 1.0)),
        ((0.10, 1.0),),
        ((0.04, 1.0), (0.0, 0.96), (0.0, 0.90)),
    ),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """The measures of one size, fitted to its pixels."""

    size: int

    @property
    def margin(self) -> int:
        return self.size // 20  # the smallest icons need every pixel

    @property
    def stroke(self) -> float:
        return max(1.5, round(self.size * 0.17) / 2)

    @property
    def gap(self) -> int:
        return max(1, round(self.size * 0.05))

    @property
    def bar(self) -> int:
        return max(2, round(self.size * 0.09))

    @property
    def badge(self) -> Box:
        """The upper right corner: a flame is narrow there."""
        side = 2 * round(self.size * 0.24)
        return Box(self.size - side, 0, side, side)

    @property
    def centre(self) -> float:
        return self.size / 2


def scene(key: IconKey, size: int) -> tuple[Layer, ...]:
    """Everything to be drawn for a state in a square of this many pixels."""
    grid = Grid(size)
    ringed = key.progress is not None or key.state is IconState.LOADING
    if ringed:
        base, flame = _ring(key, grid), _flame_in_ring(grid)
    else:
        base, flame = (_grate(grid),), _flame_on_grate(grid, badged=key.badge is not None)
    return (*base, *_state(key, grid, flame, ringed=ringed), *_badge(key.badge, grid))


# --- where the flame burns -------------------------------------------------------------------


def _grate(grid: Grid) -> Layer:
    edge = grid.margin + round(grid.size * 0.04)
    top = grid.size - grid.margin - grid.bar
    return Layer(rectangle(Box(edge, top, grid.size - 2 * edge, grid.bar)), Ink.GRATE)


def _flame_on_grate(grid: Grid, *, badged: bool) -> Box:
    height = grid.size - 2 * grid.margin - grid.bar - grid.gap
    width = 2 * round(height * 0.42)
    aside = round(grid.size * 0.09) if badged else 0
    return Box(grid.centre - width / 2 - aside, grid.margin, width, height)


def _flame_in_ring(grid: Grid) -> Box:
    room = grid.centre - grid.margin - grid.stroke
    height = round(room * 1.5)
    width = 2 * round(height * 0.42)
    return Box(grid.centre - width / 2, round(grid.centre - height * 0.56), width, height)


def _ring(key: IconKey, grid: Grid) -> tuple[Layer, ...]:
    """Show progress, or dashes where it is unknown. It leaves out a badge's corner."""
    centre = (grid.centre, grid.centre)
    radius = grid.centre - grid.margin - grid.stroke / 2

    def arc(begin: float, end: float, *, faint: bool = False) -> Layer:
        return Layer(bow(centre, radius, grid.stroke, begin, end), Ink.RING, faint)

    if key.progress is None:
        return tuple(arc(turn - 8, turn + 8) for turn in range(0, 360, 45))
    begin, whole = (84, 282) if key.badge else (0, 360)
    track = arc(begin, begin + whole, faint=True)
    if key.progress == 0:
        return (track,)
    return (track, arc(begin, begin + whole * key.progress / PROGRESS_STEPS))


# --- what the flame does ---------------------------------------------------------------------


def _state(key: IconKey, grid: Grid, flame: Box, *, ringed: bool) -> tuple[Layer, ...]:
    body = FLAME.within(flame)
    core = CORE.within(_part(flame, 0.24, 0.50, 0.52, 0.42))
    match key.state:
        case IconState.OFF:
            return (*_hollow(body, Ink.GRATE, grid), *_slash(grid, flame, ringed=ringed))
        case IconState.IDLE:
            ember = () if ringed else (_ember(flame),)
            return (*_hollow(body, Ink.FLAME, grid), *ember)
        case IconState.LOADING:
            return (Layer(body, Ink.FLAME, faint=True), _half(body, flame))
        case IconState.READY:
            return (Layer(body, Ink.FLAME), Layer(core, Ink.CORE))
        case IconState.BUSY:
            heat = () if ringed or key.badge else _heat(grid, flame)
            return (Layer(body, Ink.FLAME), Layer(core, None), *heat)
        case IconState.ATTENTION:
            return (Layer(body, Ink.FLAME), *_exclamation(grid, flame))


def _hollow(body: Outline, ink: Ink, grid: Grid) -> tuple[Layer, ...]:
    return (Layer(body, ink), Layer(body.inset(grid.stroke), None))


def _part(box: Box, x: float, y: float, width: float, height: float) -> Box:
    """Take a part of a box, in fractions of it."""
    return Box(
        box.x + x * box.width, box.y + y * box.height, width * box.width, height * box.height
    )


def _slash(grid: Grid, flame: Box, *, ringed: bool) -> tuple[Layer, ...]:
    middle = flame.x + flame.width / 2
    reach = flame.height * (0.36 if ringed else 0.46)  # it must not cut the ring
    low = flame.y + flame.height - grid.stroke / 2
    begin, end = (middle - reach, low - 2 * reach), (middle + reach, low)
    return (
        Layer(bar(begin, end, grid.stroke + 2 * grid.gap), None),
        Layer(bar(begin, end, grid.stroke), Ink.GRATE),
    )


def _ember(flame: Box) -> Layer:
    centre = (flame.x + flame.width / 2, flame.y + flame.height * 0.70)
    return Layer(disc(centre, max(1.0, flame.width * 0.15)), Ink.FLAME)


def _half(body: Outline, flame: Box) -> Layer:
    return Layer(body.below(flame.y + round(flame.height * 0.55)), Ink.FLAME)


def _heat(grid: Grid, flame: Box) -> tuple[Layer, ...]:
    """Draw a bow on each side: the air moves."""
    radius = flame.height * 0.5
    reach = grid.centre - grid.margin - grid.stroke / 2
    height = flame.y + flame.height * 0.6
    return tuple(
        Layer(
            bow((grid.centre + side * (reach - radius), height), radius, grid.stroke, *angles),
            Ink.FLAME,
        )
        for side, angles in ((-1, (240, 300)), (1, (60, 120)))
    )


def _exclamation(grid: Grid, flame: Box) -> tuple[Layer, ...]:
    width = max(2, round(grid.size * 0.125))
    left = round(flame.x + flame.width * 0.56 - width / 2)  # under the tip, beside the notch
    top, height = round(flame.y + flame.height * 0.35), round(flame.height * 0.32)
    dot = top + height + grid.gap
    return (
        Layer(rectangle(Box(left, top, width, height)), None),
        Layer(rectangle(Box(left, dot, width, width)), None),
    )


# --- badges ----------------------------------------------------------------------------------


def _badge(badge: Badge | None, grid: Grid) -> tuple[Layer, ...]:
    match badge:
        case None:
            return ()
        case Badge.DOWNLOADING:
            return _arrow(grid)
        case Badge.EXPOSED:
            return _waves(grid)


def _arrow(grid: Grid) -> tuple[Layer, ...]:
    box, gap = grid.badge, grid.gap
    half, neck = max(1, round(box.width * 0.13)), round(box.height * 0.45)
    middle, right, bottom = box.x + box.width / 2, box.x + box.width, box.y + box.height
    halo = polygon(
        (box.x - gap, 0),
        (grid.size, 0),
        (grid.size, neck + gap),
        (middle, bottom + 2 * gap),
        (box.x - 2 * gap, neck - gap),
    )
    arrow = polygon(
        (middle - half, 0),
        (middle + half, 0),
        (middle + half, neck),
        (right, neck),
        (middle, bottom),
        (box.x, neck),
        (middle - half, neck),
    )
    return (Layer(halo, None), Layer(arrow, Ink.MARK))


_SPREAD = 38  # degrees to each side


def _waves(grid: Grid) -> tuple[Layer, ...]:
    """Draw a sender's mark: whoever is near can hear it."""
    box, gap = grid.badge, grid.gap
    stroke = max(1.2, box.width * 0.16)
    radius = (box.width - stroke) / 2 / math.sin(math.radians(_SPREAD))
    foot = (box.x + box.width / 2, box.y + stroke / 2 + radius)
    halo = polygon(
        (box.x - gap, 0),
        (grid.size, 0),
        (grid.size, foot[1]),
        (foot[0], foot[1] + 3 * gap),
        (box.x - gap, foot[1] - gap * 2),
    )
    return (
        Layer(halo, None),
        Layer(disc(foot, max(1.0, box.width * 0.14)), Ink.MARK),
        Layer(bow(foot, radius * 0.52, stroke, -_SPREAD, _SPREAD), Ink.MARK),
        Layer(bow(foot, radius, stroke, -_SPREAD, _SPREAD), Ink.MARK),
    )


# --- the ground of a picture in colours ------------------------------------------------------


def inset(size: int) -> int:
    """How far the mark stays away from the edge of its ground."""
    return size // 9


def ground(size: int) -> Layer:
    return Layer(HEARTH.within(Box(0, 0, size, size)), Ink.GROUND)
