"""Which models suit a machine, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stoker import catalogue, recommend
from stoker.catalogue import USES, Catalogue, Entry
from stoker.hardware.facts import HardwareFacts
from stoker.recommend import Here, Place, find, judge
from stoker.schemas_machine import RecommendationView
from stoker.settings import Settings
from stoker.store.manifest import Manifest, SourceRecord, Verdict
from stoker.store.store import Store
from stoker.tuning.launch import Profile, Speeds, Trial, Tuned
from stoker.tuning.speed import Calibration
from stoker.types import Digest
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hardware import machine
from tests.fakes.serving import add_model

ENTRIES = catalogue.load().entries
GB = 1_000_000_000
ROOMY = Place(budget_bytes=30 * GB, free_bytes=30 * GB, cpus=8, bandwidth_bytes_per_s=50 * GB)


def _entry(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name.text == name)


def _rows(rows: list[RecommendationView], use: str) -> list[RecommendationView]:
    return [row for row in rows if row.use == use]


def test_every_use_of_every_entry_has_its_row() -> None:
    """Nothing is hidden; who asks decides what to leave out."""
    rows = judge(ENTRIES, ROOMY, {})

    assert len(rows) == sum(len(entry.uses) for entry in ENTRIES)
    assert [use for use in USES if _rows(rows, use)] == list(dict.fromkeys(r.use for r in rows))


@pytest.mark.parametrize("use", ["chat", "coding", "vision", "embedding"])
def test_the_best_that_is_quick_comes_first_and_the_too_large_last(use: str) -> None:
    place = Place(budget_bytes=8 * GB, free_bytes=8 * GB, cpus=4)

    rows = _rows(judge(ENTRIES, place, {}), use)

    order = [(not row.fits, not row.quick) if row.fits else (True, True) for row in rows]
    assert order == sorted(order)
    large = [row.memory_bytes for row in rows if not row.fits]
    assert large == sorted(large)
    assert large
    assert all(size > place.budget_bytes for size in large)


def test_a_machine_with_much_slow_memory_gets_a_mixture_of_experts() -> None:
    """A dense model of that quality would crawl there; few active parameters do not."""
    first = _rows(judge(ENTRIES, ROOMY, {}), "chat")[0]
    entry = _entry(first.name)

    assert entry.active_parameters < entry.parameters / 5
    assert "only" in first.why
    assert "% of it works on each token" in first.why


def test_the_reason_names_what_decided() -> None:
    place = Place(budget_bytes=8 * GB, free_bytes=3 * GB, cpus=4, bandwidth_bytes_per_s=30 * GB)
    rows = {row.name: row for row in _rows(judge(ENTRIES, place, {}), "chat")}

    large, slow, tight = rows["gpt-oss-20b"], rows["qwen3.5-9b"], rows["qwen3.5-4b"]
    assert large.why == "Too large: it needs 13.5 GB, and models may have 8.0 GB here."
    assert slow.why.startswith("It fits, but writes only about 3.0 tokens/s (estimated ")
    assert tight.why.endswith("; 1.3 GB of memory must become free first.")
    assert (tight.fits, tight.fits_now) == (True, False)
    best = next(iter(rows.values()))
    assert best.why.startswith("The best for chats that runs well here: it writes about ")
    assert sum(row.why.startswith("The best") for row in rows.values()) == 1


def test_programming_wants_more_speed_than_talking() -> None:
    place = replace(ROOMY, bandwidth_bytes_per_s=35 * GB)
    rows = judge(ENTRIES, place, {})

    quick = {row.use: row.quick for row in rows if row.name == "granite-4.2-3b"}
    assert quick == {"chat": True, "coding": False}


def test_numbers_say_how_sure_they_are() -> None:
    """Estimated from memory, calibrated by measured models, measured themselves."""
    small = _entry("qwen3.5-2b")
    speeds = Speeds(200.0, 21.0, 50.0)
    calibrated = replace(ROOMY, calibration=Calibration(decode=0.5, work_per_s=1e12))

    plain = {r.name: r for r in judge(ENTRIES, ROOMY, {})}["qwen3.5-4b"]
    other = {
        r.name: r for r in judge(ENTRIES, calibrated, {small: Here(stored=True, speeds=speeds)})
    }
    halved, exact = other["qwen3.5-4b"].speed, other["qwen3.5-2b"].speed

    assert plain.speed is not None
    assert halved is not None
    assert exact is not None
    assert (plain.speed.label, plain.speed.prefill_tokens_per_s) == ("estimated", None)
    assert (halved.label, halved.prefill_label) == ("calibrated", "calibrated")
    assert halved.decode_tokens_per_s == pytest.approx(plain.speed.decode_tokens_per_s / 2)
    assert halved.prefill_tokens_per_s == pytest.approx(1e12 / 4e9)
    assert (exact.label, exact.decode_tokens_per_s) == ("measured", 21.0)
    assert "measured on this machine" in other["qwen3.5-2b"].why
    assert other["qwen3.5-2b"].stored


def test_what_writes_nothing_has_no_writing_speed() -> None:
    rows = judge(ENTRIES, ROOMY, {})

    assert all(row.speed is None for row in rows if row.use in {"embedding", "rerank"})
    assert all(row.speed is not None for row in rows if row.use in {"chat", "vision", "coding"})
    assert _rows(rows, "embedding")[0].quick


def test_a_machine_without_memory_fits_nothing() -> None:
    rows = judge(ENTRIES, Place(0, 0, 1), {})

    assert not any(row.fits or row.fits_now for row in rows)
    assert all(row.why.startswith("Too large") for row in rows)


# --- what is stored, and what was measured ---------------------------------------------------


class Profiles:
    """Knows the speeds of one digest."""

    def __init__(self, digest: Digest, speeds: Speeds) -> None:
        trial = Trial("x", 2, 2, 512, flash_attention=True)
        self._digest = digest
        self._tuned = Tuned("k", "chat", trial, speeds, speeds, 1, 1.0, "2026-01-01T00:00:00Z")

    def tuned(self, model: Digest, hardware: HardwareFacts, profile: Profile) -> Tuned | None:
        assert hardware.effective_cpus
        return self._tuned if (model, profile) == (self._digest, "chat") else None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.open()
    return store


@pytest.fixture
def stored(store: Store) -> Manifest:
    return add_model(store, "mine", tiny_gguf())


def test_a_pinned_entry_is_known_by_its_bytes(stored: Manifest) -> None:
    """Not by its name."""
    entry = _entry("qwen3.5-4b")

    assert find(entry, [replace(stored, id=entry.name)]) is None
    assert find(replace(entry, digest=stored.model_file.digest), [stored]) is stored


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (SourceRecord("hub", "Qwen/Qwen3-VL-4B-Instruct-GGUF:Qwen3VL-4B-Q4_K_M.gguf"), 1),
        (SourceRecord("hub", "qwen/qwen3-vl-4b-instruct-gguf:x-q4_k_m.gguf"), 1),
        (SourceRecord("hub", "Qwen/Qwen3-VL-4B-Instruct-GGUF:Qwen3VL-4B-Q8_0.gguf"), 0),
        (SourceRecord("hub", "other/Qwen3-VL-4B-Instruct-GGUF:x-Q4_K_M.gguf"), 0),
        (SourceRecord("path", "Qwen/Qwen3-VL-4B-Instruct-GGUF:x-Q4_K_M.gguf"), 0),
    ],
)
def test_an_unpinned_entry_is_known_by_its_place(
    stored: Manifest, source: SourceRecord, found: int
) -> None:
    manifest = replace(stored, source=source)

    assert find(_entry("qwen3-vl-4b"), [manifest]) == (manifest if found else None)


def test_the_machine_and_the_store_are_looked_at(
    store: Store, stored: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored and tuned: measured. Not damaged, and not by another's measurements."""
    digest = stored.model_file.digest
    mine = replace(_entry("qwen3.5-2b"), digest=digest)
    monkeypatch.setattr(catalogue, "load", lambda: Catalogue((mine, _entry("qwen3.5-4b"))))
    monkeypatch.setattr(recommend, "probe", lambda: machine(cores=4, total=16 * GB))
    profiles = Profiles(digest, Speeds(100.0, 12.5, 30.0))

    rows = {r.name: r for r in recommend.from_machine(store, Settings(), profiles)}
    bare = {r.name: r for r in recommend.from_machine(store, Settings(), None)}
    store.commit(stored.with_integrity(Verdict("failed", "a byte changed")))
    after = {r.name: r for r in recommend.from_machine(store, Settings(), profiles)}

    speed = rows["qwen3.5-2b"].speed
    assert speed is not None
    assert (speed.label, speed.decode_tokens_per_s) == ("measured", 12.5)
    assert (rows["qwen3.5-2b"].stored, rows["qwen3.5-4b"].stored) == (True, False)
    other = rows["qwen3.5-4b"].speed
    assert other is not None
    assert other.prefill_label == "calibrated"  # the tiny model tells about prompts only
    assert bare["qwen3.5-2b"].speed is not None
    assert bare["qwen3.5-2b"].speed.label == "estimated"
    assert not after["qwen3.5-2b"].stored
    assert after["qwen3.5-4b"].speed is not None
    assert after["qwen3.5-4b"].speed.prefill_tokens_per_s is None


def test_the_reserve_is_not_offered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user keeps for other programs is no room for a model."""
    monkeypatch.setattr(recommend, "probe", lambda: machine(total=8 * GB, available=2 * GB))

    rows = recommend.from_machine(store, Settings(memory_reserve_bytes=GB), None)

    fits = {row.name: (row.fits, row.fits_now) for row in rows}
    assert fits["starter"] == (True, True)
    assert fits["gemma-4-e4b"] == (True, False)
    assert fits["qwen3.5-9b"] == (False, False)
