"""The requests that wait for the scheduler's word: a ticket each, answered once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from stoker.errors import StokerError
from stoker.lifecycle.effects import Grant

Answer = asyncio.Future[Grant]


class Seat:
    """Held by who asks for a lease: what it may ask `Lifecycle.waiting` about."""

    __slots__ = ("ticket",)

    def __init__(self) -> None:
        self.ticket: int | None = None  # None: it does not wait


class Tickets:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(self) -> None:
        self._waiting: dict[int, Answer] = {}
        self._numbers = itertools.count(1)

    @contextmanager
    def draw(self) -> Iterator[tuple[int, Answer]]:
        """A new ticket and its answer to come; given up at the end of the block."""
        ticket = next(self._numbers)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        try:
            yield ticket, answer
        finally:
            del self._waiting[ticket]

    def answer(self, ticket: int, answer: Grant | StokerError) -> None:
        future = self._waiting.get(ticket)
        if future is None or future.done():
            # Its task was cancelled and is about to say so; a grant is then given back there.
            return
        if isinstance(answer, Grant):
            future.set_result(answer)
        else:
            future.set_exception(_fresh(answer))

    def refuse_all(self, error: StokerError) -> None:
        for ticket in self._waiting:
            self.answer(ticket, error)


def _fresh(error: StokerError) -> StokerError:
    """A copy to raise: one exception raised by many tasks would collect all their frames."""
    return type(error)(error.message, hint=error.hint, **error.facts)
