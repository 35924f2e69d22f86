"""The endpoint as a test needs it: the real app on a real socket, over a fake or real engine."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import httpx2

from stoker.api.endpoint import Endpoint
from stoker.api.inference import create_inference_app
from stoker.api.server_state import ServerState
from stoker.api.services import Services
from stoker.api.switch import ServerSwitch
from stoker.engine.base import Engine
from stoker.events import EventBus
from stoker.hardware.facts import CpuFacts, HardwareFacts, LimitFacts, MemoryFacts
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.paths import Paths
from stoker.settings import Settings
from stoker.store.manifest import FileRole, Manifest, ManifestFile, SourceRecord, Trust, Verdict
from stoker.store.partial import PartialKey
from stoker.store.store import Store
from stoker.store.verify import Expected
from stoker.types import Digest, Filename, ModelId
from stoker.upstreams import Upstreams
from tests.fakes.engine import Behaviour, FakeEngine
from tests.fakes.gguf_files import tiny_gguf

GIB = 1 << 30


def machine(available_bytes: int = 8 * GIB) -> HardwareFacts:
    """Two cores and so much free memory."""
    return HardwareFacts(
        system="linux",
        release="6",
        cpu=CpuFacts("x86_64", "test", 2, 2),
        limits=LimitFacts(affinity_cpus=2),
        memory=MemoryFacts(total_bytes=16 * GIB, available_bytes=available_bytes),
    )


def add_model(store: Store, name: str, content: bytes, *, pinned: bool = False) -> Manifest:
    """Admit the bytes and commit a model made of them."""
    digest = Digest(hashlib.sha256(content).hexdigest())
    key = PartialKey(Expected(len(content), digest), f"test:{name}")
    with store.partial(key) as partial:
        partial.write(0, content)
        partial.advance_hash()
        admitted = store.admit(partial, FileRole.MODEL)
    assert admitted.facts is not None
    manifest = Manifest(
        id=ModelId(name),
        aliases=(ModelId(f"{name}-alias"),),
        source=SourceRecord("path", f"/models/{name}.gguf"),
        files=(
            ManifestFile(Filename(f"{name}.gguf"), FileRole.MODEL, admitted.digest, admitted.size),
        ),
        trust=Trust(
            admitted.integrity, admitted.structure, Verdict("unknown", "no hub"), admitted.template
        ),
        capabilities=admitted.facts.capabilities,
        context_length=admitted.facts.context_length,
        created_at=datetime.now(UTC),
        pinned=pinned,
    )
    store.commit(manifest)
    return manifest


@dataclass
class Serving:
    """A running endpoint and what is behind it."""

    client: httpx2.AsyncClient
    port: int
    store: Store
    lifecycle: Lifecycle
    engine: Any
    metrics: Metrics
    bus: EventBus
    server: ServerSwitch
    home: Path
    free_bytes: list[int] = field(default_factory=list)  # the last: what workers may use in all

    async def chat(self, model: str = "m", **more: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi there"}], **more}
        return await self.client.post("/v1/chat/completions", json=body)

    @property
    def last_served(self) -> Path:
        return places_in(self.home).last_served

    async def until_idle(self) -> None:
        """Return when nothing runs, waits or is loaded any more."""
        await self.until(lambda: self.lifecycle.idle_s() > 0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look until it is so; fail after ten seconds."""
        with anyio.fail_after(10):
            while not condition():  # noqa: ASYNC110  # what is watched has no event
                await anyio.sleep(0.005)

    def leave_room_for_one(self) -> None:
        """From now on this machine's memory holds the one loaded worker, and no second one."""
        need = self.engine.launches[0].memory.total_bytes
        # A fake worker's end gives back less than it seems to use: it shares Python's own pages.
        self.free_bytes[:] = [need + (16 << 20)]

    def restarted(self) -> Lifecycle:
        """A new lifecycle on the same home, as after a restart of the daemon."""
        return Lifecycle(
            store=self.store,
            engine=self.engine,
            hardware=machine,
            settings=Settings(),
            bus=EventBus(),
            metrics=Metrics(),
            places=places_in(self.home),
        )


