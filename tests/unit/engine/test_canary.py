"""The self-test: verdicts of made-up runs, and whole runs with fake workers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stoker.engine.base import Worker
from stoker.engine.canary import Canary, Outcome, agree, cpu_digest, judge
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.errors import CanaryFailed, RuntimeUnsupported
from stoker.paths import Paths, from_environment
from stoker.tuning.launch import LaunchPlan
from stoker.types import FailureKind
from tests.fakes.engine import Behaviour, FakeEngine, write_model
from tests.fakes.hardware import BASELINE, machine

CPU = machine().cpu
GOOD = Behaviour()


@dataclass
class Runtime:
    """Behaves in one way normally and in another in safe mode."""

    run: Path
    normal: Behaviour = GOOD
    safe: Behaviour = GOOD
    plans: list[LaunchPlan] = field(default_factory=list)

    async def launch(self, plan: LaunchPlan, *, timeout_s: float) -> Worker:
        self.plans.append(plan)
        behaviour = self.normal if plan.extra_buffers else self.safe
        return await FakeEngine(self.run, behaviour).launch(plan, timeout_s=timeout_s)


@pytest.fixture
def paths(stoker_home: Path) -> Paths:
    made = from_environment()
    made.create()
    return made


def canary(paths: Paths, runtime: Runtime, name: str = "runtime-1") -> Canary:
    return Canary(paths.canary, name, CPU, runtime.launch)


@pytest.mark.anyio
async def test_a_sound_runtime_is_tested_once(paths: Paths) -> None:
    """The second question, and the next daemon's first, are answered from the file."""
    runtime = Runtime(paths.run)
    model = write_model(paths.data / "m.gguf")

    first = await canary(paths, runtime).needs_safe_mode(model, 2)
    second = await canary(paths, runtime).needs_safe_mode(model, 2)

    assert (first, second) == (False, False)
    assert [plan.extra_buffers for plan in runtime.plans] == [True, False]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "normal",
    [
        Behaviour(crash_after=1),  # the readiness decode works, the first prompt does not
        Behaviour(first_token=7),  # works, but computes something else
        Behaviour(no_first_byte=True),
        Behaviour(crash_at_start="assert"),
    ],
)
async def test_a_runtime_that_fails_only_normally_needs_the_safe_mode(
    paths: Paths, normal: Behaviour
) -> None:
    model = write_model(paths.data / "m.gguf")
    runtime = Runtime(paths.run, normal=normal)

    assert await canary(paths, runtime).needs_safe_mode(model, 2)
    assert await canary(paths, Runtime(paths.run)).needs_safe_mode(model, 2), "remembered"


@pytest.mark.anyio
async def test_a_new_runtime_is_tested_again(paths: Paths) -> None:
    model = write_model(paths.data / "m.gguf")
    await canary(paths, Runtime(paths.run, normal=Behaviour(crash_after=1))).needs_safe_mode(
        model, 2
    )

    assert not await canary(paths, Runtime(paths.run), "runtime-2").needs_safe_mode(model, 2)
    assert len(json.loads(paths.canary.read_text())["results"]) == 2


@pytest.mark.anyio
async def test_a_runtime_that_fails_in_both_modes_is_refused(paths: Paths) -> None:
    broken = Behaviour(crash_after=1)
    runtime = Runtime(paths.run, normal=broken, safe=broken)
    model = write_model(paths.data / "m.gguf")

    with pytest.raises(CanaryFailed):
        await canary(paths, runtime).needs_safe_mode(model, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("why", ["oom", "bad-file", "architecture"])
async def test_a_run_that_fails_for_other_reasons_gives_no_verdict(paths: Paths, why: str) -> None:
    runtime = Runtime(paths.run, normal=Behaviour(crash_at_start=why))
    model = write_model(paths.data / "m.gguf")

    assert not await canary(paths, runtime).needs_safe_mode(model, 2)
    assert not paths.canary.exists()


@pytest.mark.anyio
async def test_memory_that_runs_out_in_the_middle_gives_no_verdict_either(paths: Paths) -> None:
    """Not even when the broken connection is seen before the end of the process."""
    runtime = Runtime(paths.run, normal=Behaviour(crash_after=1, last_words="oom"))
    model = write_model(paths.data / "m.gguf")

    assert not await canary(paths, runtime).needs_safe_mode(model, 2)
    assert not paths.canary.exists()


@pytest.mark.anyio
@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 9}', '{"format": 1, "results": 3}'])
async def test_a_damaged_file_is_written_anew(paths: Paths, content: str) -> None:
    paths.canary.write_text(content)
    runtime = Runtime(paths.run)
    model = write_model(paths.data / "m.gguf")

    assert not await canary(paths, runtime).needs_safe_mode(model, 2)
    assert json.loads(paths.canary.read_text())["format"] == 1


@pytest.mark.anyio
async def test_a_file_that_cannot_be_written_stops_nothing(paths: Paths) -> None:
    paths.canary.mkdir()
    model = write_model(paths.data / "m.gguf")

    assert not await canary(paths, Runtime(paths.run)).needs_safe_mode(model, 2)


@pytest.mark.anyio
async def test_a_cpu_below_the_baseline_is_refused_before_anything_runs(paths: Paths) -> None:
    engine = XllamacppEngine(paths, machine(flags=BASELINE - {"f16c"}))

    with pytest.raises(RuntimeUnsupported, match="f16c"):
        await engine.prepare(paths.data / "m.gguf")


@pytest.mark.anyio
async def test_sockets_of_a_killed_daemon_are_cleared(paths: Paths) -> None:
    stale, other = paths.run / "w-00.sock", paths.run / "control.sock"
    stale.touch()
    other.touch()

    XllamacppEngine(paths, machine())

    assert not stale.exists()
    assert other.exists()


def test_verdicts() -> None:
    good = Outcome([[1.0], [2.0]])
    other = Outcome([[9.0], [9.0]])
    dead = Outcome(None, FailureKind.BACKEND)

    assert not judge(good, good, vectors=False).safe_mode
    assert judge(good, other, vectors=False).safe_mode
    assert judge(dead, good, vectors=False).safe_mode
    assert not judge(good, dead, vectors=False).safe_mode
    with pytest.raises(CanaryFailed):
        judge(dead, dead, vectors=False)


def test_rounding_may_flip_a_near_tie_but_not_most_answers() -> None:
    first = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]

    assert agree(first, [[1.0, 9.0], [3.0, 9.0], [5.0, 9.0], [0.0, 9.0]], vectors=False)
    assert not agree(first, [[1.0], [3.0], [0.0], [0.0]], vectors=False)


def test_vectors_agree_by_direction() -> None:
    assert agree([[1.0, 0.0]], [[0.99, 0.01]], vectors=True)
    assert not agree([[1.0, 0.0]], [[0.0, 1.0]], vectors=True)
    assert not agree([[1.0, 0.0]], [[float("nan"), 0.0]], vectors=True)


def test_the_verdict_belongs_to_the_cpu() -> None:
    assert cpu_digest(CPU) == cpu_digest(machine().cpu)
    assert cpu_digest(CPU) != cpu_digest(machine(flags=BASELINE | {"amx_tile"}).cpu)
