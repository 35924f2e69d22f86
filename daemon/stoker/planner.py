"""The plan of a stored model, with what it costs and what one could gain. Loads nothing.

Not for: loading (`lifecycle`), or the decisions themselves (`stoker.tuning`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
from stoker.lifecycle.loading import Loadable
from stoker.schemas import MemoryView, ModelView
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
from stoker.tuning.plan import make_plan
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
    """What is in memory now."""

    def plan_of(self, model: ModelId) -> LaunchPlan | None: ...

    def views(self) -> tuple[ModelView, ...]: ...


class Offer(Protocol):
    """A runtime that would help here."""

    @property
    def kind(self) -> str: ...

    @property
    def why(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Case:
    """All that one plan is made from; `make` makes it, with more memory when asked."""

    model: Loadable
    hardware: HardwareFacts
    wishes: Wishes
    runtime: str
    tuned: Tuned | None
    survey: Survey | None
    correction: float = 1.0
    most_bytes: int | None = None  # what the user's limit for all models leaves

    @property
    def chosen(self) -> str:
        """The runtime that would be used."""
        return self.runtime if self.tuned is None else self.tuned.best.runtime

    def make(self, extra_bytes: int = 0) -> LaunchPlan:
        most = self.most_bytes
        return make_plan(
            str(self.model.manifest.id),
            self.model.path,
            self.model.facts,
            loading.with_memory(self.hardware, extra_bytes),
            self.wishes,
            mmproj_path=self.model.mmproj,
            mmproj_bytes=self.model.mmproj_bytes,
            runtime=self.runtime,
            tuned=self.tuned,
            survey=self.survey,
            correction=self.correction,
            most_bytes=None if most is None else most + extra_bytes,
        )

    def make_or_none(self, extra_bytes: int) -> LaunchPlan | None:
        try:
            return self.make(extra_bytes)
        except MemoryShort:
            return None


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

    async def plan(self, request: PlanRequest) -> PlanView:
        """The settings that a load would choose now, were this model not loaded.

        Raises UnknownModel, BlobDamaged, GgufError, MemoryShort, BadSetting.
        """
        model = self._store.find(request.model).id
        case = await run_sync(self._look, model, request, abandon_on_cancel=True)
        survey = await self._surveyed(case)
        digest = case.model.manifest.model_file.digest
        correction = await run_sync(self._profiles.correction, digest, case.chosen)
        case = replace(case, survey=survey, correction=correction)
        return await run_sync(self._view, case, request, abandon_on_cancel=True)

    # --- looking, in a thread ------------------------------------------------------------------

    def _look(self, model: ModelId, request: PlanRequest) -> _Case:
        loadable = loading.examine(self._store, model)
        room = self._room(model)
        hardware = room.hardware_with(0)
        names = self._names()
        current = names[0] if names else ""
        tuned = self._tuned(loadable.manifest, hardware, request, names)
        runtime = current if tuned is None else tuned.best.runtime
        safe = self._safe_mode(loadable.path, runtime)
        wanted, most = self._wishes(request, safe), room.most_bytes(0)
        return _Case(loadable, hardware, wanted, current, tuned, None, most_bytes=most)

    def _tuned(
        self,
        manifest: Manifest,
        hardware: HardwareFacts,
        request: PlanRequest,
        names: tuple[str, ...],
    ) -> Tuned | None:
        profile = request.profile or self._settings.profile
        tuned = self._profiles.tuned(manifest.model_file.digest, hardware, profile)
        if tuned is None or tuned.best.runtime not in names or not self._holds(tuned):
            return None
        return tuned

    def _wishes(self, request: PlanRequest, safe_mode: bool) -> Wishes:  # noqa: FBT001
        tried = request.model_dump(exclude={"model"}, exclude_none=True)
        return replace(loading.wishes(self._settings, safe_mode=safe_mode), **tried)

    def _room(self, model: ModelId) -> Room:
        """As if this model had gone; the others may still take what was promised to them."""
        promised = taken_by_all = 0
        for view in self._lifecycle.views():
            name = ModelId.parse(view.id)
            plan = self._lifecycle.plan_of(name)
            if plan is None or view.memory is None:
                continue
            taken = _taken_bytes(view.memory, plan.memory)
            taken_by_all += taken
            promised += -taken if name == model else plan.memory.total_bytes - taken
        return Room(self._hardware(), promised, taken_by_all, self._settings.memory_limit_bytes)

    async def _surveyed(self, case: _Case) -> Survey | None:
        why = "slow"
        try:
            with anyio.move_on_after(_SURVEY_S):
                return await self._survey(case.model.manifest, case.chosen)
        except StokerError as error:  # formulas are good enough for a plan
            why = error.code
        log.info("plan_without_survey", model=str(case.model.manifest.id), why=why)
        return None

    # --- showing, in a thread ------------------------------------------------------------------

    def _view(self, case: _Case, request: PlanRequest) -> PlanView:
        plan = case.make()
        settings = {reason.setting: reason.value for reason in plan.reasons}
        running = self._lifecycle.plan_of(case.model.manifest.id)
        return PlanView(
            model=plan.model_id,
            profile=plan.profile,
            runtime=plan.runtime,
            settings=settings,
            memory=_memory_view(case, plan.memory),
            reasons=tuple(
                ReasonView(setting=one.setting, value=one.value, source=one.source, why=one.why)
                for one in plan.reasons
            ),
            speed=self._speed(case, plan),
            gains=tuple(
                GainView(change=gain.change, text=gain.text, command=gain.command)
                for gain in self._gains(case, plan, request)
            ),
            loaded=running is not None
            and all(
                getattr(running, name) == value
                for name, value in settings.items()
                if name != "correction"  # what was learnt since changes no setting
            ),
        )

    def _speed(self, case: _Case, plan: LaunchPlan) -> PlanSpeedView | None:
        if plan.embedding:
            return None
        if case.tuned is not None and _is_trial(plan, case.tuned):
            speeds = case.tuned.speeds
            return PlanSpeedView(
                decode_tokens_per_s=speeds.decode_tokens_per_s,
                prefill_tokens_per_s=speeds.prefill_tokens_per_s,
                batch_tokens_per_s=speeds.batch_tokens_per_s,
                label="measured",
            )
        if plan.gpu_layers:
            return None  # the forecast knows the memory of the CPU only
        calibration = self._calibration(case.hardware, plan.profile)
        bandwidth = case.hardware.bandwidth_bytes_per_s
        work = reading(case.model.facts)
        decode = predict(work, bandwidth, plan.threads, calibration)
        prefill = predict_prefill(work, calibration)
        return PlanSpeedView(
            decode_tokens_per_s=decode.tokens_per_s,
            prefill_tokens_per_s=None if prefill is None else prefill.tokens_per_s,
            label=decode.label,
        )

    def _gains(self, case: _Case, plan: LaunchPlan, request: PlanRequest) -> tuple[Gain, ...]:
        source = case.model.manifest.source
        prospect = Prospect(
            plan=plan,
            facts=case.model.facts,
            hardware=case.hardware,
            replan=case.make_or_none,
            spare_bytes=max(0, _usable(case) - plan.memory.total_bytes),
            tuned=case.tuned is not None,
            tunes_itself=self._settings.tune,
            wished_context=request.context or self._settings.context,
            offers=[Offered(one.kind, one.why) for one in self._offers(case.hardware)],
            repository=source.location if source.kind == "hub" else None,
        )
        return gains(prospect)


def _taken_bytes(seen: MemoryView, planned: MemoryNeed) -> int:
    """What others would have if the worker went: nothing of its weights, which are mapped."""
    own = seen.resident_bytes or 0
    if seen.peak_bytes is not None:
        own = min(own, seen.peak_bytes - planned.weights_bytes)
    return max(0, min(own, planned.anonymous_bytes))


def _reserve(case: _Case) -> int:
    return reserve_bytes(case.hardware, case.wishes.reserve_bytes)


def _usable(case: _Case) -> int:
    """Of the memory that is free now."""
    free = max(0, case.hardware.headroom_bytes - _reserve(case))
    return free if case.most_bytes is None else min(free, case.most_bytes)


def _memory_view(case: _Case, need: MemoryNeed) -> PlanMemoryView:
    surveyed = case.survey is not None
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
        usable_bytes=_usable(case),
        reserved_bytes=_reserve(case),
        label="calibrated" if surveyed else "estimated",
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
        and plan.kv_type == "f16"
    )
