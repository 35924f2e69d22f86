"""Steps that the tests of the scheduler share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from stoker.lifecycle.effects import Effect, Grant
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tracked import Purpose
from stoker.types import ModelId, ModelState

T = TypeVar("T")
A = ModelId("a")
B = ModelId("b")
C = ModelId("c")
SIZE = 10


def make_scheduler(*, max_queue: int = 8, keep_alive_s: float = 60) -> Scheduler:
    return Scheduler(max_queue=max_queue, keep_alive_s=keep_alive_s)


def of(kind: type[T], effects: Iterable[Effect]) -> list[T]:
    return [effect for effect in effects if isinstance(effect, kind)]


def state(scheduler: Scheduler, model: ModelId) -> ModelState:
    return scheduler.standing(model).state


def load(
    scheduler: Scheduler,
    model: ModelId,
    ticket: int,
    now: float = 0,
    places: int = 1,
    *,
    load_s: float | None = None,
) -> int:
    """Bring a model up for one request; the generation of its grant."""
    scheduler.on_request(ticket, model, now)
    scheduler.on_planned(model, SIZE, (), now, wait=False)
    (grant,) = of(Grant, scheduler.on_ready(model, places, now, load_s))
    return grant.generation


def load_idle(
    scheduler: Scheduler,
    model: ModelId,
    ticket: int,
    now: float = 0,
    *,
    load_s: float | None = None,
) -> None:
    """Bring a model up for one request, and end it."""
    scheduler.on_released(model, load(scheduler, model, ticket, now, load_s=load_s), now)


def use(scheduler: Scheduler, model: ModelId, ticket: int, now: float = 1) -> list[Effect]:
    return scheduler.on_request(ticket, model, now, Purpose.USE)
