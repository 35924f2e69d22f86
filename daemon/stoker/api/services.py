"""What a request may use: every service of the daemon, built by `serve`, handed to the apps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stoker import __version__
from stoker.api.switch import ServerSwitch
from stoker.events import EventBus
from stoker.hardware import probe
from stoker.history import History
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.paths import Paths
from stoker.planner import Planner
from stoker.profiles import Profiles
from stoker.pull.puller import Puller
from stoker.runtimes.manager import Runtimes
from stoker.schemas import DaemonChanged, DaemonView, StatusView
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuner import Tuner
from stoker.upstreams import Upstreams


@dataclass
class Services:
    """The daemon's parts, as the edge sees them. Owns none of them, but what is known of it."""

    settings: Settings
    paths: Paths
    store: Store
    puller: Puller
    lifecycle: Lifecycle
    bus: EventBus
    metrics: Metrics
    history: History
    server: ServerSwitch
    started_at: float  # time.monotonic()
    request_stop: Callable[[], None]
    profiles: Profiles
    runtimes: Runtimes
    tuner: Tuner
    planner: Planner
    upstreams: Upstreams
    update: str | None = None  # a newer version of Stoker; only `found_update` writes it

    def status(self) -> StatusView:
        """Everything a client shows, at this moment. Cheap; from the event loop only."""
        default = self.lifecycle.default_model()
        return StatusView(
            daemon=self.daemon(),
            server=self.server.view(),
            models=self.lifecycle.views(),
            resources=probe.resources(),
            pulls=tuple(self.puller.list()),
            problems=tuple(self._problems()),
            default=None if default is None else str(default),
            upstreams=self.upstreams.views(),
        )

    def daemon(self) -> DaemonView:
        return DaemonView(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self.started_at, 3),
            home=str(self.paths.data),
            update=self.update,
        )

    def found_update(self, version: str | None) -> None:
        """There is a newer version, or none any more; clients are told when that is news."""
        if version != self.update:
            self.update = version
            self.bus.publish(DaemonChanged(daemon=self.daemon()))

    def _problems(self) -> Iterator[str]:
        yield from self.server.problems()
        yield from self.store.problems()
        yield from self.runtimes.problems()
        yield from self.upstreams.problems()
        for manifest in self.store.list():
            if manifest.damaged:
                yield f"{manifest.id} is damaged and is not served; pull it again to repair it"
