"""Whatever a worker does, its client learns it, the next one is served, and nothing is left.

`STOKER_TEST_SWEEP=100` does each fault so often; `python -m tests.benchmarks.recovery` also says
how long recovery takes.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from stoker.lifecycle.ladder import Rung
from stoker.lifecycle.rungs import Rungs
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId, ModelState
from tests.fakes.engine import Behaviour
from tests.fakes.faults import FAULTS, Fault, impatient, suffer
from tests.fakes.serving import Serving, serving

ROUNDS = int(os.environ.get("STOKER_TEST_SWEEP", "8"))
M = ModelId("m")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="the fake engine listens on a UNIX socket"),
]


@pytest.mark.timeout(max(120, ROUNDS * 15))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_every_fault_is_survived_every_time(fault: Fault) -> None:
    with impatient():
        async with serving() as served:
            for _ in range(ROUNDS):
                await suffer(served, fault)
            assert served.lifecycle.view(M).rung == 0  # a good answer came after each


async def test_faults_of_one_model_do_not_touch_another() -> None:
    """One crashes again and again; the other's stream runs through all of it."""
    behaviours = {"m": Behaviour(crash_after=2), "n": Behaviour(delay_ms=10)}
    async with serving(models=("m", "n"), behaviours=behaviours) as served:
        texts: list[str] = []

        async def stream() -> None:
            texts.append((await served.chat("n", stream=True, max_tokens=150)).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await served.until(lambda: served.lifecycle.view(ModelId("n")).in_flight == 1)
            for _ in range(3):
                assert (await served.chat("m")).status_code in {502, 503}

        assert "tok149" in texts[0]
        assert texts[0].rstrip().endswith("data: [DONE]")


# --- the ladder --------------------------------------------------------------------------------


async def test_a_load_that_fails_is_tried_with_less_in_the_same_request() -> None:
    """The client waits a little longer, and is answered; the next load begins where it worked."""

    def too_large(plan: LaunchPlan) -> Behaviour | None:
        return Behaviour(crash_at_start="oom") if plan.cells > plan.context else None

    async with serving() as served:
        served.engine.by_plan = too_large
        assert (await served.chat(max_tokens=1)).status_code == 200

        first, second = served.engine.launches
        assert first.cells > first.context
        assert second.cells == second.context
        assert any("held back" in reason.why for reason in second.reasons)
        assert served.lifecycle.view(M).rung == Rung.HALF_CONTEXT

        await served.lifecycle.unload("m")
        assert (await served.chat(max_tokens=1)).status_code == 200
        assert len(served.engine.launches) == 3
        assert served.lifecycle.view(M).rung == Rung.HALF_CONTEXT


async def test_every_rung_is_tried_before_a_model_is_given_up() -> None:
    """Then its loads fail soon, until one of them works."""
    async with serving(behaviours={"m": Behaviour(crash_at_start="assert")}) as served:
        answer = await served.chat()

        assert answer.status_code == 502
        assert answer.json()["error"]["kind"] == "assert"
        plans = served.engine.launches
        assert [plan.extra_buffers for plan in plans] == [True, False, False, False, False]
        assert [plan.ubatch for plan in plans][1:4] == [plans[0].ubatch, 128, 128]
        assert plans[3].cells < plans[2].cells
        assert plans[4].flash_attention is not plans[3].flash_attention

        assert (await served.chat()).status_code == 502
        assert len(served.engine.launches) == 6


async def test_a_bad_file_is_tried_once() -> None:
    async with serving(behaviours={"m": Behaviour(crash_at_start="bad-file")}) as served:
        answer = await served.chat()

        assert answer.json()["error"]["kind"] == "bad_file"
        assert len(served.engine.launches) == 1
        assert served.lifecycle.view(M).state is ModelState.FAILED


async def test_the_third_crash_in_a_row_gives_something_up() -> None:
    """The settings are suspected when no request was answered in between."""

    def fragile(plan: LaunchPlan) -> Behaviour | None:
        return Behaviour(crash_after=1) if plan.extra_buffers else None

    async with serving() as served:
        served.engine.by_plan = fragile
        for _ in range(3):
            await crash(served)
        with anyio.fail_after(20):
            while (await served.chat()).status_code != 200:  # noqa: ASYNC110  # back-off
                await anyio.sleep(0.05)

        assert not served.engine.launches[-1].extra_buffers
        assert served.lifecycle.view(M).rung == Rung.PLAIN_BUFFERS


async def test_a_prompt_that_crashes_the_engine_gives_nothing_up() -> None:
    """Others are answered in between: it is the request, not the settings."""
    async with serving(behaviours={"m": Behaviour(crash_after=4)}) as served:
        for _ in range(5):
            await crash(served)
            assert (await served.chat(max_tokens=1)).status_code == 200

        assert all(plan.extra_buffers for plan in served.engine.launches)
        assert served.lifecycle.view(M).rung == 0


async def crash(served: Serving) -> None:
    """One request that ends its worker; waits out the back-off after crashes in a row."""
    with anyio.fail_after(20):
        while (await served.chat()).json()["error"]["code"] != "worker_lost":  # noqa: ASYNC110
            await anyio.sleep(0.05)
        await served.until(lambda: served.lifecycle.view(M).pid is None)


async def test_what_was_learnt_is_there_after_a_restart(tmp_path: Path) -> None:
    def fragile(plan: LaunchPlan) -> Behaviour | None:
        return Behaviour(crash_at_start="assert") if plan.extra_buffers else None

    async with serving() as served:
        served.engine.by_plan = fragile
        assert (await served.chat(max_tokens=1)).status_code == 200
        assert served.lifecycle.view(M).rung == Rung.PLAIN_BUFFERS
        digest = served.lifecycle.digest_of(M)
        await served.until(lambda: any(served.home.rglob("rungs.json")))  # written beside
        file = next(served.home.rglob("rungs.json"))
        copy = tmp_path / "rungs.json"
        copy.write_bytes(file.read_bytes())

    rungs = Rungs(copy, lambda *_: None, now=lambda: datetime.now(UTC))
    assert await rungs.rung(digest, "fake-1") == Rung.PLAIN_BUFFERS
