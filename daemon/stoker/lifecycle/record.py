"""What became of loads and workers: counted for `/metrics`, written down for the history.

One call for each thing that happened, whoever wants to know of it. Not for: what clients are told
(`announce`), the log, or requests: what people ask is their own business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stoker.history import Kind
from stoker.metrics import Metrics
from stoker.types import ModelId, ModelState

# Kind, name, seconds, result. Must neither wait nor raise.
Note = Callable[[Kind, str, float, str], None]

CANCELLED: Final = "cancelled"  # the result of a load that nobody waits for any more
_CRASHED: Final = "crashed"


def nobody(kind: Kind, name: str, seconds: float, result: str) -> None:
    """A note that nobody reads."""


class Record:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(self, metrics: Metrics, note: Note = nobody) -> None:
        self._metrics = metrics
        self._note = note

    def waited(self, model: ModelId, seconds: float) -> None:
        """A request got its place at a worker; 0 when it found one free."""
        self._metrics.model(str(model)).waited(seconds)

    def loaded(self, model: ModelId, seconds: float) -> None:
        """A load has led to a ready worker."""
        self._metrics.model(str(model)).load_ended("ok", seconds)
        self._note(Kind.LOAD, str(model), seconds, ModelState.READY.value)

    def not_loaded(self, model: ModelId, seconds: float, result: str) -> None:
        """A load was `CANCELLED`, or failed with this error code."""
        self._metrics.model(str(model)).load_ended(result)
        self._note(Kind.LOAD, str(model), seconds, result)

    def renewed(self, model: ModelId) -> None:
        """Another worker took over from one that is ready."""
        self._metrics.model(str(model)).load_ended("renewed")

    def left(self, model: ModelId, served_s: float, why: str) -> None:
        """The worker was stopped, and is gone, so long after it became ready."""
        self._metrics.model(str(model)).left(why)
        self._note(Kind.UNLOAD, str(model), served_s, why)

    def crashed(self, model: ModelId, served_s: float, cause: str) -> None:
        """The worker ended by itself; ``cause`` is its failure's kind, or an error code."""
        self._metrics.model(str(model)).left(_CRASHED)
        self._note(Kind.CRASH, str(model), served_s, cause)

    def switched(self, model: ModelId, seconds: float, result: str) -> None:
        """The user changed to this model: `ready`, or the error code that hindered it."""
        self._note(Kind.SWITCH, str(model), seconds, result)
