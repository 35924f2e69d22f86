"""Is a busy worker's engine still computing? What it counts itself, asked with a short deadline.

That it answers says little: llama.cpp's server tells its figures while a computation runs, also
while one hangs. Its counters say more: they move when a computation has ended. And an engine
that has no request left owes nobody anything, whoever still holds a connection. Not for: the
judgement (`stoker.lifecycle.vigil`), or whether a new worker is ready (`probe`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal, TypeAlias

import anyio
import structlog

from stoker.engine.base import Worker
from stoker.engine.probe import answers_decode
from stoker.engine.upstream import Upstream
from stoker.errors import EngineError
from stoker.tuning.launch import LaunchPlan

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 3.0  # for an answer; less than the time between two looks
DECODE_S: Final = 30.0  # for one small decode of a worker that nobody uses
_OK: Final = 200
_MOST_BYTES: Final = 1 << 20  # of an answer; real ones have some kilobytes
_MOST_SLOTS: Final = 1024
_MOST: Final = 1 << 53  # what a count may be
_PREFIX: Final = "llamacpp:"
_COUNTERS: Final = ("n_decode_total", "prompt_tokens_total", "tokens_predicted_total")
_WAITING: Final = ("requests_processing", "requests_deferred")


class NotAsked(Enum):
    NOT_ASKED = auto()


NOT_ASKED: Final = NotAsked.NOT_ASKED


@dataclass(frozen=True, slots=True)
class Beat:
    """What an engine said of itself."""

    marks: tuple[float, ...] = ()  # whatever differs from the last time proves work; (): unknown
    busy: int | None = None  # requests that it works on or keeps waiting; None: unknown
    kv_used: float | None = None  # of its conversation memory, 0 to 1; None: unknown


# None: it was asked, and did not answer in time.
Heard: TypeAlias = Beat | Literal[NotAsked.NOT_ASKED] | None


async def beat(upstream: Upstream, timeout_s: float, *, cells: int = 0) -> Beat | None:
    """Ask once. Never raises; None when there is no answer in this time.

    ``cells`` is the size of its conversation memory in tokens; 0 leaves `kv_used` unknown.
    """
    with anyio.move_on_after(timeout_s):
        page = await _get(upstream, "/metrics")
        if page is None:
            return None
        slots = await _get(upstream, "/slots") if cells else None
        return read_beat(page, slots or b"", cells)
    return None


async def decodes(worker: Worker, plan: LaunchPlan, timeout_s: float) -> bool:
    """Whether an idle worker still answers a small decode; a GPU may be lost while one sleeps."""
    with anyio.move_on_after(timeout_s):
        try:
            await answers_decode(
                worker.address, worker.key, embedding=plan.embedding, pooling=plan.pooling
            )
        except EngineError as error:
            log.info("worker_decode_failed", pid=worker.pid, reason=error.message)
            return False
        return True
    return False


async def _get(upstream: Upstream, path: str) -> bytes | None:
    """The body; b"" for a refusal or nonsense, None when the worker is not there."""
    try:
        answer = await upstream.open("GET", path, (), b"")
        try:
            body = await answer.read(_MOST_BYTES)
        finally:
            await answer.aclose()
    except EngineError as error:
        log.debug("worker_not_heard", path=path, reason=error.message)
        return None
    return body if answer.status == _OK else b""


class Pulse:
    """The heartbeat of one worker: asked beside everything else, read at the next look."""

    def __init__(self, upstream: Upstream, cells: int) -> None:
        self._upstream = upstream
        self._cells = cells
        self._asking = False
        self._latest: Heard = NOT_ASKED
        self.kv_used: float | None = None  # when it was last asked and told

    @property
    def latest(self) -> Heard:
        """What came since this was last read."""
        latest, self._latest = self._latest, NOT_ASKED
        return latest

    async def take(self) -> None:
        """Ask, unless it is being asked already. Never raises."""
        if self._asking:
            return
        self._asking = True
        try:
            self._latest = heard = await beat(self._upstream, TIMEOUT_S, cells=self._cells)
        finally:
            self._asking = False
        if heard is not None and heard.kv_used is not None:
            self.kv_used = heard.kv_used


# --- reading it: the engine is not trusted to be sane ------------------------------------------


def read_beat(metrics: bytes, slots: bytes = b"", cells: int = 0) -> Beat:
    """From the bodies of /metrics and /slots, as far as they make sense. Never raises."""
    numbers = _numbers(metrics)
    marks = [numbers[name] for name in _COUNTERS if name in numbers]
    waiting = [numbers[name] for name in _WAITING if name in numbers]
    held = _held(slots)
    if held is not None:
        marks.append(held)  # exact, where the page above rounds to six digits
    return Beat(
        marks=tuple(marks),
        busy=math.ceil(sum(waiting)) if len(waiting) == len(_WAITING) else None,
        kv_used=min(1.0, held / cells) if held is not None and cells > 0 else None,
    )


def _numbers(page: bytes) -> dict[str, float]:
    """The engine's figures without labels, by name; those that are no sound number left out."""
    found: dict[str, float] = {}
    for line in page.decode("ascii", "replace").splitlines():
        name, _, text = line.partition(" ")
        if name.startswith(_PREFIX):
            try:
                number = float(text)
            except ValueError:
                continue
            if 0 <= number <= _MOST:  # NaN is neither
                found[name.removeprefix(_PREFIX)] = number
    return found


def _held(slots: bytes) -> int | None:
    """How many tokens all slots hold; None when that cannot be read."""
    try:
        found = json.loads(slots)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not 0 < len(found) <= _MOST_SLOTS:
        return None
    total = 0
    for slot in found:
        count = slot.get("n_prompt_tokens", 0) if isinstance(slot, dict) else None
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST:
            return None
        total += count
    return total
