"""The second turn of a conversation after an unload and a load: from the disk, and without.

    python -m tests.benchmarks.conversations [--model starter|gemma|both] [--tokens N] [--rounds N]

For each model and runtime: how long the first word of the second turn takes, how large the saved
conversation is, and what saving, hashing and restoring take. Then, how many of four conversations
one after the other (each a quarter as long) are kept, with and without the engine's cache of idle
slots, and what three idle ones in their slots cost the fourth while it is answered. Prints; asserts
nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import anyio

from stoker.engine import slots
from stoker.engine.upstream import Upstream
from stoker.lifecycle.conversations import Conversations
from stoker.tuning.launch import LaunchPlan
from stoker.types import Digest
from tests.benchmarks.workers import MODELS, Model, Place, chosen, place

LIMIT: Final = 8 << 30
DIGEST: Final = Digest("0" * 64)
_JSON: Final = ((b"content-type", b"application/json"),)
_MOST: Final = 16 << 20
_MS: Final = 1000
_MIB: Final = 1 << 20
TALKS: Final = 4
WORDS: Final = ("sea", "stone", "bread", "cloud", "river", "lamp", "horse", "paper")


@dataclass
class Times:
    """Milliseconds and bytes, one value a round."""

    without: list[float] = field(default_factory=list)
    with_it: list[float] = field(default_factory=list)
    read_without: list[float] = field(default_factory=list)  # tokens
    read_with: list[float] = field(default_factory=list)
    save: list[float] = field(default_factory=list)
    keep: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)


def talk(tokens: int, topic: int = 0) -> str:
    """A text of about so many tokens, another one for each topic."""
    word = WORDS[topic % len(WORDS)]
    line = f"The {word} number {{}} is here. "
    return "".join(line.format(number) for number in range(tokens // 8))


async def ask(upstream: Upstream, prompt: str, n_predict: int = 16) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0, "cache_prompt": True}
    answer = await upstream.open("POST", "/completion", _JSON, json.dumps(body).encode())
    found: dict[str, Any] = json.loads(await answer.read(_MOST))
    return found


@asynccontextmanager
async def worker(here: Place, plan: LaunchPlan) -> AsyncIterator[Upstream]:
    async with (
        here.serving(plan) as serving,
        Upstream(serving.address, serving.key) as upstream,
    ):
        yield upstream


async def one_round(
    here: Place, kept: Conversations, plan: LaunchPlan, tokens: int, times: Times
) -> None:
    first = talk(tokens)
    async with worker(here, plan) as upstream:
        turn = await ask(upstream, first)
        began = time.perf_counter()
        draft = await kept.save(upstream, plan)
        times.save.append((time.perf_counter() - began) * _MS)
    began = time.perf_counter()
    await kept.keep(draft)
    times.keep.append((time.perf_counter() - began) * _MS)
    times.size.append(sum(part.size for part in draft.written))
    second = f"{first}{turn['content']} And which number comes after that?"
    for restored in (False, True):
        async with worker(here, plan) as upstream:
            if restored:
                began = time.perf_counter()
                await kept.restore(upstream, plan)
                times.restore.append((time.perf_counter() - began) * _MS)
            began = time.perf_counter()
            answer = await ask(upstream, second, 1)
            spent = (time.perf_counter() - began) * _MS
        (times.with_it if restored else times.without).append(spent)
        read = times.read_with if restored else times.read_without
        read.append(answer["timings"]["prompt_n"])


def show(what: str, times: Times) -> None:
    def mid(values: list[float]) -> float:
        return statistics.median(values)

    speed_up = mid(times.without) / mid(times.with_it)
    print(f"{what}: the second turn is {speed_up:.1f} times faster")
    for how, spent, read in (
        ("without", times.without, times.read_without),
        ("with", times.with_it, times.read_with),
    ):
        print(f"    {how:8} {mid(spent):8.0f} ms, {mid(read):6.0f} tokens read")
    print(
        f"    {mid(times.size) / _MIB:.1f} MiB; save {mid(times.save):.0f} ms, hash and name"
        f" {mid(times.keep):.0f} ms, restore {mid(times.restore):.0f} ms"
    )


async def several(here: Place, kept: Conversations, plan: LaunchPlan, tokens: int) -> None:
    """Four conversations in turn, then what is in the slots, and what idle ones cost."""
    for cache_mib in (0, 512):
        with_cache = replace(plan, cache_ram_mib=cache_mib)
        async with worker(here, with_cache) as upstream:
            alone = await ask(upstream, talk(tokens), 64)
            for topic in range(1, TALKS):
                last = await ask(upstream, talk(tokens, topic), 64)
            found = [slot for slot in await slots.look(upstream) if slot.tokens > tokens // 2]
            draft = await kept.save(upstream, with_cache)
            await kept.keep(draft)
        speeds = [turn["timings"]["predicted_per_second"] for turn in (alone, last)]
        print(
            f"    idle-slot cache {'on' if cache_mib else 'off'}: {len(found)} of {TALKS} in slots,"
            f" {draft.count} saved;"
            f" {speeds[0]:.1f} tokens/s alone, {speeds[1]:.1f} beside the others"
        )
        kept.clear()
        await kept.prepare(DIGEST, plan)


async def run(here: Place, model: Model, tokens: int, rounds: int) -> None:
    await here.prepare(model)
    kept = Conversations(here.paths.conversations, LIMIT)
    for runtime in here.runtimes:
        wishes = replace(here.wishes(runtime), context=4 * tokens, parallel=TALKS)
        plan = await kept.prepare(DIGEST, here.plan(model, runtime, wishes))
        times = Times()
        for _ in range(rounds):
            await one_round(here, kept, plan, tokens, times)
        show(f"{model.name}, {runtime}", times)
        await several(here, kept, plan, tokens // 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.conversations")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--tokens", type=int, default=2000, help="of the first turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with place() as here:
        for model in chosen(options.model):
            anyio.run(run, here, model, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
