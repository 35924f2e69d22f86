"""One suite for whatever saves slots: the fake, the built-in engine, the compiled one."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stoker.engine import slots
from stoker.engine.base import Engine
from stoker.engine.upstream import Upstream
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.errors import EngineError
from stoker.hardware.probe import probe
from stoker.lifecycle.conversation_files import tokens_of
from stoker.paths import Paths, from_environment
from stoker.tuning.launch import LaunchPlan, Wishes
from tests.contract.test_engine import native_engine, plan_for
from tests.fakes.slots import SlotsWorker, listening

pytestmark = pytest.mark.anyio

READY_S = 60
TALK = "one two three four five six seven eight nine ten " * 9


@dataclass(frozen=True)
class Rig:
    """An engine, or the fake; a folder for its files."""

    engine: Engine | None
    plan: LaunchPlan
    folder: Path

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Upstream]:
        """One whose slot 0 has read something."""
        if self.engine is None:
            worker = SlotsWorker(self.folder)
            worker.serve(0, range(90))
            async with listening(worker) as upstream:
                yield upstream
            return
        running = await self.engine.launch(self.plan, timeout_s=READY_S)
        try:
            async with Upstream(running.address, running.key) as upstream:
                body = b'{"prompt": "%b", "n_predict": 2, "id_slot": 0}' % TALK.encode()
                json = [(b"content-type", b"application/json")]
                answer = await upstream.open("POST", "/completion", json, body)
                await answer.read(1 << 20)
                assert answer.status == 200
                yield upstream
        finally:
            await running.stop(5)


@pytest.fixture(
    params=[
        "fake",
        *(pytest.param(name, marks=pytest.mark.e2e) for name in ("xllamacpp", "native")),
    ]
)
def rig(request: pytest.FixtureRequest, stoker_home: Path) -> Rig:
    paths: Paths = from_environment()
    paths.create()
    folder = paths.state / "saved"
    folder.mkdir(mode=0o700)
    if request.param == "fake":
        return Rig(None, plan_for(Path("/m.gguf"), Wishes(context=2048)), folder)
    engine = (
        XllamacppEngine(paths, probe()) if request.param == "xllamacpp" else native_engine(paths)
    )
    plan = plan_for(request.getfixturevalue("starter_gguf"), Wishes(context=2048))
    return Rig(engine, replace(plan, conversations=folder), folder)


async def test_slots_that_served_say_how_full_they_are(rig: Rig) -> None:
    async with rig.worker() as upstream:
        found = {slot.id: slot for slot in await slots.look(upstream)}

    assert found[0].tokens >= 90
    assert not found[0].busy
    assert all(slot.task < found[0].task for slot in found.values() if slot.id != 0)


async def test_what_is_saved_can_be_restored_to_another_slot(rig: Rig) -> None:
    async with rig.worker() as upstream:
        (full,) = (slot for slot in await slots.look(upstream) if slot.id == 0)

        size = await slots.save(upstream, 0, "a.part")
        restored = await slots.restore(upstream, 1, "a.part")

    path = rig.folder / "a.part"
    assert path.stat().st_size == size
    assert restored == full.tokens
    assert len(tokens_of(path) or ()) == full.tokens
    assert rig.engine is None or stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_file_that_is_not_there_is_refused(rig: Rig) -> None:
    async with rig.worker() as upstream:
        with pytest.raises(EngineError):
            await slots.restore(upstream, 0, "b.part")


async def test_a_file_that_is_no_state_is_refused(rig: Rig) -> None:
    (rig.folder / "c.part").write_bytes(b"x")

    async with rig.worker() as upstream:
        with pytest.raises(EngineError):
            await slots.restore(upstream, 0, "c.part")


@pytest.mark.parametrize("name", ["../c.part", "/etc/passwd"])
async def test_a_path_is_refused(rig: Rig, name: str) -> None:
    async with rig.worker() as upstream:
        with pytest.raises(EngineError):
            await slots.save(upstream, 0, name)
