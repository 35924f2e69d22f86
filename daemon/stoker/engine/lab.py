"""A throw-away process that knows an engine's library: what a model needs, and how fast it is.

    async with open_lab(library, cwd=places.worker_cwd) as lab:
        survey = await lab.survey(model, wanted)          # no weights in memory
        await lab.load(model, extra_buffers=True)         # maps the weights
        speeds = await lab.measure(trial)

The library may end its process at any call (a corrupt file, an internal check, no memory); here
that is a `LabFailed` with ``facts["kind"]`` and ``facts["tail"]``. A lab that failed because its
process ended, or that missed a deadline, answers nothing more. Orders run one after the other.

Not for: workers that serve (`worker`), or deciding what to measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_args

import anyio

from stoker.engine.base import Address, ExitReport
from stoker.engine.classify import classify, describe
from stoker.engine.lab_process import LabProcess
from stoker.engine.worker import Spawn
from stoker.errors import LabFailed, WorkerFailed, WorkerTimeout
from stoker.logs import clean
from stoker.tuning.launch import KvType, Speeds, Survey, SurveyPoint, Trial
from stoker.types import FailureKind

__all__ = ["Device", "Lab", "LabFailed", "LabInterrupted", "Library", "SurveyWanted", "open_lab"]

_COMMAND: Final = (sys.executable, "-I", "-m", "stoker.engine.lab_child")
_MOST_POINTS: Final = 1000
_GRACE_S: Final = 1.0  # it ends when stdin does; a library that is stuck is killed
_DEATH_S: Final = 10.0  # from the end of its output to its own; long where memory has run out
_TAIL: Final = 5  # lines that an error carries
_LONGEST_WORDS: Final = 2000  # characters of one
_MOST_SIZE: Final = 1 << 53  # bytes; JSON carries no larger number exactly
_MOST_SPEED: Final = 1e9  # tokens per second
_OPEN_S: Final = 60.0  # opening takes 0.1 s; a library may have to come from a slow disk
_SURVEY_S: Final = 120.0  # a dry load takes up to 2 s alone, but runs behind everything else
_POINT_S: Final = 2.0  # 5 ms alone
_LOAD_S: Final = 60.0
_DISK_BYTES_PER_S: Final = 20e6  # an SD card
_MEASURE_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 0.5e9  # weights through a processor, once for each decode
_PREFILL_GAIN: Final = 2  # a prompt's tokens share that at least so far

_T = TypeVar("_T")
_Kind = Literal["cpu", "gpu", "igpu", "accel"]


class LabInterrupted(LabFailed):
    """The lab was paused during this measurement; it may be repeated in the same lab.

    A LabFailed, so that nobody takes half a measurement for a whole one: catch this one first.
    """


@dataclass(frozen=True, slots=True)
class Library:
    """Where a runtime's llama.h functions are."""

    runtime: str  # name of the runtime
    path: Path  # shared library that exports them
    bindings: Path | None  # folder whose `llama_cpp` package has the structs; None: our own table
    search: tuple[Path, ...] = ()  # folders of libraries that it depends on


