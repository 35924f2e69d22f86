"""The servers of the settings: what they serve, whether they are up, and requests to them.

Each has a task that looks at it now and then; nothing runs when none is configured. Not for: what
an answer means (`names`), when to look (`health`), HTTP (`forward`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskStatus
from anyio.to_thread import run_sync

from stoker.errors import (
    QueueFull,
    ShuttingDown,
    StokerError,
    UpstreamDown,
    UpstreamError,
    UpstreamRefused,
)
from stoker.events import EventBus
from stoker.schemas import ErrorView, UpstreamChanged, UpstreamView
from stoker.settings import UpstreamSettings
from stoker.upstreams.health import Health
from stoker.upstreams.names import RemoteModel, is_name, is_wanted, parse_models

if TYPE_CHECKING:
    from stoker.upstreams.forward import Headers, RemoteResponse

log = structlog.get_logger(__name__)

MOST_AT_ONCE: Final = 256  # requests per server; each is an open file here
TRAFFIC_S: Final = 0.25  # changes of the number of requests are told together
_CHECK_S: Final = 10.0  # for a whole list of models, beyond the time to connect
_THREAD_BYTES: Final = 64 * 1024  # a list that takes more than a few milliseconds to parse


class Upstreams:
    """One per daemon; from the event loop only. `run` keeps it going, before any request."""

    def __init__(
        self, wishes: Sequence[UpstreamSettings], bus: EventBus, *, offline: bool = False
    ) -> None:
        """With ``offline`` only servers on this machine are used."""
        self._servers = {one.name: _Upstream(one, bus, offline=offline) for one in wishes}
        self._refusal: StokerError | None = None
        self._moved = anyio.Event()  # a request came to its end

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look at the servers until cancelled; on leaving, what still runs there is cut."""
        try:
            async with anyio.create_task_group() as tasks:
                for one in self._servers.values():
                    tasks.start_soon(one.look_after)
                task_status.started()
        finally:
            for one in self._servers.values():
                await one.aclose()

    # --- what there is -----------------------------------------------------------------------

    def views(self) -> tuple[UpstreamView, ...]:
        """Each server, in the order of the settings."""
        return tuple(one.view() for one in self._servers.values())

    def models(self) -> tuple[RemoteModel, ...]:
        """The models of the servers that are up."""
        return tuple(model for one in self._servers.values() for model in one.listed())

    def find(self, name: str) -> RemoteModel | None:
        """By its exact id; a stored model of the same id goes first, so ask the store before.

        Of a server that never answered yet every model may be had, and of one that is down those
        that it had: the request then says what is wrong.
        """
        upstream, _, rest = name.partition("/")
        one = self._servers.get(upstream)
        return one.find(rest) if one is not None else None

    def problems(self) -> tuple[str, ...]:
        """A line for each server that will not get better by itself."""
        return tuple(line for one in self._servers.values() for line in one.problems())

    # --- requests ----------------------------------------------------------------------------

    async def open(
        self, remote: RemoteModel, method: str, path: str, headers: Headers, body: bytes
    ) -> RemoteResponse:
        """Send a request for this model; return when the head of the answer is there.

        ``path`` is one of our own, ``headers`` and ``body`` are all that the server gets to see of
        the client's request; ``body`` names the model as its server calls it. Raises UpstreamDown,
        UpstreamRefused, UpstreamError, CapacityError.
        """
        if self._refusal is not None:
            raise type(self._refusal)(self._refusal.message, hint=self._refusal.hint)
        return await self._servers[remote.upstream].open(
            method, path, headers, body, on_close=self._on_close
        )

    def pause(self, refusal: StokerError) -> None:
        """From now on no request is taken; those that run go on."""
        self._refusal = refusal

    def resume(self) -> None:
        self._refusal = None

    async def drained(self, timeout_s: float) -> None:
        """Return when no request runs any more, or when the time is up."""
        with anyio.move_on_after(timeout_s):
            while any(one.in_flight for one in self._servers.values()):
                await self._moved.wait()

    async def drain(self, timeout_s: float) -> None:
        """The daemon stops: take nothing more, and let what runs end."""
        self.pause(ShuttingDown("Stoker is stopping"))
        await self.drained(timeout_s)

    def _on_close(self) -> None:
        moved, self._moved = self._moved, anyio.Event()
        moved.set()


