from __future__ import annotations

import anyio
import pytest

from stoker.events import EventBus, Subscription
from stoker.lifecycle import announce
from stoker.lifecycle.announce import Announcer
from stoker.lifecycle.effects import Standing
from stoker.schemas import ModelChanged, ModelView
from stoker.types import ModelId, ModelState

pytestmark = pytest.mark.anyio

M = ModelId("m")
DEADLINE_S = 10


class Stage:
    """A model whose standing a test changes; counts how often it was looked at in full."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.announcer = Announcer(self.bus, self.view)
        self.standing = Standing()
        self.views = 0

    def view(self, model: ModelId) -> ModelView:
        self.views += 1
        standing = self.standing
        return ModelView(id=str(model), state=standing.state, in_flight=standing.in_flight)

    def become(self, state: ModelState, in_flight: int = 0) -> None:
        self.standing = Standing(state, in_flight)
        self.announcer.look(M, self.standing)


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def _next(subscription: Subscription) -> ModelView:
    with anyio.fail_after(DEADLINE_S):
        async for event in subscription:
            assert isinstance(event, ModelChanged)
            return event.model
    raise AssertionError


def _waiting(subscription: Subscription) -> int:
    return subscription._queue.qsize()


async def test_a_state_is_told_at_once(stage: Stage) -> None:
    """Each one, in order, however fast they follow each other."""
    with stage.bus.subscribe() as subscription:
        stage.become(ModelState.LOADING)
        stage.become(ModelState.READY)

        assert _waiting(subscription) == 2
        assert (await _next(subscription)).state is ModelState.LOADING
        assert (await _next(subscription)).state is ModelState.READY


async def test_a_hundred_requests_are_one_event(stage: Stage) -> None:
    """With the counts as they are then; nothing is looked up for each of them."""
    stage.become(ModelState.READY)
    with stage.bus.subscribe() as subscription:
        views = stage.views
        for number in range(100):
            stage.become(ModelState.READY, number % 2)
        stage.become(ModelState.READY, 3)

        assert (_waiting(subscription), stage.views) == (0, views)
        assert (await _next(subscription)).in_flight == 3
        assert stage.views == views + 1


async def test_the_last_change_is_always_told(stage: Stage) -> None:
    """Also when all is as it was: a client that came in between was shown something else."""
    stage.become(ModelState.READY)
    with stage.bus.subscribe():
        stage.become(ModelState.READY, 1)
        with stage.bus.subscribe() as late:
            stage.become(ModelState.READY, 0)

            assert (await _next(late)).in_flight == 0


async def test_a_state_takes_the_counts_along(stage: Stage) -> None:
    """What waited to be told is told with it, and not again."""
    stage.become(ModelState.READY)
    with stage.bus.subscribe() as subscription:
        stage.become(ModelState.READY, 1)
        stage.become(ModelState.DRAINING, 1)

        assert (await _next(subscription)).state is ModelState.DRAINING
        assert stage.announcer._due == {}


async def test_counts_are_told_to_nobody_when_nobody_listens(stage: Stage) -> None:
    """The daemon's own records want states only; and a client begins with what it is shown."""
    stage.become(ModelState.READY)
    views = stage.views
    with stage.bus.subscribe(client=False):
        stage.become(ModelState.READY, 1)

    assert (stage.announcer._due, stage.views) == ({}, views)
    with stage.bus.subscribe() as subscription:
        stage.become(ModelState.READY, 0)
        assert (await _next(subscription)).in_flight == 0


async def test_after_the_end_nothing_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "TRAFFIC_S", 0)
    stage.become(ModelState.READY)
    with stage.bus.subscribe() as subscription:
        stage.become(ModelState.READY, 1)
        stage.announcer.close()
        await anyio.wait_all_tasks_blocked()

        assert _waiting(subscription) == 0
