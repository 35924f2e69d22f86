"""The parts of a multipart/form-data body, for the one route that takes a file. Pure.

Parts are kept or left out as they are; nothing is decoded but the text of small fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stoker.api.checks import keep_alive
from stoker.api.fields import KEEP_ALIVE
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
    boundary: bytes  # the leading dashes included
    keep_alive_s: float | None = None  # as in `fields.Request`

    def named(self, model: str) -> bytes:
        """The body with a part that names the model, for a server that has several."""
        part = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
        return self.boundary + part % model.encode() + self.body


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
    model, keep, kept, ignored = "", None, [], []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        named = _NAME.search(head)
        name = named[1].decode("latin-1") if named else ""
        if name == "model":
            model = content[:300].decode("utf-8", errors="replace")
        elif name == KEEP_ALIVE:
            keep = keep_alive(name, content[:64].decode("utf-8", errors="replace"))
        elif name in ALLOWED:
            kept.append(part)
        else:
            ignored.append(name)
    joined = b"".join(b"\r\n" + boundary + part for part in [*kept, b"--\r\n"])
    body = joined.removeprefix(b"\r\n")
    return Form(model, body, tuple(sorted(ignored)), boundary, keep)
