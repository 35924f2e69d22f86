"""A fake lab: no process, but it is opened, loaded, paused and crashes as the real one does.

The same rules of pausing hold for it as for the real one (tests/contract/test_lab_pause.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel

from stoker.engine.lab import LabFailed, LabInterrupted, Library, SurveyWanted
from stoker.tuning.launch import Speeds, Survey, SurveyPoint, Trial

BASE = Speeds(300.0, 40.0, 60.0)


class FakeLab:
    """One open lab."""

    def __init__(self, world: FakeLabs, library: Library) -> None:
        self.world = world
        self.library = library
        self.loaded: tuple[bool, int] | None = None
        self.paused = False
        self.dead = False
        self._woken = anyio.Event()

    async def survey(self, model: Path, wanted: Sequence[SurveyWanted]) -> Survey:
        self.world.surveys.append(model)
        await anyio.lowlevel.checkpoint()
        if self.world.survey_fails:
            raise LabFailed("the dry run failed")
        points = tuple(
            SurveyPoint(w.cells, w.parallel, w.ubatch, w.flash_attention, w.kv_type, 1000, 2000)
            for w in wanted
        )
        return Survey(self.library.runtime, 10_000, 0, points)

    async def load(self, model: Path, *, extra_buffers: bool, gpu_layers: int = 0) -> None:
        assert model.name
        await anyio.lowlevel.checkpoint()
        self.loaded = (extra_buffers, gpu_layers)

    async def measure(
        self, trial: Trial, *, prompt: int = 512, generate: int = 32, streams: int = 4
    ) -> Speeds:
        assert self.loaded == (trial.extra_buffers, trial.gpu_layers)
        assert trial.runtime == self.library.runtime
        assert min(prompt, generate, streams) >= 1
        self.world.running.append(self)
        interrupted = self.paused
        try:
            while self.paused:
                await self._woken.wait()
            paused_before = self.world.pauses
            await anyio.sleep(self.world.takes_s)
            interrupted = interrupted or self.world.pauses != paused_before
            while self.paused:
                await self._woken.wait()
        finally:
            self.world.running.remove(self)
        if interrupted:
            self.world.interrupted += 1
            raise LabInterrupted("The measurement was paused.")
        speeds = None if self.dead else self.world.speeds(trial)
        if speeds is None:
            self.dead = True
            raise LabFailed("the process ended", kind="killed", tail=[])
        self.world.measured.append(trial)
        return speeds

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.world.pauses += 1

    def resume(self) -> None:
        self.paused = False
        self._woken.set()
        self._woken = anyio.Event()


@dataclass
class FakeLabs:
    """All of them; call it as `open_lab`."""

    speeds: Callable[[Trial], Speeds | None] = lambda _trial: BASE  # None: the process dies
    takes_s: float = 0.0
    refuses: frozenset[str] = frozenset()  # runtimes whose library does not open
    survey_fails: bool = False
    open: list[FakeLab] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    running: list[FakeLab] = field(default_factory=list)
    measured: list[Trial] = field(default_factory=list)
    surveys: list[Path] = field(default_factory=list)
    pauses: int = 0
    interrupted: int = 0
    most_open: int = 0

    @asynccontextmanager
    async def __call__(
        self, library: Library, *, cwd: Path, gently: bool = True
    ) -> AsyncIterator[FakeLab]:
        assert cwd.name
        assert gently, "it must stay behind programs that the user waits for"
        await anyio.lowlevel.checkpoint()
        if library.runtime in self.refuses:
            raise LabFailed("the library does not open")
        lab = FakeLab(self, library)
        self.open.append(lab)
        self.opened.append(library.runtime)
        self.most_open = max(self.most_open, len(self.open))
        try:
            yield lab
        finally:
            self.open.remove(lab)
