"""llama.cpp's own server program, compiled for this machine or found on the PATH, as a worker.

Turns a plan into the program's arguments, once and here only: numbers, words of ours, and file
names that were checked. The key travels in the environment, which only this user can read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import psutil

from stoker.engine.adapter import Adapter
from stoker.engine.base import Address
from stoker.engine.worker import Spawn, WorkerProcess, environment
from stoker.errors import InternalError, RuntimeUnsupported
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.transport import LOOPBACK
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId

_COMMAND: Final = (sys.executable, "-I", "-m", "stoker.engine.server_child")
_HTTP_THREADS: Final = "32"  # as in `engine.child`: each open request holds one
_POOLING: Final = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_LISTEN_RETRY_S: Final = 0.02
# Where a program looks for its libraries, beside its own folder.
_LIBRARY_PATH: Final = {"darwin": "DYLD_LIBRARY_PATH", "win32": "PATH"}
# Without these it is too old: one would have to be left to its own default.
NEEDED_OPTIONS: Final = (
    "--kv-unified-per-slot",
    "--no-ui",
    "--cors-origins",
    "--no-repack",
    "--cache-ram",
    "--ctx-checkpoints",
    "--flash-attn",
    "--fit",
    "--n-cpu-moe",
    "--offline",
)


@dataclass(frozen=True, slots=True)
class Program:
    """A server program and where its libraries are."""

    path: Path
    libraries: Path | None = None  # None: the system finds them


class LlamaServerEngine(Adapter):
    """One such program."""

    def __init__(
        self,
        paths: Paths,
        hardware: HardwareFacts,
        *,
        runtime: str,
        program: Program,
        build: str = "",
        in_place: bool = sys.platform == "linux",
    ) -> None:
        """``in_place``: the worker process becomes the program; else it watches over it."""
        super().__init__(paths, hardware, runtime, _COMMAND, build=build)
        self._program = program
        self._in_place = in_place

    def spawn(self, plan: LaunchPlan, socket: Path | None, key: str) -> Spawn:
        cwd = self._paths.worker_cwd
        # Relative to its folder: a comma or a quote in the user's own path would split the option.
        host = os.path.relpath(socket, cwd) if socket else LOOPBACK
        order = {
            "program": str(self._program.path),
            "arguments": list(arguments(plan, host)),
            "environment": child_environment(self._program.libraries, key),
            "socket": str(socket) if socket else None,
            "in_place": self._in_place,
        }
        return Spawn(
            command=_COMMAND,
            order=order,
            address=Address(socket=socket),
            key=key,
            cwd=cwd,
            runtime=self.runtime,
            engine=self.name,
            heeds_stdin=not self._in_place,
        )

    async def listening(self, worker: WorkerProcess) -> None:
        """Over TCP its port was free a moment ago; whoever has it now must be the worker."""
        port = worker.address.port
        if port is None:
            return
        while True:
            if await anyio.to_thread.run_sync(listens, worker.engine_pid, port):
                return
            await anyio.sleep(_LISTEN_RETRY_S)

    def check_supported(self) -> None:
        if not self._program.path.is_file():
            msg = f"The program of {self.runtime} is gone: {self._program.path}."
            hint = "Install it again, or go back with `stoker runtime rollback`."
            raise RuntimeUnsupported(msg, hint=hint)


def child_environment(libraries: Path | None, key: str) -> dict[str, str]:
    """All that the program finds in its environment."""
    given = environment()
    if libraries is not None:
        name = _LIBRARY_PATH.get(sys.platform, "LD_LIBRARY_PATH")
        before = given.get(name)
        given[name] = os.pathsep.join((str(libraries), before) if before else (str(libraries),))
    return {**given, "LLAMA_API_KEY": key}


def arguments(plan: LaunchPlan, host: str) -> tuple[str, ...]:
    """The program's arguments. Pure. Raises InternalError for a name that must not be one.

    All settings that cost memory are named, so that none of the program's own defaults does;
    `n_outputs_max` it derives itself from the slots.
    """
    return (
        "--host",
        host,
        "--model",
        _file(plan.model_path),
        "--alias",
        _alias(plan.model_id),
        *(("--mmproj", _file(plan.mmproj_path)) if plan.mmproj_path else ()),
        *(("--mmproj-offload" if plan.gpu_layers else "--no-mmproj-offload",)),
        *_memory(plan),
        *_kind(plan),
        *(("--slot-save-path", _file(plan.conversations)) if plan.conversations else ()),
        *_SERVER,
    )


def _memory(plan: LaunchPlan) -> tuple[str, ...]:
    numbers: Mapping[str, int] = {
        "--ctx-size": max(plan.context, plan.cells),
        "--kv-unified-per-slot": plan.context,
        "--parallel": plan.parallel,
        "--batch-size": plan.batch,
        "--ubatch-size": plan.ubatch,
        "--cache-ram": plan.cache_ram_mib,
        "--ctx-checkpoints": plan.checkpoints,
        "--n-gpu-layers": plan.gpu_layers,
        "--n-cpu-moe": plan.cpu_experts,
        "--threads": plan.threads,
        "--threads-batch": plan.threads_batch,
    }
    return (
        *(word for name, number in numbers.items() for word in (name, str(int(number)))),
        "--kv-unified" if plan.kv_unified else "--no-kv-unified",
        "--cache-idle-slots" if plan.cache_ram_mib > 0 and plan.kv_unified else _STAY,
        "--repack" if plan.extra_buffers else "--no-repack",
        "--flash-attn",
        "on" if plan.flash_attention else "off",
        "--cache-type-k",
        plan.kv_type,
        "--cache-type-v",
        plan.kv_type,
        "--fit",
        "off",
    )


def _kind(plan: LaunchPlan) -> tuple[str, ...]:
    embedding = ("--embedding",) if plan.embedding else ()
    if plan.pooling is None:
        return embedding
    return (*embedding, "--pooling", _POOLING[plan.pooling])


_STAY: Final = "--no-cache-idle-slots"  # a slot with a cache of its own is in nobody's way
_SERVER: Final = (
    "--threads-http",
    _HTTP_THREADS,
    "--no-warmup",  # readiness is a decode over the socket, which warms up the same parts
    "--no-context-shift",  # never drop the beginning of a conversation in silence
    "--no-ui",
    "--slots",  # how full each is; texts only with a variable that we do not set
    "--metrics",
    "--offline",
    "--cors-origins",
    "",
    "--log-colors",
    "off",
)


def _alias(name: str) -> str:
    return ModelId.parse(name).text


def _file(path: Path) -> str:
    if not path.is_absolute() or not str(path).isprintable():
        raise InternalError(f"not a file that may be named to an engine: {path!r}")
    return str(path)


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens there; what cannot be found out counts as no."""
    try:
        return any(
            one.status == psutil.CONN_LISTEN and tuple(one.laddr) == (LOOPBACK, port)
            for one in psutil.Process(pid).net_connections("tcp4")
        )
    except (psutil.Error, OSError):
        return False
