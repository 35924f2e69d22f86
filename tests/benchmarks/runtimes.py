"""The runtime compiled for this machine against the built-in one, with the product's own plans.

    python -m tests.benchmarks.runtimes [--model starter|gemma|both] [--rounds N] [--json FILE]

Untuned plans of both, in turns, each time in a new process. Exits 1 when the compiled one is not
faster, by the geometric mean of all speeds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean, median

import anyio

from tests.benchmarks import grid
from tests.benchmarks.grid import Bench, Subject, Turn
from tests.benchmarks.speeds import METRICS, Load
from tests.benchmarks.tuning import tell
from tests.benchmarks.workers import MODELS, Model, Place, chosen, place

_ROUNDS = 7


async def compare(where: Place, model: Model, rounds: int) -> dict[str, list[Turn]]:
    """The turns of each metric; runtimes by their names."""
    await where.prepare(model)
    bench = Bench(where, model, Load(), tell)
    running = [Subject(name, name, where.plan(model, name)) for name in where.runtimes]
    return await grid.rounds(bench, dict.fromkeys(METRICS, running), rounds, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.runtimes")
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, list[Turn]]] = {}

    async def run() -> tuple[str, ...]:
        with place() as where:
            for model in chosen(options.model):
                found[model.name] = await compare(where, model, options.rounds)
            return where.runtimes

    names = anyio.run(run)
    if len(names) == 1:
        raise SystemExit("there is no compiled runtime to compare with")
    built_in, native = names
    ratios = []
    print(f"{'model':8} {'metric':8} {'built-in':>9} {'native':>9} {'ratio':>6}")
    for model, metrics in found.items():
        for metric, turns in metrics.items():
            ours, theirs = (median(one[name].rate for one in turns) for name in (native, built_in))
            ratios.append(grid.ratio(turns, native, built_in).value)
            print(f"{model:8} {metric:8} {theirs:9.1f} {ours:9.1f} {ratios[-1]:6.3f}")
    speedup = geometric_mean(ratios)
    print(f"tokens per second, medians of {options.rounds} rounds; speed-up {speedup:.3f}")
    if options.json:
        rows = {
            model: {
                metric: [{name: asdict(one) for name, one in turn.items()} for turn in turns]
                for metric, turns in metrics.items()
            }
            for model, metrics in found.items()
        }
        options.json.write_text(json.dumps({"speedup": speedup, "turns": rows}, indent=1))
    if speedup <= 1:
        raise SystemExit("the compiled runtime is not faster")


if __name__ == "__main__":
    main()
