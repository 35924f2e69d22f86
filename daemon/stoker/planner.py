"""The plan of a stored model, with what it costs and what one could gain. Loads nothing.

Not for: loading (`lifecycle`), or the decisions themselves (`stoker.tuning`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.errors import MemoryShort, StokerError
from stoker.hardware.assess import reserve_bytes
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import loading
from stoker.lifecycle.budget import Room
from stoker.lifecycle.eviction import Candidate, Choice
from stoker.lifecycle.planning import Basis, Seen, as_told, digest_of
from stoker.schemas_machine import (
    GainView,
    PlanMemoryView,
    PlanRequest,
    PlanSpeedView,
    PlanView,
    ReasonView,
)
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuning.gains import Gain, Offered, Prospect, gains
from stoker.tuning.launch import LaunchPlan, MemoryNeed, Profile, Survey, Tuned, Wishes
from stoker.tuning.reading import reading
from stoker.tuning.speed import Calibration, predict, predict_prefill
from stoker.types import Digest, ModelId

log = structlog.get_logger(__name__)

_NOTHING_KNOWN: Final = Calibration()
_SURVEY_S: Final = 15.0  # a person waits; dry runs of a 40 GB file take 3 s on an idle machine


class Profiles(Protocol):
    """What was measured before. Blocking, but cheap."""

    def tuned(self, model: Digest, hardware: HardwareFacts, profile: Profile) -> Tuned | None: ...

    def correction(self, model: Digest, runtime: str) -> float: ...


class Loaded(Protocol):
    """What is in memory now, and what was learnt from loads. On the event loop's thread."""

    def plan_of(self, model: ModelId) -> LaunchPlan | None: ...

    def room_for(
        self, model: ModelId, hardware: HardwareFacts
    ) -> tuple[Room, tuple[Candidate, ...]]: ...

    async def rung(self, model: Digest, runtime: str) -> int: ...


