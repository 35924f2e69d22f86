"""What a search starts from: the untuned plan, the runtimes worth measuring, the memory there is.

Asked anew for every stretch of a search, because all of it may have changed since the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from anyio.to_thread import run_sync

from stoker.errors import CanaryFailed, LabFailed, MemoryShort, RuntimeUnsupported
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import loading
from stoker.lifecycle.planning import Seen
from stoker.profiles import Profiles
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuner import policy
from stoker.tuner.job import Basis, Job, trial_of
from stoker.tuner.parts import Engines, Models
from stoker.tuning import keys
from stoker.tuning.launch import LaunchPlan, Wishes
from stoker.tuning.placement import gpu_runtime, room
from stoker.tuning.plan import make_plan
from stoker.tuning.space import Space, make_space


class Starting:
    def __init__(
        self,
        store: Store,
        lifecycle: Models,
        runtimes: Engines,
        profiles: Profiles,
        settings: Settings,
        hardware: Callable[[], HardwareFacts],
        seen: Seen,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._runtimes = runtimes
        self._profiles = profiles
        self._settings = settings
        self._hardware = hardware
        self._seen = seen

    async def look(self, job: Job) -> tuple[Basis, HardwareFacts]:
        """What the search starts from, as it is now. Raises what a load would raise."""
        loadable = await run_sync(loading.examine, self._store, job.model, abandon_on_cancel=True)
        hardware = await run_sync(self._hardware, abandon_on_cancel=True)
        runtimes, safe = await self._sound_runtimes(loadable.path)
        wanted = loading.wishes(self._settings, safe_mode=runtimes[0] in safe)
        seen = await self._seen(hardware, runtimes[0])
        plan = self._untuned(job, loadable, seen, wanted, runtimes[0])
        if not plan.runtime:
            plan = replace(plan, runtime=runtimes[0])
        if plan.cpu_experts:
            raise LabFailed("a model whose experts are divided between GPU and CPU is not measured")
        _check_gpu(plan, seen)
        key = keys.tuning_key(hardware)
        return (
            Basis(key, job.profile, runtimes, safe, loadable.path, plan, trial_of(plan)),
            hardware,
        )

    def _untuned(
        self,
        job: Job,
        loadable: loading.Loadable,
        hardware: HardwareFacts,
        wanted: Wishes,
        runtime: str,
    ) -> LaunchPlan:
        """As if the model's worker were not there: this plan would replace it."""
        loaded = self._lifecycle.plan_of(job.model)
        room = hardware
        if loaded is not None:
            memory = loaded.memory
            room = loading.with_memory(hardware, memory.anonymous_bytes, memory.gpu_bytes)
        try:
            return make_plan(
                str(job.model),
                loadable.path,
                loadable.facts,
                room,
                wanted,
                runtime=runtime,
                survey=self._profiles.survey(job.digest, runtime),
            )
        except MemoryShort:
            if loaded is None:
                raise
            return replace(loaded, runtime=runtime)  # memory got short since; it runs all the same

    async def _sound_runtimes(self, model: Path) -> tuple[tuple[str, ...], frozenset[str]]:
        """Those that may be measured, the current one first; and which need the safe mode.

        Nothing takes the place of a runtime for a GPU: how many layers there is room for there
        changes from load to load, and what was measured with few would then decide for all.
        """
        usable = self._runtimes.usable()
        wish = self._settings.runtime
        if wish is not None and wish in usable:
            usable = (wish,)
        if gpu_runtime(usable[0]):
            usable = usable[:1]
        usable = tuple(name for name in usable if name == usable[0] or not gpu_runtime(name))
        sound: list[str] = []
        safe: set[str] = set()
        for name in usable:
            try:
                if await self._runtimes.prepare(model, name):
                    safe.add(name)
            except (CanaryFailed, RuntimeUnsupported):
                continue
            if self._runtimes.library(name) is not None:
                sound.append(name)
        if not sound:
            raise LabFailed("no runtime here can be measured")
        return tuple(sound), frozenset(safe)

    def space(self, basis: Basis, hardware: HardwareFacts, shape: policy.Shape) -> Space:
        safe_mode = basis.runtimes[0] in basis.safe
        return make_space(
            hardware,
            basis.baseline,
            loading.wishes(self._settings, safe_mode=safe_mode),
            runtimes=basis.runtimes,
            safe=basis.safe,
            ubatch_most=policy.largest_ubatch(basis.plan),
            prompt=shape.prompt,
        )

    def check_room(self, job: Job, hardware: HardwareFacts) -> None:
        """Raises MemoryShort, with the numbers."""
        if job.basis is None:
            return
        loaded = self._lifecycle.plan_of(job.model) is not None
        need = policy.lab_bytes(job.basis.plan, loaded=loaded)
        room = policy.room_bytes(hardware, self._settings.memory_reserve_bytes)
        if need > room:
            raise MemoryShort(
                f"Measuring {job.model} beside what is loaded needs {need / 2**30:.2f} GiB of"
                f" memory; {room / 2**30:.2f} GiB can be spared.",
                needed_bytes=need,
                free_bytes=room,
            )

    def labs_at_once(self, basis: Basis, hardware: HardwareFacts) -> int:
        """Two runtimes side by side save loading the model anew at each change."""
        twice = 2 * policy.lab_bytes(basis.plan, loaded=True)
        return 2 if twice <= policy.room_bytes(hardware, self._settings.memory_reserve_bytes) else 1


def _check_gpu(plan: LaunchPlan, hardware: HardwareFacts) -> None:
    """While the model is loaded, its layers are there twice. Raises MemoryShort."""
    need, free = plan.memory.gpu_bytes, room(hardware, plan.runtime).free_bytes
    if free is not None and need > free:
        raise MemoryShort(
            f"Measuring {plan.model_id} beside what is loaded needs {need / 2**30:.2f} GiB of the"
            f" GPU's memory; {free / 2**30:.2f} GiB can be spared.",
            needed_bytes=need,
            free_bytes=free,
        )
