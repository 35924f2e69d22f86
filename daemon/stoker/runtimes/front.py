"""The one engine that the lifecycle knows; behind it stands an adapter for each runtime.

When a runtime fails to start a model, the same load is tried in the one before it at once; when
that succeeds the failure was the runtime's, and it is not used any more. Not for: installing,
testing, or what the user chooses (`manager`).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import structlog

from stoker.engine.adapter import Adapter
from stoker.engine.base import Worker
from stoker.errors import CanaryFailed, EngineError, RuntimeUnsupported, WorkerFailed
from stoker.runtimes.registry import Record
from stoker.runtimes.shelf import Shelf
from stoker.tuning.launch import LaunchPlan
from stoker.types import FailureKind

log = structlog.get_logger(__name__)

# A start that ends like this may be the runtime's own fault: it is tried on another one.
_SUSPECT: Final = frozenset(
    {
        FailureKind.CRASH,
        FailureKind.ASSERT,
        FailureKind.BACKEND,
        FailureKind.UNKNOWN,
        FailureKind.UNSUPPORTED_ARCHITECTURE,
    }
)
# Only too old for this model: good enough for all others.
_INNOCENT: Final = frozenset({FailureKind.UNSUPPORTED_ARCHITECTURE})
# A worker that served and then ended like this counts against its runtime.
_FAULTS: Final = frozenset({FailureKind.CRASH, FailureKind.ASSERT, FailureKind.BACKEND})
_MOST_FAULTS: Final = 2  # one may be the request's fault
_FAULTS_WITHIN_S: Final = 900.0
_LEAVE_S: Final = 10.0  # for stopped workers to be gone


class Front:
    """Implements `Engine`."""

    def __init__(
        self,
        shelf: Shelf,
        start: Callable[..., None],
        gave_up: Callable[[str, str], None],
    ) -> None:
        """``start`` runs a task beside everything; ``gave_up`` learns which one serves instead."""
        self._shelf = shelf
        self._start = start
        self._gave_up = gave_up
        self._expecting: Adapter | None = None  # the last one that was told to
        self._live: Counter[str] = Counter()  # workers per runtime, those included that start
        self._left = anyio.Event()
        self._faults: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_MOST_FAULTS))

    @property
    def name(self) -> str:
        return self._shelf.find(self._shelf.current).adapter.name

    @property
    def runtime(self) -> str:
        return self._shelf.current

    def has(self, runtime: str, *, measured_at: str | None = None) -> bool:
        return self._shelf.has(runtime, measured_at=measured_at)

    def safe_mode(self, runtime: str = "") -> bool | None:
        return self._shelf.find(self._named(runtime)).adapter.safe_mode()

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        name = self._named(runtime)
        try:
            return await self._shelf.find(name).adapter.prepare(model)
        except (CanaryFailed, RuntimeUnsupported) as error:
            if name == self._shelf.built_in:
                raise
            await self._give_up(name, error.message)
            return await self.prepare(model)

    def expect(self, runtime: str = "") -> None:
        adapter = self._shelf.find(self._named(runtime)).adapter
        if self._expecting is not adapter:
            self.relax()
        self._expecting = adapter
        adapter.expect()

    def relax(self) -> None:
        if self._expecting is not None:
            self._expecting.relax()

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        name = self._named(plan.runtime)
        if plan.runtime not in {"", name}:  # it is gone since; what it can do was planned with
            plan = await self._for_another(name, plan)
        try:
            return await self._launch(name, plan, timeout_s)
        except (WorkerFailed, RuntimeUnsupported) as error:
            other = self._shelf.fallback(name)
            kind = FailureKind(str(error.facts.get("kind", FailureKind.BACKEND)))
            if other is None or kind not in _SUSPECT:
                raise
            log.warning("runtime_suspected", runtime=name, kind=kind.value, instead=other)
            worker = await self._instead(other, plan, timeout_s, error)
            if kind not in _INNOCENT:
                await self._give_up(name, f"it could not start a model: {error.message}")
            return worker

    def _named(self, runtime: str) -> str:
        return runtime if runtime and self._shelf.is_usable(runtime) else self._shelf.current

    async def _instead(
        self, name: str, plan: LaunchPlan, timeout_s: float, why: EngineError
    ) -> Worker:
        """The same load in another runtime. Raises the first error when that fails as well."""
        try:
            return await self._launch(name, await self._for_another(name, plan), timeout_s)
        except EngineError as error:
            log.info("other_runtime_failed_too", runtime=name, reason=error.message)
            raise why from error

    async def _for_another(self, name: str, plan: LaunchPlan) -> LaunchPlan:
        """The plan as this runtime can carry it out. Raises RuntimeUnsupported, CanaryFailed."""
        safe_mode = await self._shelf.find(name).adapter.prepare(plan.model_path)
        return replace(plan, extra_buffers=plan.extra_buffers and not safe_mode)

    async def _launch(self, name: str, plan: LaunchPlan, timeout_s: float) -> Worker:
        adapter = self._shelf.find(name).adapter
        self._live[name] += 1  # from now on: nobody deletes the program under a start
        try:
            worker = await adapter.launch(replace(plan, runtime=name), timeout_s=timeout_s)
        except BaseException:
            self._gone(name)
            raise
        self._start(self._watch, name, worker)
        return worker

    def _gone(self, name: str) -> None:
        self._live[name] -= 1
        self._left.set()
        self._left = anyio.Event()

    async def _watch(self, name: str, worker: Worker) -> None:
        """Count its workers, and those that died of the runtime itself."""
        report = await worker.wait()
        self._gone(name)
        if report.kind not in _FAULTS or name == self._shelf.built_in:
            return
        faults, now = self._faults[name], time.monotonic()
        faults.append(now)
        if len(faults) == _MOST_FAULTS and now - faults[0] < _FAULTS_WITHIN_S:
            await self._give_up(name, f"its workers crashed {_MOST_FAULTS} times ({report.kind})")

    async def _give_up(self, name: str, why: str) -> None:
        """Never use this build again, unless the user asks for it."""
        if not self._shelf.is_usable(name):
            return
        other = self._shelf.fallback(name) or self._shelf.built_in
        was_current = self._shelf.current == name
        log.error("runtime_given_up", runtime=name, reason=why, instead=other)
        await self._shelf.remember(name, Record(outcome="failed", message=why))
        if was_current:
            await self._shelf.choose(other, chosen=False)
            await self._shelf.change(previous=None)
        self._gave_up(name, other)

    def forgive(self, name: str) -> None:
        """What happened before does not count any more."""
        self._faults.pop(name, None)

    async def left(self, name: str) -> int:
        """How many workers still run in it, after those that are being stopped had their time."""
        with anyio.move_on_after(_LEAVE_S):
            while self._live[name]:
                await self._left.wait()
        return self._live[name]
