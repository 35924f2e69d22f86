"""Dry runs: asks an engine what it would allocate for a model, once, and keeps the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.engine.lab import Library, SurveyWanted
from stoker.errors import StokerError
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import loading
from stoker.lifecycle.planning import digest_of
from stoker.profiles import Profiles
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuner.labs import OpenLab
from stoker.tuning.launch import LaunchPlan, Survey
from stoker.tuning.plan import make_plan
from stoker.tuning.surveys import survey_grid
from stoker.types import Digest

log = structlog.get_logger(__name__)

_MOST_TRIES: Final = 2  # then formulas serve until the daemon starts again
_DEADLINE_S: Final = 90.0  # 2 s alone; it stays behind everything else


class Surveyor:
    """One survey at a time: each holds a vocabulary in memory."""

    def __init__(
        self,
        store: Store,
        profiles: Profiles,
        library: Callable[[str], Library | None],
        opener: OpenLab,
        cwd: Path,
    ) -> None:
        self._store = store
        self._profiles = profiles
        self._library = library
        self._opener = opener
        self._cwd = cwd
        self._tries: dict[tuple[Digest, str], int] = {}
        self._turn = anyio.Lock()

    def wanted(self, model: Digest, runtime: str) -> bool:
        """Whether nothing is known yet and it may still be tried."""
        tries = self._tries.get((model, runtime), 0)
        busy = self._turn.statistics().locked
        return tries < _MOST_TRIES and not busy and self._profiles.survey(model, runtime) is None

    async def survey(
        self, manifest: Manifest, runtime: str, hardware: HardwareFacts, settings: Settings
    ) -> Survey | None:
        """The kept answer, else a dry run; None when it failed twice. Never raises StokerError."""
        digest = digest_of(manifest)
        async with self._turn:
            known = await run_sync(self._profiles.survey, digest, runtime)
            library = self._library(runtime)
            tries = self._tries.get((digest, runtime), 0)
            if known is not None or library is None or tries >= _MOST_TRIES:
                return known
            self._tries[digest, runtime] = tries + 1
            try:
                with anyio.fail_after(_DEADLINE_S):
                    found = await self._ask(manifest, library, hardware, settings)
            except (StokerError, TimeoutError) as error:
                log.info("survey_failed", model=str(manifest.id), reason=str(error))
                return None
            if found is not None:
                await run_sync(self._profiles.keep_survey, digest, found)
            return found

    async def _ask(
        self, manifest: Manifest, library: Library, hardware: HardwareFacts, settings: Settings
    ) -> Survey | None:
        loadable = await run_sync(loading.examine, self._store, manifest.id)
        plan = _roomy_plan(loadable, hardware, settings, library.runtime)
        if plan.embedding:
            return None  # the dry run is made for models that write
        wanted = [SurveyWanted(*point) for point in survey_grid(loadable.facts, plan)]
        async with self._opener(library, cwd=self._cwd, gently=True) as lab:
            return await lab.survey(loadable.path, wanted)


def _roomy_plan(
    loadable: loading.Loadable, hardware: HardwareFacts, settings: Settings, runtime: str
) -> LaunchPlan:
    """As if nothing else were in memory, so that the points reach as far as any plan will.

    Raises MemoryShort for a model that does not fit here at all.
    """
    limit = hardware.limits.memory_limit_bytes
    empty = replace(
        hardware,
        memory=replace(hardware.memory, available_bytes=hardware.memory.total_bytes),
        limits=replace(hardware.limits, memory_headroom_bytes=limit),
    )
    wanted = loading.wishes(settings, safe_mode=False)
    return make_plan(
        str(loadable.manifest.id), loadable.path, loadable.facts, empty, wanted, runtime=runtime
    )
