"""The tuner over fake labs and a fake lifecycle: when it begins, stands still and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from stoker.errors import BadTuningFile, MachineBusy, NotCapable, ShuttingDown, UnknownModel
from stoker.hardware.facts import PowerFacts
from stoker.schemas_machine import TuneRequest
from stoker.tuner import policy, service, session
from stoker.tuning import keys
from stoker.tuning.launch import Survey
from stoker.types import ModelId, ModelState
from tests.fakes.lab import BASE
from tests.fakes.serving import GIB, machine
from tests.fakes.tuner_world import DEADLINE_S, World, until, world_in

A_WHILE_S = 61.0  # after which it looks again
pytestmark = pytest.mark.anyio

REST_S = 0.02


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RESUME_S", REST_S)
    monkeypatch.setattr(policy, "RESUME_S", REST_S)
    monkeypatch.setattr(service, "_LOOK_S", REST_S)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with anyio.fail_after(DEADLINE_S):
        async with world_in(tmp_path) as found:
            yield found


# --- a search to its end ---------------------------------------------------------------------


async def test_a_person_asks_and_the_best_is_kept_and_put_to_use(world: World) -> None:
    first = await world.tuner.start(TuneRequest(model="m"))
    done = await world.until("done", "failed")

    assert first.state == "waiting"
    assert done.state == "done"
    assert done.settings is not None
    assert done.settings["runtime"] == "b"
    assert done.speeds is not None
    assert done.baseline is not None
    assert done.speeds.decode_tokens_per_s == pytest.approx(56, rel=0.01)
    assert done.baseline.decode_tokens_per_s == pytest.approx(40, rel=0.01)
    tuned = world.tuned()
    assert tuned is not None
    assert (tuned.best.runtime, tuned.complete) == ("b", True)
    await until(lambda: world.models.renewed == [ModelId("m")])


async def test_clients_hear_of_every_step(world: World) -> None:
    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")
    await until(lambda: bool(world.events) and world.events[-1].state == "done")

    states = [event.state for event in world.events]
    assert states[0] == "waiting"
    assert "running" in states
    assert any(event.note and "tries" in event.note for event in world.events)
    assert [event.trials for event in world.events] == sorted(
        event.trials for event in world.events
    )


async def test_what_is_fastest_already_is_kept_and_nothing_restarts(world: World) -> None:
    world.labs.speeds = lambda _trial: BASE
    assert world.models.plan is not None
    world.models.plan = replace(
        world.models.plan, runtime="a", threads=2, threads_batch=2, ubatch=512
    )

    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")

    assert world.tuned() is not None
    assert world.models.renewed == []


async def test_a_model_that_is_not_loaded_can_be_measured(world: World) -> None:
    world.models.state = ModelState.UNLOADED

    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")

    assert world.tuned() is not None
    assert world.models.renewed == []


async def test_a_known_result_is_told_at_once_unless_asked_again(world: World) -> None:
    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")
    measured = len(world.labs.measured)

    known = await world.tuner.start(TuneRequest(model="m"))
    assert (known.state, len(world.labs.measured)) == ("done", measured)
    again = await world.tuner.start(TuneRequest(model="m", again=True, seconds=30))
    assert (again.state, again.budget_s) == ("waiting", 30)
    await world.until("done")

    assert len(world.labs.measured) > measured


async def test_a_runtime_that_crashes_is_never_fatal(world: World) -> None:
    world.labs.speeds = lambda trial: None if trial.runtime == "b" else BASE

    await world.tuner.start(TuneRequest(model="m"))
    done = await world.until("done", "failed")

    assert done.state == "done"
    assert done.settings is not None
    assert done.settings["runtime"] == "a"
    assert world.labs.opened.count("b") == 1


async def test_a_runtime_that_does_not_open_is_left_out(world: World) -> None:
    world.labs.refuses = frozenset("b")

    await world.tuner.start(TuneRequest(model="m"))
    done = await world.until("done", "failed")

    assert done.settings is not None
    assert done.settings["runtime"] == "a"


async def test_when_nothing_can_be_measured_the_reason_is_told(world: World) -> None:
    world.labs.refuses = frozenset("ab")

    await world.tuner.start(TuneRequest(model="m"))
    failed = await world.until("done", "failed")

    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error.code == "lab_failed"
    assert world.tuned() is None


async def test_buffers_that_the_self_test_refused_are_not_tried(world: World) -> None:
    world.engines.safe = frozenset("b")

    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")

    assert not any(t.extra_buffers for t in world.labs.measured if t.runtime == "b")
    assert any(t.extra_buffers for t in world.labs.measured if t.runtime == "a")


async def test_a_time_in_which_nothing_was_compared_is_no_result(world: World) -> None:
    """A busy machine; otherwise the model would count as measured for good."""
    world.labs.takes_s = 0.1
    await world.tuner.start(TuneRequest(model="m", seconds=0.1))
    failed = await world.until("done", "failed")

    assert failed.error is not None
    assert "busy" in failed.error.message
    assert world.tuned() is None


# --- requests go first -----------------------------------------------------------------------


async def test_a_request_stops_the_labs_before_it_goes_anywhere(world: World) -> None:
    """In the very call of the lifecycle, with no step of the event loop between."""
    world.labs.takes_s = 0.02
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: bool(world.labs.running))

    world.models.busy(now=True)
    assert all(lab.paused for lab in world.labs.open)
    count = len(world.labs.measured)
    await anyio.sleep(5 * REST_S)
    assert len(world.labs.measured) == count
    assert world.view().state == "paused"
    world.models.busy(now=False)
    done = await world.until("done")

    assert world.labs.interrupted >= 1
    assert done.settings is not None
    assert done.settings["runtime"] == "b"


async def test_a_short_request_is_noticed_too(world: World) -> None:
    """One that begins and ends before any task can run leaves nothing asleep."""
    world.labs.takes_s = 0.01
    await world.tuner.start(TuneRequest(model="m"))
    for _ in range(5):
        await until(lambda: bool(world.labs.running) or world.view().state == "done")
        world.models.busy(now=True)
        world.models.busy(now=False)
        await anyio.sleep(2 * REST_S)

    assert (await world.until("done")).state == "done"


async def test_nothing_begins_while_a_request_runs(world: World) -> None:
    world.models.busy(now=True)
    await world.tuner.start(TuneRequest(model="m"))
    await anyio.sleep(5 * REST_S)
    assert world.labs.opened == []

    world.models.busy(now=False)
    await world.until("done")


async def test_long_business_frees_the_memory_and_keeps_the_progress(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GIVE_UP_S", 3 * REST_S)
    world.labs.takes_s = 0.01
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: len(world.labs.measured) >= 8)

    world.models.busy(now=True)
    await until(lambda: not world.labs.open)
    before = world.view().trials
    assert before > 0
    world.models.busy(now=False)
    measured = len(world.labs.measured)
    await world.until("done")

    assert world.view().trials >= before
    baseline = world.labs.measured[0]
    shape_runs = [trial for trial in world.labs.measured[measured:] if trial == baseline]
    assert len(shape_runs) < len(world.labs.measured)


async def test_a_load_gets_the_labs_memory(world: World) -> None:
    world.labs.takes_s = 0.02
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: bool(world.labs.running))

    world.models.state = ModelState.LOADING
    world.models.busy(now=True)

    await until(lambda: not world.labs.open)


async def test_when_memory_gets_short_it_ends(world: World) -> None:
    world.labs.takes_s = 0.01
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: len(world.labs.measured) >= 3)

    world.facts[0] = machine(available_bytes=GIB // 4)
    view = await world.until("paused")

    assert view.note == "memory is short"
    await until(lambda: not world.labs.open)


async def test_a_machine_that_changed_begins_anew(world: World) -> None:
    """Figures of another power mode mean nothing."""
    world.labs.takes_s = 0.01
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: len(world.labs.measured) >= 5)

    world.facts[0] = replace(machine(), power=PowerFacts(on_battery=True))
    await world.until("done")

    tuned = world.tuned()
    assert tuned is not None
    assert tuned.key == keys.tuning_key(world.facts[0])


async def test_without_room_beside_the_model_it_says_the_numbers(world: World) -> None:
    world.facts[0] = machine(available_bytes=GIB // 2)

    await world.tuner.start(TuneRequest(model="m"))
    failed = await world.until("done", "failed")

    assert failed.error is not None
    assert failed.error.code == "memory_short"
    assert world.labs.opened == []


@pytest.mark.parametrize(("free_mib", "at_once"), [(1000, 2), (250, 1)])
async def test_two_runtimes_are_open_at_once_only_when_there_is_room(
    tmp_path: Path, free_mib: int, at_once: int
) -> None:
    async with world_in(tmp_path, memory_reserve_bytes=0) as world:
        world.facts[0] = machine(available_bytes=free_mib << 20)
        await world.tuner.start(TuneRequest(model="m"))
        view = await world.until("done", "failed")

        assert view.state == "done"
        assert world.labs.most_open == at_once


# --- orders ----------------------------------------------------------------------------------


async def test_cancel_ends_it_at_once(world: World) -> None:
    world.labs.takes_s = 0.02
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: bool(world.labs.running))

    view = await world.tuner.cancel("m")

    assert view.state == "cancelled"
    assert world.labs.open == []
    assert world.tuned() is None
    assert (await world.tuner.cancel("m")).state == "cancelled"


async def test_a_cancelled_search_may_be_asked_for_again(world: World) -> None:
    world.labs.takes_s = 0.02
    await world.tuner.start(TuneRequest(model="m"))
    await until(lambda: bool(world.labs.running))
    await world.tuner.cancel("m")
    world.labs.takes_s = 0

    await world.tuner.start(TuneRequest(model="m"))

    assert (await world.until("done")).state == "done"


async def test_refusals(world: World) -> None:
    with pytest.raises(UnknownModel):
        await world.tuner.start(TuneRequest(model="nothing"))
    with pytest.raises(UnknownModel):
        await world.tuner.cancel("nothing")
    world.engines.building = True
    with pytest.raises(MachineBusy):
        await world.tuner.start(TuneRequest(model="m"))


async def test_without_its_task_it_starts_nothing(tmp_path: Path) -> None:
    async with world_in(tmp_path, running=False) as world:
        with pytest.raises(ShuttingDown):
            await world.tuner.start(TuneRequest(model="m"))
        assert await world.tuner.tick() is None
        assert world.view().state == "none"


async def test_an_embedder_is_not_tuned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_writes", lambda _manifest: False)

    with pytest.raises(NotCapable):
        await world.tuner.start(TuneRequest(model="m"))
    assert world.tuner.list() == ()


async def test_results_travel_between_machines_of_one_kind(world: World, tmp_path: Path) -> None:
    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")
    document = world.tuner.export()

    async with world_in(tmp_path / "other") as other:
        assert other.tuner.take(document) == 1
        assert other.view().state == "done"
        assert other.tuned() == world.tuned()
        other.facts[0] = replace(machine(), system="darwin")
        with pytest.raises(BadTuningFile):
            other.tuner.take(document)


async def test_a_result_for_a_runtime_that_is_gone_is_none(world: World) -> None:
    await world.tuner.start(TuneRequest(model="m"))
    await world.until("done")

    world.engines.gone = frozenset("b")

    assert world.view().state == "none"


# --- by itself -------------------------------------------------------------------------------


async def test_it_begins_by_itself_on_an_idle_machine(world: World) -> None:
    began = await world.tuner.tick()
    await world.until("done")

    assert began == "m: begins"
    assert await world.tuner.tick() is None  # it is known now


def battery(world: World) -> None:
    world.facts[0] = replace(machine(), power=PowerFacts(on_battery=True))


def hot(world: World) -> None:
    world.facts[0] = replace(machine(), power=PowerFacts(throttled=True))


def building(world: World) -> None:
    world.engines.building = True


def soon(world: World) -> None:
    world.models.idle = policy.IDLE_S - 1


def busy(world: World) -> None:
    world.cpu[0] = 60.0


def unloaded(world: World) -> None:
    world.models.state = ModelState.UNLOADED


@pytest.mark.parametrize("reason", [battery, hot, building, soon, busy, unloaded])
async def test_it_does_not_begin_by_itself_otherwise(
    world: World, reason: Callable[[World], None]
) -> None:
    reason(world)

    assert await world.tuner.tick() is None
    assert world.labs.opened in ([], ["a"])  # the dry run after a load is no search
    assert world.labs.measured == []


async def test_not_while_something_is_downloaded(world: World) -> None:
    assert await world.tuner.tick(pulls=1) is None
    assert world.labs.measured == []


async def test_not_when_it_is_switched_off(tmp_path: Path) -> None:
    async with world_in(tmp_path, tune=False) as world:
        assert await world.tuner.tick() is None
        assert world.labs.measured == []


async def test_what_failed_is_not_tried_again_and_again(world: World) -> None:
    world.labs.refuses = frozenset("ab")
    await world.tuner.tick()
    await world.until("failed")
    opened = len(world.labs.opened)

    assert await world.tuner.tick() is None
    world.now[0] += policy.FAILED_REST_S + 1
    assert await world.tuner.tick() == "m: begins"
    await world.until("failed")

    assert len(world.labs.opened) >= opened


async def test_what_a_person_cancelled_stays_cancelled(world: World) -> None:
    world.labs.takes_s = 0.02
    await world.tuner.tick()
    await until(lambda: bool(world.labs.running))
    await world.tuner.cancel("m")

    assert await world.tuner.tick() is None


async def test_an_interrupted_search_goes_on_at_the_next_idle_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GIVE_UP_S", 2 * REST_S)
    world.labs.takes_s = 0.01
    await world.tuner.tick()
    await until(lambda: len(world.labs.measured) >= 4)
    world.models.busy(now=True)
    await until(lambda: not world.labs.open)
    world.models.busy(now=False)
    await until(lambda: world.view().note == "others use the machine")  # after its labs ended
    assert world.view().state == "paused"

    assert await world.tuner.tick() == "m: goes on"
    await world.until("done")


async def test_an_incomplete_result_is_completed_another_day(world: World) -> None:
    await world.tuner.tick()
    await world.until("done")
    found = world.tuned()
    assert found is not None
    digest = world.manifest.model_file.digest

    world.profiles.keep_tuned(digest, replace(found, complete=False))
    assert await world.tuner.tick() is None
    old = "2020-01-01T00:00:00+00:00"
    world.profiles.keep_tuned(digest, replace(found, complete=False, at=old))
    world.now[0] += A_WHILE_S
    assert await world.tuner.tick() == "m: begins"
    await world.until("done")

    fresh = world.tuned()
    assert fresh is not None
    assert fresh.complete


async def test_a_model_that_became_slow_is_measured_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.tuner.tick()
    await world.until("done")
    found = world.tuned()
    assert found is not None
    monkeypatch.setattr(world.tuner._live, "is_slow", lambda _model: True)

    assert await world.tuner.tick() is None  # at most once a day
    old = replace(found, at="2020-01-01T00:00:00+00:00")
    world.profiles.keep_tuned(world.manifest.model_file.digest, old)
    world.now[0] += A_WHILE_S

    assert await world.tuner.tick() == "m: begins"
    await world.until("done")


async def test_a_changed_limit_is_measured_anew(world: World) -> None:
    await world.tuner.tick()
    await world.until("done")
    limited = machine()
    world.facts[0] = replace(limited, limits=replace(limited.limits, quota_cpus=1.0))

    assert await world.tuner.tick() == "m: begins"
    await world.until("done")

    assert all(trial.threads == 1 for trial in world.labs.measured[-3:])


# --- dry runs --------------------------------------------------------------------------------


async def test_a_dry_run_follows_the_first_load(world: World) -> None:
    world.models.idle = policy.RESUME_S + 1
    await world.tuner.tick()
    await until(lambda: world.profiles.survey(world.manifest.model_file.digest, "a") is not None)
    await world.tuner.tick()

    assert len(world.labs.surveys) == 1


async def test_a_dry_run_is_made_once_and_kept(world: World) -> None:
    first = await world.tuner.survey(world.manifest, "a")
    second = await world.tuner.survey(world.manifest, "a")

    assert isinstance(first, Survey)
    assert first == second
    assert len(world.labs.surveys) == 1
    assert len(first.points) > 10


async def test_a_dry_run_that_fails_is_tried_once_more(world: World) -> None:
    world.labs.survey_fails = True

    answers = [await world.tuner.survey(world.manifest, "a") for _ in range(4)]

    assert answers == [None] * 4
    assert len(world.labs.surveys) == 2


async def test_nobody_waits_long_for_a_dry_run_of_a_runtime_that_is_gone(world: World) -> None:
    world.engines.missing = frozenset("a")

    assert await world.tuner.survey(world.manifest, "a") is None
