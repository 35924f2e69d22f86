"""What the scheduler asks the runtime to do, and how it describes a model. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from stoker.errors import StokerError
from stoker.lifecycle.eviction import Candidate
from stoker.types import ModelId, ModelState


class Why(StrEnum):
    """Why a worker is stopped; for metrics and the history."""

    ROOM = "room"  # another model needs its memory
    IDLE = "idle"  # nobody used it for its keep_alive
    PRESSURE = "pressure"  # other programs need the memory
    FREE = "free"  # the user freed memory
    USE = "use"  # the user changed to another model
    UNLOAD = "unload"  # the user unloaded it, or its model is being removed
    BROKEN = "broken"  # it broke a connection, or hung
    CLOSED = "closed"  # the server is switched off, or the daemon ends


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
    why: Why = field(default=Why.UNLOAD, compare=False)


@dataclass(frozen=True, slots=True)
class Shrink:
    """Nobody used the worker for a while: give back what it can do without. No answer."""

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


Effect = Plan | Start | Abort | Stop | Shrink | Grant | Reject


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a model stands, for views."""

    state: ModelState = ModelState.UNLOADED
    in_flight: int = 0
    queued: int = 0
    idle_since: float = 0.0
    keep_alive_s: float = -1  # what holds now: a request may have asked for another
    error: StokerError | None = None
    pinned: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where a request stands that waits."""

    position: int  # 1: the next
    queued: int  # all that wait
    model: ModelId
    state: ModelState
    current: ModelId | None  # what is being loaded
    loading_s: float | None  # for so long
    expected_s: float | None  # and this is how long it takes in all, about
    ahead: tuple[ModelId, ...]  # busy models that must end something first