@dataclass(frozen=True, slots=True)
class Device:
    """Something that a library can compute on. Of a CPU, `free_bytes` is only the total."""

    name: str
    description: str
    kind: _Kind
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class SurveyWanted:
    """One point to ask for; see `SurveyPoint`."""

    cells: int
    parallel: int
    ubatch: int
    flash_attention: bool = True
    kv_type: KvType = "f16"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its weights in memory."""

    weights_bytes: int  # in all buffers, mapped and copied
    repack_bytes: int  # of these, copied into layouts for this CPU


@asynccontextmanager
async def open_lab(library: Library, *, cwd: Path, gently: bool = True) -> AsyncIterator[Lab]:
    """A lab for this library. Raises LabFailed when the library is not exactly as expected.

    ``gently`` stays behind programs that the user waits for (nice 10), which on an idle machine
    does not change what is measured.

    Call it from the thread of the event loop, like `Engine.launch`.
    """
    process = _start(library, cwd, gently=gently)
    lab = Lab(process, library)
    try:
        await lab.opened()
        yield lab
    finally:
        lab.resume()  # a stopped process would not see that its stdin ended
        with contextlib.suppress(WorkerTimeout):
            await process.stop(_GRACE_S)


class Lab:
    """An open lab. Everything raises LabFailed when the process dies or misses its deadline."""

    def __init__(self, process: LabProcess, library: Library) -> None:
        self._process = process
        self._library = library
        self._turn = anyio.Lock()
        self._numbers = itertools.count(1)
        self._running: _Running | None = None
        self._paused = False
        self._loaded: tuple[Path, bool, int] | None = None  # extra buffers, GPU layers

    @property
    def pid(self) -> int:
        return self._process.pid

    async def opened(self) -> None:
        """Return when the library is open and proven to be the one we know."""
        await self._answer("open", 0, self._process.first, _OPEN_S)

    async def devices(self) -> tuple[Device, ...]:
        answer = await self._ask("devices", _OPEN_S)
        return _checked(lambda: tuple(_device(item) for item in answer["devices"]))

    async def survey(
        self, model: Path, wanted: Sequence[SurveyWanted], *, deadline_s: float | None = None
    ) -> Survey:
        """What the engine would allocate for a model that writes text, on the CPU.

        No weights are read. Costs one dry load (0.1-1.4 s, mostly the vocabulary; two when the
        CPU copies weights into other layouts) and some 5 ms for each point.
        """
        if len(wanted) > _MOST_POINTS:
            raise ValueError(f"at most {_MOST_POINTS} points")
        points = [_plain(want) for want in wanted]
        deadline_s = deadline_s or _SURVEY_S + _POINT_S * len(wanted)
        answer = await self._ask("survey", deadline_s, model=str(model), wanted=points)
        return _checked(lambda: _survey(self._library.runtime, wanted, answer))

    async def load(
        self,
        model: Path,
        *,
        extra_buffers: bool,
        gpu_layers: int = 0,
        deadline_s: float | None = None,
    ) -> Loaded:
        """Open a model with its weights, in place of the one before."""
        self._loaded = None
        deadline_s = deadline_s or _LOAD_S + _file_bytes(model) / _DISK_BYTES_PER_S
        answer = await self._ask(
            "load",
            deadline_s,
            model=str(model),
            extra_buffers=extra_buffers,
            gpu_layers=gpu_layers,
        )
        loaded = _checked(lambda: Loaded(_size(answer["weights"]), _size(answer["repack"])))
        self._loaded = (model, extra_buffers, gpu_layers)
        return loaded

    async def allocated(self, wanted: SurveyWanted) -> SurveyPoint:
        """What the loaded model really allocates for a point; dry runs must say the same."""
        answer = await self._ask("allocated", _OPEN_S, wanted=_plain(wanted))
        return _checked(lambda: _point(wanted, answer["point"]))

    async def measure(
        self,
        trial: Trial,
        *,
        prompt: int = 512,
        generate: int = 32,
        streams: int = 4,
        repeats: int = 1,
        deadline_s: float | None = None,
    ) -> Speeds:
        """How fast the loaded model is: a prompt, one stream after it, all streams together.

        Medians of the repeats, after a short warm-up. Raises LabInterrupted when it was paused
        meanwhile, and ValueError for a trial that the loaded model cannot have.
        """
        if self._loaded is None or self._loaded[1:] != (trial.extra_buffers, trial.gpu_layers):
            raise ValueError("load the model with the same extra_buffers and gpu_layers first")
        sizes = {"prompt": prompt, "generate": generate, "streams": streams, "repeats": repeats}
        if min(sizes.values()) < 1:
            raise ValueError("all sizes are at least 1")
        if deadline_s is None:
            decodes = prompt / _PREFILL_GAIN + generate * (1 + streams)
            slowest_s = decodes * _file_bytes(self._loaded[0]) / _SLOWEST_BYTES_PER_S
            deadline_s = _MEASURE_S + (1 + repeats) * slowest_s
        answer = await self._ask(
            "measure",
            deadline_s,
            threads=trial.threads,
            threads_batch=trial.threads_batch,
            ubatch=trial.ubatch,
            flash_attention=trial.flash_attention,
            **sizes,
        )
        return _checked(
            lambda: Speeds(*(_speed(answer[name]) for name in ("prefill", "decode", "batch")))
        )

    # --- pause -------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop all its computing at once; deadlines stand still. Again: nothing."""
        if self._paused:
            return
        self._paused = True
        self._process.suspend()
        if self._running is not None:
            self._running.pause()

    def resume(self) -> None:
        """Go on. A measurement that was paused is given up and raises LabInterrupted."""
        if not self._paused:
            return
        self._paused = False
        self._process.wake()
        if self._running is not None:
            self._running.resume()
            if self._running.op == "measure":
                self._process.give_up(self._running.number)

    # --- orders ------------------------------------------------------------------------------

    async def _ask(self, op: str, deadline_s: float, **fields: object) -> dict[str, Any]:
        async with self._turn:
            number = next(self._numbers)
            answer = self._process.send(number, op, fields)
            return await self._answer(op, number, answer, deadline_s)

    async def _answer(
        self, op: str, number: int, answer: Future[dict[str, Any] | None], deadline_s: float
    ) -> dict[str, Any]:
        """The answer to an order. Raises LabFailed for any other outcome."""
        running = self._running = _Running(op, number, was_paused=self._paused)
        got: dict[str, Any] | None = None
        answered = False
        try:
            with running.until(deadline_s, paused=self._paused):
                got = await asyncio.shield(asyncio.wrap_future(answer))
                answered = True
        finally:
            self._running = None
            if not answered:  # the deadline, or our caller was cancelled
                self._process.give_up(number)
        if not answered:
            await self._process.stop(0)
            raise LabFailed(
                f"The engine's test process did not answer within {deadline_s:.0f} s.",
                kind=FailureKind.UNKNOWN.value,
                tail=list(self._process.tail[-_TAIL:]),
            )
        if got is None:
            raise _died(await self._end())
        if op == "measure" and running.was_paused:
            raise LabInterrupted("The measurement was paused.")
        if "ok" not in got:
            raise _refused(got)
        return cast("dict[str, Any]", got["ok"])

    async def _end(self) -> ExitReport:
        """Of a process that answers nothing more; one that is still there is not to be trusted."""
        if not self._process.garbled:
            with anyio.move_on_after(_DEATH_S):
                return await self._process.wait()
        return await self._process.stop(0)


