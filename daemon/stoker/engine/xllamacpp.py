"""The built-in runtime: llama.cpp's server from the xllamacpp wheel, in a process of its own.

Not imported here: `xllamacpp` itself lives in the worker (`engine.child`) only.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import structlog

from stoker.engine.adapter import Adapter
from stoker.engine.base import Address
from stoker.engine.worker import Spawn, remove_stale_sockets
from stoker.errors import RuntimeUnsupported
from stoker.hardware.assess import missing_flags
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.tuning.launch import LaunchPlan

log = structlog.get_logger(__name__)

_DISTRIBUTION: Final = "xllamacpp"
_COMMAND: Final = (sys.executable, "-I", "-m", "stoker.engine.child")


class XllamacppEngine(Adapter):
    """The built-in wheel, or one for a GPU in a folder of its own."""

    def __init__(
        self,
        paths: Paths,
        hardware: HardwareFacts,
        *,
        runtime: str = "",
        folder: Path | None = None,
        build: str = "",
    ) -> None:
        """Without a folder it is the built-in one.

        That one clears `paths.run` of old sockets: make it once per daemon.
        """
        self._folder = folder
        self._command = (*_COMMAND, *(() if folder is None else (str(folder),)))
        super().__init__(
            paths,
            hardware,
            runtime or built_in_name(),
            self._command,
            build=build,
        )
        removed = remove_stale_sockets(paths.run) if folder is None else 0
        if removed:
            log.info("stale_sockets_removed", count=removed)

    def spawn(self, plan: LaunchPlan, socket: Path | None, key: str) -> Spawn:
        return Spawn(
            command=self._command,
            order=order(plan, socket, key),
            address=Address(socket=socket),
            key=key,
            cwd=self._paths.worker_cwd,
            runtime=self.runtime,
            engine=self.name,
        )

    def check_supported(self) -> None:
        """The wheel's code dies of an illegal instruction on a CPU below its baseline."""
        if self._folder is None and runtime_version() is None:
            msg = "The built-in engine (the Python package xllamacpp) is not installed."
            raise RuntimeUnsupported(
                msg, hint="Install Stoker again; no wheel may fit this system."
            )
        if self._folder is not None and not (self._folder / _DISTRIBUTION).is_dir():
            # Python would take the built-in package instead, and nobody would notice.
            msg = f"The package of {self.runtime} is gone: {self._folder}."
            hint = "Install it again, or go back with `stoker runtime rollback`."
            raise RuntimeUnsupported(msg, hint=hint)
        missing = missing_flags(self._hardware.cpu)
        if missing:
            msg = f"This CPU lacks {', '.join(missing)}, which the built-in engine needs."
            raise RuntimeUnsupported(msg, missing=list(missing))


def built_in_name() -> str:
    """Name of the built-in runtime. What it computes on beside the CPU is part of it."""
    name = f"{_DISTRIBUTION}-{runtime_version() or 'missing'}"
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return f"{name}-metal" if apple else name  # the wheels for other Macs are without it


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
        "cpu_experts": plan.cpu_experts,
        "flash_attention": plan.flash_attention,
        "kv_type": plan.kv_type,
        "conversations": str(plan.conversations) if plan.conversations else None,
    }
