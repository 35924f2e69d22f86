"""The labs of one session: a process for each runtime it measures, with the model in it.

Each lab lives in a task of its own, so that one can be closed while another stays. Not for: what
to measure (`session`), or the process itself (`engine.lab`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from stoker.engine.lab import Library, SurveyWanted
from stoker.errors import LabFailed
from stoker.tuning.launch import Speeds, Survey, Trial

_CLOSE_S: Final = 30.0  # more than a lab's own stop ever takes


class Bench(Protocol):
    """What is asked of a lab; `engine.lab.Lab` is one."""

    async def survey(self, model: Path, wanted: Sequence[SurveyWanted]) -> Survey: ...
    async def load(self, model: Path, *, extra_buffers: bool, gpu_layers: int = 0) -> object: ...
    async def measure(
        self, trial: Trial, *, prompt: int, generate: int, streams: int
    ) -> Speeds: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class OpenLab(Protocol):
    """`engine.lab.open_lab` is one."""

    def __call__(
        self, library: Library, *, cwd: Path, gently: bool = True
    ) -> AbstractAsyncContextManager[Bench]: ...


@dataclass(slots=True)
class _Opened:
    lab: Bench
    model: tuple[bool, int] | None = None  # extra buffers and GPU layers of the one in it
    close: anyio.Event = field(default_factory=anyio.Event)
    gone: anyio.Event = field(default_factory=anyio.Event)


class Labs:
    """Labs for one model. Used from the event loop's thread only."""

    def __init__(
        self,
        tasks: TaskGroup,
        opener: OpenLab,
        library: Callable[[str], Library | None],
        *,
        model: Path,
        cwd: Path,
        at_once: int,
    ) -> None:
        self._tasks = tasks
        self._opener = opener
        self._library = library
        self._model = model
        self._cwd = cwd
        self._at_once = at_once  # more than one cost as much memory each
        self._opened: dict[str, _Opened] = {}
        self._paused = False

    async def get(self, trial: Trial) -> Bench:
        """A lab that can measure this trial. Raises LabFailed."""
        opened = self._opened.get(trial.runtime)
        if opened is None:
            while len(self._opened) >= self._at_once:
                await self.drop(next(iter(self._opened)))
            library = self._library(trial.runtime)
            if library is None:
                raise LabFailed(f"the runtime {trial.runtime} is no longer there")
            opened = await self._tasks.start(self._keep, library)
            self._opened[trial.runtime] = opened
            if self._paused:
                opened.lab.pause()
        wanted = trial.extra_buffers, trial.gpu_layers
        if opened.model != wanted:
            opened.model = None
            await opened.lab.load(
                self._model, extra_buffers=trial.extra_buffers, gpu_layers=trial.gpu_layers
            )
            opened.model = wanted
        return opened.lab

    async def drop(self, runtime: str) -> None:
        """Close that lab, which may have failed; return when it is gone."""
        opened = self._opened.pop(runtime, None)
        if opened is not None:
            opened.close.set()
            with anyio.move_on_after(_CLOSE_S):
                await opened.gone.wait()

    def pause(self) -> None:
        """Stop all computing at once."""
        self._paused = True
        for opened in self._opened.values():
            opened.lab.pause()

    def resume(self) -> None:
        self._paused = False
        for opened in self._opened.values():
            opened.lab.resume()

    async def _keep(self, library: Library, *, task_status: TaskStatus[_Opened]) -> None:
        opened: _Opened | None = None
        try:
            async with self._opener(library, cwd=self._cwd, gently=True) as lab:
                opened = _Opened(lab)
                task_status.started(opened)
                await opened.close.wait()
        finally:
            if opened is not None:
                opened.gone.set()


@asynccontextmanager
async def labs_for(
    model: Path,
    library: Callable[[str], Library | None],
    *,
    opener: OpenLab,
    cwd: Path,
    at_once: int,
) -> AsyncIterator[Labs]:
    """Labs for a session; when it ends, none is left."""
    async with anyio.create_task_group() as tasks:
        labs = Labs(tasks, opener, library, model=model, cwd=cwd, at_once=at_once)
        try:
            yield labs
        finally:
            labs.resume()  # a stopped process could not end by itself
            tasks.cancel_scope.cancel()
