"""The event bus: order, slow readers, and what a reader leaves behind."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from stoker.events import BACKLOG, EventBus, Subscription
from stoker.schemas import Event, ResourcesSampled, ResourcesView, StoreChanged

pytestmark = pytest.mark.anyio

DEADLINE_S = 5


def _event(number: int) -> StoreChanged:
    return StoreChanged(id=f"model-{number}", change="added")


async def _take(subscription: Subscription, count: int) -> list[Event | None]:
    taken: list[Event | None] = []
    with anyio.fail_after(DEADLINE_S):
        async for event in subscription:
            taken.append(event)
            if len(taken) == count:
                break
    return taken


async def test_events_arrive_in_order() -> None:
    """A subscriber sees what was published after it came, in order."""
    bus = EventBus()
    bus.publish(_event(0))

    with bus.subscribe() as subscription:
        for number in (1, 2, 3):
            bus.publish(_event(number))
        taken = await _take(subscription, 3)

    assert taken == [_event(1), _event(2), _event(3)]


async def test_every_subscriber_gets_every_event() -> None:
    """Readers do not take events away from each other."""
    bus = EventBus()

    with bus.subscribe() as first, bus.subscribe() as second:
        bus.publish(_event(1))

        assert await _take(first, 1) == await _take(second, 1) == [_event(1)]


async def test_a_reader_that_waits_is_woken() -> None:
    """An event published while a reader waits reaches it."""
    bus = EventBus()
    taken: list[Event | None] = []

    with bus.subscribe() as subscription:

        async def read() -> None:
            taken.extend(await _take(subscription, 1))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.lowlevel.checkpoint()
            bus.publish(_event(1))

    assert taken == [_event(1)]


async def test_a_slow_reader_is_told_that_it_lost_events() -> None:
    """A full backlog is dropped, and a None stands for what was lost; publishing never waits."""
    bus = EventBus()

    with bus.subscribe() as subscription:
        for number in range(BACKLOG + 1):
            bus.publish(_event(number))
        taken = await _take(subscription, 2)

    assert taken == [None, _event(BACKLOG)]


async def test_a_reader_with_a_full_backlog_lost_nothing() -> None:
    """The limit itself is still fine."""
    bus = EventBus()

    with bus.subscribe() as subscription:
        for number in range(BACKLOG):
            bus.publish(_event(number))
        taken = await _take(subscription, BACKLOG)

    assert taken == [_event(number) for number in range(BACKLOG)]


async def test_the_bus_knows_whether_anyone_listens() -> None:
    """A subscription ends with its context, also by an error."""
    bus = EventBus()
    assert not bus.watched

    with bus.subscribe():
        assert bus.watched

    assert not bus.watched
    with contextlib.suppress(KeyError), bus.subscribe():
        raise KeyError
    assert not bus.watched


SAMPLE = ResourcesSampled(
    resources=ResourcesView(cpu_percent=1, ram_used_bytes=2, ram_total_bytes=3)
)


async def test_samples_go_to_those_who_want_them() -> None:
    """And everything else to everybody."""
    bus = EventBus()

    with bus.subscribe() as all_of_it, bus.subscribe(resources=False) as changes:
        bus.publish(SAMPLE)
        bus.publish(_event(1))

        assert await _take(all_of_it, 2) == [SAMPLE, _event(1)]
        assert await _take(changes, 1) == [_event(1)]


@pytest.mark.parametrize(
    ("wish", "listened", "watched"),
    [
        ({}, True, True),
        ({"resources": False}, True, False),
        ({"client": False}, False, False),
    ],
)
def test_the_bus_knows_who_listens_to_what(
    wish: dict[str, bool], *, listened: bool, watched: bool
) -> None:
    """Samples are taken for whoever wants them; the daemon's own records are nobody."""
    bus = EventBus()

    with bus.subscribe(**wish):
        assert (bus.listened, bus.watched) == (listened, watched)

    assert (bus.listened, bus.watched) == (False, False)
