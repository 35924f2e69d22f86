"""What the runtime keeps about a load and about a worker, and how a model is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from stoker.engine.base import Worker
from stoker.engine.heartbeat import Pulse
from stoker.engine.upstream import Upstream
from stoker.errors import StokerError
from stoker.lifecycle.effects import Standing, Why
from stoker.lifecycle.planning import Basis
from stoker.lifecycle.rate import TokenRate
from stoker.lifecycle.vigil import Vigil
from stoker.schemas import ErrorView, MemoryView, ModelView
from stoker.store.manifest import Manifest
from stoker.tuning.launch import LaunchPlan, Wishes
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
    wanted: Wishes  # what the plan was made from
    worker: Worker
    upstream: Upstream
    since: float  # when it was ready
    rung: int = 0  # how far it was held back after crashes (`ladder`)
    fresh_bytes: int = 0  # its own when it was ready: what it takes beyond came with use
    rate: TokenRate = field(default_factory=TokenRate)
    vigil: Vigil = field(default_factory=Vigil)
    pulse: Pulse = field(init=False)
    filled: float = 0.0  # the largest share of its conversation memory that was in use
    asked: bool = False  # we stopped it
    why: Why = Why.UNLOAD  # we did
    leases: int = 0  # who uses this very worker
    retired: bool = False  # another one took over: it stops when its last lease ends

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.upstream, self.plan.cells or self.plan.context)

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
        """What other programs would have if it went: nothing of its weights, which are mapped."""
        resident = self.worker.resident_bytes()
        if resident is None:
            return 0
        own = self.worker.peak_bytes()  # what it has now, or little more
        return min(resident if own is None else own, resident, self.plan.memory.anonymous_bytes)

    @property
    def counted_bytes(self) -> int:
        """As `taken_bytes`, with what it takes beyond its plan."""
        beyond = (self.worker.resident_bytes() or 0) - self.plan.memory.total_bytes
        return self.taken_bytes + max(0, beyond)

    @property
    def grown_bytes(self) -> int:
        """What came with use, prompts that it remembers above all; a new worker is without it."""
        return own_bytes(self.worker) - self.fresh_bytes


def own_bytes(worker: Worker) -> int:
    """What it took at most, without the weights where the system tells them apart."""
    return worker.peak_bytes() or worker.resident_bytes() or 0


@dataclass(slots=True)
class Job:
    """The one load on its way: planning, after evictions planning again, launching."""

    model: ModelId
    started_at: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)  # of the present step
    basis: Basis | None = None
    plan: LaunchPlan | None = None


def model_view(
    model: ModelId,
    standing: Standing,
    running: Running | None,
    now: float,
    *,
    expected_load_s: float | None,
    loading_s: float | None,
    default: bool,
) -> ModelView:
    keep_alive_s = standing.keep_alive_s
    expires = keep_alive_s >= 0 and standing.state is ModelState.READY and not standing.pinned
    left = keep_alive_s - (now - standing.idle_since)
    load_s = None if expected_load_s is None else round(expected_load_s, 2)
    view = ModelView(
        id=str(model),
        state=standing.state,
        in_flight=standing.in_flight,
        queued=standing.queued,
        expires_in_s=max(0.0, left) if expires and not standing.in_flight else None,
        load_s=load_s,
        expected_load_s=load_s,
        loading_s=None if loading_s is None else round(loading_s, 1),
        default=default,
        pinned=standing.pinned,
        priority=standing.priority,
        error=_error_view(standing.error),
    )
    if running is None:
        return view
    resident_bytes, own = running.worker.resident_bytes(), running.worker.peak_bytes()
    # Mapped files are no part of what it took itself, but of what was predicted.
    peak_bytes = max(own + running.plan.memory.weights_bytes, resident_bytes or 0) if own else None
    memory = MemoryView(
        predicted_bytes=running.plan.memory.total_bytes,
        resident_bytes=resident_bytes,
        peak_bytes=peak_bytes,
        correction=running.plan.memory.correction,
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
            "kv_used": running.pulse.kv_used,
            "rung": int(running.rung),
        }
    )


def _error_view(error: StokerError | None) -> ErrorView | None:
    if error is None:
        return None
    return ErrorView(
        code=error.code, message=error.message, hint=error.hint, facts=dict(error.facts)
    )