class _Upstream:
    """One server: its state, and its task."""

    def __init__(self, wishes: UpstreamSettings, bus: EventBus, *, offline: bool) -> None:
        from stoker.upstreams.forward import Server  # a daemon without upstreams does without it

        self._wishes = wishes
        self._bus = bus
        self._server = Server(wishes)
        self._offline = offline and not self._server.place.loopback
        self._health = Health(wishes.check_every_s)
        self._models: dict[str, RemoteModel] | None = None  # by their names there; None: never told
        self._sooner = anyio.Event()
        self._told: UpstreamView | None = None
        self._due: asyncio.TimerHandle | None = None
        self.in_flight = 0

    # --- its task ----------------------------------------------------------------------------

    async def look_after(self) -> None:
        """Look, tell, rest; until cancelled."""
        if self._offline:
            self._health.failed(anyio.current_time(), self._is_offline(), 0)
            self._tell()
            return
        while True:
            await self._look()
            self._tell()
            while (left := self._health.due_at - anyio.current_time()) > 0:
                self._sooner = anyio.Event()
                with anyio.move_on_after(left):
                    await self._sooner.wait()

    async def _look(self) -> None:
        before, began = self._health.state, anyio.current_time()
        try:
            models = await self._ask()
        except StokerError as error:
            self._health.failed(anyio.current_time(), error, random.random())  # noqa: S311
        except Exception as error:  # task boundary: one server must not end the others' tasks
            log.exception("upstream_look_crashed", upstream=self._wishes.name)
            wrapped = UpstreamError(f"{self._wishes.name} cannot be asked: {type(error).__name__}")
            self._health.failed(anyio.current_time(), wrapped, random.random())  # noqa: S311
        else:
            now = anyio.current_time()
            self._models = {model.name: model for model in models}
            self._health.answered(now, now - began, random.random())  # noqa: S311  # no secret
        if self._health.state != before:
            why = self._health.error.message if self._health.error else None
            log.info("upstream", name=self._wishes.name, state=self._health.state, why=why)

    async def _ask(self) -> tuple[RemoteModel, ...]:
        """Raises UpstreamError."""
        name, limit_s = self._wishes.name, self._wishes.connect_timeout_s + _CHECK_S
        try:
            with anyio.fail_after(limit_s):
                document = await self._server.models(limit_s)
        except TimeoutError as error:
            raise UpstreamDown(f"{name} takes too long to list its models") from error
        if len(document) > _THREAD_BYTES:
            return await run_sync(parse_models, document, name, self._wishes.models)
        return parse_models(document, name, self._wishes.models)

    async def aclose(self) -> None:
        if self._due is not None:
            self._due.cancel()
        await self._server.aclose()

    # --- what is known of it -----------------------------------------------------------------

    def listed(self) -> tuple[RemoteModel, ...]:
        known = self._models if self._health.state == "up" else None
        return tuple(known.values()) if known else ()

    def find(self, name: str) -> RemoteModel | None:
        if self._models is not None and name in self._models:
            return self._models[name]
        if self._models is None and is_name(name) and is_wanted(name, self._wishes.models):
            return RemoteModel(f"{self._wishes.name}/{name}", self._wishes.name, name)
        self._doubt()  # it may have come since the last look
        return None

    def view(self) -> UpstreamView:
        error = self._health.error
        latency_s = self._health.latency_s
        return UpstreamView(
            name=self._wishes.name,
            base_url=self._server.place.base,
            state=self._health.state,
            models=tuple(model.id for model in self.listed()),
            in_flight=self.in_flight,
            latency_s=None if latency_s is None else round(latency_s, 3),
            error=None
            if error is None
            else ErrorView(
                code=error.code, message=error.message, hint=error.hint, facts=error.facts
            ),
        )

    def problems(self) -> tuple[str, ...]:
        error = self._health.error
        return (f"{error.message}. {error.hint}",) if isinstance(error, UpstreamRefused) else ()

    # --- requests ----------------------------------------------------------------------------

    async def open(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        on_close: Callable[[], None],
    ) -> RemoteResponse:
        name = self._wishes.name
        if self._offline:
            raise self._is_offline()
        if self.in_flight >= MOST_AT_ONCE:
            msg = f"{name} has {MOST_AT_ONCE} requests of ours already"
            raise QueueFull(msg, upstream=name, limit=MOST_AT_ONCE, queued=self.in_flight)

        def closed() -> None:
            self._count(-1)
            on_close()

        self._count(1)
        try:
            response = await self._server.open(method, path, headers, body)
        except BaseException as error:
            closed()
            if isinstance(error, UpstreamDown | UpstreamRefused):
                self._doubt()
            raise
        if self._health.state != "up":
            self._doubt()
        response.on_close = closed
        return response

    def _is_offline(self) -> UpstreamDown:
        hint = "Turn it off with `stoker config set offline false`."
        msg = f"offline mode is on, and {self._wishes.name} is not this machine"
        return UpstreamDown(msg, hint=hint, upstream=self._wishes.name)

    def _doubt(self) -> None:
        if not self._offline and self._health.doubt(anyio.current_time()):
            self._sooner.set()

    # --- telling -----------------------------------------------------------------------------

    def _count(self, change: int) -> None:
        """Requests come and go quickly: they are told together, and to nobody when none listens."""
        self.in_flight += change
        if self._due is None and self._bus.listened:
            self._due = asyncio.get_running_loop().call_later(TRAFFIC_S, self._tell_traffic)

    def _tell_traffic(self) -> None:
        # Told also when all is as before: who came meanwhile was shown what was then.
        self._due, self._told = None, None
        self._tell()

    def _tell(self) -> None:
        view = self.view()
        if view != self._told:
            self._told = view
            self._bus.publish(UpstreamChanged(upstream=view))
