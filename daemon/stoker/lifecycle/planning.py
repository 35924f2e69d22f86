"""What a load takes, and what its plan is made of: the model, this machine, what was measured.

And afterwards, what was learnt from a worker about the next plan. Not for: the plan itself
(`loading`, `stoker.tuning`), or carrying it out (`workers`, `renewal`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.engine.base import Engine
from stoker.errors import MemoryShort
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import ladder, loading
from stoker.lifecycle.budget import Room
from stoker.lifecycle.eviction import Candidate, Choice
from stoker.lifecycle.loading import Loadable
from stoker.metrics import Metrics
from stoker.settings import Settings
from stoker.store.manifest import FileRole, Manifest
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan, MemoryNeed, Profile, Survey, Tuned, Wishes
from stoker.types import Digest, ModelId

log = structlog.get_logger(__name__)

# This machine as a runtime sees it: with GPUs of which only its own library tells.
Seen = Callable[[HardwareFacts, str], Awaitable[HardwareFacts]]

# Seconds that a look at the free memory stays good: a self-test takes longer, and takes memory.
_STALE_S: Final = 1.0


class Known(Protocol):
    """What was measured of models before (`stoker.profiles`). Blocking, but cheap."""

    def tuned(self, model: Digest, hardware: HardwareFacts, profile: Profile) -> Tuned | None: ...

    def survey(self, model: Digest, runtime: str) -> Survey | None: ...

    def correction(self, model: Digest, runtime: str) -> float: ...

    def keep_peak(
        self,
        model: Digest,
        runtime: str,
        need: MemoryNeed,
        peak_bytes: int,
        *,
        filled: float | None = None,
    ) -> None: ...


async def as_told(hardware: HardwareFacts, runtime: str) -> HardwareFacts:
    """Everything that a runtime can compute on is known already."""
    _ = runtime
    return hardware


@dataclass(frozen=True, slots=True)
class Means:
    """What a load takes."""

    store: Store
    engine: Engine
    hardware: Callable[[], HardwareFacts]
    settings: Settings
    bus: EventBus
    metrics: Metrics
    known: Known | None = None
    seen: Seen = as_told


@dataclass(frozen=True, slots=True)
class Basis:
    """All that a plan depends on, as it was a moment ago."""

    loadable: Loadable
    hardware: HardwareFacts
    wanted: Wishes
    runtime: str
    tuned: Tuned | None = None
    survey: Survey | None = None
    correction: float = 1.0
    limit_bytes: int | None = None  # for all models together; set by the user
    rung: int = 0  # of the ladder (`ladder`): how much is held back after failures

    def choose(
        self,
        *,
        promised_bytes: int,
        taken_bytes: int = 0,
        candidates: Sequence[Candidate] = (),
        context: int | None = None,
        parallel: int | None = None,
    ) -> Choice[LaunchPlan]:
        """See `loading.plan_load`; with these values as if the user had set them.

        What loaded models may still take of the free memory is promised; what they have taken
        already counts in the user's limit.
        """
        wanted = self.wanted
        if context is not None:
            wanted = replace(wanted, context=context)
        if parallel is not None:
            wanted = replace(wanted, parallel=parallel)
        room = Room(self.hardware, promised_bytes, taken_bytes, self.limit_bytes)

        def plan_load(wishes: Wishes) -> Choice[LaunchPlan]:
            return loading.plan_load(
                self.loadable,
                room,
                wishes,
                candidates=candidates,
                runtime=self.runtime,
                tuned=self.tuned,
                survey=self.survey,
                correction=self.correction,
            )

        return ladder.choose(plan_load, wanted, self.rung)


async def look(means: Means, model: ModelId, fits: Callable[[Basis], bool]) -> Basis:
    """Raises UnknownModel, BlobDamaged, GgufError, RuntimeUnsupported, CanaryFailed.

    An engine that was never tested here is tested first, when there is memory for it: its test
    takes less than any plan does that fits. ``fits`` says whether such a plan fits now; when it
    says no, others must leave first, and nothing is tested. Whatever it raises is raised.
    """
    engine, settings = means.engine, means.settings
    loadable = await run_sync(loading.examine, means.store, model, abandon_on_cancel=True)
    hardware = await run_sync(means.hardware, abandon_on_cancel=True)
    digest = digest_of(loadable.manifest)
    tuned = None
    if means.known is not None:
        tuned = await run_sync(means.known.tuned, digest, hardware, settings.profile)
    if tuned is not None and not engine.has(tuned.best.runtime, measured_at=tuned.at):
        tuned = None
    runtime = engine.runtime if tuned is None else tuned.best.runtime
    engine.expect(runtime)
    hardware = await means.seen(hardware, runtime)
    seen_at = anyio.current_time()
    if await run_sync(engine.safe_mode, runtime) is None:
        wanted = loading.wishes(settings, safe_mode=False)
        untested = Basis(loadable, hardware, wanted, runtime, tuned)
        basis, testable = _settle(await _with_known(untested, means), settings, fits)
        if not testable:
            return basis
    safe_mode = await engine.prepare(loadable.path, runtime)
    if not engine.has(runtime):  # it failed its self-test, and another one took its place
        tuned, runtime = None, engine.runtime
        safe_mode = await engine.prepare(loadable.path, runtime)
    if anyio.current_time() - seen_at > _STALE_S:
        hardware = await run_sync(means.hardware, abandon_on_cancel=True)
        hardware = await means.seen(hardware, runtime)
    wanted = loading.wishes(settings, safe_mode=safe_mode)
    return await _with_known(Basis(loadable, hardware, wanted, runtime, tuned), means)


def _settle(
    untested: Basis, settings: Settings, fits: Callable[[Basis], bool]
) -> tuple[Basis, bool]:
    """What to plan with as long as the engine is not tested, and whether to test it now."""
    try:
        return untested, fits(untested)
    except MemoryShort:
        safe = replace(untested, wanted=loading.wishes(settings, safe_mode=True), tuned=None)
        fits(safe)
        return safe, False  # it fits only without what the test is about


async def _with_known(basis: Basis, means: Means) -> Basis:
    """With the user's limit, and with what is known of the memory that this model takes."""
    basis = replace(basis, limit_bytes=means.settings.memory_limit_bytes)
    known, digest = means.known, digest_of(basis.loadable.manifest)
    if known is None:
        return basis

    def ask() -> Basis:
        survey = known.survey(digest, basis.runtime)
        return replace(basis, survey=survey, correction=known.correction(digest, basis.runtime))

    return await run_sync(ask)


async def learn(
    means: Means,
    manifest: Manifest,
    plan: LaunchPlan,
    peak_bytes: int | None,
    *,
    filled: float | None = None,
) -> None:
    """Remember how much memory a worker with this plan really took: its peak, weights left out.

    ``filled`` is given at the end of its life only: the largest share of its cells that was ever
    in use, without which nothing can be learnt from a low peak. Never raises.
    """
    known = means.known
    if known is None or not peak_bytes or plan.gpu_layers:  # then most of it is elsewhere
        return

    def keep() -> None:
        known.keep_peak(digest_of(manifest), plan.runtime, plan.memory, peak_bytes, filled=filled)

    try:
        await run_sync(keep)
    except Exception as error:  # noqa: BLE001  # task boundary: no request may fail of this
        log.warning("peak_not_kept", model=str(manifest.id), reason=str(error))


def digest_of(manifest: Manifest) -> Digest:
    """Names the model's content: the digest of its first file."""
    return manifest.with_role(FileRole.MODEL)[0].digest
