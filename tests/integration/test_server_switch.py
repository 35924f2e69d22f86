"""The server's switch with real requests: what it refuses, cuts, remembers and brings back."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest

from stoker.api import server_state
from stoker.errors import DiskFull, PortTaken, ServerOff, ShuttingDown
from stoker.schemas import ServerChanged
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.serving import Serving, serving

pytestmark = pytest.mark.anyio

M = ModelId("m")
SLOW = Behaviour(delay_ms=10)


async def refused(served: Serving) -> bool:
    try:
        await served.client.get("/health")
    except httpx2.ConnectError:
        return True
    return False


def states(served: Serving) -> dict[str, ModelState]:
    return {view.id: view.state for view in served.lifecycle.views()}


async def test_off_closes_the_port_and_unloads_everything() -> None:
    async with serving(models=("a", "b")) as served:
        for name in ("a", "b"):
            await served.lifecycle.load(name)

        view = await served.server.turn(on=False)

        assert not view.enabled
        assert await refused(served)
        assert set(states(served).values()) == {ModelState.UNLOADED}
        assert not any(psutil.pid_exists(worker.pid) for worker in served.engine.workers)


async def test_on_brings_back_the_port_and_the_models() -> None:
    """At the same address; what was not loaded stays so."""
    async with serving(models=("a", "b", "c")) as served:
        for name in ("b", "a"):
            await served.lifecycle.load(name)
        address = served.server.view().base_url
        await served.server.turn(on=False)

        view = await served.server.turn(on=True)

        assert (view.enabled, view.base_url) == (True, address)
        assert (await served.client.get("/health")).status_code == 200
        ready = {"a": ModelState.READY, "b": ModelState.READY, "c": ModelState.UNLOADED}
        await served.until(lambda: states(served) == ready)


async def test_what_served_last_is_loaded_last() -> None:
    """So that, should there be less memory now, it is the one that stays."""
    async with serving(models=("a", "b", "c")) as served:
        for name in ("a", "b", "c", "a"):
            await served.chat(name, max_tokens=1)
        await served.server.turn(on=False)

        await served.server.turn(on=True)

        await served.until(lambda: len(served.engine.launches) == 6)
        assert [plan.model_id for plan in served.engine.launches[3:]] == ["b", "c", "a"]


async def test_running_answers_end_and_new_ones_are_refused() -> None:
    """The answer that was on its way arrives whole."""
    async with serving(behaviours={"m": SLOW}) as served:
        await served.lifecycle.load("m")
        answers: list[str] = []

        async def ask() -> None:
            answers.append((await served.chat(stream=True, max_tokens=30)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            tasks.start_soon(lambda: served.server.turn(on=False))
            await served.until(lambda: not served.server.view().enabled)
            late = await served.chat()

        assert answers[0].endswith("[DONE]\n\n")
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "server_off"
        assert "stoker server on" in late.json()["error"]["hint"]


async def test_answers_that_take_too_long_are_cut() -> None:
    async with serving(behaviours={"m": SLOW}, drain_timeout_s=0.1) as served:
        await served.lifecycle.load("m")
        answers: list[str] = []

        async def ask() -> None:
            answers.append((await served.chat(stream=True, max_tokens=10_000)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(M).in_flight == 1)
            await served.server.turn(on=False)

        last = answers[0].rstrip().split("\n\n")[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "worker_lost"
        assert await refused(served)


async def test_who_waits_for_a_load_is_refused() -> None:
    """The load is given up, and begun again by `on`."""
    async with serving(behaviours={"m": Behaviour(start_ms=30_000)}) as served:
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                answer = await served.chat()
                assert answer.json()["error"]["code"] == "server_off"

            tasks.start_soon(ask)
            await served.until(lambda: served.lifecycle.view(M).state is ModelState.LOADING)
            await served.server.turn(on=False)

        assert states(served) == {"m": ModelState.UNLOADED}
        await served.server.turn(on=True)
        await served.until(lambda: states(served) == {"m": ModelState.LOADING})


async def test_while_off_nothing_is_loaded() -> None:
    async with serving() as served:
        await served.server.turn(on=False)

        for call in (served.lifecycle.load, served.lifecycle.use):
            with pytest.raises(ServerOff):
                await call("m")

        assert served.engine.launches == []


async def test_each_turn_is_told_once() -> None:
    """Turning to where it stands is no event."""
    async with serving() as served:
        with served.bus.subscribe() as subscription:
            for on in (True, False, False, True, True):
                await served.server.turn(on=on)
            events = [subscription._queue.get_nowait() for _ in range(subscription._queue.qsize())]

        told = [event.server.enabled for event in events if isinstance(event, ServerChanged)]
        assert told == [False, True]


async def test_many_turns_at_once_take_their_turns() -> None:
    """The last one decides, and nothing is left half-way."""
    async with serving(models=("a", "b")) as served:
        await served.lifecycle.load("a")
        async with anyio.create_task_group() as tasks:
            for number in range(9):
                tasks.start_soon(lambda on: served.server.turn(on=on), bool(number % 2))
                await anyio.lowlevel.checkpoint()

        assert not served.server.view().enabled
        assert await refused(served)
        await served.server.turn(on=True)
        await served.until(lambda: states(served)["a"] is ModelState.READY)
        assert (await served.chat("a", max_tokens=1)).status_code == 200


async def test_a_taken_port_keeps_it_off() -> None:
    """Nothing is loaded for nobody; when the port is free it can be switched on."""
    async with serving() as served:
        await served.lifecycle.load("m")
        await served.server.turn(on=False)
        with (
            socket.create_server(("127.0.0.1", served.port)),
            pytest.raises(PortTaken, match=str(served.port)),
        ):
            await served.server.turn(on=True)

        assert not served.server.view().enabled
        with pytest.raises(ServerOff):
            await served.lifecycle.load("m")
        assert server_state.read(served.home / "server.json").models == (M,)
        await served.server.turn(on=True)
        await served.until(lambda: states(served) == {"m": ModelState.READY})


async def test_the_switch_is_remembered() -> None:
    """With what is to be loaded while it is off, and without when it is on."""
    async with serving() as served:
        file = served.home / "server.json"
        await served.lifecycle.load("m")

        await served.server.turn(on=False)
        assert server_state.read(file) == server_state.ServerState(enabled=False, models=(M,))

        await served.server.turn(on=True)
        assert server_state.read(file) == server_state.ServerState()


async def test_a_full_disk_does_not_keep_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the user is told that it will not be remembered, and may ask again."""

    def write(_path: Path, _state: server_state.ServerState) -> None:
        raise DiskFull("the disk is full")

    async with serving() as served:
        with monkeypatch.context() as full:
            full.setattr(server_state, "write", write)
            await served.server.turn(on=False)

        assert await refused(served)
        assert "the disk is full" in served.server.problems()[0]
        await served.server.turn(on=False)
        assert served.server.problems() == ()
        assert not server_state.read(served.home / "server.json").enabled


async def test_a_daemon_that_stops_stays_closed() -> None:
    """Whoever switches it on in its last moments is told, and no worker is started."""
    async with serving() as served:
        await served.server.turn(on=False)
        await served.lifecycle.drain(1)

        with pytest.raises(ShuttingDown):
            await served.server.turn(on=True)
        with pytest.raises(ShuttingDown):
            await served.lifecycle.load("m")

        assert await refused(served)
        assert served.engine.launches == []
