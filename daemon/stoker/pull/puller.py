"""Pulls as jobs: started, watched, paused, resumed and cancelled by anyone, owned by the daemon.

A pull belongs to no client; it goes on when the one that asked is gone, and after a restart. Not
for: how the bytes come (`transfer`).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio
import structlog
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus

from stoker.errors import InternalError, ShuttingDown, StokerError, StoreError, UnknownPull
from stoker.events import EventBus
from stoker.late import late
from stoker.pull.flights import Flights
from stoker.pull.groups import one_error
from stoker.pull.job import Job
from stoker.pull.state import Saved, restore, save
from stoker.schemas import PullChanged, PullView, StoreChanged
from stoker.settings import Settings
from stoker.store.partial import PartialKey
from stoker.store.store import Store
from stoker.types import Digest, ModelId, PullState

if TYPE_CHECKING:
    import httpx2

    from stoker import catalogue
    from stoker.catalogue import Catalogue
    from stoker.pull import fetch, transfer, url, wanted, web
else:  # most daemons never pull anything while they run: 1 MB
    catalogue = late("stoker.catalogue")
    fetch = late("stoker.pull.fetch")
    transfer = late("stoker.pull.transfer")
    url = late("stoker.pull.url")
    wanted = late("stoker.pull.wanted")
    web = late("stoker.pull.web")

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 2  # pulls that transfer; more would only share the same line
_REMEMBERED: Final = 50  # ended pulls that can still be asked about


class Puller:
    """All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        bus: EventBus,
        state_file: Path,
        client_factory: Callable[[], httpx2.AsyncClient] | None = None,
        catalogue: Catalogue | None = None,
        policy: fetch.FetchPolicy | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._bus = bus
        self._state_file = state_file
        self._given_catalogue = catalogue
        self._client_factory = client_factory
        self._policy = policy
        self._scratch = state_file.with_name("pull-scratch")
        self._jobs: dict[str, Job] = {}
        self._group: TaskGroup | None = None
        self._slots = anyio.Semaphore(_AT_ONCE)
        self._saving = anyio.Lock()

    @cached_property
    def _catalogue(self) -> Catalogue:
        return self._given_catalogue if self._given_catalogue is not None else catalogue.load()

    @cached_property
    def _tools(self) -> transfer.Tools:
        settings = self._settings
        return transfer.Tools(
            store=self._store,
            settings=settings,
            policy=self._policy or fetch.FetchPolicy(connections=settings.download_connections),
            limit=fetch.RateLimit(settings.download_rate_bytes_per_s),
            flights=Flights(),
            scratch=self._scratch,
            client_factory=self._client_factory or web.default_client,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own all pulls until cancelled; begins with those that had not ended last time."""
        await to_thread.run_sync(self._sweep)
        saved = await to_thread.run_sync(restore, self._state_file)
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                for pull in saved:
                    self._restore(pull)
                task_status.started()
                await anyio.sleep_forever()
            finally:
                self._group = None

    async def start(self, reference: str, *, name: str | None = None) -> PullView:
        """Begin a pull, or return the one of the same reference that has not ended.

        Raises at once what is wrong by itself: BadReference, UnknownModel, SourceOffline;
        ShuttingDown when `run` does not run. All that comes later is told by the view.
        """
        asked = await self._wanted(reference, name)
        for job in self._jobs.values():
            if (job.reference, job.name) == (reference, name) and not job.state.ended:
                return await self.resume(job.id)
        for old in tuple(self._jobs.values()):
            if (old.reference, old.name) == (reference, name):
                del self._jobs[old.id]  # it has ended; the new one replaces it
        job = self._new_job(secrets.token_hex(6), reference, name, asked)
        self._launch(job)
        await self._save()
        return job.view()

    def list(self) -> list[PullView]:
        """Every pull, the oldest first; the last ended ones included."""
        return [job.view() for job in self._jobs.values()]

    def get(self, pull_id: str) -> PullView:
        """Raises UnknownPull."""
        return self._job(pull_id).view()

    async def pause(self, pull_id: str) -> PullView:
        """Stop transferring and keep what came; on return nothing runs any more."""
        return await self._halt(pull_id, "pause")

    async def cancel(self, pull_id: str) -> PullView:
        """Stop and throw away what came, unless another pull or a model needs it too.

        On return nothing runs any more.
        """
        return await self._halt(pull_id, "cancel")

    async def resume(self, pull_id: str) -> PullView:
        """Go on with a paused or failed pull. One that runs or is done stays as it is."""
        job = self._job(pull_id)
        if job.state in {PullState.PAUSED, PullState.FAILED} and job.idle.is_set():
            self._launch(job)
            await self._save()
        return job.view()

    @property
    def active(self) -> int:
        """Pulls that run or wait for their turn."""
        return sum(not job.idle.is_set() for job in self._jobs.values())

    def in_use(self, model: ModelId) -> bool:
        """Whether a running pull is about to write this model's manifest."""
        return any(job.model == model and not job.idle.is_set() for job in self._jobs.values())

    # --- a pull's life -----------------------------------------------------------------------

    def _job(self, pull_id: str) -> Job:
        job = self._jobs.get(pull_id)
        if job is None:
            msg = f"there is no pull {pull_id[:40]!r}"
            raise UnknownPull(msg)
        return job

    def _new_job(
        self, pull_id: str, reference: str, name: str | None, asked: wanted.Wanted | None
    ) -> Job:
        job = Job(pull_id, reference, name, asked, self._publish)
        job.model = asked.model if asked else None
        job.idle.set()
        self._jobs[pull_id] = job
        ended = [old.id for old in self._jobs.values() if old.state.ended]
        for old in ended[:-_REMEMBERED]:
            del self._jobs[old]
        return job

    def _restore(self, pull: Saved) -> None:
        job = self._new_job(pull.id, pull.reference, pull.name, None)
        job.keys = list(pull.keys)
        if pull.paused:
            job.enter(PullState.PAUSED)
        else:
            self._launch(job)

    def _launch(self, job: Job) -> None:
        if self._group is None:
            raise ShuttingDown("the daemon is stopping")
        job.idle = anyio.Event()
        job.scope = anyio.CancelScope()
        job.begin()
        self._group.start_soon(self._run_job, job, name=f"pull {job.id}")

    async def _run_job(self, job: Job) -> None:
        """One run of a pull. Ends in a state that its watchers understand, whatever happens."""
        scope = job.scope or anyio.CancelScope()
        try:
            with scope:
                await self._transfer(job)
            if scope.cancelled_caught:
                job.enter(PullState.PAUSED if job.intent == "pause" else PullState.CANCELLED)
        except StokerError as error:
            log.warning("pull_failed", pull=job.id, code=error.code, error=error.message)
            job.fail(error)
        except Exception as error:  # a task boundary: our bug must not take the daemon down
            log.exception("pull_crashed", pull=job.id)
            job.fail(InternalError(f"the pull ended by a fault: {type(error).__name__}: {error}"))
        finally:
            job.idle.set()
        with anyio.CancelScope(shield=True):  # else a stop now would have it run once more
            await self._save()

    async def _transfer(self, job: Job) -> None:
        async with self._slots:
            if job.wanted is None:
                job.wanted = await self._wanted(job.reference, job.name)
            log.info("pull_started", pull=job.id, reference=url.shown(job.reference))
            with one_error():
                async with anyio.create_task_group() as group:
                    group.start_soon(job.tick)
                    manifest = await transfer.Transfer(self._tools, job).run(job.wanted)
                    group.cancel_scope.cancel()
        log.info("pull_done", pull=job.id, model=manifest.id.text, bytes=manifest.size_bytes)
        job.bytes_before, job.bytes_current = job.bytes_total or job.bytes_done, 0
        job.enter(PullState.DONE)
        self._bus.publish(StoreChanged(id=manifest.id.text, change="added"))

    async def _halt(self, pull_id: str, intent: Literal["pause", "cancel"]) -> PullView:
        job = self._job(pull_id)
        if job.state.ended:
            return job.view()
        job.intent = intent
        if job.scope is not None:
            job.scope.cancel()
        await job.idle.wait()
        if job.state.ended and job.state is not PullState.CANCELLED:
            return job.view()  # it was faster
        if intent == "cancel":
            job.enter(PullState.CANCELLED)
            await to_thread.run_sync(self._discard, job.keys, self._digests_of_none_but(job))
        await self._save()
        return job.view()

    def _digests_of_none_but(self, job: Job) -> set[Digest]:
        """Of the files that this pull wants and no other one."""
        others = [other for other in self._jobs.values() if not other.state.ended]
        return _digests(job.keys) - _digests(key for other in others for key in other.keys)

    def _discard(self, keys: Iterable[PartialKey], digests: set[Digest]) -> None:
        """The partials, and the files that are blobs already and belong to no model."""
        for key in keys:
            with suppress(StoreError), self._store.partial(key) as partial:  # another may use it
                partial.discard()
        with suppress(StoreError):  # what stays is pruned later
            self._store.drop_unnamed(digests)

    async def _wanted(self, reference: str, name: str | None) -> wanted.Wanted:
        manifests = await to_thread.run_sync(self._store.list)
        return wanted.wanted(
            reference,
            name,
            catalogue=self._catalogue,
            manifests=manifests,
            settings=self._settings,
        )

    # --- what outlives a run -----------------------------------------------------------------

    def _publish(self, view: PullView) -> None:
        self._bus.publish(PullChanged(pull=view))

    async def _save(self) -> None:
        async with self._saving:
            open_jobs: Iterable[Saved] = [
                job.saved() for job in self._jobs.values() if not job.state.ended
            ]
            try:
                await to_thread.run_sync(save, self._state_file, open_jobs)
            except OSError as error:
                # A full disk must not end a pull; after a restart it is only not resumed by itself.
                log.warning("pulls_not_saved", error=str(error))

    def _sweep(self) -> None:
        """Temporary files of a daemon that was killed."""
        shutil.rmtree(self._scratch, ignore_errors=True)


def _digests(keys: Iterable[PartialKey]) -> set[Digest]:
    return {key.expected.digest for key in keys if key.expected.digest is not None}
