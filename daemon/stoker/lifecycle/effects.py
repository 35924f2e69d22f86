"""What the scheduler asks the runtime to do, and how it describes a model. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.errors import StokerError
from stoker.lifecycle.eviction import Candidate
from stoker.types import ModelId, ModelState


@dataclass(frozen=True, slots=True)
class Plan:
    """Find out what the model needs; answer with `on_planned` or `on_failed`."""

    model: ModelId
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Launch the model as planned; answer with `on_ready` or `on_failed`."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Abort:
    """Cancel the planning or the launch; answer with `on_exited` when nothing is left of it."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the worker; answer with `on_exited` when its process is gone."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may use the worker; answer with `on_released`, naming the generation."""

    ticket: int
    model: ModelId
    generation: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The request will not be served."""

    ticket: int
    error: StokerError


Effect = Plan | Start | Abort | Stop | Grant | Reject


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a model stands, for views."""

    state: ModelState = ModelState.UNLOADED
    in_flight: int = 0
    queued: int = 0
    idle_since: float = 0.0
    keep_alive_s: float = -1
    error: StokerError | None = None
