"""How fast a worker is, asked over HTTP as a client would: a prompt, one stream, four streams.

Prompts are lists of token numbers, so that their length is exact under every model, and nothing
is taken from a cache.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Final

import anyio
import httpx2
import psutil

from stoker.engine.probe import client
from tests.benchmarks.workers import Serving

_TIMEOUT_S: Final = 1800  # 32,768 tokens at 20 a second
_TO_GENERATE: Final = 8
_FIRST_TOKEN, _LAST_TOKEN = 1000, 45_000  # ordinary words in both vocabularies
_OTHERS: Final = 0.10  # CPUs that other programs may use while we measure
_PATIENCE: Final = 4  # measurements that are thrown away for it; then the next one counts


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of each setting."""

    prompt: int = 512
    generate: int = 32
    streams: int = 4
    stream_prompt: int = 32
    stream_generate: int = 48


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric of one worker."""

    rate: float  # tokens per second; of a batch by our clock, else by the engine's
    others: float  # CPUs that other programs used meanwhile


async def warm_up(serving: Serving) -> None:
    """What is slow only once."""
    async with client(serving.address, serving.key) as http:
        await _ask(http, _tokens(64, 0), 4)


async def measure(serving: Serving, load: Load, metric: str) -> Sample:
    """One metric of one worker; again when the machine was busy."""
    async with client(serving.address, serving.key) as http:
        for attempt in range(_PATIENCE + 1):
            watch = _Others(serving.pid)
            found = Sample(await _RATES[metric](http, load), watch.cpus())
            if found.others <= _OTHERS or attempt == _PATIENCE:
                break
    return found


async def fill(serving: Serving, *, slots: int, context: int, cells: int) -> None:
    """Use every cell that requests can reach: all slots at once, then one as long as may be."""
    each = min(context, cells // slots) - _TO_GENERATE - 1
    async with client(serving.address, serving.key) as http:
        async with anyio.create_task_group() as tasks:
            for number in range(slots):
                tasks.start_soon(_ask, http, _tokens(each, number), _TO_GENERATE)
        if context - _TO_GENERATE - 1 > each:
            await _ask(http, _tokens(context - _TO_GENERATE - 1, slots), _TO_GENERATE)


async def _prefill(http: httpx2.AsyncClient, load: Load) -> float:
    answer = await _ask(http, _tokens(load.prompt, 1), 1)
    return float(answer["prompt_n"] * 1000 / answer["prompt_ms"])


async def _decode(http: httpx2.AsyncClient, load: Load) -> float:
    answer = await _ask(http, _tokens(load.prompt, 1), load.generate)
    return float(answer["predicted_n"] * 1000 / answer["predicted_ms"])


async def _batch(http: httpx2.AsyncClient, load: Load) -> float:
    start = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(2, 2 + load.streams):
            prompt = _tokens(load.stream_prompt, number)
            tasks.start_soon(_ask, http, prompt, load.stream_generate)
    return load.streams * load.stream_generate / (time.perf_counter() - start)


_RATES: Final = {"prefill": _prefill, "decode": _decode, "batch": _batch}
METRICS: Final = tuple(_RATES)


async def _ask(http: httpx2.AsyncClient, prompt: list[int], generate: int) -> dict[str, Any]:
    """The engine's timings of one answer."""
    body = {
        "prompt": prompt,
        "n_predict": generate,
        "cache_prompt": False,
        "ignore_eos": True,
        "temperature": 0,
    }
    with anyio.fail_after(_TIMEOUT_S):
        answer = await http.post("/completion", json=body)
    if answer.status_code != httpx2.codes.OK:
        raise AssertionError(answer.text[:600])
    timings: dict[str, Any] = answer.json()["timings"]
    if (timings["prompt_n"], timings["predicted_n"]) != (len(prompt), generate):
        raise AssertionError(f"not what was asked for: {timings}")
    return timings


def _tokens(count: int, seed: int) -> list[int]:
    dice = random.Random(seed)  # noqa: S311  # not a secret
    return [dice.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(count)]


class _Others:
    """How much of the machine other programs use: all that is busy, less the worker and us."""

    def __init__(self, pid: int) -> None:
        self._ours = (psutil.Process(pid), psutil.Process())
        self._start = time.perf_counter()
        self._before = self._busy_s()

    def cpus(self) -> float:
        busy_s = self._busy_s() - self._before
        return max(0.0, busy_s / (time.perf_counter() - self._start))

    def _busy_s(self) -> float:
        """Processor time of all others since the start of the machine."""
        times = psutil.cpu_times()
        idle = ("idle", "iowait", "guest", "guest_nice")  # guests count as user already
        busy = sum(times) - sum(getattr(times, name, 0.0) for name in idle)
        ours = (one.cpu_times() for one in self._ours)
        return busy - sum(one.user + one.system for one in ours)
