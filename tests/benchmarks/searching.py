"""The product's own search, run to its end outside of a daemon: its session, labs and rules.

What the daemon adds is when to start and whom to give way to, which is not measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from stoker.engine.lab import open_lab
from stoker.runtimes.compare import Bench as Comparing
from stoker.runtimes.compare import Contender
from stoker.tuner.gate import Gate
from stoker.tuner.job import Basis, Job, trial_of
from stoker.tuner.labs import labs_for
from stoker.tuner.policy import largest_ubatch
from stoker.tuner.session import Session
from stoker.tuning import keys
from stoker.tuning.launch import Profile, Tuned, Wishes
from stoker.tuning.search import BUDGET_S
from stoker.tuning.space import make_space
from stoker.types import Digest, ModelId
from tests.benchmarks.workers import Model, Place

_NO_DIGEST: Final = Digest("0" * 64)  # nothing is kept under it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the search found, and what it cost."""

    tuned: Tuned
    runs: int  # measurements
    wall_s: float  # with loading and closing


async def in_use(place: Place, model: Model) -> tuple[str, float]:
    """The runtime that its installation would have left in use, and its speedup.

    As in the daemon, each is measured against the one before it, and taken when it is faster.
    """
    current, gained = place.built_in, 1.0
    bench = Comparing(place.paths.worker_cwd, place.hardware.effective_cpus)
    for name in place.runtimes:
        if name != current:
            new, old = (
                Contender(place.library(one), one not in place.safe) for one in (name, current)
            )
            found = await bench.compare(new, old, model.path)
            if found.faster:
                current, gained = name, gained * found.speedup
    return current, gained


async def search(
    place: Place,
    model: Model,
    *,
    runtime: str = "",
    profile: Profile = "chat",
    budget_s: float = BUDGET_S,
    told: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Search among all runtimes of the place, as after a first load under this one."""
    basis = _basis(place, model, profile, runtime or place.built_in)
    job = Job(ModelId.parse(f"bench/{model.name}"), _NO_DIGEST, profile, budget_s=budget_s)
    job.basis = basis
    start = time.monotonic()
    async with labs_for(
        model.path, place.library, opener=open_lab, cwd=place.paths.worker_cwd, at_once=2
    ) as labs:
        session = Session(
            job,
            labs,
            Gate(),
            space=lambda shape: make_space(
                place.hardware,
                basis.baseline,
                _wishes(place, profile),
                runtimes=basis.runtimes,
                safe=basis.safe,
                ubatch_most=largest_ubatch(basis.plan),
                prompt=shape.prompt,
            ),
            hardware=lambda: place.hardware,
            may_go_on=lambda _: None,
            changed=lambda job: told(f"{job.state}: {job.note}"),
        )
        await session.run()
    assert job.search is not None
    result = job.search.result()
    tuned = Tuned(
        key=basis.key,
        profile=profile,
        best=result.best,
        speeds=result.speeds,
        baseline=result.baseline,
        trials=result.trials,
        seconds=result.seconds,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=result.complete,
    )
    return Outcome(tuned, result.runs, time.monotonic() - start)


def _wishes(place: Place, profile: Profile) -> Wishes:
    return replace(place.wishes(place.built_in), profile=profile)


def _basis(place: Place, model: Model, profile: Profile, runtime: str) -> Basis:
    plan = place.plan(model, runtime, wishes=_wishes(place, profile))
    key = keys.tuning_key(place.hardware)
    safe = frozenset(place.safe)
    runtimes = tuple(sorted(place.runtimes, key=lambda name: name != runtime))
    return Basis(key, profile, runtimes, safe, model.path, plan, trial_of(plan))