class Offer(Protocol):
    """A runtime that would help here."""

    @property
    def kind(self) -> str: ...

    @property
    def why(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Case:
    """All that one plan is chosen from, as it was a moment ago."""

    basis: Basis
    room: Room
    candidates: tuple[Candidate, ...]
    running: LaunchPlan | None

    def choose(self, extra_bytes: int = 0) -> Choice[LaunchPlan]:
        """As a load does, were so much more memory free. Raises MemoryShort, BadSetting."""
        return self.basis.choose(
            promised_bytes=self.room.promised_bytes - extra_bytes,
            taken_bytes=self.room.taken_bytes,
            candidates=self.candidates,
        )

    def plan_or_none(self, extra_bytes: int) -> LaunchPlan | None:
        try:
            return self.choose(extra_bytes).plan
        except MemoryShort:
            return None

    @property
    def reserved_bytes(self) -> int:
        return reserve_bytes(self.room.hardware, self.basis.wanted.reserve_bytes)

    def usable_bytes(self, victims: Collection[ModelId]) -> int:
        """For this model, once these have gone."""
        given = sum(one.size_bytes for one in self.candidates if one.model in victims)
        free = max(0, self.room.hardware_with(given).headroom_bytes - self.reserved_bytes)
        most = self.room.most_bytes(given)
        return free if most is None else min(free, most)


class Planner:
    """Answers `stoker plan`. Made once; used from the event loop's thread only."""

    def __init__(  # noqa: PLR0913  # what it asks; all but the first four by name
        self,
        store: Store,
        settings: Settings,
        profiles: Profiles,
        runtimes_names: Callable[[], tuple[str, ...]],
        *,
        hardware: Callable[[], HardwareFacts],
        survey: Callable[[Manifest, str], Awaitable[Survey | None]],
        lifecycle: Loaded,
        offers: Callable[[HardwareFacts], Sequence[Offer]] = lambda _: (),
        calibration: Callable[[HardwareFacts, Profile], Calibration] | None = None,
        safe_mode: Callable[[Path, str], bool] = lambda _model, _runtime: False,
        holds: Callable[[Tuned], bool] = lambda _: True,
        seen: Seen = as_told,
    ) -> None:
        """`runtimes_names` gives the usable ones, the current one first.

        `offers`, `calibration` (of the speed forecast) and `safe_mode` (what the self-test of a
        runtime found) are blocking and asked in a thread. `holds` says whether tuned settings
        still hold: a runtime that was chosen after they were measured makes them void.
        """
        self._store = store
        self._settings = settings
        self._profiles = profiles
        self._names = runtimes_names
        self._hardware = hardware
        self._survey = survey
        self._lifecycle = lifecycle
        self._offers = offers
        self._calibration = calibration or (lambda _hardware, _profile: _NOTHING_KNOWN)
        self._safe_mode = safe_mode
        self._holds = holds
        self._seen = seen

    async def plan(self, request: PlanRequest) -> PlanView:
        """The settings that a load would choose now, were this model not loaded.

        Raises UnknownModel, BlobDamaged, GgufError, MemoryShort, BadSetting.
        """
        model = self._store.find(request.model).id
        seen = await run_sync(self._look, model, request, abandon_on_cancel=True)
        seen = replace(seen, hardware=await self._seen(seen.hardware, seen.runtime))
        room, candidates = self._lifecycle.room_for(model, seen.hardware)
        digest = digest_of(seen.loadable.manifest)
        basis = replace(
            seen,
            hardware=room.hardware,
            limit_bytes=room.limit_bytes,
            survey=await self._surveyed(seen),
            correction=await run_sync(self._profiles.correction, digest, seen.runtime),
            rung=await self._lifecycle.rung(digest, seen.runtime),
        )
        case = _Case(basis, room, candidates, self._lifecycle.plan_of(model))
        return await run_sync(self._view, case, request, abandon_on_cancel=True)

    # --- looking, in a thread ------------------------------------------------------------------

    def _look(self, model: ModelId, request: PlanRequest) -> Basis:
        """What the store, this machine and the settings say; the lifecycle is asked elsewhere."""
        loadable = loading.examine(self._store, model)
        hardware = self._hardware()
        names = self._names()
        current = names[0] if names else ""
        tuned = self._tuned(loadable.manifest, hardware, request, names)
        runtime = current if tuned is None else tuned.best.runtime
        wanted = self._wishes(request, self._safe_mode(loadable.path, runtime))
        return Basis(loadable, hardware, wanted, runtime, tuned)

    def _tuned(
        self,
        manifest: Manifest,
        hardware: HardwareFacts,
        request: PlanRequest,
        names: tuple[str, ...],
    ) -> Tuned | None:
        profile = request.profile or self._settings.profile
        tuned = self._profiles.tuned(digest_of(manifest), hardware, profile)
        if tuned is None or tuned.best.runtime not in names or not self._holds(tuned):
            return None
        return tuned

    def _wishes(self, request: PlanRequest, safe_mode: bool) -> Wishes:  # noqa: FBT001
        tried = request.model_dump(exclude={"model"}, exclude_none=True)
        return replace(loading.wishes(self._settings, safe_mode=safe_mode), **tried)

    async def _surveyed(self, seen: Basis) -> Survey | None:
        manifest, why = seen.loadable.manifest, "slow"
        try:
            with anyio.move_on_after(_SURVEY_S):
                return await self._survey(manifest, seen.runtime)
        except StokerError as error:  # formulas are good enough for a plan
            why = error.code
        log.info("plan_without_survey", model=str(manifest.id), why=why)
        return None

    # --- showing, in a thread ------------------------------------------------------------------

    def _view(self, case: _Case, request: PlanRequest) -> PlanView:
        choice = case.choose()
        plan, usable_bytes = choice.plan, case.usable_bytes(choice.victims)
        settings = {reason.setting: reason.value for reason in plan.reasons}
        return PlanView(
            model=plan.model_id,
            profile=plan.profile,
            runtime=plan.runtime,
            settings=settings,
            memory=_memory_view(case, plan.memory, usable_bytes),
            reasons=tuple(
                ReasonView(setting=one.setting, value=one.value, source=one.source, why=one.why)
                for one in plan.reasons
            ),
            speed=self._speed(case.basis, plan),
            gains=tuple(
                GainView(change=gain.change, text=gain.text, command=gain.command)
                for gain in self._gains(case, plan, request, usable_bytes)
            ),
            evicts=tuple(map(str, choice.victims)),
            waits=choice.wait,
            loaded=case.running is not None and _runs_with(case.running, settings),
        )

    def _speed(self, basis: Basis, plan: LaunchPlan) -> PlanSpeedView | None:
        if plan.embedding:
            return None
        if basis.tuned is not None and _is_trial(plan, basis.tuned):
            speeds = basis.tuned.speeds
            return PlanSpeedView(
                decode_tokens_per_s=speeds.decode_tokens_per_s,
                prefill_tokens_per_s=speeds.prefill_tokens_per_s,
                batch_tokens_per_s=speeds.batch_tokens_per_s,
                label="measured",
            )
        if plan.gpu_layers:
            return None  # the forecast knows the memory of the CPU only
        calibration = self._calibration(basis.hardware, plan.profile)
        bandwidth = basis.hardware.bandwidth_bytes_per_s
        work = reading(basis.loadable.facts)
        decode = predict(work, bandwidth, plan.threads, calibration)
        prefill = predict_prefill(work, calibration)
        return PlanSpeedView(
            decode_tokens_per_s=decode.tokens_per_s,
            prefill_tokens_per_s=None if prefill is None else prefill.tokens_per_s,
            label=decode.label,
        )

    def _gains(
        self, case: _Case, plan: LaunchPlan, request: PlanRequest, usable_bytes: int
    ) -> tuple[Gain, ...]:
        basis = case.basis
        source = basis.loadable.manifest.source
        prospect = Prospect(
            plan=plan,
            facts=basis.loadable.facts,
            hardware=basis.hardware,
            replan=case.plan_or_none,
            spare_bytes=max(0, usable_bytes - plan.memory.total_bytes),
            tuned=basis.tuned is not None,
            tunes_itself=self._settings.tune,
            wished_context=request.context or self._settings.context,
            offers=[Offered(one.kind, one.why) for one in self._offers(basis.hardware)],
            repository=source.location if source.kind == "hub" else None,
        )
        return gains(prospect)


def _memory_view(case: _Case, need: MemoryNeed, usable_bytes: int) -> PlanMemoryView:
    surveyed = case.basis.survey is not None
    return PlanMemoryView(
        weights_bytes=need.weights_bytes,
        kv_bytes=need.kv_bytes,
        compute_bytes=need.compute_bytes,
        runtime_bytes=need.runtime_bytes,
        repack_bytes=need.repack_bytes,
        cache_bytes=need.cache_bytes,
        learnt_bytes=need.learnt_bytes,
        total_bytes=need.total_bytes,
        gpu_bytes=need.gpu_bytes,
        usable_bytes=usable_bytes,
        reserved_bytes=case.reserved_bytes,
        label="calibrated" if surveyed else "estimated",
    )


def _runs_with(running: LaunchPlan, settings: Mapping[str, object]) -> bool:
    """Whether a worker has exactly these settings; what was learnt since changes none of them."""
    return all(
        getattr(running, name) == value for name, value in settings.items() if name != "correction"
    )


def _is_trial(plan: LaunchPlan, tuned: Tuned) -> bool:
    """Whether the plan has exactly the settings that were measured."""
    best = tuned.best
    return (
        plan.runtime == best.runtime
        and plan.threads == best.threads
        and plan.threads_batch == best.threads_batch
        and plan.ubatch == best.ubatch
        and plan.flash_attention == best.flash_attention
        and plan.extra_buffers == best.extra_buffers
        and plan.gpu_layers == best.gpu_layers
        and plan.kv_type == "f16"
    )
