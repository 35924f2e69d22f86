"""The real compiled runtime behind a busy endpoint: taken when it is better, refused when unsound.

Needs a compiled runtime (tests/fakes/native.py says how to get one).
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import anyio
import psutil
import pytest
from anyio.to_thread import run_sync

from stoker.engine.canary import cpu_digest
from stoker.errors import LabFailed, RuntimeRejected
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.hardware.probe import probe
from stoker.paths import Paths, from_environment
from stoker.runtimes import manifest, registry
from stoker.runtimes.compare import Compare
from stoker.runtimes.manager import Runtimes
from stoker.runtimes.manifest import Runtime
from stoker.schemas_machine import RuntimeInstallRequest
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.types import ModelId
from tests.fakes.native import amx_folder, native_folder
from tests.fakes.serving import Serving, add_model, serving

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "llama-cpp-python-test"
STARTER = ModelId("starter")
ASK = [{"role": "user", "content": "Count from one to nine."}]
CLIENTS = 4
PATIENCE_S = 600  # for the whole of an install on a busy machine


def installed_from(built: Path, places: Paths, hardware: HardwareFacts) -> Runtime:
    """A finished build in the place of a finished install; to compile takes ten minutes."""
    folder = places.runtimes / NAME
    folder.mkdir(parents=True)
    for part in ("bin", "lib", "llama_cpp"):
        shutil.copytree(built / part, folder / part, symlinks=True)
    runtime = Runtime(
        name=NAME,
        kind="native",
        engine="llama-server",
        version="0.3.36",
        variant="test",
        folder=None,
        created_at="2026-11-22T09:00:00+00:00",
        cpu=cpu_digest(hardware.cpu),
    )
    manifest.write(runtime, folder)
    return manifest.read(folder)


@dataclass
class Loop:
    """Clients that ask without pause; every failure is kept."""

    served: Serving
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    runtimes: set[str] = field(default_factory=set)

    async def ask(self, number: int) -> None:
        while True:
            stream = bool(number % 2)
            answer = await self.served.chat(
                "starter", messages=ASK, max_tokens=8, stream=stream, temperature=0
            )
            end = "data: [DONE]\n\n" if stream else '"usage"'
            if answer.status_code != 200 or end not in answer.text:
                self.failures.append(f"{answer.status_code} {answer.text[-300:]}")
            self.answers += 1
            self.runtimes.add(self.served.lifecycle.view(STARTER).runtime or "none")

    async def more(self, count: int) -> None:
        wanted = self.answers + count
        with anyio.fail_after(120):
            while self.answers < wanted:  # noqa: ASYNC110  # counted by other tasks
                await anyio.sleep(0.02)


@asynccontextmanager
async def busy_daemon(
    starter: Path, built: Path, compare: Compare | None = None
) -> AsyncIterator[tuple[Runtimes, Loop]]:
    """The real runtimes behind the real endpoint, under clients that never pause."""
    places = from_environment()
    places.create()
    hardware = await run_sync(probe)
    content = await anyio.Path(starter).read_bytes()
    store = Store(places.store)
    await run_sync(store.open)
    await run_sync(add_model, store, "starter", content)

    async def install(kind: str, **_: Any) -> Runtime:
        assert kind == "native"
        return await run_sync(installed_from, built, places, hardware)

    runtimes = Runtimes(
        places, hardware, Settings(), EventBus(), store, install=install, compare=compare
    )
    async with serving(models=(), engine=runtimes, context=1024, wait_timeout_s=120) as served:
        await run_sync(add_model, served.store, "starter", content)
        runtimes.serves(served.lifecycle)
        await served.lifecycle.load("starter")
        loop = Loop(served)
        async with anyio.create_task_group() as tasks:
            await tasks.start(runtimes.run)
            for number in range(CLIENTS):
                tasks.start_soon(loop.ask, number)
            await loop.more(CLIENTS)
            yield runtimes, loop
            tasks.cancel_scope.cancel()


async def finished(runtimes: Runtimes) -> Exception | None:
    job = runtimes._job
    assert job is not None
    with anyio.fail_after(PATIENCE_S):
        await job.done.wait()
    return job.error


async def test_the_endpoint_answers_every_request_while_the_runtime_changes(
    starter_gguf: Path, stoker_home: Path
) -> None:
    """Installed, tested, switched to under four clients, and back again; no request fails."""

    async def not_now(*_: object) -> NoReturn:
        raise LabFailed("under four clients a measurement says nothing; a quiet one is made below")

    async with busy_daemon(starter_gguf, native_folder(), not_now) as (runtimes, loop):
        before = loop.served.lifecycle.view(STARTER)
        await runtimes.install(RuntimeInstallRequest(kind="native", force=True))
        assert await finished(runtimes) is None
        with anyio.fail_after(120):
            while loop.served.lifecycle.view(STARTER).runtime != NAME:  # noqa: ASYNC110  # as above
                await anyio.sleep(0.05)
        await loop.more(3 * CLIENTS)
        between = loop.served.lifecycle.view(STARTER)

        await runtimes.rollback()
        with anyio.fail_after(120):
            while loop.served.lifecycle.view(STARTER).runtime == NAME:  # noqa: ASYNC110  # as above
                await anyio.sleep(0.05)
        await loop.more(3 * CLIENTS)

        assert loop.failures == []
        assert loop.runtimes == {registry.built_in().name, NAME}
        assert before.pid is not None
        assert between.pid is not None
        with anyio.fail_after(30):
            while psutil.pid_exists(before.pid) or psutil.pid_exists(between.pid):  # noqa: ASYNC110  # as above
                await anyio.sleep(0.05)


async def test_an_unsound_build_is_refused_while_the_endpoint_answers(
    starter_gguf: Path, stoker_home: Path
) -> None:
    """With AMX left on it dies at its first batch; one decoded token would have proved nothing."""
    async with busy_daemon(starter_gguf, amx_folder()) as (runtimes, loop):
        await runtimes.install(RuntimeInstallRequest(kind="native", force=True))
        error = await finished(runtimes)
        await loop.more(2 * CLIENTS)
        view = next(one for one in runtimes.view().runtimes if one.name == NAME)

        assert isinstance(error, RuntimeRejected)
        assert error.facts["reason"] == "unsound"
        assert "not sound on this machine: the fast layouts fail" in error.message
        assert (view.state, view.current) == ("failed", False)
        assert runtimes.runtime == registry.built_in().name
        assert loop.failures == []
        assert loop.runtimes == {registry.built_in().name}


async def test_the_compiled_runtime_is_measured_against_the_built_in_one(
    starter_gguf: Path, stoker_home: Path
) -> None:
    """In turns, on this machine; what comes of it depends on the machine, and is acted upon."""
    places = from_environment()
    places.create()
    hardware = await run_sync(probe)
    store = Store(places.store)
    await run_sync(store.open)
    await run_sync(add_model, store, "starter", await anyio.Path(starter_gguf).read_bytes())
    built = native_folder()

    async def install(kind: str, **_: Any) -> Runtime:
        assert kind == "native"
        return await run_sync(installed_from, built, places, hardware)

    async with serving(models=()) as served:
        runtimes = Runtimes(places, hardware, Settings(), served.bus, store, install=install)
        async with anyio.create_task_group() as tasks:
            await tasks.start(runtimes.run)
            await runtimes.install(RuntimeInstallRequest(kind="native"))
            error = await finished(runtimes)
            tasks.cancel_scope.cancel()
    view = next(one for one in runtimes.view().runtimes if one.name == NAME)

    assert view.speedup is not None
    assert view.speedup > 0  # whatever a busy machine makes of it
    assert "tokens/s" in (view.note or "")
    if error is None:
        assert runtimes.runtime == NAME
        assert view.speedup > 1.03
    else:
        assert isinstance(error, RuntimeRejected)
        assert error.facts["reason"] == "slower"
        assert runtimes.runtime == registry.built_in().name
