"""What a load is planned from: the settings as wishes, what was measured, what is free."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from stoker.errors import MemoryShort
from stoker.lifecycle import loading
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
            machine(),
            Wishes(),
            promised_bytes=0,
            candidates=(),
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
        loading.plan_load(
            loadable(EIGHT_B), hardware, wishes, promised_bytes=promised, candidates=()
        ).plan
        for promised in (0, 4 * GIB)
    )

    assert less.context < free.context


def test_an_idle_model_goes_when_the_plan_needs_its_place() -> None:
    hardware = machine(total=64 * GIB, available=2 * GIB)
    other = Candidate(ModelId.parse("other"), 6 * GIB, busy=False)

    choice = loading.plan_load(
        loadable(EIGHT_B),
        hardware,
        Wishes(reserve_bytes=0),
        promised_bytes=0,
        candidates=(other,),
    )

    assert choice.victims == (other.model,)


def test_what_fits_not_even_alone_is_refused() -> None:
    with pytest.raises(MemoryShort):
        loading.plan_load(
            loadable(EIGHT_B), machine(total=2 * GIB), Wishes(), promised_bytes=0, candidates=()
        )
