"""How soon the next request is answered after each kind of fault; the fake engine fails on demand.

    python -m tests.benchmarks.recovery [--rounds 100] [--only WORDS]

Measured from the moment in which the fault is known to the client (or, for a process that heeds
nothing, in which it is gone) to the next good answer; the budget is a sound load + 1 s. Waits for
processes that heed nothing are shortened, and looks at hung workers come one after another: what
is measured begins when they are over.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from functools import partial

import anyio
import structlog

from tests.fakes.faults import FAULTS, Fault, impatient, load_s, suffer
from tests.fakes.serving import serving

_BUDGET_S = 1.0  # beyond a load
_LOADS = 5


async def sweep(faults: tuple[Fault, ...], rounds: int) -> bool:
    """Print a line for each fault; whether all rounds of all were within the budget."""
    print(f"{'fault':32} {'good':>9} {'median':>8} {'worst':>8} {'load':>8} {'in budget':>10}")
    everything = True
    for fault in faults:
        async with serving() as served:
            usual = statistics.median([await load_s(served) for _ in range(_LOADS)])
            took = [await suffer(served, fault) for _ in range(rounds)]
        within = sum(one <= usual + _BUDGET_S for one in took)
        everything = everything and within == rounds
        print(
            f"{fault.name:32} {len(took):>5}/{rounds:<3} {statistics.median(took):>7.3f}s"
            f" {max(took):>7.3f}s {usual:>7.3f}s {within:>6}/{rounds:<3}",
            flush=True,
        )
    return everything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, usage="see the module's text")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", default="", help="faults whose name has these words")
    options = parser.parse_args()
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=quiet)
    faults = tuple(fault for fault in FAULTS if options.only in fault.name)
    with impatient():
        good = anyio.run(partial(sweep, faults, options.rounds))
    print("every round within the budget" if good else "NOT every round within the budget")
    sys.exit(0)


if __name__ == "__main__":
    main()