def places_in(home: Path) -> Paths:
    """As `_running` uses them; the folder exists."""
    return Paths(home, home, home, home)


@asynccontextmanager
async def serving(
    *,
    models: Iterable[str] = ("m",),
    engine: Engine | None = None,
    behaviours: dict[str, Behaviour] | None = None,
    available_bytes: int = 8 * GIB,
    **settings: Any,
) -> AsyncIterator[Serving]:
    """Everything but the pulls and the control plane, on a free port; ends with no process."""
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as folder:
        home = Path(folder)
        store = Store(home / "store")
        await anyio.to_thread.run_sync(store.open)
        for number, name in enumerate(models):
            content = tiny_gguf(name=name, seed=number)
            await anyio.to_thread.run_sync(add_model, store, name, content)
        used = engine or FakeEngine(home, by_model=behaviours or {}, behaviour=Behaviour())
        wishes = Settings(**{"drain_timeout_s": 5, **settings})
        async with _running(home, store, used, wishes, [available_bytes]) as served:
            yield served


@asynccontextmanager
async def _running(
    home: Path, store: Store, engine: Any, wishes: Settings, free_bytes: list[int]
) -> AsyncIterator[Serving]:
    bus, metrics = EventBus(), Metrics()

    def probe() -> HardwareFacts:
        used = sum(worker.resident_bytes() or 0 for worker in getattr(engine, "workers", ()))
        return machine(max(0, free_bytes[-1] - used))

    lifecycle = Lifecycle(
        store=store,
        engine=engine,
        hardware=probe,
        settings=wishes,
        bus=bus,
        metrics=metrics,
        places=places_in(home),
    )
    upstreams = Upstreams(wishes.upstreams, bus, offline=wishes.offline)
    endpoint = Endpoint("127.0.0.1", 0)
    server = ServerSwitch(
        endpoint=endpoint,
        lifecycle=lifecycle,
        upstreams=upstreams,
        bus=bus,
        file=home / "server.json",
        state=ServerState(),
        drain_timeout_s=wishes.drain_timeout_s,
    )
    services = _services(
        settings=wishes,
        store=store,
        lifecycle=lifecycle,
        bus=bus,
        metrics=metrics,
        server=server,
        upstreams=upstreams,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(lifecycle.run)
        await tasks.start(upstreams.run)
        with endpoint:
            async with endpoint.running(create_inference_app(services)):
                await server.start()
                port = urlsplit(endpoint.base_url).port or 0
                async with _client(port) as client:
                    yield Serving(
                        client=client,
                        port=port,
                        store=store,
                        lifecycle=lifecycle,
                        engine=engine,
                        metrics=metrics,
                        bus=bus,
                        server=server,
                        home=home,
                        free_bytes=free_bytes,
                    )
                    await lifecycle.drain(1)
        tasks.cancel_scope.cancel()


def _services(**parts: Any) -> Services:
    """These; the endpoint uses neither pulls nor history nor paths."""
    unused = ("paths", "puller", "history", "profiles", "runtimes", "tuner", "planner")
    nothing = dict.fromkeys(unused, cast("Any", None))
    return Services(started_at=0, request_stop=lambda: None, **parts, **nothing)


def _client(port: int) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)


def raw_request(port: int, data: bytes, *, wait_s: float = 10) -> bytes:
    """Send exactly these bytes; everything that comes back until the end of the connection.

    A server that closes while bytes are still coming resets the connection; what it said before
    may then be lost on the way.
    """
    received = bytearray()
    with (
        socket.create_connection(("127.0.0.1", port), wait_s) as peer,
        contextlib.suppress(ConnectionError),
    ):
        peer.sendall(data)
        while piece := peer.recv(65536):
            received += piece
    return bytes(received)
