"""The composition root: build the services in order, run, stop in reverse.

Not for: any decision. Each service is told what it needs; nothing here is looked up later.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import structlog
from anyio.abc import TaskStatus
from filelock import FileLock, Timeout

from stoker import __version__, logs, paths, sd_listen, sd_notify, settings
from stoker.api import server_state
from stoker.api.control import create_control_app
from stoker.api.control_transport import control_listening
from stoker.api.endpoint import Endpoint
from stoker.api.inference import create_inference_app
from stoker.api.server_state import ServerState
from stoker.api.services import Services
from stoker.api.switch import ServerSwitch
from stoker.engine.graphics import with_gpus
from stoker.errors import DaemonAlreadyRunning, StoreUnsafe
from stoker.events import EventBus
from stoker.hardware import measure as measured
from stoker.hardware.facts import HardwareFacts
from stoker.hardware.measure import with_measured
from stoker.hardware.probe import probe
from stoker.history import History, record_events
from stoker.jobs import Jobs
from stoker.late import late
from stoker.lifecycle.planning import Seen
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.paths import Paths
from stoker.planner import Planner
from stoker.profiles import Profiles
from stoker.pull.puller import Puller
from stoker.runtimes.manager import Runtimes
from stoker.schemas import Goodbye
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuner import Tuner
from stoker.tuning.placement import gpu_runtime
from stoker.upstreams import Upstreams

if TYPE_CHECKING:
    from stoker import recommend
else:  # asked for now and then
    recommend = late("stoker.recommend")

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Windows has no TERM that anybody sends; BREAK is how a program is asked to end there.
_STOP_SIGNALS: Final = tuple(
    signal.Signals[name]
    for name in (("SIGINT", "SIGBREAK") if sys.platform == "win32" else ("SIGTERM", "SIGINT"))
    if name in signal.Signals.__members__
)
_STOP_MARGIN_S: Final = 60.0  # beyond the drain: workers end, sockets close


def main(*, log_to_stderr: bool = False) -> None:
    """Serve until told to stop. Raises StokerError when it cannot start."""
    inherited = sd_listen.take()
    places = paths.from_environment()
    places.create()
    wishes = settings.load(places.config_file)
    logs.configure(wishes.log_level, None if log_to_stderr else places.log_file)
    with _only_instance(places), Endpoint(wishes.host, wishes.port, inherited) as endpoint:
        uvloop = sys.platform != "win32" and find_spec("uvloop") is not None
        if sys.platform == "win32":
            _hold_children()
        anyio.run(_serve, places, wishes, endpoint, backend_options={"use_uvloop": uvloop})


async def _serve(places: Paths, wishes: Settings, endpoint: Endpoint) -> None:
    stop = anyio.Event()
    async with AsyncExitStack() as stack:
        # Until `_signals` takes them: whoever can already reach us can also ask us to stop.
        stack.enter_context(handled(stop, *_STOP_SIGNALS))
        state = server_state.read(places.server_state)
        if state.enabled:
            endpoint.claim()  # a taken port is told before anything slow is done
        await stack.enter_async_context(_running(sd_notify.keep_alive))
        services, jobs = await _patiently(_build(places, wishes, endpoint, state, stop))
        stack.push_async_callback(services.history.close)
        await stack.enter_async_context(_running(services.lifecycle.run))
        await stack.enter_async_context(_running(services.runtimes.run))
        await stack.enter_async_context(_running(services.tuner.run))
        await stack.enter_async_context(_running(services.puller.run))
        await stack.enter_async_context(_running(services.upstreams.run))
        await stack.enter_async_context(control_listening(create_control_app(services), places))
        await stack.enter_async_context(endpoint.running(create_inference_app(services)))
        await services.server.start()
        stack.callback(services.bus.publish, Goodbye())
        stack.push_async_callback(_drain, services, wishes.drain_timeout_s)
        await jobs.start()
        stack.push_async_callback(jobs.stop)
        await stack.enter_async_context(_signals(stop))
        await _until_stopped(services, endpoint, stop)
        sd_notify.notify(sd_notify.time_to_stop(wishes.drain_timeout_s + _STOP_MARGIN_S))
        log.info("stopping")
    log.info("stopped")


async def _drain(services: Services, timeout_s: float) -> None:
    """Take nothing more, and let what runs end: here and on other servers, at once."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(services.lifecycle.drain, timeout_s)
        tasks.start_soon(services.upstreams.drain, timeout_s)


async def _until_stopped(services: Services, endpoint: Endpoint, stop: anyio.Event) -> None:
    """Say that all is ready, bring back what was loaded, and wait for the end."""

    def line() -> str:
        return sd_notify.status_line(services.server.view(), services.lifecycle.states())

    status = line()
    sd_notify.notify(f"READY=1\nSTATUS={status}")
    log.info("ready", version=__version__, pid=os.getpid(), **services.server.view().model_dump())
    if endpoint.inherits:
        await anyio.to_thread.run_sync(sd_notify.wait_until_read)
        endpoint.may_refuse()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record_events, services.history, services.bus)
        tasks.start_soon(sd_notify.tell_status, services.bus, line, status)
        if services.server.view().enabled:
            tasks.start_soon(services.lifecycle.restore)
        await stop.wait()
        tasks.cancel_scope.cancel()


