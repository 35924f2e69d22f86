"""The figures of a running engine: the fake one, the built-in one and the program's."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from stoker.engine import heartbeat
from stoker.engine.base import Worker
from stoker.engine.heartbeat import NOT_ASKED, Beat, Pulse, beat, decodes
from stoker.engine.probe import client
from stoker.engine.upstream import Upstream
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.hardware.probe import probe
from stoker.paths import Paths, from_environment
from stoker.tuning.launch import Wishes
from tests.contract.test_engine import Rig, native_engine, plan_for
from tests.fakes.engine import Behaviour, FakeEngine, write_model

pytestmark = pytest.mark.anyio

WAIT_S = 30.0  # a busy machine
SOON_S = 0.3
MOVES = 3
SILENCES = 3  # in a row


@pytest.fixture
def paths(stoker_home: Path) -> Paths:
    _ = stoker_home  # it sets the environment
    made = from_environment()
    made.create()
    return made


@pytest.fixture(
    params=[
        "fake",
        pytest.param("xllamacpp", marks=pytest.mark.e2e),
        pytest.param("native", marks=pytest.mark.e2e),
    ]
)
def rig(request: pytest.FixtureRequest, paths: Paths) -> Rig:
    if request.param == "fake":
        model = write_model(paths.data / "m.gguf")
        return Rig(
            FakeEngine(paths.run, Behaviour(delay_ms=2)),
            plan_for(model, Wishes(context=512)),
            paths,
        )
    engine = (
        XllamacppEngine(paths, probe()) if request.param == "xllamacpp" else native_engine(paths)
    )
    model = request.getfixturevalue("starter_gguf")
    return Rig(engine, plan_for(model, Wishes(context=2048)), paths)


@pytest.fixture
def fake(paths: Paths) -> FakeEngine:
    return FakeEngine(paths.run, Behaviour())


async def complete(worker: Worker, tokens: int) -> None:
    async with client(worker.address, worker.key) as http:
        body = {"prompt": "one two three", "max_tokens": tokens, "ignore_eos": True}
        assert (await http.post("/v1/completions", json=body)).status_code == 200


async def complete_until(worker: Worker, enough: anyio.Event) -> None:
    """One answer after the other: on a busy machine the first may end before it is looked at."""
    while not enough.is_set():
        await complete(worker, 60)


async def test_a_beat_tells_of_work_and_of_rest(rig: Rig) -> None:
    """The counters move while it computes; afterwards it owes nothing, and holds what it read."""
    worker = await rig.launch()
    cells = rig.plan.cells or rig.plan.context
    async with Upstream(worker.address, worker.key) as upstream:
        before = await beat(upstream, WAIT_S, cells=cells)
        seen: list[Beat] = []
        enough = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(complete_until, worker, enough)
            # Several are heard within one step: that it answers is no sign of progress.
            while len({one.marks for one in seen if one.busy}) < MOVES:
                one = await beat(upstream, WAIT_S, cells=cells)
                assert one is not None
                seen.append(one)
            enough.set()
        after = await beat(upstream, WAIT_S, cells=cells)
    await worker.stop(5)

    assert before is not None
    assert after is not None
    assert before.busy == after.busy == 0
    assert len(before.marks) == 4
    assert max(one.busy or 0 for one in seen) == 1
    assert after.marks > before.marks
    assert after.kv_used is not None
    assert 0 < after.kv_used <= 1


async def test_an_idle_worker_decodes_and_a_dead_one_does_not(rig: Rig) -> None:
    worker = await rig.launch()
    assert await decodes(worker, rig.plan, WAIT_S)
    await worker.stop(0)

    assert not await decodes(worker, rig.plan, SOON_S)
    async with Upstream(worker.address, worker.key) as upstream:
        assert await beat(upstream, WAIT_S) is None


async def wedged(fake: FakeEngine, paths: Paths, behaviour: Behaviour) -> Worker:
    """A worker that has a request and will never answer it."""
    fake.behaviour = behaviour
    plan = plan_for(write_model(paths.data / "m.gguf"), Wishes(context=512))
    return await fake.launch(plan, timeout_s=WAIT_S)


async def test_an_engine_that_stands_still_has_no_beat(fake: FakeEngine, paths: Paths) -> None:
    worker = await wedged(fake, paths, Behaviour(wedge=True))
    async with Upstream(worker.address, worker.key) as upstream, anyio.create_task_group() as tasks:
        tasks.start_soon(_ask, upstream)
        await until_silent(upstream)
        assert not await decodes(worker, fake.launches[0], SOON_S)
        tasks.cancel_scope.cancel()
    await worker.stop(0)


async def test_an_engine_that_hangs_in_a_step_tells_the_same_for_ever(
    fake: FakeEngine, paths: Paths
) -> None:
    worker = await wedged(fake, paths, Behaviour(stuck=True))
    async with Upstream(worker.address, worker.key) as upstream, anyio.create_task_group() as tasks:
        tasks.start_soon(_ask, upstream)
        heard: Beat | None = None
        while heard is None or heard.busy != 1:
            heard = await beat(upstream, WAIT_S)
        assert await beat(upstream, WAIT_S) == heard
        tasks.cancel_scope.cancel()
    await worker.stop(0)


async def test_an_engine_without_figures_still_answers(fake: FakeEngine, paths: Paths) -> None:
    worker = await wedged(fake, paths, Behaviour(no_figures=True))
    async with Upstream(worker.address, worker.key) as upstream:
        assert await beat(upstream, WAIT_S, cells=512) == Beat()
    await worker.stop(0)


async def test_a_pulse_is_read_once_and_asked_once_at_a_time(
    fake: FakeEngine, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "TIMEOUT_S", WAIT_S)
    worker = await wedged(fake, paths, Behaviour(wedge=True))
    async with Upstream(worker.address, worker.key) as upstream, anyio.create_task_group() as tasks:
        pulse = Pulse(upstream, 512)
        assert pulse.latest is NOT_ASKED
        assert pulse.kv_used is None

        await pulse.take()
        first = pulse.latest
        assert isinstance(first, Beat)
        assert pulse.kv_used == first.kv_used
        assert pulse.latest is NOT_ASKED

        tasks.start_soon(_ask, upstream)
        await until_silent(upstream)
        monkeypatch.setattr(heartbeat, "TIMEOUT_S", SOON_S)
        tasks.start_soon(pulse.take)
        await anyio.lowlevel.checkpoint()
        await pulse.take()  # returns at once: it is being asked
        assert pulse.latest is NOT_ASKED
        with anyio.fail_after(WAIT_S):
            while (heard := pulse.latest) is NOT_ASKED:  # noqa: ASYNC110  # nobody announces it
                await anyio.sleep(0.01)
        assert heard is None
        assert pulse.kv_used == first.kv_used  # what was last known
        tasks.cancel_scope.cancel()
    await worker.stop(0)


async def until_silent(upstream: Upstream) -> None:
    """The request has reached the engine. Once may be a machine that is busy with others."""
    silent = 0
    while silent < SILENCES:
        heard = await beat(upstream, SOON_S)
        silent = silent + 1 if heard is None else 0
        await anyio.sleep(0.01)


async def _ask(upstream: Upstream) -> None:
    body = b'{"prompt": "one two"}'
    await upstream.open("POST", "/v1/completions", ((b"Content-Type", b"application/json"),), body)
