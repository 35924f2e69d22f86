"""The small file beside a partial: what it is part of, and which bytes are there. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stoker.store.verify import Expected

MAX_BYTES: Final = 4 << 20
_Offset = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class PartialKey:
    """What a partial is part of. ``origin`` is a canonical URL or a path, free of secrets.

    Without a promised digest the origin tells partials apart; it must then change when the bytes
    behind it do (by a revision or an entity tag).
    """

    expected: Expected
    origin: str


class Sidecar(BaseModel):
    """Format 1. A partial whose sidecar does not match is started again, never repaired."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    sha256: str | None
    size: _Offset | None
    origin: str
    ranges: list[tuple[_Offset, _Offset]]

    def belongs_to(self, key: PartialKey) -> bool:
        """Whether its bytes may be continued for this key."""
        expected = key.expected
        if expected.size is not None and self.size != expected.size:
            return False
        if expected.digest is not None:
            return self.sha256 == expected.digest.hex  # any origin: the digest decides
        return self.sha256 is None and self.origin == key.origin


def dumps(key: PartialKey, size: int | None, ranges: list[tuple[int, int]]) -> bytes:
    digest = key.expected.digest
    sidecar = Sidecar(
        sha256=digest.hex if digest else None, size=size, origin=key.origin, ranges=ranges
    )
    return sidecar.model_dump_json().encode()


def loads(raw: bytes, actual_bytes: int) -> Sidecar | None:
    """None for anything that cannot be trusted; ``actual_bytes`` is the length of the partial."""
    try:
        sidecar = Sidecar.model_validate_json(raw)
    except ValidationError:
        return None
    limit = min(actual_bytes, sidecar.size if sidecar.size is not None else actual_bytes)
    sound = all(start < end <= limit for start, end in sidecar.ranges)
    return sidecar if sound else None
