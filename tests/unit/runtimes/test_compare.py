"""Two libraries measured in turns, out of the way of whoever needs the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from stoker.engine.lab import LabInterrupted, Library
from stoker.runtimes import compare
from stoker.runtimes.compare import ROUNDS, Bench, Contender, judge
from stoker.tuning.launch import Speeds, Trial

pytestmark = pytest.mark.anyio

MODEL = Path("/m.gguf")


@dataclass
class FakeLab:
    """Measures in no time; when it was paused meanwhile it says so, as the real one does."""

    factor: float
    log: list[str]
    name: str
    paused: bool = False
    interrupted: bool = False
    gate: anyio.Event = field(default_factory=anyio.Event)
    loaded: list[bool] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)

    async def load(self, model: Path, *, extra_buffers: bool, gpu_layers: int) -> None:
        assert model == MODEL
        self.layers.append(gpu_layers)
        self.loaded.append(extra_buffers)

    async def measure(self, trial: Trial, **_: Any) -> Speeds:
        assert trial.runtime == self.name
        self.log.append(self.name)
        await anyio.lowlevel.checkpoint()
        while self.paused:
            self.interrupted = True
            await self.gate.wait()
        if self.interrupted:
            self.interrupted = False
            raise LabInterrupted("paused")
        return Speeds(100 * self.factor, 10 * self.factor, 30 * self.factor)

    def pause(self) -> None:
        self.paused, self.gate = True, anyio.Event()

    def resume(self) -> None:
        self.paused = False
        self.gate.set()


@dataclass
class Rig:
    labs: dict[str, FakeLab]
    log: list[str]
    opened: int = 0
    closed: int = 0
    on_open: Callable[[], None] = lambda: None


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    log: list[str] = []
    made = Rig({"new": FakeLab(1.2, log, "new"), "old": FakeLab(1.0, log, "old")}, log)

    @asynccontextmanager
    async def open_lab(library: Library, *, cwd: Path) -> AsyncIterator[FakeLab]:
        made.opened += 1
        made.on_open()
        try:
            yield made.labs[library.runtime]
        finally:
            made.closed += 1

    monkeypatch.setattr(compare, "open_lab", open_lab)
    return made


def contender(name: str, *, extra_buffers: bool = True) -> Contender:
    return Contender(Library(name, Path("/l.so"), None), extra_buffers)


async def test_both_are_measured_in_turns(rig: Rig) -> None:
    bench = Bench(Path("/tmp"), 2)

    found = await bench.compare(contender("new"), contender("old", extra_buffers=False), MODEL)

    assert found.speedup == pytest.approx(1.2)
    assert found.faster
    assert rig.log[:4] == ["new", "old", "old", "new"], "who comes second takes turns too"
    assert len(rig.log) == 2 * ROUNDS
    assert rig.labs["new"].loaded == [True] * ROUNDS
    assert rig.labs["old"].loaded == [False] * ROUNDS
    assert rig.opened == rig.closed == 2 * ROUNDS, "a process keeps the luck that it had"


async def test_each_is_measured_where_it_would_compute(rig: Rig) -> None:
    """The one for a GPU with its layers there: on the processor it would show nothing."""
    new = replace(contender("new"), gpu_layers=33)

    await Bench(Path("/tmp"), 2).compare(new, contender("old"), MODEL)

    assert set(rig.labs["new"].layers) == {33}
    assert set(rig.labs["old"].layers) == {0}


async def test_a_request_pauses_both_at_once_and_nothing_half_counts(rig: Rig) -> None:
    bench = Bench(Path("/tmp"), 2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.compare, contender("new"), contender("old"), MODEL)
        while len(rig.log) < 3:  # counted by another task
            await anyio.lowlevel.checkpoint()
        bench.on_busy(busy=True)
        assert all(lab.paused for lab in rig.labs.values())
        await anyio.wait_all_tasks_blocked()
        seen = len(rig.log)
        await anyio.sleep(0.02)
        assert len(rig.log) == seen, "nothing is begun while somebody is served"
        bench.on_busy(busy=False)

    assert len(rig.log) == 2 * ROUNDS + 1, "the interrupted one again"


async def test_no_process_is_begun_while_somebody_is_served(rig: Rig) -> None:
    bench = Bench(Path("/tmp"), 2)
    bench.on_busy(busy=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.compare, contender("new"), contender("old"), MODEL)
        await anyio.sleep(0.02)
        assert rig.opened == 0
        bench.on_busy(busy=False)

    assert len(rig.log) == 2 * ROUNDS


async def test_a_request_pauses_a_process_that_is_just_begun(rig: Rig) -> None:
    bench = Bench(Path("/tmp"), 2)
    rig.on_open = lambda: bench.on_busy(busy=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.compare, contender("new"), contender("old"), MODEL)
        while not rig.opened:  # counted by another task
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.02)
        assert rig.labs["new"].paused
        assert rig.opened == 1
        rig.on_open = lambda: None
        bench.on_busy(busy=False)

    assert not any(lab.paused for lab in rig.labs.values())


async def test_a_load_that_never_ends_does_not_stop_it_for_ever(rig: Rig) -> None:
    bench = Bench(Path("/tmp"), 2, patience_s=0.02)
    bench.on_busy(busy=True)

    with anyio.fail_after(10):
        found = await bench.compare(contender("new"), contender("old"), MODEL)

    assert found.faster
    assert not any(lab.paused for lab in rig.labs.values())


def test_medians_forget_one_disturbance() -> None:
    good, bad = Speeds(100, 10, 30), Speeds(1, 1, 1)

    found = judge([good, bad, good, good, good], [good, good, good, bad, good])

    assert found.speedup == pytest.approx(1)
    assert not found.faster


def test_noise_alone_is_no_harm() -> None:
    """Rounds that scatter by a tenth around "the same" hide no gain in another speed."""
    noise = [0.9, 1.08, 0.95, 1.1, 0.94]
    new = [Speeds(130, 10 * one, 33) for one in noise]
    old = [Speeds(100, 10, 30)] * len(noise)

    assert judge(new, old).faster


def test_a_speed_that_is_surely_lower_is_harm() -> None:
    new = [Speeds(150, 9.0 + 0.05 * one, 40) for one in range(5)]
    old = [Speeds(100, 10, 30)] * 5

    assert not judge(new, old).faster


def test_what_slows_both_in_a_round_counts_for_neither() -> None:
    old = [Speeds(100 * one, 10 * one, 30 * one) for one in (1, 0.5, 0.9, 0.3, 1)]
    new = [
        Speeds(one.prefill_tokens_per_s * 1.2, one.decode_tokens_per_s, one.batch_tokens_per_s)
        for one in old
    ]

    found = judge(new, old)

    assert found.speedup == pytest.approx(1.2 ** (1 / 3))
    assert found.worst == pytest.approx(1)
