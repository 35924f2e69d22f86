"""What models computed of the last conversations: saved with a worker's end, restored at a start.

The engine writes and reads; here is decided what is worth it, and made sure that only whole files
of the same model, runtime and settings are ever restored. Nothing here raises but a cancellation:
a conversation that is not kept is computed again, and that is all. Not for: the files
(`conversation_files`).
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.engine import slots
from stoker.engine.slots import Slot
from stoker.engine.upstream import Upstream
from stoker.errors import EngineError, WorkerLost
from stoker.lifecycle import conversation_files as files
from stoker.lifecycle.conversation_files import Kept
from stoker.store.disk import free_bytes
from stoker.tuning.launch import LaunchPlan
from stoker.types import Digest

log = structlog.get_logger(__name__)

T = TypeVar("T")

SAVE_S: Final = 5.0  # somebody may wait for the memory; a disk takes a gigabyte or so in this time
RESTORE_S: Final = 5.0  # the files were read a moment ago, by `beside`
LEAST_TOKENS: Final = 64  # fewer are computed again sooner than anybody notices
_NEVER: Final = -1  # before the first request


@dataclass(frozen=True, slots=True)
class Part:
    """A file that the engine was asked to write."""

    path: Path
    tokens: int
    size: int


@dataclass(eq=False)
class Draft:
    """What the engine wrote of one worker's conversations; `Conversations.keep` finishes it."""

    folder: Path | None
    asked: list[Path] = field(default_factory=list)
    written: list[Part] = field(default_factory=list)  # newest first
    saved_ns: int = field(default_factory=time.time_ns)
    kept: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def count(self) -> int:
        return len(self.written)


