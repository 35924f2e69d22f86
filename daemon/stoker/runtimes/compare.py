"""Is a new runtime faster than the one that serves? Measured, on this machine, in turns.

Several rounds; in each, both libraries are opened in new processes and measure the same trial one
after the other, so that whatever else the machine does meets both. A process keeps whatever luck
it had with its memory, up to a tenth of its speed: measured in one process of each, a runtime that
is as fast in one of the three is now and then surely slower in it. A request pauses both at once;
what it interrupted is measured again. Under a load that never ends they measure all the same, after
some patience.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from stoker.engine.lab import Lab, LabInterrupted, Library, open_lab
from stoker.tuning.launch import Speeds, Trial

ROUNDS: Final = 5  # medians of fewer follow a single disturbance
LEAST_GAIN: Final = 1.03  # below it the difference is noise, and a change is not worth its risk
LEAST_SPEED: Final = 0.98  # no harm: not one of the three may fall below this
_SIGMA: Final = 1.4826  # of a normal distribution, over its median deviation
_MEDIAN_ERROR: Final = 1.2533  # of a median over a mean, for many rounds
_PATIENCE_S: Final = 90.0  # for idle moments, in all
_PROMPT: Final = 256  # tokens
_GENERATE: Final = 24
_STREAMS: Final = 4
_UBATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime's library and how its workers would use it."""

    library: Library
    extra_buffers: bool = True
    gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The new one against the old one; above 1 is faster."""

    speedup: float  # geometric mean of the three
    worst: float  # of the three, at the upper end of its error: how bad it surely is
    new: Speeds
    old: Speeds

    @property
    def faster(self) -> bool:
        return self.speedup > LEAST_GAIN and self.worst >= LEAST_SPEED


Compare = Callable[[Contender, Contender, Path], Awaitable[Comparison]]


def judge(new: Sequence[Speeds], old: Sequence[Speeds]) -> Comparison:
    """Both measured in the same rounds. Pure.

    What the machine did meanwhile met both of a round, so the medians of the rounds' ratios count.
    """
    ratios = [
        [ours / theirs for ours, theirs in zip(*speeds, strict=True)]
        for speeds in zip(_columns(new), _columns(old), strict=True)
    ]
    usual = [statistics.median(column) for column in ratios]
    highest = [middle + _error(column) for middle, column in zip(usual, ratios, strict=True)]
    speedup = math.prod(usual) ** (1 / len(usual))
    return Comparison(speedup, min(highest), _median(new), _median(old))


def _columns(runs: Sequence[Speeds]) -> tuple[list[float], ...]:
    return (
        [one.prefill_tokens_per_s for one in runs],
        [one.decode_tokens_per_s for one in runs],
        [one.batch_tokens_per_s for one in runs],
    )


def _error(ratios: Sequence[float]) -> float:
    """Two standard errors of the median, from the median deviation: one bad round is no news."""
    middle = statistics.median(ratios)
    spread = _SIGMA * statistics.median(abs(one - middle) for one in ratios)
    return 2 * _MEDIAN_ERROR * spread / math.sqrt(len(ratios))


def _median(runs: Sequence[Speeds]) -> Speeds:
    return Speeds(*(statistics.median(column) for column in _columns(runs)))


class Bench:
    """Measures two libraries while nobody needs the machine. One per daemon."""

    def __init__(self, cwd: Path, threads: int, patience_s: float = _PATIENCE_S) -> None:
        self._cwd = cwd
        self._threads = threads
        self._patience_s = patience_s
        self._labs: list[Lab] = []
        self._idle = anyio.Event()
        self._idle.set()
        self._patient = True

    def on_busy(self, busy: bool) -> None:  # noqa: FBT001  # `Lifecycle.on_busy` calls it so
        """A request came, or the last one has ended. At once, from the event loop."""
        if busy:
            self._idle = anyio.Event()
        else:
            self._idle.set()
        for lab in self._labs if self._patient else ():
            if busy:
                lab.pause()
            else:
                lab.resume()

    async def compare(self, new: Contender, old: Contender, model: Path) -> Comparison:
        """Raises LabFailed when one of the two cannot be measured."""
        results: tuple[list[Speeds], list[Speeds]] = ([], [])
        self._patient = True
        impatience = asyncio.create_task(self._lose_patience())
        try:
            for number in range(ROUNDS):
                turns = list(zip((new, old), results, strict=True))
                if number % 2:  # whoever comes second meets a warmer processor
                    turns.reverse()
                async with AsyncExitStack() as stack:
                    labs = [
                        await stack.enter_async_context(self._lab(one, model)) for one, _ in turns
                    ]
                    for lab, (one, found) in zip(labs, turns, strict=True):
                        found.append(await self._measure(lab, one))
        finally:
            impatience.cancel()
        return judge(*results)

    @asynccontextmanager
    async def _lab(self, one: Contender, model: Path) -> AsyncIterator[Lab]:
        """A new process with the model in it, begun while nobody is served."""
        await self._until_idle()
        async with open_lab(one.library, cwd=self._cwd) as lab:
            self._labs.append(lab)
            try:
                if self._patient and not self._idle.is_set():  # since it was started
                    lab.pause()
                await lab.load(model, extra_buffers=one.extra_buffers, gpu_layers=one.gpu_layers)
                yield lab
            finally:
                self._labs.remove(lab)

    async def _until_idle(self) -> None:
        if self._patient:
            await self._idle.wait()

    async def _measure(self, lab: Lab, one: Contender) -> Speeds:
        trial = Trial(
            runtime=one.library.runtime,
            threads=self._threads,
            threads_batch=self._threads,
            ubatch=_UBATCH,
            flash_attention=True,
            extra_buffers=one.extra_buffers,
            gpu_layers=one.gpu_layers,
        )
        while True:
            await self._until_idle()
            try:
                return await lab.measure(
                    trial, prompt=_PROMPT, generate=_GENERATE, streams=_STREAMS
                )
            except LabInterrupted:
                continue

    async def _lose_patience(self) -> None:
        """It is never idle here: then both are measured beside the requests, behind them."""
        await anyio.sleep(self._patience_s)
        self._patient = False
        self._idle.set()
        for lab in self._labs:
            lab.resume()
