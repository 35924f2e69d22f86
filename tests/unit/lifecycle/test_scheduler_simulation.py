"""Eight clients that each ask again when they are answered, over two models of which one fits.

Time is simulated: a load, a request and a client's pause take what they take on a small machine.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from stoker.lifecycle import queueing
from stoker.lifecycle.effects import Effect, Grant, Plan, Reject, Start, Stop
from stoker.lifecycle.eviction import choose
from stoker.lifecycle.queueing import QUANTUM_S
from stoker.lifecycle.scheduler import Scheduler
from stoker.types import ModelId
from tests.unit.lifecycle.steps import A, B

CLIENTS, REQUESTS = 8, 25
BUDGET, SIZE = 100, 60
PLACES = 8
LOAD_S, STOP_S, PLAN_S, PAUSE_S = 2.0, 0.1, 0.01, 0.03

Orders = Sequence[Sequence[ModelId]]


@dataclass
class _Plan:
    context: int = 8192
    gpu_layers: int = 0
    cpu_experts: int = 0
    embedding: bool = False


@dataclass
class _Simulation:
    """One machine, from the first request to the last answer."""

    orders: Orders
    service_s: Callable[[], float]
    now: float = 0
    loads: int = 0
    answered: int = 0
    longest_wait_s: float = 0
    scheduler: Scheduler = field(
        default_factory=lambda: Scheduler(max_queue=CLIENTS, keep_alive_s=-1)
    )

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._workers: set[ModelId] = set()
        self._clients: dict[int, tuple[int, int, float]] = {}  # by ticket

    def run(self) -> None:
        for client in range(len(self.orders)):
            self._at(0, partial(self._ask, client, 0))
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _at(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), event))

    def _ask(self, client: int, index: int) -> None:
        ticket = next(self._numbers)
        self._clients[ticket] = client, index, self.now
        self._apply(self.scheduler.on_request(ticket, self.orders[client][index], self.now))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    self._serve(effect)
                case Plan():
                    self._at(PLAN_S, partial(self._plan, effect))
                case Start():
                    self._workers.add(effect.model)
                    self._at(LOAD_S, partial(self._ready, effect.model))
                case Stop():
                    self._at(STOP_S, partial(self._exit, effect.model))
                case Reject():
                    raise AssertionError(effect.error)
        if self.scheduler.wake_at is not None:
            delay_s = max(0.0, self.scheduler.wake_at - self.now)
            self._at(delay_s, self._wake)

    def _wake(self) -> None:
        if self.scheduler.wake_at is not None and self.now >= self.scheduler.wake_at:
            self._apply(self.scheduler.on_wake(self.now))

    def _serve(self, grant: Grant) -> None:
        _, _, since = self._clients[grant.ticket]
        self.longest_wait_s = max(self.longest_wait_s, self.now - since)
        self._at(self.service_s(), partial(self._answer, grant))

    def _answer(self, grant: Grant) -> None:
        client, index, _ = self._clients.pop(grant.ticket)
        self.answered += 1
        if index + 1 < len(self.orders[client]):
            self._at(PAUSE_S, partial(self._ask, client, index + 1))
        self._apply(self.scheduler.on_released(grant.model, grant.generation, self.now))

    def _plan(self, effect: Plan) -> None:
        free = BUDGET - SIZE * len(self._workers)

        def plan_with(extra: int, _: int) -> _Plan | None:
            return _Plan() if free + extra >= SIZE else None

        choice = choose(effect.candidates, plan_with)
        assert choice is not None
        self._apply(
            self.scheduler.on_planned(
                effect.model, SIZE, choice.victims, self.now, wait=choice.wait
            )
        )

    def _ready(self, model: ModelId) -> None:
        self.loads += 1
        assert len(self._workers) == 1, "both at once"
        self._apply(self.scheduler.on_ready(model, PLACES, self.now, LOAD_S))

    def _exit(self, model: ModelId) -> None:
        self._workers.remove(model)
        self._apply(self.scheduler.on_exited(model, None, self.now))


def _mixed(seed: int) -> Orders:
    draw = random.Random(seed)  # noqa: S311  # a test's dice
    return [[draw.choice((A, B)) for _ in range(REQUESTS)] for _ in range(CLIENTS)]


def _fewest_loads(orders: Orders) -> int:
    """Serve one model until nobody wants it, then the other: no order does with fewer."""

    def count(first: ModelId) -> int:
        runs = [len(list(itertools.groupby(order))) + (order[0] != first) for order in orders]
        return max(runs)

    return min(count(A), count(B))


def _simulate(orders: Orders, seed: int, *, service_s: float) -> _Simulation:
    draw = random.Random(seed)  # noqa: S311  # a test's dice
    simulation = _Simulation(orders, lambda: service_s * draw.uniform(0.5, 1.5))
    simulation.run()
    return simulation


@pytest.mark.parametrize("seed", range(20))
def test_mixed_requests_need_hardly_more_loads_than_the_best_order(seed: int) -> None:
    """All 200 are answered, with at most a fifth more loads than there must be."""
    simulation = _simulate(_mixed(seed), seed, service_s=0.3)

    assert simulation.answered == CLIENTS * REQUESTS
    assert simulation.loads <= 1.2 * _fewest_loads(simulation.orders)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_waits_much_longer_than_a_turn(seed: int) -> None:
    """Also with requests so long that a turn ends before everybody had theirs."""
    simulation = _simulate(_mixed(seed), seed, service_s=20)

    assert simulation.answered == CLIENTS * REQUESTS
    turn_s = QUANTUM_S + 1.5 * 20 + STOP_S + LOAD_S
    assert simulation.longest_wait_s <= 2 * turn_s


def test_two_clients_with_a_model_each_do_not_make_them_take_turns_at_each_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first is served to its end, because it comes back at once; else it would not be."""
    orders = [[A] * REQUESTS, [B] * REQUESTS]

    lingering = _simulate(orders, 1, service_s=0.3)
    monkeypatch.setattr(queueing, "linger_s", lambda *_loads: 0.0)
    restless = _simulate(orders, 1, service_s=0.3)

    assert lingering.loads == _fewest_loads(orders) == 2
    assert restless.loads == 2 * REQUESTS
