"""Two real models in one store, and how much memory holds one of them but not both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from stoker.schemas_machine import PlanMemoryView, PlanRequest
from tests.fakes.daemon import Daemon

# Fixed, so that what a model needs does not follow from the memory that is free.
SHAPE: Final = {"context": 2048, "parallel": 4, "tune": "false"}


def stored(home: Path, starter: Path, gemma: Path, canary: Path | None = None) -> dict[str, int]:
    """Make a home that holds `starter` and `gemma`; the least memory that each can do with."""
    daemon = Daemon(home, **SHAPE)
    daemon.canary = canary
    with daemon:
        daemon.add(starter, "starter")
        daemon.add(gemma, "gemma")
        with daemon.client() as client:
            names = ("starter", "gemma")
            return {name: _least(client.plan(PlanRequest(model=name)).memory) for name in names}


def room_for_one(needs: Iterable[int]) -> int:
    """Enough for each alone, and half of the smaller one too little for both."""
    smaller, larger = sorted(needs)
    return larger + smaller // 2


def resident_bytes(daemon: Daemon) -> int:
    """Of all processes that the daemon started; 0: they changed while they were looked at."""
    total, workers = 0, daemon.workers()
    for process in workers:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has ended
            continue
    return total if daemon.workers() == workers else 0


def _least(memory: PlanMemoryView) -> int:
    """Without the cache of old prompts, which takes what is left over."""
    return memory.total_bytes - memory.cache_bytes
