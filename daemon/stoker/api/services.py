"""What a request may use: every service of the daemon, built by `serve`, handed to the apps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stoker import __version__
from stoker.events import EventBus
from stoker.hardware import probe
from stoker.history import History
from stoker.lifecycle.runtime import Lifecycle
from stoker.metrics import Metrics
from stoker.paths import Paths
from stoker.pull.puller import Puller
from stoker.schemas import DaemonView, ServerView, StatusView
from stoker.settings import Settings
from stoker.store.store import Store


@dataclass(frozen=True)
class Services:
    """The daemon's parts, as the edge sees them. Owns none of them."""

    settings: Settings
    paths: Paths
    store: Store
    puller: Puller
    lifecycle: Lifecycle
    bus: EventBus
    metrics: Metrics
    history: History
    started_at: float  # time.monotonic()
    base_url: Callable[[], str]
    request_stop: Callable[[], None]

    def status(self) -> StatusView:
        """Everything a client shows, at this moment. Cheap; from the event loop only."""
        return StatusView(
            daemon=DaemonView(
                version=__version__,
                pid=os.getpid(),
                uptime_s=round(time.monotonic() - self.started_at, 3),
                home=str(self.paths.data),
            ),
            server=ServerView(enabled=True, base_url=self.base_url()),
            models=self.lifecycle.views(),
            resources=probe.resources(),
            pulls=tuple(self.puller.list()),
            problems=tuple(self._problems()),
        )

    def _problems(self) -> Iterator[str]:
        yield from self.store.problems()
        for manifest in self.store.list():
            if manifest.damaged:
                yield f"{manifest.id} is damaged and is not served; pull it again to repair it"
