"""`stoker plan`: what would be chosen, without loading anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import BadSetting, LabFailed, MemoryShort, UnknownModel
from stoker.hardware.facts import HardwareFacts
from stoker.planner import Planner
from stoker.schemas import MemoryView, ModelView
from stoker.schemas_machine import PlanRequest
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuning.gains import Offered
from stoker.tuning.launch import LaunchPlan, Profile, Speeds, Survey, SurveyPoint, Trial, Tuned
from stoker.tuning.plan import Wishes, make_plan
from stoker.tuning.speed import Calibration
from stoker.tuning.surveys import survey_grid
from stoker.types import Digest, ModelId, ModelState
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hardware import GIB, machine
from tests.fakes.serving import add_model

pytestmark = pytest.mark.anyio

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
    resident: int = 0
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

    def views(self) -> tuple[ModelView, ...]:
        return tuple(
            ModelView(
                id=str(model),
                state=ModelState.READY,
                memory=MemoryView(
                    predicted_bytes=plan.memory.total_bytes, resident_bytes=self.resident
                ),
            )
            for model, plan in self.plans.items()
        )

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


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    store = Store(root)
    store.open()
    return World(store, add_model(store, "tiny", tiny_gguf()))


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


async def test_without_a_dry_run_formulas_are_good_enough(world: World) -> None:
    world.survey_error = LabFailed("the engine's library was gone")

    view = await world.planner().plan(ask())

    assert view.memory.label == "estimated"


async def test_the_memory_that_the_model_has_counts_as_free(world: World) -> None:
    idle = await world.planner().plan(ask())
    plan = world.launch_plan()
    world.plans[world.manifest.id] = plan
    world.resident = plan.memory.anonymous_bytes + 1
    left = machine().memory.available_bytes - plan.memory.anonymous_bytes
    world.machine = machine(available=left)

    view = await world.planner().plan(ask())

    assert view.memory.usable_bytes == idle.memory.usable_bytes
    assert view.settings == idle.settings
    assert view.loaded


async def test_what_other_models_may_still_take_is_not_free(world: World) -> None:
    idle = await world.planner().plan(ask())
    plan = world.launch_plan()
    world.plans[ModelId("other")] = plan

    view = await world.planner().plan(ask())

    assert view.memory.usable_bytes == idle.memory.usable_bytes - plan.memory.total_bytes
    assert not view.loaded


async def test_the_limit_for_all_models_holds_for_a_plan_too(world: World) -> None:
    """What others have of it is not free, what the model itself has is."""
    plan = world.launch_plan()
    limit = 4 * plan.memory.total_bytes
    world.settings = Settings(memory_limit_bytes=limit)

    alone = await world.planner().plan(ask())
    world.plans[world.manifest.id] = plan
    loaded = await world.planner().plan(ask())
    world.plans[ModelId("other")] = plan
    world.resident = 1000
    beside = await world.planner().plan(ask())

    assert alone.memory.usable_bytes == loaded.memory.usable_bytes == limit - limit // 50
    assert beside.memory.usable_bytes == limit - limit // 50 - plan.memory.total_bytes
    world.settings = Settings(memory_limit_bytes=plan.memory.total_bytes)
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


async def test_a_tuned_model_is_not_told_to_tune(world: World) -> None:
    world.tuned_profiles["chat"] = TUNED

    assert (await world.planner().plan(ask())).gains == ()


async def test_an_unsound_runtime_is_planned_in_safe_mode(world: World) -> None:
    view = await world.planner(safe_mode=lambda _path, runtime: runtime == "xllamacpp-1").plan(
        ask()
    )

    assert view.settings["extra_buffers"] is False
