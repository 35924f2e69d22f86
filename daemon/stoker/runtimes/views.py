"""How runtimes are shown: installed, being installed, offered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from stoker.errors import RuntimeRejected, StokerError
from stoker.hardware.facts import HardwareFacts
from stoker.late import late
from stoker.runtimes.manifest import Kind, Runtime
from stoker.runtimes.shelf import Item, Shelf
from stoker.schemas import ErrorView, RuntimesView, RuntimeView

if TYPE_CHECKING:
    from stoker.runtimes import offers
else:
    offers = late("stoker.runtimes.offers")

_UNTESTED: Final = "not tested yet: it is when a model is stored"


@dataclass(slots=True)
class Job:
    """The one install or test on its way, or what came of the last one."""

    kind: Kind
    name: str | None = None  # once it is installed
    testing: bool = False
    progress: float = 0.0
    note: str = ""
    error: StokerError | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)

    @property
    def active(self) -> bool:
        return not self.done.is_set()


def runtimes_view(shelf: Shelf, job: Job | None, hardware: HardwareFacts) -> RuntimesView:
    """The current one first, then the others, what is on its way, and what is offered."""
    current = shelf.current
    items = sorted(shelf.items(), key=lambda item: item.runtime.name != current)
    views = [item_view(shelf, item, job) for item in items]
    views += [damaged_view(one.name, one.reason) for one in shelf.damaged]
    if job is not None and (view := job_view(job)) is not None:
        views.append(view)
    views += offer_views(hardware, [item.runtime for item in items], job)
    return RuntimesView(held=shelf.state.held, runtimes=tuple(views))


def item_view(shelf: Shelf, item: Item, job: Job | None) -> RuntimeView:
    runtime = item.runtime
    name = runtime.name
    record = shelf.record(name)
    testing = job is not None and job.active and job.name == name
    bad = shelf.is_bad(name)
    note = record.message if record is not None else None
    if testing and job is not None:
        note = job.note
    elif not item.tested and not bad:
        note = note or _UNTESTED
    return RuntimeView(
        name=name,
        kind=runtime.kind,
        state="testing" if testing else "failed" if bad else "ready",
        version=runtime.version,
        variant=runtime.variant or None,
        current=name == shelf.current,
        previous=name == shelf.state.previous and name != shelf.current,
        bytes=runtime.bytes or None,
        progress=job.progress if testing and job is not None else None,
        note=note or None,
        speedup=None if record is None else record.speedup,
        error=rejection_view(note or "") if bad and not testing else None,
    )


def rejection_view(message: str) -> ErrorView:
    return error_view(RuntimeRejected(message, reason="unsound"))


def damaged_view(name: str, reason: str) -> RuntimeView:
    """A folder that was a runtime once, or something else altogether."""
    return RuntimeView(name=name, kind="native", state="failed", note=reason)


def job_view(job: Job) -> RuntimeView | None:
    """None once it has a name of its own in the list, or when it ended well."""
    if job.name is not None or (not job.active and job.error is None):
        return None
    return RuntimeView(
        name=job.kind,
        kind=job.kind,
        state="installing" if job.active else "failed",
        progress=round(job.progress, 3) if job.active else None,
        note=job.note or None,
        error=None if job.error is None else error_view(job.error),
    )


def offer_views(
    hardware: HardwareFacts, installed: Sequence[Runtime], job: Job | None
) -> list[RuntimeView]:
    running = job.kind if job is not None and job.active else None
    return [
        RuntimeView(name=offer.kind, kind=offer.kind, state="offered", note=offer.why)
        for offer in offers.offered(hardware, installed)
        if offer.kind != running
    ]


def error_view(error: StokerError) -> ErrorView:
    return ErrorView(
        code=error.code, message=error.message, hint=error.hint, facts=dict(error.facts)
    )
