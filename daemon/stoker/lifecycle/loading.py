"""What a model needs and who must go for it: the store and this machine, asked in a thread.

Not for: when to load (`scheduler`), or carrying it out (`runtime`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stoker.errors import BlobDamaged, MemoryShort
from stoker.lifecycle.budget import Room, with_memory
from stoker.lifecycle.eviction import Candidate, Choice, choose
from stoker.settings import Settings
from stoker.store.facts import ModelFacts
from stoker.store.manifest import FileRole, Manifest
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan, Survey, Tuned, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import ModelId

__all__ = ["Loadable", "examine", "plan_load", "wishes", "with_memory"]


@dataclass(frozen=True, slots=True)
class Loadable:
    """A stored model whose blobs were checked a moment ago."""

    manifest: Manifest
    facts: ModelFacts
    path: Path
    mmproj: Path | None
    mmproj_bytes: int


def examine(store: Store, model: ModelId) -> Loadable:
    """Blocking. Raises UnknownModel, BlobDamaged, GgufError."""
    manifest = store.find(str(model))
    if manifest.damaged:
        raise BlobDamaged(f"{manifest.id} is damaged and is not loaded", model=str(manifest.id))
    store.check(manifest)
    projectors = manifest.with_role(FileRole.MMPROJ)
    return Loadable(
        manifest,
        store.facts(manifest),
        store.model_path(manifest),
        store.path(projectors[0].digest) if projectors else None,
        projectors[0].size if projectors else 0,
    )


def wishes(settings: Settings, *, safe_mode: bool) -> Wishes:
    """What the user set. ``safe_mode`` is the canary's finding."""
    return Wishes(
        context=settings.context,
        threads=settings.threads,
        threads_batch=settings.threads_batch,
        parallel=settings.parallel,
        reserve_bytes=settings.memory_reserve_bytes,
        safe_mode=safe_mode,
        no_gpu=safe_mode,  # its test is one without a GPU
        profile=settings.profile,
        ubatch=settings.ubatch,
        flash_attention=settings.flash_attention,
        kv_type=settings.kv_type,
        gpu_layers=settings.gpu_layers,
    )


def plan_load(
    model: Loadable,
    room: Room,
    wanted: Wishes,
    *,
    candidates: Sequence[Candidate] = (),
    runtime: str = "",
    tuned: Tuned | None = None,
    survey: Survey | None = None,
    correction: float = 1.0,
) -> Choice[LaunchPlan]:
    """The launch plan and who must go first. Pure. Raises MemoryShort, with the numbers.

    Raises BadSetting for wishes that contradict each other.
    ``runtime`` is the name of the one that is used when ``tuned`` brings none; ``correction`` is
    what was learnt of the one that is used.
    """
    short: list[MemoryShort] = []

    def plan_with(extra_bytes: int, gpu_bytes: int) -> LaunchPlan | None:
        try:
            return make_plan(
                str(model.manifest.id),
                model.path,
                model.facts,
                room.hardware_with(extra_bytes, gpu_bytes),
                wanted,
                mmproj_path=model.mmproj,
                mmproj_bytes=model.mmproj_bytes,
                runtime=runtime,
                tuned=tuned,
                survey=survey,
                correction=correction,
                most_bytes=room.most_bytes(extra_bytes),
            )
        except MemoryShort as error:
            short.append(error)
            return None

    choice = choose(candidates, plan_with)
    if choice is None:
        raise short[-1]
    return choice
