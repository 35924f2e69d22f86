"""Comparing pictures of a screen: where something appeared, and which row of a menu lights up."""

from __future__ import annotations

from PIL import Image, ImageChops

VISIBLE = 24  # of 255: weaker differences are shadows and smoothing
SOLID = 0.25  # of a menu's height: the edge of a row that lights up beside it is lower
LIT = 0.6  # of a menu's width: new text changes less of a line, a highlight nearly all

Box = tuple[int, int, int, int]  # left, top, right, bottom; as Pillow counts


def difference(before: Image.Image, after: Image.Image) -> Image.Image:
    """White where the two differ visibly in any colour, else black."""
    red, green, blue = ImageChops.difference(before, after).split()
    strongest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return strongest.point(lambda value: 255 if value > VISIBLE else 0)


def changed(before: Image.Image, after: Image.Image) -> Box | None:
    """The smallest box that holds every visible difference."""
    return difference(before, after).getbbox()


def appeared(before: Image.Image, after: Image.Image, covered: Box) -> Box | None:
    """The box of what has appeared, leaving out the box `covered` and thin things beside it."""
    mask = difference(before, after)
    mask.paste(0, covered)
    box = mask.getbbox()
    if box is None:
        return None
    left, top, _, bottom = box
    part = mask.crop(box)
    means = part.resize((part.width, 1), Image.Resampling.BOX).tobytes()  # per column, of 255
    solid = [x for x, mean in enumerate(means) if mean >= max(means) * SOLID]
    return left + solid[0], top, left + solid[-1] + 1, bottom


def middle(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def highlighted(before: Image.Image, after: Image.Image, menu: Box, y: int) -> Box | None:
    """The row of the menu around the screen's line `y`, if it has lit up as a whole."""
    left, top, right, bottom = menu
    width = right - left
    part = difference(before.crop(menu), after.crop(menu))
    means = part.resize((1, part.height), Image.Resampling.BOX).tobytes()  # per line, of 255
    lit = [mean >= 255 * LIT for mean in means]
    first = last = y - top
    if width < 1 or not lit[first]:
        return None
    while first > 0 and lit[first - 1]:
        first -= 1
    while last + 1 < bottom - top and lit[last + 1]:
        last += 1
    return left, top + first, right, top + last + 1
