"""A puller that runs, with a store and a simulated Hub, for tests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from stoker.catalogue import Catalogue
from stoker.events import EventBus
from stoker.pull.fetch import FetchPolicy
from stoker.pull.puller import Puller
from stoker.schemas import Event, PullView
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.types import PullState
from tests.fakes.gguf_files import Tensor, tiny
from tests.fakes.hub import Hub

QUICK = FetchPolicy(
    connections=2,
    chunk_bytes=64 * 1024,
    stall_s=0.5,
    tries=4,
    backoff_s=0.01,
    longest_backoff_s=0.05,
)
PATIENCE_S = 30.0  # for a state to come: a busy two-core machine


def model_bytes(size: int, seed: int = 0) -> bytes:
    """A sound GGUF of about this size whose every part differs from every other."""
    noise = random.Random(seed).randbytes(max(size // 4, 1) * 4)  # noqa: S311
    made = tiny(seed=seed)
    made.tensors.append(Tensor("padding.weight", (len(noise) // 4,), data=noise))
    return made.build()


@dataclass
class Bench:
    """Everything a pull touches. ``async with bench.running() as puller`` runs one."""

    root: Path
    hub: Hub
    settings: dict[str, Any] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(()))
    policy: FetchPolicy = QUICK
    store: Store = field(init=False)
    bus: EventBus = field(default_factory=EventBus)

    def __post_init__(self) -> None:
        self.store = Store(self.root / "store")
        self.store.open()

    @property
    def state_file(self) -> Path:
        return self.root / "state" / "pulls.json"

    def tune(self, **changes: Any) -> None:
        self.policy = replace(self.policy, **changes)

    def puller(self) -> Puller:
        settings = Settings(hub_endpoint=self.hub.endpoint, **self.settings)
        return Puller(
            store=self.store,
            settings=settings,
            bus=self.bus,
            state_file=self.state_file,
            catalogue=self.catalogue,
            policy=self.policy,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Puller]:
        puller = self.puller()
        async with anyio.create_task_group() as group:
            await group.start(puller_run(puller))
            try:
                yield puller
            finally:
                group.cancel_scope.cancel()

    async def pull(self, reference: str, *, name: str | None = None) -> PullView:
        """Start a pull and wait for its end."""
        async with self.running() as puller:
            view = await puller.start(reference, name=name)
            return await ended(puller, view.id)

    @property
    def blobs(self) -> list[Path]:
        folder = self.root / "store" / "blobs"
        return [path for path in folder.rglob("*") if path.is_file()]

    @property
    def partials(self) -> list[Path]:
        return list((self.root / "store" / "partials").glob("*.part"))

    @property
    def quarantined(self) -> list[Path]:
        folder = self.root / "store" / "quarantine"
        return [path for path in folder.rglob("*") if path.is_file()]


def puller_run(puller: Puller) -> Callable[..., Any]:
    """The puller's `run`, in the form that a task group starts."""

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await puller.run(task_status=task_status)

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; give up loudly."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # any state of any object: there is no event
            await anyio.sleep(0.01)


async def ended(puller: Puller, pull_id: str) -> PullView:
    """The pull's view once it has ended."""
    await until(lambda: puller.get(pull_id).state.ended)
    return puller.get(pull_id)


async def reached(puller: Puller, pull_id: str, state: PullState, *, bytes_done: int = 0) -> None:
    def there() -> bool:
        view = puller.get(pull_id)
        assert not view.state.ended or view.state is state, view
        return view.state is state and view.bytes_done >= bytes_done

    await until(there)


@asynccontextmanager
async def collected(bus: EventBus) -> AsyncIterator[list[Event | None]]:
    """Every event that is published inside."""
    events: list[Event | None] = []
    remember = events.append

    async def collect() -> None:
        async for event in subscription:
            remember(event)

    with bus.subscribe() as subscription:
        async with anyio.create_task_group() as group:
            group.start_soon(collect)
            yield events
            await anyio.sleep(0.05)  # what has been published is delivered
            group.cancel_scope.cancel()
