"""Test a runtime: whether it is sound on this machine, and faster than the one that serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
from anyio.to_thread import run_sync

from stoker.errors import CanaryFailed, LabFailed, RuntimeRejected, RuntimeUnsupported
from stoker.hardware.facts import HardwareFacts
from stoker.runtimes import registry
from stoker.runtimes.compare import Compare, Comparison, Contender
from stoker.runtimes.registry import Record
from stoker.runtimes.shelf import Item, Shelf
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.types import Capability

log = structlog.get_logger(__name__)

_SPEAKS = frozenset((Capability.CHAT, Capability.COMPLETION))


@dataclass(frozen=True, slots=True)
class Tester:
    """What a test takes."""

    shelf: Shelf
    store: Store
    hardware: HardwareFacts
    compare: Compare

    def model(self) -> Path | None:
        """The smallest stored model that writes text: every test is over soonest with it."""
        found = [one for one in self.store.list() if not one.damaged and is_writer(one)]
        if not found:
            return None
        return self.store.model_path(min(found, key=lambda one: sum(f.size for f in one.files)))

    async def is_sound(self, item: Item, model: Path) -> bool:
        """False when the test says nothing, for reasons of its own.

        Raises RuntimeRejected, and remembers it, when the runtime fails it on this machine.
        """
        name = item.runtime.name
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

    async def against_current(self, item: Item, model: Path) -> Comparison | None:
        """None when one of the two cannot be measured. Remembers what came of it."""
        new = registry.library(item.runtime)
        current = self.shelf.find(self.shelf.current)
        old = registry.library(current.runtime)
        if new is None or old is None:
            await self._not_measured(item, current, "there is no library to measure")
            return None
        verdict = await run_sync(current.adapter.canary.verdict)
        safe = verdict is not None and verdict.safe_mode
        try:
            found = await self.compare(
                Contender(new), Contender(old, extra_buffers=not safe), model
            )
        except LabFailed as error:
            await self._not_measured(item, current, error.message)
            return None
        record = Record(
            outcome="faster" if found.faster else "slower",
            message=in_words(found, current.runtime.name),
            speedup=round(found.speedup, 3),
        )
        await self.shelf.remember(item.runtime.name, record)
        return found

    async def _not_measured(self, item: Item, current: Item, why: str) -> None:
        name = item.runtime.name
        log.warning("runtime_not_measured", runtime=name, reason=why)
        message = (
            f"sound, but not measured against {current.runtime.name}: {why};"
            f" `stoker runtime use {name}` takes it all the same"
        )
        await self.shelf.remember(name, Record(outcome="unmeasured", message=message))


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
