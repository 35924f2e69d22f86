"""The parts of a multipart/form-data body, for the one route that takes a file. Pure.

Parts are kept or left out as they are; nothing is decoded but the text of small fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stoker.errors import BadRequest

ALLOWED: Final = frozenset(
    (
        "file",
        "language",
        "prompt",
        "response_format",
        "stream",
        "temperature",
        "timestamp_granularities[]",
    )
)
_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))')
_NAME: Final = re.compile(
    rb'^content-disposition: *form-data;[^\r\n]*?\bname="([^"\r\n]{1,64})"',
    re.IGNORECASE | re.MULTILINE,
)
_MAX_PARTS: Final = 32


@dataclass(frozen=True, slots=True)
class Form:
    """What goes to the engine, and the model that was asked for ("" when none was)."""

    model: str
    body: bytes
    ignored: tuple[str, ...]


def parse(content_type: str, body: bytes) -> Form:
    """Keep the allowed parts. Raises BadRequest."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise BadRequest("the multipart body has no boundary")
    boundary = b"--" + (match[1] or match[2]).encode("latin-1")
    parts = (b"\r\n" + body).split(b"\r\n" + boundary)
    if len(parts) < 3 or parts[0] or not parts[-1].startswith(b"--"):  # noqa: PLR2004
        raise BadRequest("the multipart body is cut or malformed")
    if len(parts) > _MAX_PARTS:
        raise BadRequest(f"the multipart body has more than {_MAX_PARTS} parts")
    model, kept, ignored = "", [], []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        named = _NAME.search(head)
        name = named[1].decode("latin-1") if named else ""
        if name == "model":
            model = content[:300].decode("utf-8", errors="replace")
        elif name in ALLOWED:
            kept.append(part)
        else:
            ignored.append(name)
    joined = b"".join(b"\r\n" + boundary + part for part in [*kept, b"--\r\n"])
    return Form(model, joined.removeprefix(b"\r\n"), tuple(sorted(ignored)))
