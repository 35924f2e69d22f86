"""The in-process event bus: a subscriber gets changes in order, and never blocks a publisher.

A subscriber that falls behind loses its backlog and is told so with `None`; it then takes a new
snapshot. Not for: history or delivery guarantees.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from stoker.schemas import Event, ResourcesSampled

BACKLOG: Final = 256  # events; a tray that sleeps through more rebuilds itself from a snapshot


class Subscription:
    """Iterate to receive events; `None` means: events were lost, take a snapshot."""

    def __init__(self, *, resources: bool = True) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(BACKLOG)
        self._resources = resources

    def put(self, event: Event) -> None:
        """Strictly for the bus. Never waits."""
        if not self._resources and isinstance(event, ResourcesSampled):
            return
        if self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(None)
        self._queue.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[Event | None]:
        while True:
            yield await self._queue.get()


class EventBus:
    """One per daemon; used from the event loop's thread only."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._clients = 0
        self._watchers = 0

    def publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            subscription.put(event)

    @contextmanager
    def subscribe(self, *, client: bool = True, resources: bool = True) -> Iterator[Subscription]:
        """Receive every event from now on, or all but the samples of resources.

        The daemon's own records are no `client`: for them nothing is sampled or told twice.
        """
        watches = client and resources
        subscription = Subscription(resources=watches)
        self._subscriptions.add(subscription)
        self._clients += client
        self._watchers += watches
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._clients -= client
            self._watchers -= watches

    @property
    def listened(self) -> bool:
        """Whether a client listens; what only people look at is not told to nobody."""
        return self._clients > 0

    @property
    def watched(self) -> bool:
        """Whether a client wants samples of resources; samplers rest when none does."""
        return self._watchers > 0