class Conversations:
    """All that is kept, in one folder. A limit of 0 bytes switches it off."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        # Number of the last request that is already in a file, by worker.
        self._served: WeakKeyDictionary[Upstream, int] = WeakKeyDictionary()
        # What was put into each worker.
        self._restored: WeakKeyDictionary[Upstream, list[Kept]] = WeakKeyDictionary()
        self._finishing = threading.Lock()  # or a file would come into a folder that is removed
        self._drafts: WeakSet[Draft] = WeakSet()  # that are not finished yet
        # Files that were hashed since they were written: path to size and time.
        self._whole: dict[Path, tuple[int, int]] = {}

    @property
    def on(self) -> bool:
        return self._limit_bytes > 0

    # --- blocking ----------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """What they take on disk."""
        return sum(kept.size for kept in files.all_kept(self._folder))

    def tidy(self, stored: Iterable[Digest]) -> None:
        """At the start of the daemon: drop what is half, too much, or of no stored model."""
        files.tidy(self._folder, self._limit_bytes, frozenset(stored))

    def forget(self, digest: Digest) -> None:
        """The model was removed."""
        with self._finishing:
            files.forget(self._folder, digest)

    def clear(self) -> None:
        with self._finishing:
            files.clear(self._folder)

    def folder_for(self, digest: Digest, plan: LaunchPlan, runtime: str) -> Path | None:
        """Where conversations of such a worker are; None: they are not kept. Makes the folder."""
        if not self.on or plan.embedding or plan.pooling is not None:
            return None
        if not str(self._folder).isprintable():  # it could not be named to an engine
            return None
        try:
            return files.make_folder(self._folder, files.state_key(digest, plan, runtime))
        except OSError as error:
            log.warning("conversations_have_no_folder", reason=error.strerror or str(error))
            return None

    # --- around a worker's start -------------------------------------------------------------

    async def prepare(self, digest: Digest, plan: LaunchPlan) -> LaunchPlan:
        """The plan, with the folder that its worker may use."""
        folder = await run_sync(self.folder_for, digest, plan, plan.runtime)
        return replace(plan, conversations=folder)

    async def beside(self, plan: LaunchPlan, launch: Awaitable[T]) -> T:
        """Await ``launch``, while the files are hashed that `restore` will want.

        Raises what it raises.
        """
        wanted = True

        def check() -> None:
            for kept in self._chosen(plan):
                self._is_whole(kept, lambda: wanted)

        checking = asyncio.create_task(run_sync(check)) if plan.conversations else None
        patience_s = 0.0
        try:
            started = await launch
            patience_s = RESTORE_S
        finally:
            if checking is not None:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait((checking,), timeout=patience_s)
                    wanted = False  # it ends within a megabyte
                    await asyncio.wait((checking,))
                if (error := checking.exception()) is not None:
                    log.warning("conversations_not_checked", reason=str(error))
        return started

    async def restore(
        self, upstream: Upstream, plan: LaunchPlan, *, timeout_s: float = RESTORE_S
    ) -> int:
        """Put the newest into the slots of a worker that nobody uses yet; how many."""
        if plan.conversations is None:
            return 0
        began, restored = time.monotonic(), 0
        try:
            with anyio.move_on_after(timeout_s):
                for draft in [one for one in self._drafts if one.folder == plan.conversations]:
                    await draft.kept.wait()  # of the worker before this one
                for slot, kept in enumerate(await run_sync(self._chosen, plan)):
                    restored += await self._restore(upstream, slot, kept, began + timeout_s)
                if restored:
                    self._served[upstream] = _last(await slots.look(upstream))
        except EngineError as error:
            log.warning("conversations_not_restored", reason=error.message)
        if restored:
            log.info("conversations_restored", count=restored, seconds=_since(began))
        return restored

    async def _restore(self, upstream: Upstream, slot: int, kept: Kept, until: float) -> bool:
        """A file is out of the way while it is tried: what ends the engine does so only once."""
        trying = await run_sync(self._take, kept, until)
        if trying is None:
            return False
        good = False
        try:
            good = await slots.restore(upstream, slot, trying.name) > 0
            self._restored.setdefault(upstream, []).append(kept)
        except WorkerLost:
            raise
        except EngineError as error:
            log.info("conversation_refused", reason=error.message)
        except asyncio.CancelledError:
            good = time.monotonic() < until  # the load was given up, which says nothing about it
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(files.put_back, kept, trying, good)
        return good

    def _take(self, kept: Kept, until: float) -> Path | None:
        whole = self._is_whole(kept, lambda: time.monotonic() < until)
        return files.take(kept) if whole else None

    # --- around its end ----------------------------------------------------------------------

    async def save(
        self, upstream: Upstream, plan: LaunchPlan, *, timeout_s: float = SAVE_S
    ) -> Draft:
        """Let an idle worker that is about to stop write its conversations, newest first.

        Only those that somebody used since they were last saved. Give what it returns to `keep`,
        best after the worker has ended.
        """
        draft = Draft(plan.conversations)
        if plan.conversations is None:
            return draft
        self._drafts.add(draft)
        began = time.monotonic()
        try:
            with anyio.move_on_after(timeout_s) as limit:
                await self._save(upstream, plan, plan.conversations, draft)
            if limit.cancelled_caught:
                log.warning("conversations_take_too_long", saved=draft.count)
        except EngineError as error:
            log.warning("conversations_not_saved", reason=error.message)
        if not draft.asked:
            self._drafts.discard(draft)
        if draft.count:
            size = sum(part.size for part in draft.written)
            log.info("conversations_saved", count=draft.count, bytes=size, seconds=_since(began))
        return draft

    async def _save(self, upstream: Upstream, plan: LaunchPlan, folder: Path, draft: Draft) -> None:
        found = await slots.look(upstream)
        room = min(self._limit_bytes, await run_sync(free_bytes, folder) - files.FREE_LEFT)
        for slot in worth_saving(found, plan, self._served.get(upstream, _NEVER), room):
            path = folder / f"{secrets.token_hex(8)}{files.PART}"
            draft.asked.append(path)
            try:
                size = await slots.save(upstream, slot.id, path.name)
            except WorkerLost:
                raise
            except EngineError as error:  # an older engine cannot save images
                log.info("conversation_refused", reason=error.message)
            else:
                draft.written.append(Part(path, slot.tokens, size))
        self._served[upstream] = _last(found)

    async def keep(self, draft: Draft) -> int:
        """Finish what was written, remove what is half, stay below the limit; how many are kept.

        Needs no worker. Cannot be cancelled half-way.
        """
        if not draft.asked:
            return 0
        try:
            with anyio.CancelScope(shield=True):
                count = await run_sync(self._keep, draft)
        finally:
            draft.kept.set()
            self._drafts.discard(draft)
        return count

    def _keep(self, draft: Draft) -> int:
        with self._finishing:
            oldest_first = reversed(tuple(enumerate(draft.written)))
            kept = [part for age, part in oldest_first if self._finish(draft, age, part)]
            files.discard(draft.asked)
            files.trim(self._folder, self._limit_bytes)
        for path in list(self._whole):  # other threads add to it
            if not path.exists():
                self._whole.pop(path, None)
        return len(kept)

    def _finish(self, draft: Draft, age: int, part: Part) -> bool:
        try:
            kept = files.finish(part.path, part.tokens, part.size, draft.saved_ns - age * 1000)
        except OSError as error:  # its folder went with the model
            log.warning("conversation_not_kept", reason=error.strerror or str(error))
            return False
        if kept is not None:
            self._whole[kept.path] = (kept.size, kept.modified_ns)
        return kept is not None

    async def carry_over(
        self, old: Upstream, old_plan: LaunchPlan, new: Upstream, new_plan: LaunchPlan
    ) -> int:
        """From a worker that nobody uses now into the one that takes its place; how many."""
        if old_plan.conversations is None or old_plan.conversations != new_plan.conversations:
            return 0
        if await self.keep(await self.save(old, old_plan)):
            return await self.restore(new, new_plan)
        return 0

    async def distrust(self, upstream: Upstream) -> None:
        """A worker ended by itself: what was put into it may be why, and is not tried again."""
        restored = self._restored.pop(upstream, [])
        if restored:
            log.info("conversations_distrusted", count=len(restored))
            await run_sync(files.discard, [kept.path for kept in restored])

    # --- which, and whether they are whole ---------------------------------------------------

    def _chosen(self, plan: LaunchPlan) -> Sequence[Kept]:
        return (
            worth_restoring(files.kept_in(plan.conversations), plan) if plan.conversations else ()
        )

    def _is_whole(self, kept: Kept, wanted: Callable[[], bool]) -> bool:
        """Its bytes are those that were written; else it is removed. False when not ``wanted``.

        Reads the file only when that is not known yet.
        """
        seen = (kept.size, kept.modified_ns)
        if self._whole.get(kept.path) == seen:
            return True
        sha256 = files.hash_file(kept.path, wanted)
        if sha256 == kept.sha256:
            self._whole[kept.path] = seen
        elif sha256 is not None:
            log.warning("conversation_damaged", bytes=kept.size)
            files.remove(kept)
        return sha256 == kept.sha256


def worth_saving(
    found: Iterable[Slot], plan: LaunchPlan, served: int, room_bytes: int
) -> tuple[Slot, ...]:
    """The slots to write, newest first, as far as they are likely to fit. Pure.

    ``served`` is the number of the last request that needs no saving.
    """
    of_a_token = plan.memory.kv_bytes / max(plan.context, plan.cells, 1)
    chosen = []
    for slot in sorted(found, key=lambda slot: slot.task, reverse=True):
        if slot.task <= served or slot.tokens < LEAST_TOKENS or slot.busy:
            continue
        room_bytes -= int(slot.tokens * of_a_token)
        if room_bytes < 0:
            break
        chosen.append(slot)
    return tuple(chosen)


def worth_restoring(found: Iterable[Kept], plan: LaunchPlan) -> tuple[Kept, ...]:
    """The newest, as many as there are slots and cells for. Pure."""
    cells = max(plan.context, plan.cells)
    chosen: list[Kept] = []
    for kept in found:
        if kept.tokens >= plan.context or kept.tokens > cells:
            continue
        if len(chosen) == plan.parallel:
            break
        cells -= kept.tokens
        chosen.append(kept)
    return tuple(chosen)


def _last(found: Iterable[Slot]) -> int:
    return max((slot.task for slot in found), default=_NEVER)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
