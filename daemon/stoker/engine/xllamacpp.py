"""The built-in runtime: llama.cpp's server from the xllamacpp wheel, in a process of its own.

Not imported here: `xllamacpp` itself lives in the worker (`engine.child`) only.
"""

from __future__ import annotations

import secrets
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import anyio
import structlog

from stoker import transport
from stoker.engine.base import Address, Worker
from stoker.engine.canary import Canary
from stoker.engine.probe import answers_decode
from stoker.engine.worker import Spawn, WorkerProcess, launch, remove_stale_sockets
from stoker.errors import RuntimeUnsupported
from stoker.hardware.assess import missing_flags
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.tuning.launch import LaunchPlan

log = structlog.get_logger(__name__)

_DISTRIBUTION: Final = "xllamacpp"
_COMMAND: Final = (sys.executable, "-I", "-m", "stoker.engine.child")


class XllamacppEngine:
    """Implements `Engine`. One per daemon: at its start it clears `paths.run` of old sockets."""

    name = "llama.cpp"

    def __init__(self, paths: Paths, hardware: HardwareFacts) -> None:
        self._paths = paths
        self._hardware = hardware
        self._preparing = anyio.Lock()
        self.runtime = f"{_DISTRIBUTION}-{runtime_version() or 'missing'}"
        self._canary = Canary(paths.canary, self.runtime, hardware.cpu, self.launch)
        removed = remove_stale_sockets(paths.run)
        if removed:
            log.info("stale_sockets_removed", count=removed)

    async def prepare(self, model: Path) -> bool:
        self._check_supported()
        async with self._preparing:
            return await self._canary.needs_safe_mode(model, self._hardware.effective_cpus)

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        self._check_supported()
        key = secrets.token_urlsafe(32)
        socket = None
        if not transport.over_tcp():
            socket = self._paths.run / f"w-{secrets.token_hex(8)}.sock"
        spawn = Spawn(
            command=_COMMAND,
            order=order(plan, socket, key),
            address=Address(socket=socket),
            key=key,
            cwd=self._paths.worker_cwd,
        )

        async def ready(worker: WorkerProcess) -> None:
            await answers_decode(
                worker.address, worker.key, embedding=plan.embedding, pooling=plan.pooling
            )

        return await launch(spawn, ready, timeout_s=timeout_s)

    def _check_supported(self) -> None:
        """The wheel's code dies of an illegal instruction on a CPU below its baseline."""
        if runtime_version() is None:
            msg = "The built-in engine (the Python package xllamacpp) is not installed."
            raise RuntimeUnsupported(
                msg, hint="Install Stoker again; no wheel may fit this system."
            )
        missing = missing_flags(self._hardware.cpu)
        if missing:
            msg = f"This CPU lacks {', '.join(missing)}, which the built-in engine needs."
            raise RuntimeUnsupported(msg, missing=list(missing))


def runtime_version() -> str | None:
    """The installed wheel's version, read without importing it."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def order(plan: LaunchPlan, socket: Path | None, key: str) -> dict[str, object]:
    """What the child is told: the plan, in plain JSON values."""
    return {
        "socket": str(socket) if socket else None,
        "key": key,
        "model_id": plan.model_id,
        "model": str(plan.model_path),
        "mmproj": str(plan.mmproj_path) if plan.mmproj_path else None,
        "context": plan.context,
        "cells": max(plan.context, plan.cells),
        "parallel": plan.parallel,
        "threads": plan.threads,
        "threads_batch": plan.threads_batch,
        "batch": plan.batch,
        "ubatch": plan.ubatch,
        "n_outputs_max": plan.n_outputs_max,
        "cache_ram_mib": plan.cache_ram_mib,
        "checkpoints": plan.checkpoints,
        "kv_unified": plan.kv_unified,
        "embedding": plan.embedding,
        "pooling": plan.pooling,
        "extra_buffers": plan.extra_buffers,
        "gpu_layers": plan.gpu_layers,
    }