async def _build(
    places: Paths, wishes: Settings, endpoint: Endpoint, state: ServerState, stop: anyio.Event
) -> tuple[Services, Jobs]:
    """Every service, bottom up: the store and the facts first, what uses them after."""
    bus = EventBus()
    metrics = Metrics()
    store = Store(places.store)
    await anyio.to_thread.run_sync(store.open)
    facts = await anyio.to_thread.run_sync(probe)
    history = await History.open(places.history)
    profiles = Profiles(places.tuning)
    runtimes = await anyio.to_thread.run_sync(Runtimes, places, facts, wishes, bus, store)
    machine = partial(_machine, places, runtimes)
    seen = partial(_seen, places, runtimes)
    lifecycle = Lifecycle(
        store=store,
        engine=runtimes,
        hardware=machine,
        settings=wishes,
        bus=bus,
        metrics=metrics,
        places=places,
        known=profiles,
        note=history.note,
        seen=seen,
    )
    lifecycle.recall_load_times(await history.load_seconds())
    runtimes.serves(lifecycle)
    tuner = Tuner(
        store=store,
        lifecycle=lifecycle,
        runtimes=runtimes,
        profiles=profiles,
        settings=wishes,
        bus=bus,
        places=places,
        hardware=machine,
        seen=seen,
    )
    upstreams = Upstreams(wishes.upstreams, bus, offline=wishes.offline)
    server = _switch(places, wishes, bus, endpoint, state, lifecycle, upstreams)
    services = Services(
        settings=wishes,
        paths=places,
        store=store,
        puller=Puller(store=store, settings=wishes, bus=bus, state_file=places.pulls),
        lifecycle=lifecycle,
        bus=bus,
        metrics=metrics,
        history=history,
        server=server,
        started_at=time.monotonic(),
        request_stop=stop.set,
        profiles=profiles,
        runtimes=runtimes,
        tuner=tuner,
        upstreams=upstreams,
        planner=_planner(store, wishes, profiles, runtimes, lifecycle, tuner, machine, seen),
    )
    return services, Jobs(services)


def _switch(
    places: Paths,
    wishes: Settings,
    bus: EventBus,
    endpoint: Endpoint,
    state: ServerState,
    lifecycle: Lifecycle,
    upstreams: Upstreams,
) -> ServerSwitch:
    return ServerSwitch(
        endpoint=endpoint,
        lifecycle=lifecycle,
        upstreams=upstreams,
        bus=bus,
        file=places.server_state,
        state=state,
        drain_timeout_s=wishes.drain_timeout_s,
    )


def _planner(
    store: Store,
    wishes: Settings,
    profiles: Profiles,
    runtimes: Runtimes,
    lifecycle: Lifecycle,
    tuner: Tuner,
    machine: Callable[[], HardwareFacts],
    seen: Seen,
) -> Planner:
    return Planner(
        store,
        wishes,
        profiles,
        runtimes.usable,
        hardware=machine,
        survey=tuner.survey,
        lifecycle=lifecycle,
        offers=runtimes.offers,
        calibration=lambda hardware, profile: recommend.calibration(
            store, profiles, hardware, profile
        ),
        safe_mode=runtimes.needs_safe_mode,
        holds=lambda tuned: runtimes.has(tuned.best.runtime, measured_at=tuned.at),
        seen=seen,
    )


def _machine(places: Paths, runtimes: Runtimes) -> HardwareFacts:
    """This machine at this moment, with what was measured of it before. Blocking."""
    # What our own workers and other programs take of a GPU changes; without one it costs nothing.
    facts = probe(fresh_gpus=gpu_runtime(runtimes.runtime))
    return with_measured(facts, measured.known(places, facts))


async def _seen(
    places: Paths, runtimes: Runtimes, hardware: HardwareFacts, runtime: str
) -> HardwareFacts:
    """This machine with GPUs of which only the runtime's own library tells."""
    library = runtimes.library(runtime) if gpu_runtime(runtime) else None
    if library is None:
        return hardware
    return await with_gpus(hardware, library, cwd=places.worker_cwd)


async def _patiently(work: Coroutine[object, object, T]) -> T:
    """Do it, and let a service manager know that it may take a while."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sd_notify.extend_start)
        result = await work
        tasks.cancel_scope.cancel()
    return result


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
    if sys.platform == "win32":  # its event loop takes no signals
        with handled(stop, *_STOP_SIGNALS):
            yield
        return

    async def watch(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_STOP_SIGNALS) as received:
            task_status.started()
            async for number in received:
                log.info("signal", name=signal.Signals(number).name)
                stop.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        yield
        tasks.cancel_scope.cancel()


@contextmanager
def handled(stop: anyio.Event, *numbers: signal.Signals) -> Iterator[None]:
    """The same by handlers of Python's own, which run between two steps of the event loop."""
    loop = asyncio.get_running_loop()

    def tell(number: int) -> None:
        log.info("signal", name=signal.Signals(number).name)
        stop.set()

    def heard(number: int, frame: object) -> None:
        _ = frame
        loop.call_soon_threadsafe(tell, number)

    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hold_children() -> None:
    from stoker.engine.job_object import hold_children

    if not hold_children():
        log.warning("job_object_refused")


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
