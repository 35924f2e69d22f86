"""What a load is planned from: the settings as wishes, what was measured, what is free."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from stoker.errors import MemoryShort
from stoker.hardware.facts import GpuFacts
from stoker.lifecycle import loading
from stoker.lifecycle.budget import Room
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.loading import Loadable
from stoker.settings import Settings
from stoker.store.facts import ModelFacts
from stoker.store.manifest import FileRole, Manifest, ManifestFile, SourceRecord, Trust, Verdict
from stoker.tuning.launch import Speeds, Trial, Tuned, Wishes
from stoker.types import Digest, Filename, ModelId
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import EIGHT_B, STARTER

TUNED = Tuned(
    "key",
    "chat",
    Trial("native-1", 3, 3, 256, flash_attention=True),
    Speeds(1, 1, 1),
    Speeds(1, 1, 1),
    5,
    60.0,
    "2026-01-02T03:04:05Z",
)


def loadable(facts: ModelFacts) -> Loadable:
    good = Verdict("ok", "as expected")
    file = ManifestFile(
        Filename.parse("m.gguf"), FileRole.MODEL, Digest.parse("ab" * 32), facts.file_bytes
    )
    manifest = Manifest(
        id=ModelId.parse("m"),
        source=SourceRecord("path", "m.gguf"),
        files=(file,),
        trust=Trust(good, good, good, good),
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    return Loadable(manifest, facts, Path("m.gguf"), None, 0)


def test_every_setting_of_a_plan_becomes_a_wish() -> None:
    settings = Settings(
        context=4096,
        threads=3,
        threads_batch=5,
        parallel=2,
        memory_reserve_bytes=7,
        profile="coding",
        ubatch=256,
        flash_attention=True,
        kv_type="q8_0",
        gpu_layers=9,
    )

    assert loading.wishes(settings, safe_mode=True) == Wishes(
        context=4096,
        threads=3,
        threads_batch=5,
        parallel=2,
        reserve_bytes=7,
        safe_mode=True,
        no_gpu=True,
        profile="coding",
        ubatch=256,
        flash_attention=True,
        kv_type="q8_0",
        gpu_layers=9,
    )


def test_what_is_not_set_is_left_to_the_plan() -> None:
    assert loading.wishes(Settings(), safe_mode=False) == Wishes()


def test_measured_settings_and_the_runtime_reach_the_plan() -> None:
    tuned, untuned = (
        loading.plan_load(
            loadable(STARTER),
            Room(machine()),
            Wishes(),
            runtime="builtin-1",
            tuned=found,
        ).plan
        for found in (TUNED, None)
    )

    assert (tuned.runtime, tuned.threads, tuned.ubatch) == ("native-1", 3, 256)
    assert (untuned.runtime, untuned.threads) == ("builtin-1", 8)


def test_what_loaded_models_may_still_take_is_not_free() -> None:
    hardware = machine(total=64 * GIB, available=12 * GIB)
    wishes = Wishes(reserve_bytes=0)

    free, less = (
        loading.plan_load(loadable(EIGHT_B), Room(hardware, promised), wishes).plan
        for promised in (0, 4 * GIB)
    )

    assert less.context < free.context


def test_an_idle_model_goes_when_the_plan_needs_its_place() -> None:
    hardware = machine(total=64 * GIB, available=2 * GIB)
    other = Candidate(ModelId.parse("other"), 6 * GIB, busy=False)

    choice = loading.plan_load(
        loadable(EIGHT_B), Room(hardware), Wishes(reserve_bytes=0), candidates=(other,)
    )

    assert choice.victims == (other.model,)


def test_an_idle_model_goes_for_its_place_on_the_gpu() -> None:
    """8 GiB of it: each of the two fits alone. The system's memory would hold them all."""
    gpus = (GpuFacts("GPU", "nvidia", 8 * GIB, 2 * GIB),)
    room = Room(machine(total=64 * GIB, gpus=gpus))
    small = Candidate(ModelId.parse("small"), GIB, busy=False)
    other = Candidate(ModelId.parse("other"), GIB, busy=False, gpu_bytes=6 * GIB)

    choice, alone = (
        loading.plan_load(
            loadable(EIGHT_B), room, Wishes(), runtime="x-cuda", candidates=candidates
        )
        for candidates in ((small, other), (small,))
    )

    assert choice.victims == (other.model,)
    assert choice.plan.gpu_layers == EIGHT_B.block_count + 1
    assert alone.victims == ()
    assert alone.plan.gpu_layers < choice.plan.gpu_layers


