"""A fake engine: real child processes that speak the engine's HTTP, but compute nothing.

    engine = FakeEngine(tmp_path / "run")                     # every model behaves well
    engine = FakeEngine(run, by_model={"m": Behaviour(crash_after=3)})

The model file must exist and start with ``GGUF``; switches may also stand in its name, between
dots: ``model.crash-after-3.delay-ms-20.gguf``. Same contract suite as the real engine
(tests/contract/test_engine.py). Its answers: the tokens ``tok0 tok1 …``, one per chunk.
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import anyio

from stoker.engine.adapter import Adapter
from stoker.engine.base import Address, Worker
from stoker.engine.probe import answers_decode
from stoker.engine.spare import Spare
from stoker.engine.worker import Spawn, WorkerProcess, launch
from stoker.errors import StokerError
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.tuning.launch import LaunchPlan

_CHILD = Path(__file__).with_name("engine_child.py")
_COMMAND = (sys.executable, "-I", str(_CHILD))


@dataclass(frozen=True)
class Behaviour:
    """How a fake worker behaves. The defaults: at once ready, fast, well-behaved."""

    start_ms: int = 0  # before it listens
    never_ready: bool = False  # listens, but answers no decode
    limit_ms: int = 0  # its start is given up after this; 0: after the time that is allowed
    crash_after: int | None = None  # dies after that many tokens of one request
    last_words: str = "assert"  # of that death; as in `crash_at_start`
    crash_at_start: str | None = None  # "oom", "bad-file", "architecture", "assert", "silent"
    ignore_stop: bool = False  # heeds neither TERM nor the end of stdin
    grandchild: bool = False  # starts a helper process in its own group
    fill_stderr: bool = False  # writes 1 MiB of log before it listens
    wedge: bool = False  # ready, then accepts requests and never answers, nor tells its figures
    stuck: bool = False  # ready, then never answers a request, but tells its figures all the while
    spin: bool = False  # with `stuck`: computes all the while, and nothing comes of it
    prompt_ms: int = 0  # before the first token; its counters move meanwhile
    delay_ms: int = 0  # per token
    tokens: int = 16  # per answer, unless the request sets a limit
    drop_idle: bool = False  # closes each connection after one answer, without saying so
    no_figures: bool = False  # refuses /metrics and /slots
    no_first_byte: bool = False  # closes the connection instead of answering (after ready)
    resident_mib: int = 0  # memory to hold
    first_token: int = 0  # number of the first token that /completion answers

    @classmethod
    def from_name(cls, path: Path) -> Behaviour:
        """Switches from a file name, e.g. ``m.start-ms-50.wedge.gguf``."""
        changes: dict[str, object] = {}
        for part in path.name.split("."):
            for item in dataclasses.fields(cls):
                switch = item.name.replace("_", "-")
                if part == switch:
                    changes[item.name] = True
                elif part.startswith(f"{switch}-"):
                    value = part.removeprefix(f"{switch}-")
                    changes[item.name] = int(value) if value.isdigit() else value
        return dataclasses.replace(cls(), **changes)  # type: ignore[arg-type]


@dataclass
class FakeEngine:
    """Implements `stoker.engine.base.Engine`. `run` must be a short, existing folder."""

    run: Path
    behaviour: Behaviour | None = None  # for all models; None: from the file's name
    by_model: Mapping[str, Behaviour] = field(default_factory=dict)
    by_plan: Callable[[LaunchPlan], Behaviour | None] | None = None  # asked first; None: no matter
    needs_safe_mode: bool = False  # what `prepare` answers
    tested: bool = True  # False: `prepare` would have to run a test
    prepare_error: StokerError | None = None
    name: str = "fake"
    runtime: str = "fake-1"
    launches: list[LaunchPlan] = field(default_factory=list)  # every attempt, in order
    workers: list[WorkerProcess] = field(default_factory=list)  # every success, in order
    prepared: list[Path] = field(default_factory=list)
    others: frozenset[str] = frozenset()  # more runtimes that plans may name

    def has(self, runtime: str, *, measured_at: str | None = None) -> bool:
        _ = measured_at
        return runtime in {"", self.runtime, *self.others}

    def safe_mode(self, runtime: str = "") -> bool | None:
        _ = runtime
        return self.needs_safe_mode if self.tested else None

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        _ = runtime
        self.prepared.append(model)
        await anyio.lowlevel.checkpoint()
        if self.prepare_error is not None:
            raise self.prepare_error
        return self.needs_safe_mode

    @cached_property
    def _spare(self) -> Spare:
        return Spare(_COMMAND, self.run)

    def expect(self, runtime: str = "") -> None:
        _ = runtime
        self._spare.expect()

    def relax(self) -> None:
        self._spare.drop()

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        self.launches.append(plan)
        behaviour = self.by_plan(plan) if self.by_plan is not None else None
        if behaviour is None:
            behaviour = self.by_model.get(plan.model_id, self.behaviour)
        if behaviour is None:
            behaviour = Behaviour.from_name(plan.model_path)
        socket = self.run / f"w-{secrets.token_hex(8)}.sock"
        spawn = spawn_of(plan, behaviour, socket, secrets.token_urlsafe(24), self.run)
        spawn = dataclasses.replace(spawn, runtime=plan.runtime or self.runtime, engine=self.name)

        async def ready(worker: WorkerProcess) -> None:
            await answers_decode(worker.address, worker.key, embedding=plan.embedding)

        if behaviour.limit_ms:
            timeout_s = min(timeout_s, behaviour.limit_ms / 1000)
        process = self._spare.take()
        worker = await launch(spawn, ready, timeout_s=timeout_s, process=process)
        self.workers.append(worker)
        return worker

    async def stop_all(self) -> None:
        """End whatever a test left running."""
        self.relax()
        for worker in self.workers:
            await worker.stop(0)


class FakeAdapter(Adapter):
    """A runtime that is made of fake workers; everything else of it is real."""

    name = "fake"

    def __init__(
        self,
        paths: Paths,
        hardware: HardwareFacts,
        runtime: str,
        *,
        build: str = "",
        normal: Behaviour | None = None,
        safe: Behaviour | None = None,
    ) -> None:
        super().__init__(paths, hardware, runtime, _COMMAND, build=build)
        self.normal = normal or Behaviour()
        self.safe = safe or Behaviour()
        self.launched: list[LaunchPlan] = []

    def check_supported(self) -> None:
        """Everything is."""

    def spawn(self, plan: LaunchPlan, socket: Path | None, key: str) -> Spawn:
        assert socket is not None
        self.launched.append(plan)
        behaviour = self.normal if plan.extra_buffers else self.safe
        spawn = spawn_of(plan, behaviour, socket, key, self._paths.worker_cwd)
        return dataclasses.replace(spawn, runtime=self.runtime, engine=self.name)


def spawn_of(plan: LaunchPlan, behaviour: Behaviour, socket: Path, key: str, cwd: Path) -> Spawn:
    """How a fake worker is started."""
    return Spawn(
        command=_COMMAND,
        order={
            "socket": str(socket),
            "key": key,
            "model": plan.model_id,
            "path": str(plan.model_path),
            "context": plan.context,
            "parallel": plan.parallel,
            "embedding": plan.embedding,
            "conversations": str(plan.conversations) if plan.conversations else None,
            **dataclasses.asdict(behaviour),
        },
        address=Address(socket=socket),
        key=key,
        cwd=cwd,
    )


def write_model(path: Path) -> Path:
    """A file that the fake engine accepts as a model."""
    path.write_bytes(b"GGUF" + b"\0" * 60)
    return path
