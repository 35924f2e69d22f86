"""Modules that are imported when they are first used: an idle daemon does without them.

    if TYPE_CHECKING:
        import httpx2
    else:
        httpx2 = late("httpx2")

Only for what costs megabytes and may never be needed in a daemon's life.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class late:  # noqa: N801  # reads as the statement that it stands for
    """Stands in for a module; each attribute is looked up in the real one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
