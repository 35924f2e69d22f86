"""Which runtime serves: installs them, tests them, switches between them, goes back by itself.

To the lifecycle it is the one engine (`engine.base.Engine`, see `front`). A new runtime is tested
first, then measured against the one that serves, and taken when it is faster; loaded models
change over one after another, while they serve. The built-in one is always there to fall back to.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.to_thread import run_sync

from stoker.engine.lab import Library
from stoker.errors import (
    BadRequest,
    InternalError,
    MachineBusy,
    ModelInUse,
    RuntimeRejected,
    RuntimeUnsupported,
    StokerError,
    UnknownRuntime,
)
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.late import late
from stoker.paths import Paths
from stoker.runtimes import registry, tidy, views
from stoker.runtimes.compare import Bench, Compare
from stoker.runtimes.front import Front
from stoker.runtimes.manifest import Runtime
from stoker.runtimes.shelf import Item, Make, Shelf
from stoker.runtimes.trial import Tester
from stoker.runtimes.views import Job
from stoker.schemas import RuntimeChanged, RuntimesView, RuntimeView, StoreChanged
from stoker.schemas_machine import RuntimeInstallRequest
from stoker.settings import Settings
from stoker.store import disk
from stoker.store.store import Store
from stoker.types import ModelId, ModelState

if TYPE_CHECKING:
    from stoker.runtimes import install as installing
    from stoker.runtimes import offers
else:
    installing = late("stoker.runtimes.install")
    offers = late("stoker.runtimes.offers")

log = structlog.get_logger(__name__)

Install = Callable[..., Awaitable[Runtime]]

# One that is being loaded was planned for the runtime of a moment ago.
_SERVED: Final = frozenset((ModelState.READY, ModelState.LOADING))
_TELL_EVERY_S: Final = 0.5  # of an install's progress


class Serves(Protocol):
    """What is needed of the lifecycle."""

    def states(self) -> Mapping[ModelId, ModelState]: ...

    async def renew(self, model: ModelId) -> bool: ...

    def on_busy(self, callback: Callable[[bool], None]) -> None: ...


class Runtimes:
    """One per daemon; used from the event loop's thread only. Making one reads a few files."""

    def __init__(
        self,
        places: Paths,
        hardware: HardwareFacts,
        settings: Settings,
        bus: EventBus,
        store: Store,
        *,
        install: Install | None = None,
        make: Make = registry.adapter,
        compare: Compare | None = None,
    ) -> None:
        self._places = places
        self._hardware = hardware
        self._settings = settings
        self._bus = bus
        self._install = install
        self._shelf = Shelf(places, hardware, settings, make)
        self._bench = Bench(places.worker_cwd, hardware.effective_cpus)
        self._tester = Tester(
            self._shelf, store, hardware, compare or self._bench.compare, places.worker_cwd
        )
        self._lifecycle: Serves | None = None
        self._tasks: TaskGroup | None = None
        self._job: Job | None = None
        self._told_at = 0.0
        self._changing_over = anyio.Lock()
        front = Front(self._shelf, self._start, self._gave_up)
        self._front = front
        self.has, self.safe_mode = front.has, front.safe_mode
        self.prepare, self.launch = front.prepare, front.launch
        self.expect, self.relax = front.expect, front.relax

    @property
    def name(self) -> str:
        """Kind of engine of the current runtime."""
        return self._front.name

    @property
    def runtime(self) -> str:
        """Name of the current runtime."""
        return self._front.runtime

    def serves(self, lifecycle: Serves) -> None:
        """Whose models change over; told before `run`."""
        self._lifecycle = lifecycle
        lifecycle.on_busy(self._bench.on_busy)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every install and test until cancelled."""
        await run_sync(tidy.sweep, self._places)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._follow)
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None

    # --- questions ---------------------------------------------------------------------------

    def view(self) -> RuntimesView:
        return views.runtimes_view(self._shelf, self._job, self._hardware)

    def usable(self) -> tuple[str, ...]:
        """Those that passed their self-test here, the current one first."""
        return self._shelf.usable()

    def library(self, runtime: str) -> Library | None:
        """Where its functions are; None when it cannot be measured."""
        return registry.library(self._shelf.find(runtime).runtime)

    def offers(self, hardware: HardwareFacts) -> tuple[offers.Offer, ...]:
        """What could be installed for this machine."""
        return offers.offered(hardware, [item.runtime for item in self._shelf.items()])

    def needs_safe_mode(self, model: Path, runtime: str) -> bool:
        """What the self-test found, if there was one; runs none. Blocking."""
        _ = model  # the verdict is for the runtime
        name = runtime if self._shelf.knows(runtime) else self._shelf.current
        return self._shelf.find(name).adapter.safe_mode() is True

    def problems(self) -> tuple[str, ...]:
        """What is wrong and what to do about it, a line each."""
        shelf = self._shelf
        lines = [f"{one.reason}; `stoker runtime remove {one.name}`" for one in shelf.damaged]
        for name, record in shelf.state.records.items():
            if record.outcome == "failed" and shelf.record(name) is not None:
                lines.append(
                    f"the runtime {name} is not used any more: {record.message};"
                    f" `stoker runtime remove {name}`, or `stoker runtime use {name}` to try again"
                )
        if shelf.fixed is not None and shelf.current != shelf.fixed:
            lines.append(
                f"the setting runtime names {shelf.fixed}, which cannot be used;"
                f" {shelf.current} serves instead"
            )
        return tuple(lines)

    # --- commands ----------------------------------------------------------------------------

    async def install(self, request: RuntimeInstallRequest) -> RuntimeView:
        """Begin to install one, test it, and take it when it is faster. Raises MachineBusy."""
        self._check_free()
        job = self._begin(Job(request.kind, note="starting"))
        self._start(self._do_install, job, request.force)
        return views.job_view(job) or RuntimeView(name=job.kind, kind=job.kind, state="installing")

    async def cancel(self) -> RuntimesView:
        """Give up the install or the test on its way; return when nothing is left of it."""
        if self._job is not None and self._job.active:
            self._job.scope.cancel()
            await self._job.done.wait()
        return self.view()

    async def use(self, name: str) -> RuntimesView:
        """Make this one the current one. Raises UnknownRuntime, RuntimeRejected, BadRequest."""
        item = self._shelf.find(name)
        self._check_not_fixed(name)
        record = self._shelf.record(name)
        if record is not None and record.outcome == "unsound":
            raise RuntimeRejected(record.message, reason="unsound", runtime=name)
        if record is not None and record.outcome == "failed":
            await self._shelf.remember(name, None)  # the user wants to try it again
        if not item.tested:
            await self._test_now(item)
        await self._switch(name, chosen=True)
        return self.view()

    async def rollback(self) -> RuntimesView:
        """Go back to the one before. Raises UnknownRuntime when there is none."""
        before = self._shelf.state.previous
        if before is None or not self._shelf.is_usable(before):
            before = self._shelf.built_in
        if before == self._shelf.current:
            raise UnknownRuntime("there is no runtime to go back to")
        self._check_not_fixed(before)
        await self._switch(before, chosen=True)
        return self.view()

    async def hold(self, held: bool) -> RuntimesView:  # noqa: FBT001  # the one thing it says
        """Whether nothing may change by itself."""
        await self._shelf.change(held=held)
        return self.view()

    async def remove(self, name: str) -> RuntimesView:
        """Delete it; the current one is left first.

        Raises UnknownRuntime, ModelInUse, BadRequest, MachineBusy.
        """
        folder = self._folder_of(name)
        if self._job is not None and self._job.active and self._job.name == name:
            raise MachineBusy(f"{name} is being tested")
        if name == self._shelf.current:
            other = self._shelf.fallback(name) or self._shelf.built_in
            await self._shelf.choose(other, chosen=False)
            await self._renew_all()
        left = await self._front.left(name)
        if left:
            raise ModelInUse(f"{name} still runs {left} models", runtime=name)
        await run_sync(_delete, folder)
        await run_sync(self._shelf.rescan)
        records = {key: one for key, one in self._shelf.state.records.items() if key != name}
        keep = self._shelf.state.previous
        await self._shelf.change(records=records, previous=None if keep == name else keep)
        self._tell(self._shelf.current)
        return self.view()

    # --- inside: jobs ------------------------------------------------------------------------

    def _check_free(self) -> None:
        if self._job is not None and self._job.active:
            raise MachineBusy(f"a runtime is being installed or tested already: {self._job.kind}")

    def _check_not_fixed(self, name: str) -> None:
        if self._shelf.fixed not in {None, name}:
            message = f"the setting runtime says {self._shelf.fixed}"
            hint = f"Change it with `stoker config set runtime {name}`, or unset it."
            raise BadRequest(message, hint=hint)

    def _begin(self, job: Job) -> Job:
        if self._tasks is None:
            job.done.set()
            raise InternalError("runtimes are not being managed")
        self._job = job
        return job

    async def _do_install(self, job: Job, force: bool) -> None:  # noqa: FBT001  # start_soon passes no names
        def progress(share: float, what: str) -> None:
            job.progress, job.note = share, what
            self._tell_job(job)

        async def work() -> None:
            runtime = await (self._install or installing.install)(
                job.kind,
                places=self._places,
                hardware=self._hardware,
                settings=self._settings,
                progress=progress,
            )
            await run_sync(self._shelf.rescan)
            job.name = runtime.name
            await self._test(job, force=force)

        await self._carry_out(job, work)

    async def _carry_out(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        """Run a job's work; whatever comes of it is told, and the next one may begin."""
        try:
            with job.scope:
                await work()
        except StokerError as error:
            job.error = error
            log.warning("runtime_job_failed", kind=job.kind, code=error.code, reason=error.message)
        except Exception as error:  # task boundary: a bug must not end the daemon
            job.error = InternalError(f"the runtime's job failed: {type(error).__name__}")
            log.exception("runtime_job_crashed", kind=job.kind)
        finally:
            job.done.set()
            self._tell_job(job, at_once=True)

    async def _test(self, job: Job, *, force: bool) -> None:
        """Self-test, then speed; take it when it is better. Raises RuntimeRejected."""
        name, before = job.name or "", self._shelf.current
        model = await run_sync(self._tester.model)
        if model is None:
            return  # the view says so; `_follow` tests it when a model comes
        self._step(job, 0.0, "testing whether it computes correctly")
        if not await self._tester.is_sound(self._shelf.find(name), model):
            return
        if self._shelf.current == name:  # it waited for nothing but the test
            self._tell(name, before)
            self._change_over()
        if before == name:
            return
        self._step(job, 0.5, "measuring it against the runtime that serves")
        found = await self._tester.compared(self._shelf.find(name), before, model)
        state = self._shelf.state
        if self._shelf.fixed is not None or state.held:
            return
        if force or (found is not None and found.faster):
            if force or name != self._shelf.current:
                await self._switch(name, chosen=force)
        elif found is not None:
            await self._reject(name, before, found.speedup)

    async def _reject(self, name: str, before: str, speedup: float) -> None:
        """Slower than the one that served. Raises RuntimeRejected, unless the user chose it."""
        if name == self._shelf.current:
            if self._shelf.state.chosen:
                return
            await self._switch(before, chosen=False)
        record = self._shelf.record(name)
        message = f"{name} is not faster here: {record.message if record else ''}"
        raise RuntimeRejected(message, reason="slower", speedup=round(speedup, 3))

    def _step(self, job: Job, progress: float, note: str) -> None:
        job.testing, job.progress, job.note = True, progress, note
        self._tell_job(job, at_once=True)

    async def _test_now(self, item: Item) -> None:
        """For a user who wants to use it.

        Raises RuntimeRejected, RuntimeUnsupported, MemoryShort, MachineBusy.
        """
        model = await run_sync(self._tester.model)
        sound = False

        async def work() -> None:
            nonlocal sound
            self._step(job, 0.0, "testing whether it computes correctly")
            sound = model is not None and await self._tester.is_sound(item, model)

        self._check_free()
        job = self._begin(Job(item.runtime.kind, name=item.runtime.name))
        await self._carry_out(job, work)
        if job.error is not None:
            raise job.error
        if not sound:
            message = f"{item.runtime.name} has not been tested on this machine yet"
            raise RuntimeUnsupported(message, hint="Pull a model first; the test needs one.")

    async def _follow(self) -> None:
        """Find the user's own server program; test what could not be tested before."""
        found = await run_sync(registry.on_path, abandon_on_cancel=True)
        if found is not None and not self._shelf.knows(found.name):
            await run_sync(self._shelf.add, found)
        with self._bus.subscribe(client=False, resources=False) as changes:
            await self._test_pending()
            async for change in changes:
                if change is None or (
                    isinstance(change, StoreChanged) and change.change == "added"
                ):
                    await self._test_pending()

    async def _test_pending(self) -> None:
        for item in self._shelf.items():
            name = item.runtime.name
            wanted = item.runtime.kind != "path" or name == self._shelf.fixed
            if item.tested or self._shelf.is_bad(name) or not wanted:
                continue
            if (self._job is not None and self._job.active) or self._tester.model() is None:
                return
            job = self._begin(Job(item.runtime.kind, name=name))
            await self._carry_out(job, lambda job=job: self._test(job, force=False))  # type: ignore[misc]  # a default argument

    # --- inside: changing over ---------------------------------------------------------------

    async def _switch(self, name: str, *, chosen: bool) -> None:
        before = self._shelf.current
        await self._shelf.choose(name, chosen=chosen)
        self._front.forgive(name)
        self._tell(name, before)
        self._change_over()

    def _change_over(self) -> None:
        self._start(self._renew_all)

    async def _renew_all(self) -> None:
        """Every loaded model serves in the current runtime soon; those that cannot, stay."""
        if self._lifecycle is None:
            return
        async with self._changing_over:
            for model, state in tuple(self._lifecycle.states().items()):
                if state in _SERVED:
                    await self._lifecycle.renew(model)

    def _folder_of(self, name: str) -> Path:
        """Only of what is listed: no name becomes a path by itself."""
        if any(one.name == name for one in self._shelf.damaged):
            return self._places.runtimes / name
        folder = self._shelf.find(name).runtime.folder
        if folder is None:
            message = f"{name} is not a runtime that Stoker installed"
            raise BadRequest(message, hint="`stoker runtime list` shows those that can be removed.")
        return folder

    def _gave_up(self, name: str, instead: str) -> None:
        self._tell(name, instead)
        self._change_over()

    def _start(self, task: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        if self._tasks is not None:  # else the daemon is ending
            self._tasks.start_soon(task, *args)

    def _tell(self, *names: str) -> None:
        for name in dict.fromkeys(names):
            if self._shelf.knows(name):
                item = self._shelf.find(name)
                self._bus.publish(
                    RuntimeChanged(runtime=views.item_view(self._shelf, item, self._job))
                )

    def _tell_job(self, job: Job, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._told_at < _TELL_EVERY_S:
            return
        self._told_at = now
        if job.name is not None:
            self._tell(job.name)
        elif (view := views.job_view(job)) is not None:
            self._bus.publish(RuntimeChanged(runtime=view))


def _delete(folder: Path) -> None:
    """First out of sight, in one step, so that a crash leaves no half of it."""
    hidden = folder.with_name(f"{tidy.PARTIAL}{token_hex(6)}")
    with disk.wrapped("remove a runtime", folder):
        folder.rename(hidden)
    tidy.discard(hidden)  # also a link or a file that somebody put there
