"""What a load takes, and what its plan is made of: the model, this machine, what was measured.

Not for: the plan itself (`loading`, `stoker.tuning`), or carrying it out (`workers`, `renewal`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import anyio
from anyio.to_thread import run_sync

from stoker.engine.base import Engine
from stoker.errors import MemoryShort
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import loading
from stoker.lifecycle.eviction import Candidate, Choice
from stoker.lifecycle.loading import Loadable
from stoker.metrics import Metrics
from stoker.settings import Settings
from stoker.store.manifest import FileRole, Manifest
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan, Profile, Survey, Tuned, Wishes
from stoker.types import Digest, ModelId

# Seconds that a look at the free memory stays good: a self-test takes longer, and takes memory.
_STALE_S: Final = 1.0


class Known(Protocol):
    """What was measured of models before (`stoker.profiles`). Blocking, but cheap."""

    def tuned(self, model: Digest, hardware: HardwareFacts, profile: Profile) -> Tuned | None: ...

    def survey(self, model: Digest, runtime: str) -> Survey | None: ...


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


@dataclass(frozen=True, slots=True)
class Basis:
    """All that a plan depends on, as it was a moment ago."""

    loadable: Loadable
    hardware: HardwareFacts
    wanted: Wishes
    runtime: str
    tuned: Tuned | None = None
    survey: Survey | None = None

    def choose(
        self,
        *,
        promised_bytes: int,
        candidates: Sequence[Candidate] = (),
        context: int | None = None,
        parallel: int | None = None,
    ) -> Choice[LaunchPlan]:
        """See `loading.plan_load`; with these values as if the user had set them."""
        wanted = self.wanted
        if context is not None:
            wanted = replace(wanted, context=context)
        if parallel is not None:
            wanted = replace(wanted, parallel=parallel)
        return loading.plan_load(
            self.loadable,
            self.hardware,
            wanted,
            promised_bytes=promised_bytes,
            candidates=candidates,
            runtime=self.runtime,
            tuned=self.tuned,
            survey=self.survey,
        )


async def look(means: Means, model: ModelId, fits: Callable[[Basis], bool]) -> Basis:
    """Raises UnknownModel, BlobDamaged, GgufError, RuntimeUnsupported, CanaryFailed.

    An engine that was never tested here is tested first, when there is memory for it: its test
    takes less than any plan does that fits. ``fits`` says whether such a plan fits now; when it
    says no, others must leave first, and nothing is tested. Whatever it raises is raised.
    """
    engine, settings = means.engine, means.settings
    loadable = await run_sync(loading.examine, means.store, model, abandon_on_cancel=True)
    hardware = await run_sync(means.hardware, abandon_on_cancel=True)
    seen_at = anyio.current_time()
    digest = digest_of(loadable.manifest)
    tuned = None
    if means.known is not None:
        tuned = await run_sync(means.known.tuned, digest, hardware, settings.profile)
    if tuned is not None and not engine.has(tuned.best.runtime, measured_at=tuned.at):
        tuned = None
    runtime = engine.runtime if tuned is None else tuned.best.runtime
    if await run_sync(engine.safe_mode, runtime) is None:
        survey = await _survey(means, digest, runtime)
        basis = Basis(
            loadable, hardware, loading.wishes(settings, safe_mode=False), runtime, tuned, survey
        )
        basis, testable = _settle(basis, settings, fits)
        if not testable:
            return basis
    safe_mode = await engine.prepare(loadable.path, runtime)
    if not engine.has(runtime):  # it failed its self-test, and another one took its place
        tuned, runtime = None, engine.runtime
        safe_mode = await engine.prepare(loadable.path, runtime)
    survey = await _survey(means, digest, runtime)
    if anyio.current_time() - seen_at > _STALE_S:
        hardware = await run_sync(means.hardware, abandon_on_cancel=True)
    wanted = loading.wishes(settings, safe_mode=safe_mode)
    return Basis(loadable, hardware, wanted, runtime, tuned, survey)


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


async def _survey(means: Means, digest: Digest, runtime: str) -> Survey | None:
    if means.known is None:
        return None
    return await run_sync(means.known.survey, digest, runtime)


def digest_of(manifest: Manifest) -> Digest:
    """Names the model's content: the digest of its first file."""
    return manifest.with_role(FileRole.MODEL)[0].digest
