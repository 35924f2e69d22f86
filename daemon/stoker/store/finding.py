"""One thing that is wrong with a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` is stable, for programs; ``text`` is for people."""

    code: str
    text: str

    def __str__(self) -> str:
        return self.text
