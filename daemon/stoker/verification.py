"""Hash a stored model again and act on what is found.

Shared by the verify stream and the idle-time scrub, so that a damaged blob has the same
consequences whoever finds it. Not for: the hashing itself (`store`) or when to do it (`jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import psutil
import structlog

from stoker.events import EventBus
from stoker.lifecycle.runtime import Lifecycle
from stoker.schemas import StoreChanged
from stoker.store.manifest import Manifest
from stoker.store.store import FileResult, Store

log = structlog.get_logger(__name__)


class Verifier:
    """Verifies one model per call; the caller says how it hears of progress and when to stop."""

    def __init__(self, store: Store, lifecycle: Lifecycle, bus: EventBus) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._bus = bus

    async def verify(
        self,
        manifest: Manifest,
        *,
        progress: Callable[[int], None] = lambda _bytes: None,
        found: Callable[[FileResult], None] = lambda _result: None,
        stop: threading.Event | None = None,
        gently: bool = False,
    ) -> None:
        """Hash every blob of the model in a thread of its own.

        `progress` (bytes more) and `found` are called in that thread. Setting `stop`, or
        cancelling, ends the hashing at the next chunk; on return nothing is hashed any more.
        Models with a damaged blob are unloaded before this returns, also when cancelled.
        """
        stop = stop if stop is not None else threading.Event()
        results: list[FileResult] = []

        def hash_all() -> None:
            for result in self._store.verify(manifest, progress, stop.is_set):
                results.append(result)
                found(result)

        try:
            await _in_own_thread(hash_all, stop, gently=gently)
        finally:
            with anyio.CancelScope(shield=True):
                await self._conclude(manifest, results)

    async def _conclude(self, manifest: Manifest, results: list[FileResult]) -> None:
        """A blob may belong to several models; the store has marked them all."""
        damaged = {result.digest for result in results if not result.ok}
        if not damaged:
            if len(results) == len(manifest.files):
                self._bus.publish(StoreChanged(id=manifest.id.text, change="verified"))
            return
        for one in self._store.list():
            if one.digests & damaged:
                log.error("model_damaged", model=one.id.text)
                self._bus.publish(StoreChanged(id=one.id.text, change="damaged"))
                await self._lifecycle.forget(one.id)


async def _in_own_thread(work: Callable[[], None], stop: threading.Event, *, gently: bool) -> None:
    """Run `work` to its end; when cancelled, set `stop` and wait for that end.

    A thread of its own, because a lowered priority cannot be raised again without privilege.
    """
    executor = ThreadPoolExecutor(1, "verify", initializer=_step_back if gently else None)
    running = asyncio.get_running_loop().run_in_executor(executor, work)
    executor.shutdown(wait=False)  # takes no more work; its thread ends with this one
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        with anyio.CancelScope(shield=True):
            await running
        raise


def _step_back() -> None:
    """Let all other work on this machine go first; a system without such a wish is fine too."""
    if sys.platform == "linux":  # elsewhere a priority belongs to the process, not to a thread
        thread = threading.get_native_id()
        with contextlib.suppress(psutil.Error, OSError):
            psutil.Process(thread).ionice(psutil.IOPRIO_CLASS_IDLE)
            os.setpriority(os.PRIO_PROCESS, thread, 19)
