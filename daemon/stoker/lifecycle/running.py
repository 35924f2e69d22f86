"""What the runtime keeps about a load and about a worker, and how a model is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from stoker.engine.base import Worker
from stoker.engine.upstream import Upstream
from stoker.errors import StokerError
from stoker.lifecycle.effects import Standing
from stoker.lifecycle.loading import Loadable
from stoker.lifecycle.rate import TokenRate
from stoker.lifecycle.vigil import Vigil
from stoker.schemas import ErrorView, MemoryView, ModelView
from stoker.store.manifest import Manifest
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId, ModelState


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use a ready worker until the context of `Lifecycle.lease` ends."""

    model: ModelId
    worker: Worker
    upstream: Upstream
    context: int
    add_tokens: Callable[[int], None]  # for the tokens per second that users see


@dataclass(slots=True)
class Running:
    """A worker and what belongs to it."""

    manifest: Manifest
    plan: LaunchPlan
    worker: Worker
    upstream: Upstream
    rate: TokenRate = field(default_factory=TokenRate)
    vigil: Vigil = field(default_factory=Vigil)
    asked: bool = False  # we stopped it
    leases: int = 0  # who uses this very worker
    retired: bool = False  # another one took over: it stops when its last lease ends

    @property
    def resident_bytes(self) -> int:
        """What it takes now; as predicted where that cannot be measured."""
        return self.worker.resident_bytes() or self.plan.memory.total_bytes

    @property
    def promised_bytes(self) -> int:
        """What it may still take: the weights' page cache, and what it has not touched yet."""
        return self.plan.memory.total_bytes - self.taken_bytes

    @property
    def taken_bytes(self) -> int:
        """What other programs would have if it went, weights in the page cache left out."""
        return min(self.worker.resident_bytes() or 0, self.plan.memory.anonymous_bytes)


@dataclass(slots=True)
class Job:
    """The one load on its way: planning, after evictions planning again, launching."""

    model: ModelId
    started_at: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)  # of the present step
    loadable: Loadable | None = None
    plan: LaunchPlan | None = None


def model_view(
    model: ModelId,
    standing: Standing,
    running: Running | None,
    now: float,
    *,
    load_s: float | None,
) -> ModelView:
    expires = standing.keep_alive_s >= 0 and standing.state is ModelState.READY
    left = standing.keep_alive_s - (now - standing.idle_since)
    view = ModelView(
        id=str(model),
        state=standing.state,
        in_flight=standing.in_flight,
        queued=standing.queued,
        expires_in_s=max(0.0, left) if expires and not standing.in_flight else None,
        load_s=None if load_s is None else round(load_s, 2),
        error=_error_view(standing.error),
    )
    if running is None:
        return view
    memory = MemoryView(
        predicted_bytes=running.plan.memory.total_bytes,
        resident_bytes=running.worker.resident_bytes(),
    )
    return view.model_copy(
        update={
            "engine": running.worker.engine,
            "runtime": running.worker.runtime,
            "pid": running.worker.pid,
            "context": running.plan.context,
            "parallel": running.plan.parallel,
            "memory": memory,
            "tokens_per_s": round(running.rate.per_second(now), 1),
        }
    )


def _error_view(error: StokerError | None) -> ErrorView | None:
    if error is None:
        return None
    return ErrorView(
        code=error.code, message=error.message, hint=error.hint, facts=dict(error.facts)
    )
