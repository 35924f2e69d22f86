"""The daemon's upstreams as a test needs them: running, and looked at without delay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from stoker.events import EventBus
from stoker.settings import UpstreamSettings
from stoker.upstreams import Upstreams


def wishes(base_url: str, name: str = "box", **more: Any) -> UpstreamSettings:
    """Settings for a server that is quick to answer, or broken."""
    return UpstreamSettings(name=name, base_url=base_url, **{"timeout_s": 10, **more})


@asynccontextmanager
async def running(
    *servers: UpstreamSettings, offline: bool = False, bus: EventBus | None = None
) -> AsyncIterator[Upstreams]:
    """Inside the block they are looked at."""
    upstreams = Upstreams(servers, bus or EventBus(), offline=offline)
    async with anyio.create_task_group() as tasks:
        await tasks.start(upstreams.run)
        yield upstreams
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Look until it is so; fail after ten seconds."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # what is watched has no event
            await anyio.sleep(0.005)


async def settled(upstreams: Upstreams) -> None:
    """Return when every server was looked at."""
    await until(lambda: all(view.state != "unknown" for view in upstreams.views()))
