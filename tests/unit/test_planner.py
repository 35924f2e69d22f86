"""`stoker plan`: what would be chosen, without loading anything."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stoker.errors import BadSetting, LabFailed, MemoryShort, UnknownModel
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.lifecycle.budget import Room, with_memory
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.ladder import Rung
from stoker.planner import Planner
from stoker.profiles import Profiles
from stoker.schemas_machine import PlanRequest, PlanView
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuning.gains import Offered
from stoker.tuning.launch import LaunchPlan, Profile, Speeds, Survey, SurveyPoint, Trial, Tuned
from stoker.tuning.plan import Wishes, make_plan
from stoker.tuning.speed import Calibration
from stoker.tuning.surveys import survey_grid
from stoker.types import Digest, ModelId, ModelState
from tests.fakes import serving
from tests.fakes.engine import Behaviour
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hardware import GIB, machine
from tests.fakes.serving import Serving, add_model

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
A, B = ModelId("a"), ModelId("b")

TUNED = Tuned(
    "key",
    "chat",
    Trial("native-1", 4, 8, 256, flash_attention=True),
    Speeds(200.0, 40.0, 90.0),
    Speeds(150.0, 40.0, 70.0),
    9,
    60.0,
    "2026-01-02T03:04:05Z",
)


@dataclasses.dataclass
class World:
    """All that a planner asks, and what it asked."""

    store: Store
    manifest: Manifest
    settings: Settings = dataclasses.field(default_factory=Settings)
    machine: HardwareFacts = dataclasses.field(default_factory=machine)
    tuned_profiles: dict[Profile, Tuned] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ("xllamacpp-1", "native-1")
    surveyed: Survey | None = None
    survey_error: LabFailed | None = None
    plans: dict[ModelId, LaunchPlan] = dataclasses.field(default_factory=dict)
    corrections: dict[str, float] = dataclasses.field(default_factory=dict)
    rungs: dict[str, int] = dataclasses.field(default_factory=dict)  # by runtime
    own_bytes: int = 0  # what this model has, loaded
    promised_bytes: int = 0  # to other models
    taken_bytes: int = 0
    candidates: tuple[Candidate, ...] = ()
    offers: tuple[Offered, ...] = ()
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def tuned(self, model: Digest, _hardware: HardwareFacts, profile: Profile) -> Tuned | None:
        assert model == self.manifest.model_file.digest
        return self.tuned_profiles.get(profile)

    def correction(self, model: Digest, runtime: str) -> float:
        assert model == self.manifest.model_file.digest
        return self.corrections.get(runtime, 1.0)

    async def survey(self, manifest: Manifest, runtime: str) -> Survey | None:
        self.asked.append((str(manifest.id), runtime))
        if self.survey_error is not None:
            raise self.survey_error
        return self.surveyed

    def plan_of(self, model: ModelId) -> LaunchPlan | None:
        return self.plans.get(model)

    def room_for(
        self, model: ModelId, hardware: HardwareFacts
    ) -> tuple[Room, tuple[Candidate, ...]]:
        assert model == self.manifest.id
        without = with_memory(hardware, self.own_bytes)
        limit = self.settings.memory_limit_bytes
        return Room(without, self.promised_bytes, self.taken_bytes, limit), self.candidates

    async def rung(self, model: Digest, runtime: str) -> int:
        assert model == self.manifest.model_file.digest
        return self.rungs.get(runtime, 0)

    def planner(self, **more: Any) -> Planner:
        return Planner(
            self.store,
            self.settings,
            self,
            lambda: self.names,
            hardware=lambda: self.machine,
            survey=self.survey,
            lifecycle=self,
            offers=lambda _: self.offers,
            **more,
        )

    def launch_plan(self, **wishes: Any) -> LaunchPlan:
        facts = self.store.facts(self.manifest)
        path = self.store.model_path(self.manifest)
        return make_plan(
            str(self.manifest.id),
            path,
            facts,
            self.machine,
            Wishes(**wishes),
            runtime=self.names[0],
        )


def world_with(folder: Path, model: bytes) -> World:
    root = folder / "store"
    root.mkdir(mode=0o700)
    store = Store(root)
    store.open()
    return World(store, add_model(store, "tiny", model))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_with(tmp_path, tiny_gguf())


@pytest.fixture
def talkative(tmp_path: Path) -> World:
    """Its model can hold long conversations, and this machine has room for a short one."""
    world = world_with(tmp_path, tiny_gguf(context=32768))
    world.settings = Settings(memory_reserve_bytes=0)
    short = world.launch_plan(context=4096, parallel=1, reserve_bytes=0)
    world.machine = machine(available=short.memory.total_bytes)
    return world


def other(size_bytes: int, name: str = "other", *, busy: bool = False) -> Candidate:
    return Candidate(ModelId(name), size_bytes, busy=busy)


Ask = Callable[..., PlanRequest]


def ask(**what: Any) -> PlanRequest:
    return PlanRequest(model="tiny", **what)


async def test_the_plan_is_what_a_load_would_choose(world: World) -> None:
    view = await world.planner().plan(ask())

    expected = world.launch_plan()
    assert view.model == "tiny"
    assert view.runtime == "xllamacpp-1"
    for name, value in view.settings.items():
        assert getattr(expected, name) == value
    assert {reason.setting for reason in view.reasons} == set(view.settings)
    assert view.memory.total_bytes == expected.memory.total_bytes
    assert view.memory.usable_bytes == machine().headroom_bytes - view.memory.reserved_bytes
    assert not view.loaded


async def test_an_alias_names_the_model_too(world: World) -> None:
    view = await world.planner().plan(PlanRequest(model="tiny-alias"))

    assert view.model == "tiny"


async def test_an_unknown_model_is_refused(world: World) -> None:
    with pytest.raises(UnknownModel):
        await world.planner().plan(PlanRequest(model="other"))


async def test_what_if_is_tried_as_if_the_user_had_set_it(world: World) -> None:
    view = await world.planner().plan(
        ask(context=256, parallel=3, threads=5, ubatch=64, gpu_layers=0, profile="quiet")
    )

    sources = {reason.setting: reason.source for reason in view.reasons}
    assert (view.settings["context"], view.settings["parallel"]) == (256, 3)
    assert (view.settings["threads"], view.settings["ubatch"]) == (5, 64)
    assert view.profile == "quiet"
    assert sources["context"] == sources["threads"] == sources["ubatch"] == "user"


async def test_settings_hold_unless_something_else_is_tried(world: World) -> None:
    world.settings = Settings(threads=2, profile="battery", flash_attention=False)

    assert (await world.planner().plan(ask())).settings["threads"] == 2
    assert (await world.planner().plan(ask(threads=3))).settings["threads"] == 3
    with pytest.raises(BadSetting):
        await world.planner().plan(ask(kv_type="q4_0"))


async def test_what_cannot_fit_is_refused_with_numbers(world: World) -> None:
    world.machine = machine(total=16 * GIB, available=GIB)

    with pytest.raises(MemoryShort) as caught:
        await world.planner().plan(ask())
    assert caught.value.facts["free_bytes"] == 0


# --- memory ------------------------------------------------------------------------------------


async def test_a_dry_run_is_asked_for_the_runtime_that_is_used(world: World) -> None:
    plan = world.launch_plan()
    facts = world.store.facts(world.manifest)
    points = tuple(
        SurveyPoint(*wanted, compute_bytes=GIB, kv_bytes=None)
        for wanted in survey_grid(facts, plan)
    )
    world.surveyed = Survey("xllamacpp-1", facts.file_bytes, 0, points)

    view = await world.planner().plan(ask())

    assert world.asked == [("tiny", "xllamacpp-1")]
    assert view.memory.label == "calibrated"
    assert view.memory.compute_bytes >= GIB


async def test_a_gpu_that_only_the_runtime_sees_is_planned_with(world: World) -> None:
    world.names = ("x-vulkan", "xllamacpp-1")

    async def seen(hardware: HardwareFacts, runtime: str) -> HardwareFacts:
        assert runtime == "x-vulkan"
        return dataclasses.replace(hardware, gpus=(GpuFacts("GPU", "other", 8 * GIB, 7 * GIB),))

    view = await world.planner(seen=seen).plan(ask())

    assert view.settings["gpu_layers"] == world.store.facts(world.manifest).block_count + 1
    assert view.memory.gpu_bytes > 0


async def test_without_a_dry_run_formulas_are_good_enough(world: World) -> None:
    world.survey_error = LabFailed("the engine's library was gone")

    view = await world.planner().plan(ask())

    assert view.memory.label == "estimated"


async def test_the_memory_that_the_model_has_counts_as_free(world: World) -> None:
    idle = await world.planner().plan(ask())
    world.plans[world.manifest.id] = plan = world.launch_plan()
    world.own_bytes = machine().headroom_bytes - MIB
    world.machine = machine(available=MIB)

    view = await world.planner().plan(ask())

    assert (view.settings, view.memory) == (idle.settings, idle.memory)
    assert view.memory.total_bytes == plan.memory.total_bytes
    assert (view.evicts, view.loaded) == ((), True)


async def test_what_other_models_may_still_take_is_not_free(world: World) -> None:
    idle = await world.planner().plan(ask())
    world.promised_bytes = GIB

    view = await world.planner().plan(ask())

    assert view.memory.usable_bytes == idle.memory.usable_bytes - GIB


async def test_the_limit_for_all_models_holds_for_a_plan_too(world: World) -> None:
    """What others have of it, and what they were promised, is not free."""
    limit = 4 * world.launch_plan().memory.total_bytes
    world.settings = Settings(memory_limit_bytes=limit)

    alone = await world.planner().plan(ask())
    world.taken_bytes, world.promised_bytes = 1000, MIB
    beside = await world.planner().plan(ask())

    assert alone.memory.usable_bytes == limit - limit // 50
    assert beside.memory.usable_bytes == limit - limit // 50 - MIB - 1000
    world.settings = Settings(memory_limit_bytes=limit // 8)
    with pytest.raises(MemoryShort, match="memory_limit_bytes"):
        await world.planner().plan(ask())


async def test_what_was_learnt_is_shown_and_changes_no_setting(world: World) -> None:
    world.plans[world.manifest.id] = world.launch_plan()
    plain = await world.planner().plan(ask())
    world.corrections = {"xllamacpp-1": 1.5, "native-1": 1.9}

    learnt = await world.planner().plan(ask())

    parts = plain.memory.total_bytes - plain.memory.weights_bytes
    assert plain.memory.learnt_bytes == 0
    assert learnt.memory.learnt_bytes == pytest.approx(parts / 2, abs=1)
    assert learnt.memory.total_bytes == plain.memory.total_bytes + learnt.memory.learnt_bytes
    assert learnt.settings["correction"] == 1.5
    assert learnt.loaded


async def test_a_model_that_runs_with_other_settings_is_not_loaded_so(world: World) -> None:
    world.plans[world.manifest.id] = world.launch_plan(threads=1)

    assert not (await world.planner().plan(ask())).loaded


# --- making room -------------------------------------------------------------------------------


async def test_where_there_is_room_nobody_would_be_unloaded(world: World) -> None:
    world.candidates = (other(GIB), other(GIB, "busy", busy=True))

    view = await world.planner().plan(ask())

    assert (view.evicts, view.waits) == ((), False)
    assert view.memory.usable_bytes == machine().headroom_bytes - view.memory.reserved_bytes


async def test_the_idle_model_is_named_that_would_make_room(world: World) -> None:
    """No more of them than it takes; what it gives back is usable."""
    world.settings = Settings(memory_reserve_bytes=0)
    world.machine = machine(available=MIB)
    world.candidates = (other(GIB), other(2 * GIB, "third"), other(GIB, "busy", busy=True))

    view = await world.planner().plan(ask())

    assert (view.evicts, view.waits) == (("other",), False)
    assert view.memory.usable_bytes == MIB + GIB


async def test_a_longer_conversation_is_worth_an_idle_models_place(talkative: World) -> None:
    alone = await talkative.planner().plan(ask())
    talkative.candidates = (other(GIB),)

    view = await talkative.planner().plan(ask())

    assert (alone.settings["context"], alone.evicts) == (4096, ())
    assert view.evicts == ("other",)
    assert int(view.settings["context"] or 0) > 8192


async def test_a_busy_model_would_be_waited_for(world: World) -> None:
    """When no idle one is enough."""
    world.settings = Settings(memory_reserve_bytes=0)
    world.machine = machine(available=MIB)
    world.candidates = (other(MIB, "idle"), other(GIB, "busy", busy=True))

    view = await world.planner().plan(ask())

    assert (view.evicts, view.waits) == (("busy",), True)
    assert view.memory.usable_bytes == MIB + GIB


async def test_a_model_would_make_room_in_the_limit_for_all_models(world: World) -> None:
    need = world.launch_plan().memory.total_bytes
    limit = 3 * need // 2
    world.settings = Settings(memory_limit_bytes=limit)
    world.taken_bytes, world.promised_bytes = need - MIB, MIB
    world.candidates = (other(need),)

    view = await world.planner().plan(ask())

    assert view.evicts == ("other",)
    assert view.memory.usable_bytes == limit - limit // 50


# --- after failed loads ------------------------------------------------------------------------


async def test_a_plan_is_held_back_as_the_next_load_will_be(world: World) -> None:
    """With the reasons; what is tried out is held back as well."""
    normal = await world.planner().plan(ask())
    world.rungs = {"xllamacpp-1": Rung.SMALL_STEPS}

    view = await world.planner().plan(ask())
    tried = await world.planner().plan(ask(threads=3))

    whys = {reason.setting: reason.why for reason in view.reasons}
    assert (normal.settings["extra_buffers"], normal.settings["ubatch"]) == (True, 512)
    assert (view.settings["extra_buffers"], view.settings["ubatch"]) == (False, 128)
    assert "held back" in whys["extra_buffers"]
    assert "held back" in whys["ubatch"]
    assert (tried.settings["ubatch"], tried.settings["threads"]) == (128, 3)


async def test_what_failed_with_another_runtime_holds_nothing_back(world: World) -> None:
    world.rungs = {"native-1": Rung.PLAIN_BUFFERS}

    builtin = await world.planner().plan(ask())
    world.tuned_profiles["chat"] = TUNED
    native = await world.planner().plan(ask())

    assert (builtin.runtime, builtin.settings["extra_buffers"]) == ("xllamacpp-1", True)
    assert (native.runtime, native.settings["extra_buffers"]) == ("native-1", False)
    assert native.speed is not None
    assert native.speed.label != "measured"  # these settings were not


# --- with a real lifecycle ---------------------------------------------------------------------

real = pytest.mark.skipif(os.name != "posix", reason="the fake engine listens on a UNIX socket")


@dataclasses.dataclass
class Models:
    """The models a and b, and a planner beside the lifecycle that loads them."""

    served: Serving
    planner: Planner

    async def plan(self, model: ModelId) -> PlanView:
        return await self.planner.plan(PlanRequest(model=str(model)))

    async def load(self, model: ModelId) -> LaunchPlan:
        await self.served.lifecycle.load(str(model))
        plan = self.served.lifecycle.plan_of(model)
        assert plan is not None
        return plan


@asynccontextmanager
async def two_models(**settings: Any) -> AsyncIterator[Models]:
    async with serving.serving(models=("a", "b"), **settings) as served:

        def hardware() -> HardwareFacts:
            """Pages of files that a worker maps are free for others, as on a real machine."""
            living = (one for one in served.engine.workers if one.resident_bytes() is not None)
            used = sum(one.peak_bytes() or one.resident_bytes() or 0 for one in living)
            return serving.machine(max(0, served.free_bytes[-1] - used))

        async def no_survey(manifest: Manifest, runtime: str) -> None:
            assert (manifest.id, runtime) in {(A, "fake-1"), (B, "fake-1")}
            await anyio.lowlevel.checkpoint()

        planner = Planner(
            served.store,
            Settings(**settings),
            Profiles(served.home / "tuning"),
            lambda: ("fake-1",),
            hardware=hardware,
            survey=no_survey,
            lifecycle=served.lifecycle,
        )
        yield Models(served, planner)


@asynccontextmanager
async def room_for_one() -> AsyncIterator[Models]:
    """The model a is loaded; there is memory for a or b, but not for both."""
    async with two_models(context=2048, parallel=1, memory_reserve_bytes=0) as models:
        need = (await models.load(A)).memory.total_bytes
        models.served.free_bytes[:] = [7 * need // 4]
        yield models


@real
async def test_the_plan_is_the_one_that_the_next_load_chooses() -> None:
    """The same settings, and the same model leaves; then it is said to be loaded so."""
    async with room_for_one() as models:
        view = await models.plan(B)
        plan = await models.load(B)
        after = await models.plan(B)

        assert (view.evicts, view.waits, view.loaded) == (("a",), False, False)
        assert {name: getattr(plan, name) for name in view.settings} == view.settings
        assert models.served.lifecycle.view(A).state is ModelState.UNLOADED
        assert (after.settings, after.evicts, after.loaded) == (view.settings, (), True)


@real
async def test_a_model_that_answers_would_be_waited_for() -> None:
    async with room_for_one() as models, models.served.lifecycle.lease("a"):
        view = await models.plan(B)

        assert (view.evicts, view.waits) == (("a",), True)


@real
async def test_a_pinned_model_makes_no_room() -> None:
    async with room_for_one() as models:
        await models.served.lifecycle.pin("a", pinned=True)

        with pytest.raises(MemoryShort):
            await models.plan(B)


@real
async def test_a_loaded_model_makes_no_room_for_itself() -> None:
    """Its memory counts as free already, and not twice."""
    async with room_for_one() as models:
        needed = (await models.plan(A)).memory.total_bytes
        models.served.free_bytes[:] = [needed // 2]

        with pytest.raises(MemoryShort):
            await models.plan(A)


@real
async def test_what_a_model_has_is_free_for_itself_only() -> None:
    """For another one, all that it was planned to take is gone."""
    async with two_models(memory_reserve_bytes=0) as models:
        before = await models.plan(A)
        plan = await models.load(A)

        own, others = await models.plan(A), await models.plan(B)

        free, total = before.memory.usable_bytes, plan.memory.total_bytes
        assert own.memory.usable_bytes == pytest.approx(free, abs=MIB)
        assert others.memory.usable_bytes == pytest.approx(free - total, abs=MIB)
        assert (before.loaded, own.loaded, others.loaded) == (False, True, False)


@real
async def test_what_a_model_has_of_the_limit_is_free_for_itself_only() -> None:
    limit = GIB
    async with two_models(memory_limit_bytes=limit) as models:
        plan = await models.load(A)

        own, others = await models.plan(A), await models.plan(B)

        usable = limit - limit // 50
        assert own.memory.usable_bytes == usable
        assert others.memory.usable_bytes == usable - plan.memory.total_bytes


@real
async def test_a_model_that_runs_held_back_is_said_to_be_loaded_so() -> None:
    """And that is what is planned for its next load, too."""

    def too_large(plan: LaunchPlan) -> Behaviour | None:
        return Behaviour(crash_at_start="oom") if plan.cells > plan.context else None

    async with two_models() as models:
        normal = await models.plan(A)
        models.served.engine.by_plan = too_large
        await models.load(A)

        running = await models.plan(A)
        await models.served.lifecycle.unload("a")
        gone = await models.plan(A)

        assert models.served.engine.launches[0].cells == normal.settings["cells"]
        assert running.settings["cells"] == running.settings["context"]
        assert running.settings == gone.settings != normal.settings
        assert any("held back" in reason.why for reason in running.reasons)
        assert (running.loaded, gone.loaded) == (True, False)


# --- speed -------------------------------------------------------------------------------------


async def test_measured_settings_bring_their_measured_speeds(world: World) -> None:
    world.tuned_profiles["chat"] = TUNED

    view = await world.planner().plan(ask())

    assert view.runtime == "native-1"
    assert world.asked == [("tiny", "native-1")]
    assert view.speed is not None
    assert view.speed.label == "measured"
    assert view.speed.decode_tokens_per_s == 40.0
    assert view.speed.batch_tokens_per_s == 90.0


async def test_other_settings_than_the_measured_ones_are_only_estimated(world: World) -> None:
    world.tuned_profiles["chat"] = TUNED

    view = await world.planner().plan(ask(threads=1))

    assert view.speed is not None
    assert view.speed.label == "estimated"
    assert view.speed.batch_tokens_per_s is None


async def test_measurements_of_another_profile_or_a_lost_runtime_are_not_used(
    world: World,
) -> None:
    world.tuned_profiles["chat"] = TUNED

    assert (await world.planner().plan(ask(profile="batch"))).runtime == "xllamacpp-1"
    world.names = ("xllamacpp-1",)
    assert (await world.planner().plan(ask())).runtime == "xllamacpp-1"


async def test_a_forecast_is_calibrated_by_other_models(world: World) -> None:
    plain = await world.planner().plan(ask())
    calibrated = await world.planner(
        calibration=lambda _hardware, _profile: Calibration(decode=0.5, work_per_s=1e9)
    ).plan(ask())

    assert plain.speed is not None
    assert calibrated.speed is not None
    assert (plain.speed.label, calibrated.speed.label) == ("estimated", "calibrated")
    assert calibrated.speed.decode_tokens_per_s == plain.speed.decode_tokens_per_s / 2
    assert plain.speed.prefill_tokens_per_s is None


# --- what one could gain -----------------------------------------------------------------------


async def test_gains_come_from_this_machine(world: World) -> None:
    world.machine = machine(cores=8, quota=2)
    world.offers = (Offered("native", "this CPU has AVX-512"),)

    view = await world.planner().plan(ask())

    assert [gain.change for gain in view.gains] == ["quota", "runtime", "tune"]
    assert view.gains[2].command == "stoker tune tiny"


async def test_more_memory_brings_what_it_is_said_to_bring(talkative: World) -> None:
    """It is planned as if that much more were free."""
    talkative.promised_bytes = MIB
    talkative.machine = machine(available=talkative.machine.headroom_bytes + MIB)

    view = await talkative.planner().plan(ask())
    talkative.machine = machine(available=talkative.machine.headroom_bytes + 250_000_000)
    longer = await talkative.planner().plan(ask())

    said = next(gain.text for gain in view.gains if gain.change == "memory")
    found = re.search(r"([\d,]+) tokens long instead of 4,096", said)
    assert found is not None
    assert int(found[1].replace(",", "")) == longer.settings["context"]


async def test_a_tuned_model_is_not_told_to_tune(world: World) -> None:
    world.tuned_profiles["chat"] = TUNED

    assert (await world.planner().plan(ask())).gains == ()


async def test_an_unsound_runtime_is_planned_in_safe_mode(world: World) -> None:
    view = await world.planner(safe_mode=lambda _path, runtime: runtime == "xllamacpp-1").plan(
        ask()
    )

    assert view.settings["extra_buffers"] is False