@dataclass(slots=True)
class _Running:
    """The order that runs now; its deadline stands still while the lab is paused."""

    op: str
    number: int
    was_paused: bool = False
    _left_s: float = 0.0
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def until(self, deadline_s: float, *, paused: bool) -> anyio.CancelScope:
        self._left_s = deadline_s
        self._scope.deadline = math.inf if paused else anyio.current_time() + deadline_s
        return self._scope

    def pause(self) -> None:
        self.was_paused = True
        self._left_s = self._scope.deadline - anyio.current_time()
        self._scope.deadline = math.inf

    def resume(self) -> None:
        self._scope.deadline = anyio.current_time() + self._left_s


def _start(library: Library, cwd: Path, *, gently: bool) -> LabProcess:
    folders = tuple(str(folder) for folder in library.search)
    spawn = Spawn(
        command=(*_COMMAND, *folders),
        order={
            "library": str(library.path),
            "bindings": str(library.bindings) if library.bindings else None,
            "gently": gently,
        },
        address=Address(),
        key="",
        cwd=cwd,
        runtime=library.runtime,
    )
    try:
        return cast("LabProcess", LabProcess.start(spawn))
    except WorkerFailed as error:
        raise LabFailed(error.message, kind=FailureKind.UNKNOWN.value, tail=[]) from error


def _died(report: ExitReport) -> LabFailed:
    kind = report.kind or FailureKind.UNKNOWN
    return LabFailed(
        describe(kind)[0],
        kind=kind.value,
        returncode=report.returncode,
        tail=list(report.tail[-_TAIL:]),
    )


def _refused(answer: dict[str, Any]) -> LabFailed:
    """The process lives, but the library said no."""
    log = answer.get("log")
    words = [_words(line) for line in log] if isinstance(log, list) else []
    said = _words(answer.get("error"))
    kind = classify(None, words)
    text = describe(kind)[0] if kind is not FailureKind.UNKNOWN else said
    return LabFailed(text, kind=kind.value, tail=[*words[-_TAIL:], said])


def _words(value: object) -> str:
    """A line for a person; a strange library must not steer a terminal, nor fill a log."""
    text = str(value)[:_LONGEST_WORDS]
    return clean("".join(char if char.isprintable() else " " for char in text))


# --- answers, which come out of a process that a strange library shares ------------------------


def _checked(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LabFailed("The engine's test process gave an answer that makes no sense.") from error


def _survey(runtime: str, wanted: Sequence[SurveyWanted], answer: dict[str, Any]) -> Survey:
    points = tuple(
        _point(want, sizes) for want, sizes in zip(wanted, answer["points"], strict=True)
    )
    return Survey(runtime, _size(answer["weights"]), _size(answer["repack"]), points)


def _plain(wanted: SurveyWanted) -> list[object]:
    return [
        wanted.cells,
        wanted.parallel,
        wanted.ubatch,
        wanted.flash_attention,
        wanted.kv_type,
    ]


def _point(wanted: SurveyWanted, sizes: list[object]) -> SurveyPoint:
    compute, kv = sizes
    return SurveyPoint(
        cells=wanted.cells,
        parallel=wanted.parallel,
        ubatch=wanted.ubatch,
        flash_attention=wanted.flash_attention,
        kv_type=wanted.kv_type,
        compute_bytes=_size(compute),
        kv_bytes=None if kv is None else _size(kv),
    )


def _device(item: dict[str, Any]) -> Device:
    if item["kind"] not in get_args(_Kind):
        raise ValueError(item["kind"])
    free, total = _size(item["free_bytes"]), _size(item["total_bytes"])
    return Device(str(item["name"]), str(item["description"]), item["kind"], free, total)


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_SIZE:
        raise ValueError
    return value


def _speed(value: object) -> float:
    if not isinstance(value, float) or not 0 < value <= _MOST_SPEED:  # nan is neither
        raise ValueError
    return value


def _file_bytes(model: Path) -> int:
    try:
        return model.stat().st_size
    except OSError:
        return 0  # the engine will say what is wrong with it