def test_layers_that_the_user_set_get_their_place() -> None:
    """What was refused as too much for the GPU fits once an idle model has left it."""
    gpus = (GpuFacts("GPU", "nvidia", 8 * GIB, 2 * GIB),)
    room, wanted = Room(machine(total=64 * GIB, gpus=gpus)), Wishes(gpu_layers=33)
    other = Candidate(ModelId.parse("other"), GIB, busy=False, gpu_bytes=6 * GIB)

    with pytest.raises(MemoryShort):
        loading.plan_load(loadable(EIGHT_B), room, wanted, runtime="x-cuda")
    choice = loading.plan_load(
        loadable(EIGHT_B), room, wanted, runtime="x-cuda", candidates=(other,)
    )

    assert choice.victims == (other.model,)


# --- the user's limit ------------------------------------------------------------------------


def limited(limit: int, *, taken: int = 0, promised: int = 0) -> Room:
    """A machine with far more memory than the limit, of which loaded models have some."""
    return Room(machine(total=64 * GIB), promised, taken, limit)


def test_a_limit_holds_however_much_is_free() -> None:
    """And it is not reduced by the reserve, which is others' share of what lies beyond it."""
    free = loading.plan_load(loadable(EIGHT_B), Room(machine(total=64 * GIB)), Wishes()).plan
    held = loading.plan_load(loadable(EIGHT_B), limited(6 * GIB), Wishes()).plan

    assert free.memory.total_bytes > 6 * GIB
    assert 5 * GIB < held.memory.total_bytes <= 6 * GIB
    assert "limit for all models" in next(
        one.why for one in held.reasons if one.setting == "context"
    )


def test_what_loaded_models_have_is_part_of_the_limit() -> None:
    """Whether it is in their hands already, or only promised to them."""
    taken, promised = (
        loading.plan_load(loadable(EIGHT_B), room, Wishes()).plan
        for room in (limited(12 * GIB, taken=4 * GIB), limited(12 * GIB, promised=4 * GIB))
    )

    assert taken.context == promised.context
    assert taken.memory.total_bytes <= 8 * GIB


def test_an_idle_model_goes_when_the_limit_needs_its_place() -> None:
    other = Candidate(ModelId.parse("other"), 6 * GIB, busy=False)
    room = limited(9 * GIB, taken=5 * GIB, promised=GIB)

    choice = loading.plan_load(loadable(EIGHT_B), room, Wishes(), candidates=(other,))

    assert choice.victims == (other.model,)
    assert choice.plan.memory.total_bytes <= 9 * GIB


def test_beyond_the_limit_is_refused_with_its_name() -> None:
    with pytest.raises(MemoryShort) as caught:
        loading.plan_load(loadable(EIGHT_B), limited(2 * GIB), Wishes())

    assert "memory_limit_bytes" in caught.value.message
    assert "raise memory_limit_bytes" in caught.value.hint.lower()
    assert caught.value.facts["free_bytes"] == 2 * GIB - 2 * GIB // 50


# --- what was learnt -------------------------------------------------------------------------


def test_a_model_that_took_more_than_computed_is_counted_higher() -> None:
    """All but its weights, whose size is known."""
    room, wanted = Room(machine(total=64 * GIB)), Wishes(context=4096)
    plain, learnt = (
        loading.plan_load(loadable(EIGHT_B), room, wanted, correction=factor).plan.memory
        for factor in (1.0, 1.25)
    )

    assert learnt.weights_bytes == plain.weights_bytes
    assert learnt.computed_bytes == plain.computed_bytes == plain.anonymous_bytes
    assert learnt.anonymous_bytes == pytest.approx(1.25 * plain.anonymous_bytes, abs=1)
    assert learnt.learnt_bytes == learnt.anonymous_bytes - plain.anonymous_bytes


def test_what_was_learnt_shortens_the_context_rather_than_being_passed() -> None:
    room = Room(machine(total=64 * GIB, available=9 * GIB))
    plain, learnt = (
        loading.plan_load(loadable(EIGHT_B), room, Wishes(reserve_bytes=0), correction=factor).plan
        for factor in (1.0, 1.5)
    )

    assert learnt.context < plain.context
    assert learnt.memory.total_bytes <= 9 * GIB
    why = next(one for one in learnt.reasons if one.setting == "correction")
    assert (why.value, why.source) == (1.5, "measured")
    assert "50% more" in why.why
    assert all(one.setting != "correction" for one in plain.reasons)


def test_what_fits_not_even_alone_is_refused() -> None:
    with pytest.raises(MemoryShort):
        loading.plan_load(loadable(EIGHT_B), Room(machine(total=2 * GIB)), Wishes())
