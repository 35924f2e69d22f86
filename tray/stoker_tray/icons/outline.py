"""Closed outlines made of lines and cubic curves: the only geometry that the icons know.

Pure. Lengths are in pixels, y grows downwards, angles are degrees clockwise from the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]
Segment: TypeAlias = tuple[Point, ...]  # one point: a line to it; three: a cubic curve

_WHOLE_TURN = 360  # degrees
_NEAR = 0.98  # lines of a bend that is cut into lines come this much nearer


@dataclass(frozen=True, slots=True)
class Box:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Outline:
    """One closed contour: it ends where it began."""

    start: Point
    segments: tuple[Segment, ...]

    def within(self, box: Box) -> Outline:
        """Map the unit square, in which this was drawn, to a box."""

        def at(point: Point) -> Point:
            return box.x + point[0] * box.width, box.y + point[1] * box.height

        return Outline(at(self.start), tuple(tuple(map(at, s)) for s in self.segments))

    def points(self, steps: int = 12) -> list[Point]:
        """As a polygon; each curve becomes so many lines."""
        found = [self.start]
        for segment in self.segments:
            if len(segment) == 1:
                found.append(segment[0])
            else:
                curve = (found[-1], *segment)
                found += [_on_curve(curve, step / steps) for step in range(1, steps + 1)]
        return found

    def below(self, height: float) -> Outline:
        """Keep the part below a level line."""
        points = self.points()
        kept: list[Point] = []
        for begin, end in _edges(points):
            if (begin[1] < height) != (end[1] < height):
                part = (height - begin[1]) / (end[1] - begin[1])
                kept.append((begin[0] + part * (end[0] - begin[0]), height))
            if end[1] >= height:
                kept.append(end)
        return polygon(*kept)

    def inset(self, width: float) -> Outline:
        """Draw the edge again this far inside: shift each line, drop what came too near to another.

        That happens in a narrow tip: it has no inside.
        """
        edges = [edge for edge in _edges(self.points()) if edge[0] != edge[1]]
        shifted = [point for edge in edges for point in _shifted(edge, width)]
        near = _NEAR * width
        return polygon(*(p for p in shifted if all(_distance(p, edge) >= near for edge in edges)))


Edge: TypeAlias = tuple[Point, Point]


def _edges(points: list[Point]) -> Iterator[Edge]:
    return zip(points, points[1:] + points[:1], strict=True)


def _shifted(edge: Edge, width: float) -> Edge:
    """Shift a line to its right, which is inside: outlines are drawn clockwise."""
    (x0, y0), (x1, y1) = edge
    part = width / math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y0 - y1) * part, (x1 - x0) * part
    return (x0 + dx, y0 + dy), (x1 + dx, y1 + dy)


def _distance(point: Point, edge: Edge) -> float:
    (x0, y0), (x1, y1) = edge
    dx, dy = x1 - x0, y1 - y0
    along = ((point[0] - x0) * dx + (point[1] - y0) * dy) / (dx * dx + dy * dy)
    along = min(1.0, max(0.0, along))
    return math.hypot(point[0] - x0 - along * dx, point[1] - y0 - along * dy)


def _on_curve(curve: tuple[Point, ...], t: float) -> Point:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    x = sum(weight * point[0] for weight, point in zip(weights, curve, strict=True))
    y = sum(weight * point[1] for weight, point in zip(weights, curve, strict=True))
    return x, y


def polygon(*corners: Point) -> Outline:
    return Outline(corners[0], tuple((corner,) for corner in corners[1:]))


def rectangle(box: Box) -> Outline:
    right, bottom = box.x + box.width, box.y + box.height
    return polygon((box.x, box.y), (right, box.y), (right, bottom), (box.x, bottom))


def disc(centre: Point, radius: float) -> Outline:
    return Outline(_on_circle(centre, radius, 0), _arc(centre, radius, 0, 360))


def bar(begin: Point, end: Point, width: float) -> Outline:
    """Draw a straight stroke with round ends."""
    heading = math.degrees(math.atan2(end[0] - begin[0], begin[1] - end[1]))
    side = _on_circle(begin, width / 2, heading - 90)
    return Outline(
        side,
        (
            (_on_circle(end, width / 2, heading - 90),),
            *_arc(end, width / 2, heading - 90, heading + 90),
            (_on_circle(begin, width / 2, heading + 90),),
            *_arc(begin, width / 2, heading + 90, heading + 270),
        ),
    )


def bow(centre: Point, radius: float, width: float, begin: float, end: float) -> Outline:
    """Draw a stroke along a circle, with round ends unless it goes all the way round."""
    outer, inner = radius + width / 2, radius - width / 2
    start, turn = _on_circle(centre, outer, begin), _on_circle(centre, inner, end)
    forth, back = _arc(centre, outer, begin, end), _arc(centre, inner, end, begin)
    if end - begin >= _WHOLE_TURN:
        return Outline(start, (*forth, (turn,), *back))
    front = _arc(_on_circle(centre, radius, end), width / 2, end, end + 180)
    tail = _arc(_on_circle(centre, radius, begin), width / 2, begin + 180, begin + 360)
    return Outline(start, (*forth, *front, *back, *tail))


def _on_circle(centre: Point, radius: float, angle: float) -> Point:
    turn = math.radians(angle)
    return centre[0] + radius * math.sin(turn), centre[1] - radius * math.cos(turn)


def _arc(centre: Point, radius: float, begin: float, end: float) -> tuple[Segment, ...]:
    """Draw curves along a circle, each at most a quarter of it: then they are off by 0.03 %."""
    pieces = max(1, math.ceil(abs(end - begin) / 90 - 1e-9))
    step = (end - begin) / pieces
    handle = radius * 4 / 3 * math.tan(math.radians(step) / 4)
    found = []
    for piece in range(pieces):
        angles = (begin + piece * step, begin + (piece + 1) * step)
        (x0, y0), (x3, y3) = (_on_circle(centre, radius, angle) for angle in angles)
        (dx0, dy0), (dx3, dy3) = (_along(angle, handle) for angle in angles)
        found.append(((x0 + dx0, y0 + dy0), (x3 - dx3, y3 - dy3), (x3, y3)))
    return tuple(found)


def _along(angle: float, length: float) -> Point:
    """Go this far clockwise along a circle."""
    turn = math.radians(angle)
    return length * math.cos(turn), length * math.sin(turn)
