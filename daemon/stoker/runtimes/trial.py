"""Test a runtime: whether it is sound on this machine, and faster than the one that serves."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from anyio.to_thread import run_sync

from stoker.engine.graphics import with_gpus
from stoker.engine.lab import Library
from stoker.errors import (
    CanaryFailed,
    LabFailed,
    MemoryShort,
    RuntimeRejected,
    RuntimeUnsupported,
)
from stoker.hardware.facts import HardwareFacts
from stoker.hardware.probe import probe
from stoker.runtimes import registry
from stoker.runtimes.compare import Compare, Comparison, Contender
from stoker.runtimes.registry import Record
from stoker.runtimes.shelf import Item, Shelf
from stoker.store.facts import ModelFacts, model_facts
from stoker.store.gguf import read_header
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuning.launch import Wishes
from stoker.tuning.placement import gpu_runtime
from stoker.tuning.plan import make_plan
from stoker.types import Capability

log = structlog.get_logger(__name__)

_CELLS: Final = 1024  # tokens; as many as the self-test and a measurement use
_STREAMS: Final = 4
_SPEAKS = frozenset((Capability.CHAT, Capability.COMPLETION))


@dataclass(frozen=True, slots=True)
class Tester:
    """What a test takes."""

    shelf: Shelf
    store: Store
    hardware: HardwareFacts
    compare: Compare
    cwd: Path  # of processes that only look

    def model(self) -> Path | None:
        """The smallest stored model that writes text: every test is over soonest with it."""
        found = [one for one in self.store.list() if not one.damaged and is_writer(one)]
        if not found:
            return None
        return self.store.model_path(min(found, key=lambda one: sum(f.size for f in one.files)))

    async def is_sound(self, item: Item, model: Path) -> bool:
        """False when the test says nothing, for reasons of its own.

        Raises RuntimeRejected, and remembers it, when the runtime fails it on this machine, and
        MemoryShort when there is too little memory to try.
        """
        name = item.runtime.name
        await run_sync(self._check_room, model, 1)
        try:
            item.adapter.check_supported()
            finding = await item.adapter.canary.examine(model, self.hardware.effective_cpus)
            why = finding.why if finding is not None and finding.safe_mode else None
        except CanaryFailed as error:
            finding, why = None, f"{error.message} ({error.facts.get('normal')})"
        except RuntimeUnsupported as error:
            finding, why = None, error.message
        if why is not None:
            message = f"{name} is not sound on this machine: {why}"
            await self.shelf.remember(name, Record(outcome="unsound", message=message))
            raise RuntimeRejected(message, reason="unsound", runtime=name)
        await self.shelf.retest(name)
        return finding is not None

    async def compared(self, item: Item, against: str, model: Path) -> Comparison | None:
        """None when one of the two cannot be measured. Remembers what came of it."""
        new = registry.library(item.runtime)
        current = self.shelf.find(against)
        old = registry.library(current.runtime)
        if new is None or old is None:
            await self._not_measured(item, current, "there is no library to measure")
            return None
        verdict = await run_sync(current.adapter.canary.verdict)
        safe = verdict is not None and verdict.safe_mode
        try:
            await run_sync(self._check_room, model, 2)
            layers = await gpu_layers(model, new, self.cwd)
            before = 0 if safe else await gpu_layers(model, old, self.cwd)
            found = await self.compare(
                Contender(new, gpu_layers=layers),
                Contender(old, extra_buffers=not safe, gpu_layers=before),
                model,
            )
        except (LabFailed, MemoryShort) as error:
            await self._not_measured(item, current, error.message)
            return None
        record = Record(
            outcome="faster" if found.faster else "slower",
            message=in_words(found, current.runtime.name),
            speedup=round(found.speedup, 3),
        )
        await self.shelf.remember(item.runtime.name, record)
        return found

    def _check_room(self, model: Path, workers: int) -> None:
        """Raises MemoryShort unless so many small workers fit in what is free. Blocking."""
        facts, hardware, wanted = _facts(model), probe(), Wishes(context=_CELLS, parallel=1)
        first = make_plan("test", model, facts, hardware, wanted).memory.anonymous_bytes
        if workers > 1:
            memory, limits = hardware.memory, hardware.limits
            others, room = first * (workers - 1), limits.memory_headroom_bytes
            free = max(0, memory.available_bytes - others)
            room = None if room is None else max(0, room - others)
            hardware = replace(
                hardware,
                memory=replace(memory, available_bytes=free),
                limits=replace(limits, memory_headroom_bytes=room),
            )
            make_plan("test", model, facts, hardware, wanted)

    async def _not_measured(self, item: Item, current: Item, why: str) -> None:
        name = item.runtime.name
        log.warning("runtime_not_measured", runtime=name, reason=why)
        message = (
            f"sound, but not measured against {current.runtime.name}: {why};"
            f" `stoker runtime use {name}` takes it all the same"
        )
        await self.shelf.remember(name, Record(outcome="unmeasured", message=message))


def _facts(model: Path) -> ModelFacts:
    with model.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        return model_facts(read_header(stream, size), size)


async def gpu_layers(model: Path, library: Library, cwd: Path) -> int:
    """How many a load would place there. Raises LabFailed for what cannot be measured."""
    if not gpu_runtime(library.runtime):
        return 0
    hardware = await run_sync(partial(probe, fresh_gpus=True))
    hardware = await with_gpus(hardware, library, cwd=cwd)
    wanted = Wishes(context=_CELLS, parallel=_STREAMS)
    facts = await run_sync(_facts, model)
    plan = make_plan("test", model, facts, hardware, wanted, runtime=library.runtime)
    if not plan.gpu_layers:
        raise LabFailed("it is not known whether the model fits on the GPU")
    if plan.cpu_experts:
        raise LabFailed("the smallest model here does not fit on the GPU with all its experts")
    return plan.gpu_layers


def is_writer(manifest: Manifest) -> bool:
    return bool(_SPEAKS & set(manifest.capabilities))


def in_words(found: Comparison, old: str) -> str:
    new, before = found.new, found.old

    def part(what: str, ours: float, theirs: float) -> str:
        return f"{what} {ours:.4g} against {theirs:.4g}"

    parts = (
        part("prompts", new.prefill_tokens_per_s, before.prefill_tokens_per_s),
        part("answers", new.decode_tokens_per_s, before.decode_tokens_per_s),
        part("four at once", new.batch_tokens_per_s, before.batch_tokens_per_s),
    )
    return f"{found.speedup:.2f} times as fast as {old}; tokens/s: {', '.join(parts)}"
