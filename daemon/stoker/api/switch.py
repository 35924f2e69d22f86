"""The server's switch: on, clients are served; off, the port is closed and no model is loaded.

The store, the pulls and the control plane live on when it is off, and a daemon that was off comes
back off. Not for: how a port is opened (`endpoint`), or how models leave (`lifecycle`).
"""

from __future__ import annotations

from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.api import server_state
from stoker.api.endpoint import Endpoint
from stoker.api.server_state import ServerState
from stoker.errors import ServerOff, ShuttingDown, StoreError
from stoker.events import EventBus
from stoker.lifecycle.runtime import Lifecycle
from stoker.schemas import ServerChanged, ServerView
from stoker.upstreams import Upstreams

log = structlog.get_logger(__name__)


class ServerSwitch:
    """One per daemon; from the event loop only. One turn at a time, the others wait."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        lifecycle: Lifecycle,
        upstreams: Upstreams,
        bus: EventBus,
        file: Path,
        state: ServerState,
        drain_timeout_s: float,
    ) -> None:
        """``state`` is what ``file`` said."""
        self._endpoint = endpoint
        self._lifecycle = lifecycle
        self._upstreams = upstreams
        self._bus = bus
        self._file = file
        self._state = state
        self._drain_timeout_s = drain_timeout_s
        self._lock = anyio.Lock()
        self._unwritten: str | None = None

    def view(self) -> ServerView:
        return ServerView(enabled=self._state.enabled, base_url=self._endpoint.base_url)

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the endpoint, a line each."""
        lines = self._endpoint.problems()
        if self._unwritten is not None:
            lines += (f"{self._unwritten}; mend that and switch it once more",)
        return lines

    async def start(self) -> None:
        """As it was left. Raises PortTaken, BadSetting."""
        async with self._lock:
            if self._state.enabled:
                await self._endpoint.open()
            else:
                self._lifecycle.close(_off())
                self._upstreams.pause(_off())

    async def turn(self, *, on: bool) -> ServerView:
        """Return when it is so. Raises PortTaken, BadSetting, ShuttingDown; it then stays off."""
        async with self._lock:
            if on != self._state.enabled:
                await (self._turn_on() if on else self._turn_off())
                log.info("server", enabled=on)
            elif self._unwritten is not None:
                await self._remember()
            return self.view()

    async def _turn_on(self) -> None:
        self._endpoint.claim()  # what may fail comes first
        try:
            self._lifecycle.open(self._state.models)
        except ShuttingDown:
            await self._endpoint.close()
            raise
        self._upstreams.resume()
        await self._endpoint.open()
        await self._become(ServerState(enabled=True))

    async def _turn_off(self) -> None:
        """From the first moment no request is taken; then those that run may end."""
        models = self._lifecycle.close(_off())
        self._upstreams.pause(_off())
        await self._become(ServerState(enabled=False, models=models))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._lifecycle.drained, self._drain_timeout_s)
            tasks.start_soon(self._upstreams.drained, self._drain_timeout_s)
        await self._endpoint.close()

    async def _become(self, state: ServerState) -> None:
        self._state = state
        self._bus.publish(ServerChanged(server=self.view()))
        await self._remember()

    async def _remember(self) -> None:
        try:
            await run_sync(server_state.write, self._file, self._state)
            self._unwritten = None
        except StoreError as error:
            log.warning("server_state_not_written", reason=error.message)
            self._unwritten = error.message


def _off() -> ServerOff:
    return ServerOff("the server is switched off")
