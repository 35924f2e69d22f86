"""What the adapters of all runtimes share: the self-test, and the launch of one worker.

Not for: how an engine is told a plan (`xllamacpp`, `llama_server`), or which runtime is used
(`stoker.runtimes`).
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

import anyio

from stoker import transport
from stoker.engine.base import Worker
from stoker.engine.canary import Canary
from stoker.engine.probe import answers_decode
from stoker.engine.spare import Spare
from stoker.engine.worker import Spawn, WorkerProcess, launch
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.tuning.launch import LaunchPlan
from stoker.tuning.placement import gpu_runtime

_ALL_LAYERS: Final = 999  # more than any model has; what a GPU runtime's self-test asks for


class Adapter(ABC):
    """Implements `Engine` for one installed runtime."""

    name = "llama.cpp"

    def __init__(
        self,
        paths: Paths,
        hardware: HardwareFacts,
        runtime: str,
        command: tuple[str, ...],
        *,
        build: str = "",
    ) -> None:
        """``command`` starts a worker's process, whatever it is to do.

        ``build`` tells two builds apart that have the same name: each is tested by itself.
        """
        self._paths = paths
        self._spare = Spare(command, paths.worker_cwd)
        self._hardware = hardware
        self._preparing = anyio.Lock()
        self.runtime = runtime
        key = f"{runtime}@{build}" if build else runtime
        layers = _ALL_LAYERS if gpu_runtime(runtime) else 0
        self.canary = Canary(
            paths.canary, key, hardware.cpu, self.launch, runtime=runtime, gpu_layers=layers
        )

    def has(self, runtime: str, *, measured_at: str | None = None) -> bool:
        _ = measured_at
        return runtime in {"", self.runtime}

    def safe_mode(self, runtime: str = "") -> bool | None:
        _ = runtime  # there is one
        verdict = self.canary.verdict()
        return None if verdict is None else verdict.safe_mode

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        _ = runtime  # there is one
        self.check_supported()
        async with self._preparing:
            return await self.canary.needs_safe_mode(model, self._hardware.effective_cpus)

    def expect(self, runtime: str = "") -> None:
        _ = runtime  # there is one
        self._spare.expect()

    def relax(self) -> None:
        self._spare.drop()

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        self.check_supported()
        socket = None
        if not transport.over_tcp():
            socket = self._paths.run / f"w-{secrets.token_hex(8)}.sock"
        spawn = self.spawn(plan, socket, secrets.token_urlsafe(32))

        async def ready(worker: WorkerProcess) -> None:
            await self.listening(worker)
            await answers_decode(
                worker.address, worker.key, embedding=plan.embedding, pooling=plan.pooling
            )

        return await launch(spawn, ready, timeout_s=timeout_s, process=self._spare.take())

    async def listening(self, worker: WorkerProcess) -> None:
        """Return when it is known that the worker, and nobody else, has its address."""
        _ = worker

    @abstractmethod
    def check_supported(self) -> None:
        """Raises RuntimeUnsupported when this machine cannot run it at all."""

    @abstractmethod
    def spawn(self, plan: LaunchPlan, socket: Path | None, key: str) -> Spawn:
        """How a worker with this plan is started."""
