"""Windows' icon format: a directory of frames, small ones as plain bitmaps."""

from __future__ import annotations

import io
import struct

from PIL.Image import Image

_LARGE = 256  # px; a frame this large is stored as PNG, as Windows itself does


def ico(pictures: list[Image]) -> bytes:
    """Make an icon file with a frame for each picture; Pillow's own cannot mix the two kinds."""
    frames = [_png(picture) if picture.width >= _LARGE else bitmap(picture) for picture in pictures]
    offset = 6 + 16 * len(frames)
    head = struct.pack("<HHH", 0, 1, len(frames))
    for picture, frame in zip(pictures, frames, strict=True):
        side = picture.width % 256  # 0 means 256
        head += struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(frame), offset)
        offset += len(frame)
    return head + b"".join(frames)


def bitmap(picture: Image) -> bytes:
    """Make the bits of one icon: header, rows from the bottom up, and an unused mask.

    The mask is of the time before icons had alpha; it must be there all the same.
    """
    side = picture.width
    pixels = picture.tobytes("raw", "BGRA", 0, -1)
    mask = bytes((side + 31) // 32 * 4 * side)
    head = struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 32, 0, len(pixels), 0, 0, 0, 0)
    return head + pixels + mask


def _png(picture: Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
