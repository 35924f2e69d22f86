"""The composition root: build the services in order, run, stop in reverse.

Not for: any decision. Each service is told what it needs; nothing here is looked up later.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.util import find_spec

import anyio
import structlog
from anyio.abc import TaskStatus
from filelock import FileLock, Timeout

from stoker import __version__, logs, paths, sd_notify, settings
from stoker.api.control import create_control_app
from stoker.api.endpoint import EndpointProtocol
from stoker.api.inference import create_inference_app
from stoker.api.listen import bind_endpoint, listening
from stoker.api.peer import PeerCheckedProtocol, bind_control
from stoker.api.services import Services
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.errors import DaemonAlreadyRunning, StoreUnsafe
from stoker.events import EventBus
from stoker.hardware.probe import probe
from stoker.history import History, record_events
from stoker.jobs import Jobs
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.paths import Paths
from stoker.pull.puller import Puller
from stoker.schemas import Goodbye
from stoker.settings import Settings
from stoker.store.store import Store

log = structlog.get_logger(__name__)


def main(*, log_to_stderr: bool = False) -> None:
    """Serve until told to stop. Raises StokerError when it cannot start."""
    places = paths.from_environment()
    places.create()
    wishes = settings.load(places.config_file)
    logs.configure(wishes.log_level, None if log_to_stderr else places.log_file)
    with _only_instance(places):
        uvloop = sys.platform != "win32" and find_spec("uvloop") is not None
        anyio.run(_serve, places, wishes, backend_options={"use_uvloop": uvloop})


async def _serve(places: Paths, wishes: Settings) -> None:
    stop = anyio.Event()
    async with AsyncExitStack() as stack:
        endpoint = stack.enter_context(bind_endpoint(wishes.host, wishes.port))
        services, jobs = await _build(places, wishes, endpoint.getsockname()[1], stop)
        stack.push_async_callback(services.history.close)
        await stack.enter_async_context(_running(services.lifecycle.run))
        await stack.enter_async_context(_running(services.puller.run))
        await stack.enter_async_context(
            listening(
                create_control_app(services),
                bind_control(places.control_socket),
                protocol=PeerCheckedProtocol,
            )
        )
        await stack.enter_async_context(
            listening(create_inference_app(services), endpoint, protocol=EndpointProtocol)
        )
        stack.callback(services.bus.publish, Goodbye())
        stack.push_async_callback(services.lifecycle.drain, wishes.drain_timeout_s)
        await jobs.start()
        stack.push_async_callback(jobs.stop)
        await stack.enter_async_context(_signals(stop))
        sd_notify.notify(f"READY=1\nSTATUS=Serving {services.base_url()}")
        log.info("ready", version=__version__, pid=os.getpid(), base_url=services.base_url())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(record_events, services.history, services.bus)
            tasks.start_soon(services.lifecycle.restore)
            await stop.wait()
            tasks.cancel_scope.cancel()
        sd_notify.notify("STOPPING=1")
        log.info("stopping")
    log.info("stopped")


async def _build(
    places: Paths, wishes: Settings, port: int, stop: anyio.Event
) -> tuple[Services, Jobs]:
    """Every service, bottom up: the store and the facts first, what uses them after."""
    bus = EventBus()
    metrics = Metrics()
    store = Store(places.store)
    await anyio.to_thread.run_sync(store.open)
    hardware = await anyio.to_thread.run_sync(probe)
    history = await History.open(places.history)
    lifecycle = Lifecycle(
        store=store,
        engine=XllamacppEngine(places, hardware),
        hardware=probe,
        settings=wishes,
        bus=bus,
        metrics=metrics,
        last_served=places.last_served,
    )
    puller = Puller(store=store, settings=wishes, bus=bus, state_file=places.pulls)
    host = f"[{wishes.host}]" if ":" in wishes.host else wishes.host
    services = Services(
        settings=wishes,
        paths=places,
        store=store,
        puller=puller,
        lifecycle=lifecycle,
        bus=bus,
        metrics=metrics,
        history=history,
        started_at=time.monotonic(),
        base_url=lambda: f"http://{host}:{port}/v1",
        request_stop=stop.set,
    )
    return services, Jobs(services)


@asynccontextmanager
async def _running(
    service: Callable[..., Coroutine[object, object, None]],
) -> AsyncIterator[None]:
    """The service's task, started; cancelled and awaited on leaving."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(service)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _signals(stop: anyio.Event) -> AsyncIterator[None]:
    """The first TERM or INT asks for a graceful stop; on leaving, the next one ends the process."""

    async def watch(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            async for number in received:
                log.info("signal", name=signal.Signals(number).name)
                stop.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        yield
        tasks.cancel_scope.cancel()


@contextmanager
def _only_instance(places: Paths) -> Iterator[None]:
    """Hold the lock of this home. Raises DaemonAlreadyRunning, StoreUnsafe."""
    # A soft lock would outlive a killed daemon; without real locks it is better not to start.
    lock = FileLock(places.lock, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        msg = f"a daemon already runs on {places.data}"
        raise DaemonAlreadyRunning(msg) from error
    except OSError as error:
        msg = f"cannot lock {places.lock}: {error.strerror or error}"
        hint = "Set STOKER_HOME to a folder that you may write to."
        raise StoreUnsafe(msg, hint=hint) from error
    try:
        yield
    finally:
        lock.release()
