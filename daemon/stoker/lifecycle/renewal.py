"""Another worker for a ready model, without a gap: for a better runtime or better settings.

The new one starts beside the old one, when both fit. Once it answered, new requests go to it; the
old one serves what it began and stops after its last request. Whatever goes wrong before that
moment leaves the old one as it is. Not for: loads that somebody waits for (`workers`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

import anyio
import structlog

from stoker.errors import MemoryShort, StokerError
from stoker.lifecycle.budget import with_memory
from stoker.lifecycle.eviction import on_gpu
from stoker.lifecycle.planning import Basis, Means, look
from stoker.lifecycle.running import Running
from stoker.tuning.launch import LaunchPlan, MemoryNeed
from stoker.types import ModelId

log = structlog.get_logger(__name__)

_STOP_GRACE_S: Final = 0.5  # for a worker that nobody ever used
_NOTHING: Final = MemoryNeed(0, 0, 0, 0, 0, 0)


class Host(Protocol):
    """Who owns the workers."""

    @property
    def active(self) -> bool: ...

    @property
    def promised_with_load_bytes(self) -> int: ...

    @property
    def taken_bytes(self) -> int: ...

    def get(self, model: ModelId) -> Running | None: ...

    def start(self, task: Callable[..., object], *args: object) -> None: ...

    async def start_worker(self, basis: Basis, plan: LaunchPlan) -> Running: ...

    async def carry_over(self, old: Running, new: Running) -> None: ...

    def take_over(self, model: ModelId, old: Running, new: Running) -> bool: ...

    def settle(self) -> None: ...


@dataclass(slots=True)
class _Renewal:
    model: ModelId
    old: Running
    done: asyncio.Future[bool]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    plan: LaunchPlan | None = None
    afresh: bool = False  # also when the plan is as before


class Renewals:
    """One at a time, because two would both count on the same free memory."""

    def __init__(self, means: Means, host: Host) -> None:
        self._means = means
        self._host = host
        self._turn = anyio.Lock()
        self._now: _Renewal | None = None

    @property
    def promised_bytes(self) -> int:
        """What a worker takes that is on its way."""
        plan = self._now.plan if self._now is not None else None
        return plan.memory.anonymous_bytes if plan is not None else 0

    def concerns(self, model: ModelId) -> bool:
        return self._now is not None and self._now.model == model

    @property
    def active(self) -> bool:
        return self._now is not None

    def cancel(self, model: ModelId) -> None:
        """The model leaves, or its worker is gone: nothing is left to replace."""
        if self._now is not None and self._now.model == model:
            self._now.scope.cancel()

    async def give_way(self) -> None:
        """Give up the one on its way; return when nothing is left of its worker."""
        if self._now is not None:
            self._now.scope.cancel()
            await asyncio.shield(self._now.done)

    async def renew(self, model: ModelId, *, afresh: bool = False) -> bool:
        """Whether another worker serves the model now; ``afresh``: also if nothing changes."""
        async with self._turn:
            old = self._host.get(model)
            if old is None or old.asked or not self._host.active:
                return False
            one = _Renewal(model, old, asyncio.get_running_loop().create_future(), afresh=afresh)
            self._now = one
            self._host.start(self._carry_out, one)
            try:
                return await asyncio.shield(one.done)
            except asyncio.CancelledError:
                one.scope.cancel()
                with anyio.CancelScope(shield=True):  # a worker that starts is ended in seconds
                    await asyncio.shield(one.done)
                raise

    async def _carry_out(self, one: _Renewal) -> None:
        renewed = False
        try:
            with one.scope:
                renewed = await self._replace(one)
        except MemoryShort as error:
            log.info("renewal_does_not_fit", model=str(one.model), reason=error.message)
        except StokerError as error:
            log.warning(
                "renewal_failed", model=str(one.model), code=error.code, reason=error.message
            )
        except Exception:  # task boundary: a bug must not end the daemon
            log.exception("renewal_crashed", model=str(one.model))
        finally:
            self._now = None
            one.done.set_result(renewed)
            self._host.settle()

    async def _replace(self, one: _Renewal) -> bool:
        def plan(basis: Basis) -> LaunchPlan | None:
            held_back = replace(basis, rung=one.old.rung)  # not to what has crashed
            return plan_beside(
                held_back,
                one.old,
                self._host.promised_with_load_bytes,
                self._host.taken_bytes,
                afresh=one.afresh,
            )

        basis = await look(self._means, one.model, lambda basis: plan(basis) is not None)
        one.plan = plan(basis)
        if one.plan is None:
            return False
        new = await self._host.start_worker(replace(basis, rung=one.old.rung), one.plan)
        if not one.scope.cancel_called:
            await self._host.carry_over(one.old, new)
        if not one.scope.cancel_called and self._host.take_over(one.model, one.old, new):
            return True
        with anyio.CancelScope(shield=True):
            await new.worker.stop(_STOP_GRACE_S)
        new.upstream.close()
        return False


def plan_beside(
    basis: Basis,
    old: Running,
    promised_bytes: int,
    taken_bytes: int = 0,
    *,
    afresh: bool = False,
) -> LaunchPlan | None:
    """The plan of now, as if the old worker had gone; None when it changes nothing.

    ``taken_bytes`` is what all workers have of the memory that they may take together; with
    ``afresh`` a plan that changes nothing is a plan, too. Pure. Raises MemoryShort when it does
    not fit beside the old worker.
    """
    choose = partial(basis.choose, taken_bytes=taken_bytes)
    gone = promised_bytes - old.promised_bytes - old.taken_bytes
    emptied = with_memory(basis.hardware, 0, old.plan.memory.gpu_bytes)
    choose_alone = partial(replace(basis, hardware=emptied).choose, taken_bytes=taken_bytes)
    plan = choose_alone(promised_bytes=gone).plan
    if plan.context < old.plan.context:  # a conversation that fits today must fit tomorrow
        plan = choose_alone(promised_bytes=gone, context=old.plan.context).plan
    if afresh:  # the very same, so that what the old one remembers fits the new one
        plan = replace(old.plan, runtime=old.worker.runtime)
    elif settings_of(plan) == settings_of(replace(old.plan, runtime=old.worker.runtime)):
        return None
    same_file = plan.model_path == old.plan.model_path  # then both map the same pages
    beside = promised_bytes - (old.plan.memory.weights_bytes if same_file else 0)
    fitting = choose(promised_bytes=beside, context=plan.context, parallel=plan.parallel).plan
    if on_gpu(fitting) < on_gpu(plan):
        room, need = fitting.memory.gpu_bytes, plan.memory.gpu_bytes
        message = f"{plan.model_id} needs {need} bytes of the GPU beside its present worker"
        raise MemoryShort(message, needed_bytes=need, available_bytes=room)
    room, need = fitting.memory.anonymous_bytes, plan.memory.anonymous_bytes
    if room < need:
        enough = fitting.cache_ram_mib >= old.plan.cache_ram_mib  # a larger one would be welcome
        if enough and settings_of(fitting) == settings_of(plan):
            return fitting
        message = f"{plan.model_id} needs {need} bytes beside its present worker, and {room} fit"
        raise MemoryShort(message, needed_bytes=need, available_bytes=room)
    return plan


def settings_of(plan: LaunchPlan) -> LaunchPlan:
    """The plan without what follows the free memory of the moment, to compare two of them."""
    return replace(
        plan,
        context=0,
        cells=0,
        kv_unified=True,
        cache_ram_mib=0,
        memory=_NOTHING,
        reasons=(),
        conversations=None,
    )
