from __future__ import annotations

from pathlib import Path

from stoker.api.allowed import REFUSED
from stoker.api.routes import ROUTES

_TEXT = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_route_is_documented() -> None:
    """docs/api.md names each path with its method."""
    assert [path for path in ROUTES if f"`POST {path}`" not in _TEXT] == []


def test_every_refused_field_is_documented() -> None:
    """A client's author finds out why."""
    assert [name for name in REFUSED if f"`{name}`" not in _TEXT] == []
