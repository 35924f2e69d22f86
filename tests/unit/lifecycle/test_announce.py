from __future__ import annotations

from typing import Any

import anyio
import pytest

from stoker.events import EventBus, Subscription
from stoker.lifecycle import announce
from stoker.lifecycle.announce import Announcer
from stoker.lifecycle.effects import Standing
from stoker.schemas import MemoryView, ModelChanged, ModelView
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
        self.figures: dict[str, Any] = {}

    def view(self, model: ModelId) -> ModelView:
        self.views += 1
        standing = self.standing
        return ModelView(
            id=str(model), state=standing.state, in_flight=standing.in_flight, **self.figures
        )

    def become(self, state: ModelState, in_flight: int = 0, **more: Any) -> None:
        self.standing = Standing(state, in_flight, **more)
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


async def test_a_pin_is_told_at_once(stage: Stage) -> None:
    stage.become(ModelState.READY)
    with stage.bus.subscribe() as subscription:
        stage.become(ModelState.READY, pinned=True)
        stage.become(ModelState.READY, pinned=True, priority=3)

        assert _waiting(subscription) == 2


async def test_another_keep_alive_is_told_with_the_traffic(stage: Stage) -> None:
    """Each request may bring one; that is no reason for an event each."""
    stage.become(ModelState.READY)
    with stage.bus.subscribe() as subscription:
        for number in range(20):
            stage.become(ModelState.READY, keep_alive_s=float(number))

        assert _waiting(subscription) == 0
        await _next(subscription)
        assert _waiting(subscription) == 0


# --- what moves by itself --------------------------------------------------------------------


def resident(mib: int) -> dict[str, Any]:
    return {"memory": MemoryView(predicted_bytes=1 << 30, resident_bytes=mib << 20)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"tokens_per_s": 40.0}, {"tokens_per_s": 0.0}),
        ({"kv_used": 0.1}, {"kv_used": 0.5}),
        ({}, {"kv_used": 0.0}),
        (resident(200), resident(300)),
        ({}, {"rung": 1}),
    ],
)
async def test_what_moved_is_told_when_the_timer_comes(
    stage: Stage, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Once; as long as it stays there nothing more is told."""
    stage.figures = before
    stage.become(ModelState.READY, 1)
    with stage.bus.subscribe() as subscription:
        stage.announcer.pulse()
        assert _waiting(subscription) == 0

        stage.figures = after
        stage.announcer.pulse()
        stage.announcer.pulse()

        assert _waiting(subscription) == 1


async def test_what_nobody_would_see_is_not_told(stage: Stage) -> None:
    stage.figures = resident(200) | {"kv_used": 0.501}
    stage.become(ModelState.READY)
    with stage.bus.subscribe() as subscription:
        stage.figures = resident(201) | {"kv_used": 0.502, "expires_in_s": 5.0}
        stage.announcer.pulse()

        assert _waiting(subscription) == 0


async def test_an_unloaded_model_does_not_move(stage: Stage) -> None:
    """Nothing is looked up for the hundred models that are only stored."""
    stage.become(ModelState.READY)
    stage.become(ModelState.UNLOADED)
    with stage.bus.subscribe():
        views = stage.views

        stage.announcer.pulse()

    assert stage.views == views


async def test_nothing_is_looked_up_when_nobody_listens(stage: Stage) -> None:
    stage.become(ModelState.READY)
    views = stage.views

    stage.announcer.pulse()

    assert stage.views == views
