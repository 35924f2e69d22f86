"""The runtimes of this machine, which one is current, and which may be used at all.

Used from the event loop's thread only; what reads or writes files says so. Not for: installing,
testing or switching (`manager`, `trial`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.engine.adapter import Adapter
from stoker.errors import StoreError, UnknownRuntime
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.runtimes import registry
from stoker.runtimes.manifest import Runtime
from stoker.runtimes.registry import Damaged, Record, State
from stoker.settings import Settings

log = structlog.get_logger(__name__)

Make = Callable[[Runtime, Paths, HardwareFacts], Adapter]

_BAD: Final = frozenset({"unsound", "failed"})


@dataclass(frozen=True, slots=True)
class Item:
    """A runtime, how it is run, and whether its self-test passed here."""

    runtime: Runtime
    adapter: Adapter
    tested: bool


class Shelf:
    """One per daemon. Made in any thread: it reads a few small files."""

    def __init__(
        self, places: Paths, hardware: HardwareFacts, settings: Settings, make: Make
    ) -> None:
        self._places = places
        self._hardware = hardware
        self._fixed = settings.runtime
        self._make = make
        self._writing = anyio.Lock()
        self._items: dict[str, Item] = {}  # replaced, never changed: the loop's thread reads it
        self._changing = threading.Lock()
        self.damaged: tuple[Damaged, ...] = ()
        self.state = registry.read_state(places.runtime_state)
        own = registry.built_in()
        self.built_in = own.name
        self.add(own)
        self.rescan()

    # --- what is there -----------------------------------------------------------------------

    def rescan(self) -> None:
        """Look into the folder again. Blocking."""
        with self._changing:
            found = registry.installed(self._places.runtimes)
            kept = {
                name: item
                for name, item in self._items.items()
                if item.runtime.folder is None or item.runtime in found.runtimes
            }
            new = (one for one in found.runtimes if one.name not in kept)
            self._items = kept | {one.name: self._item(one) for one in new}
            self.damaged = found.damaged

    def add(self, runtime: Runtime) -> None:
        """Blocking: it reads whether the self-test passed before."""
        with self._changing:
            self._items = {**self._items, runtime.name: self._item(runtime)}

    def _item(self, runtime: Runtime) -> Item:
        adapter = self._make(runtime, self._places, self._hardware)
        verdict = adapter.canary.verdict()
        sound = verdict is not None and not verdict.safe_mode
        tested = runtime.kind == "builtin" or sound
        return Item(runtime, adapter, tested)

    def items(self) -> Iterator[Item]:
        return iter(self._items.values())

    def find(self, name: str) -> Item:
        """Raises UnknownRuntime."""
        item = self._items.get(name)
        if item is None:
            raise UnknownRuntime(f"there is no runtime {name[:96]!r}")
        return item

    def knows(self, name: str) -> bool:
        return name in self._items

    # --- the choice --------------------------------------------------------------------------

    @property
    def fixed(self) -> str | None:
        """The user's setting, whether such a runtime can be used or not."""
        return self._fixed

    @property
    def current(self) -> str:
        for name in (self._fixed, self.state.current):
            if name is not None and self.is_usable(name):
                return name
        return self.built_in

    def is_usable(self, name: str) -> bool:
        """It is there, passed its self-test on this machine, and has not failed since."""
        item = self._items.get(name)
        return item is not None and item.tested and not self.is_bad(name)

    def is_bad(self, name: str) -> bool:
        record = self.record(name)
        return record is not None and record.outcome in _BAD

    def usable(self) -> tuple[str, ...]:
        """All that may be used, the current one first; it alone when the user chose it."""
        current = self.current
        if self._fixed == current or self.state.chosen:
            return (current,)
        others = (name for name in self._items if name != current and self.is_usable(name))
        return (current, *others)

    def has(self, name: str, *, measured_at: str | None) -> bool:
        """See `Engine.has`: an old measurement does not undo a later change of the current one."""
        if name in {"", self.current}:
            return True
        if not self.is_usable(name) or measured_at is None:
            return self.is_usable(name)
        if name not in self.usable():
            return False
        changed = self.state.changed_at
        try:
            return changed is None or datetime.fromisoformat(measured_at) > changed
        except (ValueError, TypeError):  # not a time, or one without a zone
            return False

    def fallback(self, name: str) -> str | None:
        """What to use in its place; None for the built-in one."""
        if name == self.built_in:
            return None
        previous = self.state.previous if name == self.state.current else self.current
        if previous is not None and previous != name and self.is_usable(previous):
            return previous
        return self.built_in

    # --- what is remembered ------------------------------------------------------------------

    def record(self, name: str) -> Record | None:
        """What is known of this very build."""
        item, record = self._items.get(name), self.state.records.get(name)
        if item is None or record is None or record.build != item.runtime.created_at:
            return None
        return record

    async def remember(self, name: str, record: Record | None) -> None:
        records = {key: value for key, value in self.state.records.items() if key != name}
        if record is not None:
            build = self.find(name).runtime.created_at
            records[name] = record.model_copy(update={"build": build})
        await self.change(records=records)

    async def retest(self, name: str) -> None:
        """Read again whether its self-test passed."""
        await run_sync(self.add, self.find(name).runtime)

    async def choose(self, name: str, *, chosen: bool) -> None:
        """Make it the current one; the current one becomes the previous one."""
        before = self.current
        previous = self.state.previous if before == name else before
        at = datetime.now(UTC)
        await self.change(current=name, previous=previous, chosen=chosen, changed_at=at)
        log.info("runtime_changed", current=name, previous=previous)

    async def change(self, **values: Any) -> None:
        """Also in the file; when that cannot be written the change lasts until the daemon ends."""
        self.state = State.model_validate(self.state.model_dump() | values)
        with anyio.CancelScope(shield=True):
            async with self._writing:
                try:
                    await run_sync(registry.write_state, self._places.runtime_state, self.state)
                except StoreError as error:
                    log.warning("runtime_state_not_written", reason=error.message)
