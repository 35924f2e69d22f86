"""Real models under real runtimes: the product's own adapters and plans, in a throw-away home.

For benchmarks that compare settings. What the daemon adds on top is not part of it.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import structlog

from stoker.engine.adapter import Adapter
from stoker.engine.base import Address, Worker
from stoker.engine.lab import Library
from stoker.engine.llama_server import LlamaServerEngine, child_environment
from stoker.engine.probe import answers_decode
from stoker.engine.xllamacpp import XllamacppEngine, built_in_name
from stoker.errors import CanaryFailed
from stoker.hardware.facts import HardwareFacts
from stoker.hardware.probe import probe
from stoker.paths import Paths, from_environment
from stoker.store.facts import ModelFacts, model_facts
from stoker.store.gguf import read_header
from stoker.tuning.launch import LaunchPlan, Survey, Tuned, Wishes
from stoker.tuning.plan import make_plan
from tests.fakes.gemma import gemma_path
from tests.fakes.native import NativeMissing, library_in, native_path, program_in
from tests.fakes.starter import starter_path

START_S: Final = 120
STOP_S: Final = 5
MODELS: Final = {"starter": starter_path, "gemma": gemma_path}

# The wheel's server with nothing set but what makes it start, and the slots of the program.
_BARE_BUILT_IN: Final = """
import sys, xllamacpp as x
p = x.CommonParams()
p.model.path, p.hostnames, p.api_keys, p.ui = sys.argv[1], [sys.argv[2]], [sys.argv[3]], False
p.n_parallel, p.kv_unified = 4, True
s = x.Server(p)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model file and what it tells."""

    name: str
    path: Path
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker, whoever started it."""

    address: Address
    key: str
    pid: int  # of the process that computes


class Place:
    """A home with the runtimes that this machine has."""

    def __init__(self, paths: Paths, hardware: HardwareFacts) -> None:
        self.paths = paths
        self.hardware = hardware
        self.native: Path | None = None
        self.safe: set[str] = set()  # whose extra buffers the self-test found not sound
        self.built_in = built_in_name()
        self._adapters: dict[str, Adapter] = {self.built_in: XllamacppEngine(paths, hardware)}
        try:
            self.native = native_path()
        except NativeMissing as error:
            print(f"{error}\nThe built-in runtime is compared with itself only.", file=sys.stderr)
        else:
            self._adapters["native"] = LlamaServerEngine(
                paths, hardware, runtime="native", program=program_in(self.native)
            )

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The built-in one first."""
        return tuple(self._adapters)

    async def prepare(self, model: Model) -> None:
        """Let each runtime pass its self-test, as before its first load. One that fails is out."""
        for name, adapter in tuple(self._adapters.items()):
            try:
                if await adapter.prepare(model.path):
                    self.safe.add(name)
            except CanaryFailed as error:
                print(f"{name} fails its self-test: {error}", file=sys.stderr)
                del self._adapters[name]

    def plan(
        self,
        model: Model,
        runtime: str = "",
        wishes: Wishes | None = None,
        *,
        tuned: Tuned | None = None,
        survey: Survey | None = None,
    ) -> LaunchPlan:
        """What the product would launch on this machine."""
        return make_plan(
            f"bench/{model.name}",
            model.path,
            model.facts,
            self.hardware,
            wishes or self.wishes(runtime or self.built_in),
            runtime=runtime or self.built_in,
            tuned=tuned,
            survey=survey,
        )

    def wishes(self, runtime: str) -> Wishes:
        """None but what the self-test demands."""
        return Wishes(safe_mode=runtime in self.safe)

    def library(self, runtime: str) -> Library:
        """For a lab."""
        if runtime == self.built_in:
            spec = importlib.util.find_spec("xllamacpp")
            assert spec is not None
            assert spec.submodule_search_locations
            (found,) = Path(next(iter(spec.submodule_search_locations))).glob("xllamacpp.abi3.*")
            return Library(runtime, found, None)
        assert self.native is not None
        return library_in(self.native, runtime)

    @asynccontextmanager
    async def serving(self, plan: LaunchPlan) -> AsyncIterator[Serving]:
        """A worker with this plan."""
        worker: Worker = await self._adapters[plan.runtime].launch(plan, timeout_s=START_S)
        try:
            yield Serving(worker.address, worker.key, worker.pid)
        finally:
            await worker.stop(STOP_S)

    @asynccontextmanager
    async def bare(self, model: Model, runtime: str) -> AsyncIterator[Serving]:
        """The runtime's own server with its own defaults: no plan of ours."""
        socket, key = self.paths.run / f"bare-{secrets.token_hex(4)}.sock", secrets.token_hex(8)
        process = self._start_bare(model, runtime, socket, key)
        try:
            with anyio.fail_after(START_S):
                await answers_decode(Address(socket=socket), key)
            yield Serving(Address(socket=socket), key, process.pid)
        finally:
            process.kill()
            process.communicate()
            socket.unlink(missing_ok=True)

    def _start_bare(
        self, model: Model, runtime: str, socket: Path, key: str
    ) -> subprocess.Popen[bytes]:
        environ = dict(os.environ)
        if runtime == self.built_in:
            command = [sys.executable, "-I", "-c", _BARE_BUILT_IN]
            command += [str(model.path), str(socket), key]
        else:
            assert self.native is not None
            program = program_in(self.native)
            environ |= child_environment(program.libraries, key)
            command = [str(program.path), "--model", str(model.path), "--host", str(socket)]
            command += ["--no-ui"]
        return subprocess.Popen(
            command,
            env=environ,
            cwd=self.paths.worker_cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def place() -> Iterator[Place]:
    """A new one, whose home is removed afterwards. Logs of the product go nowhere."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as home:  # short
        paths = from_environment({"STOKER_HOME": home})
        paths.create()
        yield Place(paths, probe())


def load(name: str) -> Model:
    """A model by its short name; downloaded once."""
    path = MODELS[name]()
    size = path.stat().st_size
    with path.open("rb") as stream:
        return Model(name, path, model_facts(read_header(stream, size), size))


def chosen(name: str) -> tuple[Model, ...]:
    """The model of that name, or `both`."""
    return tuple(load(one) for one in (MODELS if name == "both" else (name,)))
