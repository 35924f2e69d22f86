"""The real control app on its real socket, over the real store, puller and lifecycle.

Only the engine is a fake, and time can be moved on. The daemon's loop runs in a thread, so that a
test uses the synchronous client as the CLI does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import httpx2

from stoker.api import server_state
from stoker.api.control import create_control_app
from stoker.api.control_transport import control_listening
from stoker.api.endpoint import Endpoint
from stoker.api.inference import create_inference_app
from stoker.api.services import Services
from stoker.api.switch import ServerSwitch
from stoker.client import StokerClient
from stoker.errors import StokerError
from stoker.events import EventBus
from stoker.hardware.facts import CpuFacts, HardwareFacts, LimitFacts, MemoryFacts
from stoker.history import History
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.paths import Paths, from_environment
from stoker.planner import Planner
from stoker.profiles import Profiles
from stoker.pull.puller import Puller
from stoker.runtimes.manager import Runtimes
from stoker.schemas import Event, Goodbye, PullView
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import FileResult, Store
from stoker.tuner import Tuner
from stoker.upstreams import Upstreams
from tests.fakes.engine import FakeEngine
from tests.fakes.gguf_files import tiny_gguf

T = TypeVar("T")

DEADLINE_S = 30.0
MACHINE = HardwareFacts(
    system="linux",
    release="6.1",
    cpu=CpuFacts(arch="x86_64", model="test", physical_cores=2, logical_cores=2),
    limits=LimitFacts(affinity_cpus=2),
    memory=MemoryFacts(total_bytes=16 << 30, available_bytes=12 << 30),
)


class Clock:
    """The time of the lifecycle; a test may move it on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class WatchedStore(Store):
    """The real store. While `hold` is set, hashing waits after its first chunk for its end."""

    hold = False
    was_cancelled = False
    hashing: threading.Event
    while_hashing: Callable[[], None] = staticmethod(lambda: None)

    def verify(
        self,
        manifest: Manifest,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> Iterator[FileResult]:
        def hashed(count: int) -> None:
            progress(count)
            self.while_hashing()
            self.hashing.set()
            deadline = time.monotonic() + DEADLINE_S
            while self.hold and not self.was_cancelled and time.monotonic() < deadline:
                self.was_cancelled = cancelled()
                time.sleep(0.001)

        return super().verify(manifest, hashed, cancelled)


@dataclass
class ControlPlane:
    """What a test has in its hands."""

    paths: Paths
    portal: anyio.from_thread.BlockingPortal
    services: Services
    store: WatchedStore
    engine: FakeEngine
    clock: Clock
    stops: list[str]

    def client(self) -> StokerClient:
        return StokerClient(self.paths)

    @property
    def base_url(self) -> str:
        return self.services.server.view().base_url

    def add(self, name: str = "tiny", *, seed: int = 0, padding: int = 0) -> Path:
        """Pull a small model file under a name; the path of its blob."""
        source = self.paths.data / f"{name}.gguf"
        source.write_bytes(tiny_gguf(seed=seed, padding=padding))
        with self.client() as client:
            pull = client.pull(str(source), name=name)
            pull = wait_for(lambda: ended(client.pull_view(pull.id)))
        assert pull.error is None, pull
        return self.blob(name)

    def blob(self, name: str) -> Path:
        return self.store.path(self.store.find(name).files[0].digest)


class Listener:
    """Collects events in a thread until the stream ends."""

    def __init__(self, plane: ControlPlane, *, resources: bool = True) -> None:
        self.events: list[Event] = []
        self._plane = plane
        self._resources = resources
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        wait_for(lambda: self.events or None)

    def _listen(self) -> None:
        with self._plane.client() as client:
            for event in client.events(resources=self._resources):
                self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def end(self) -> None:
        """The goodbye ends it, as at the end of the daemon."""
        self._plane.portal.call(self._plane.services.bus.publish, Goodbye())
        self._thread.join(10)
        assert not self._thread.is_alive()


def ended(view: PullView) -> PullView | None:
    return view if view.state.ended else None


def wait_for(look: Callable[[], T | None]) -> T:
    """The first thing that `look` finds; fails after a while."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := look()) is None or found is False:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


def flip_a_byte(blob: Path) -> None:
    """As a bad disk does: the bytes change, size and times do not."""
    info = blob.stat()
    raw = bytearray(blob.read_bytes())
    raw[-1] ^= 0xFF
    blob.chmod(0o600)
    blob.write_bytes(raw)
    blob.chmod(0o400)
    os.utime(blob, ns=(info.st_atime_ns, info.st_mtime_ns))


@contextmanager
def control_plane(**settings: object) -> Iterator[ControlPlane]:
    """Serve on the home that STOKER_HOME names, until the block ends; the endpoint on any port."""
    places = from_environment()
    places.create()
    with (
        anyio.from_thread.start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(
            _serving(places, portal, Settings(**{"port": 0, **settings}))  # type: ignore[arg-type]
        ) as plane,
    ):
        yield plane


async def _no_network(request: httpx2.Request) -> httpx2.Response:
    """A server that takes the request and never answers."""
    _ = request
    await anyio.sleep_forever()
    raise StokerError("unreachable")


def _puller(places: Paths, store: Store, settings: Settings, bus: EventBus) -> Puller:
    return Puller(
        store=store,
        settings=settings,
        bus=bus,
        state_file=places.pulls,
        client_factory=lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(_no_network)),
    )


def _tuning(
    places: Paths, store: Store, settings: Settings, bus: EventBus, lifecycle: Lifecycle
) -> dict[str, Any]:
    """The real ones; none of them runs by itself."""
    profiles = Profiles(places.tuning)
    runtimes = Runtimes(places, MACHINE, settings, bus, store)
    tuner = Tuner(
        store=store,
        lifecycle=lifecycle,
        runtimes=runtimes,
        profiles=profiles,
        settings=settings,
        bus=bus,
        places=places,
        hardware=lambda: MACHINE,
    )
    planner = Planner(
        store,
        settings,
        profiles,
        runtimes.usable,
        hardware=lambda: MACHINE,
        survey=tuner.survey,
        lifecycle=lifecycle,
    )
    return {"profiles": profiles, "runtimes": runtimes, "tuner": tuner, "planner": planner}


@asynccontextmanager
async def _serving(
    places: Paths,
    portal: anyio.from_thread.BlockingPortal,
    settings: Settings,
) -> AsyncIterator[ControlPlane]:
    bus, metrics, clock, stops = EventBus(), Metrics(), Clock(), list[str]()
    store = WatchedStore(places.store)
    store.hashing = threading.Event()
    await anyio.to_thread.run_sync(store.open)
    engine = FakeEngine(places.run)
    lifecycle = Lifecycle(
        store=store,
        engine=engine,
        hardware=lambda: MACHINE,
        settings=settings,
        bus=bus,
        metrics=metrics,
        places=places,
        clock=clock,
    )
    puller = _puller(places, store, settings, bus)
    upstreams = Upstreams(settings.upstreams, bus)
    async with AsyncExitStack() as stack:
        endpoint = stack.enter_context(Endpoint(settings.host, settings.port))
        server = ServerSwitch(
            endpoint=endpoint,
            lifecycle=lifecycle,
            upstreams=upstreams,
            bus=bus,
            file=places.server_state,
            state=server_state.read(places.server_state),
            drain_timeout_s=settings.drain_timeout_s,
        )
        history = await History.open(places.history)
        stack.push_async_callback(history.close)
        services = Services(
            settings=settings,
            paths=places,
            store=store,
            puller=puller,
            lifecycle=lifecycle,
            bus=bus,
            metrics=metrics,
            history=history,
            server=server,
            upstreams=upstreams,
            started_at=time.monotonic(),
            request_stop=lambda: stops.append("asked"),
            **_tuning(places, store, settings, bus, lifecycle),
        )
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        await tasks.start(lifecycle.run)
        await tasks.start(puller.run)
        await tasks.start(upstreams.run)
        control = control_listening(create_control_app(services), places)
        await stack.enter_async_context(control)
        await stack.enter_async_context(endpoint.running(create_inference_app(services)))
        await services.server.start()
        stack.callback(bus.publish, Goodbye())
        yield ControlPlane(places, portal, services, store, engine, clock, stops)
