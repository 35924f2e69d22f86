"""The models with short names."""

from __future__ import annotations

import re

import pytest

from stoker.catalogue import (
    FLOORS,
    USES,
    HubChoice,
    HubFile,
    WheelMember,
    load,
    parse,
    rank,
    recommend,
)
from stoker.errors import InternalError
from stoker.types import HubRef, parse_model_ref

GB = 1_000_000_000


def test_the_packaged_catalogue_is_sound() -> None:
    """Every entry can be fetched, is named once, and needs more memory than its files."""
    entries = load().entries

    assert entries[0].name.text == "starter"
    assert len({entry.name for entry in entries}) == len(entries) >= 40
    digests = [entry.digest for entry in entries if entry.digest is not None]
    assert len(set(digests)) == len(digests) >= 20
    for entry in entries:
        assert entry.sources
        assert entry.memory_bytes > entry.download_bytes
        assert entry.active_parameters <= entry.parameters
        assert all(isinstance(s, HubFile | WheelMember | HubChoice) for s in entry.sources)


def test_licences_are_open_or_said_to_be_unconfirmed() -> None:
    """A pinned entry's licence is known; the others may leave it to the model's page."""
    for entry in load().entries:
        unsure = set() if entry.pinned else {"see the model page"}
        assert entry.licence in {"Apache-2.0", "MIT"} | unsure, entry.name


def test_what_is_not_pinned_can_be_asked_for_by_hand() -> None:
    """The short name stands for a reference that a user could type."""
    open_entries = [entry for entry in load().entries if not entry.pinned]

    assert len(open_entries) >= 10
    for entry in open_entries:
        ref = parse_model_ref(entry.place)
        assert isinstance(ref, HubRef)
        assert (ref.selector, ref.revision) == (entry.quantization, None)


def test_every_use_but_speech_is_served_on_small_machines() -> None:
    """Something for a machine with 4 GB; speech waits for an engine that is asked for it."""
    entries = load().entries
    smallest = {
        use: min((e.memory_bytes for e in entries if e.rank(use)), default=None) for use in USES
    }

    assert smallest.pop("speech") is None
    assert all(size is not None and size < 4 * GB for size in smallest.values()), smallest


def test_a_model_that_sees_brings_a_projector() -> None:
    """And is not pinned: a pinned entry is one file."""
    for entry in load().entries:
        assert bool(entry.projector_bytes) == ("vision" in entry.uses)
        assert not (entry.pinned and entry.projector_bytes)


def test_the_quality_ranks_have_a_source() -> None:
    catalogue = load()

    assert "not a measurement" in catalogue.quality_source
    assert {entry.rank("chat") for entry in catalogue.entries} >= set(range(1, 12))


def test_entries_go_from_small_to_large() -> None:
    sizes = [entry.memory_bytes for entry in load().entries[1:]]

    assert sizes == sorted(sizes)


def test_a_name_is_found_whatever_its_case() -> None:
    """Users type names, not constants."""
    catalogue = load()

    assert catalogue.find("Qwen3.5-4B") is catalogue.find("qwen3.5-4b") is not None
    assert catalogue.find("nothing") is None


def test_names_are_easy_to_type() -> None:
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{2,30}", e.name.text) for e in load().entries)


@pytest.mark.parametrize(
    ("headroom", "cpus", "best"),
    [
        (0, 8, None),
        (GB, 8, "starter"),
        (8 * GB, 6, "gemma-4-e4b"),
        (64 * GB, 4, "qwen3.6-35b-a3b"),  # few active parameters: quick on few cores
        (64 * GB, 2, "qwen3.5-2b"),
        (64 * GB, 1, "qwen3-0.6b"),
    ],
)
def test_the_best_that_fits_and_is_quick_comes_first(
    headroom: int, cpus: int, best: str | None
) -> None:
    """Only what runs in the free memory is recommended, and first what is no pain to use."""
    found = recommend(load().entries, headroom, cpus, None)

    assert (found[0].name.text if found else None) == best
    assert all(entry.memory_bytes <= headroom and entry.rank("chat") for entry in found)


def test_a_measured_bandwidth_counts_more_than_cores() -> None:
    """Many cores on slow memory are no fast machine."""
    slow = recommend(load().entries, 64 * GB, 16, 10 * GB)
    fast = recommend(load().entries, 64 * GB, 16, 400 * GB)

    assert slow[0].rank("chat") < fast[0].rank("chat")
    assert slow[0].is_quick(16, 10 * GB)


def test_what_is_slow_comes_last_and_the_quickest_of_it_first() -> None:
    """It is not hidden: a patient person may want it all the same."""
    entries = load().entries
    found = recommend(entries, 128 * GB, 2, None)

    quick = [entry.is_quick(2, None) for entry in found]
    slow = [entry.tokens_per_s(2, None) for entry in found if not entry.is_quick(2, None)]
    assert quick == sorted(quick, reverse=True)
    assert slow == sorted(slow, reverse=True)
    assert len(found) == len([entry for entry in entries if entry.rank("chat")])


def test_within_a_rank_the_faster_one_wins() -> None:
    """Quality first, then speed; both only among what is quick enough."""
    entries = [e for e in load().entries if e.rank("coding")]
    speeds = {e: 100.0 + number for number, e in enumerate(entries)}
    speeds[entries[0]] = FLOORS["coding"] - 1

    found = rank(entries, "coding", lambda e: speeds[e])

    keys = [(-e.rank("coding"), -speeds[e]) for e in found[:-1]]
    assert found[-1] is entries[0]
    assert keys == sorted(keys)


GOOD = """
format = 2
quality_source = "ours"
[[model]]
name = "x"
title = "X"
summary = "s"
licence = "MIT"
quality = { chat = 1 }
parameters = 10
bytes = 10
quantization = "Q4_0"
memory_bytes = 20
[[model.source]]
kind = "hub"
repo = "a/b"
select = "Q4_0"
"""
PIN = f'sha256 = "{"0" * 64}"'


def test_a_small_catalogue_is_read() -> None:
    (entry,) = parse(GOOD).entries

    assert (entry.pinned, entry.place, entry.uses) == (False, "a/b:Q4_0", ("chat",))
    pinned = GOOD.replace("bytes = 10\n", f"bytes = 10\n{PIN}\n", 1)
    (entry,) = parse(pinned.replace("select", "file")).entries
    assert (entry.pinned, entry.digest is not None) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.replace("format = 2", "format = 1"),
        GOOD.replace("format = 2", "format = 3"),
        GOOD.replace('quality_source = "ours"', ""),
        GOOD.replace("memory_bytes", "memory_byte"),
        GOOD.replace('summary = "s"', 'summary = "s"\ncolour = "red"'),
        GOOD.replace("{ chat = 1 }", "{ }"),
        GOOD.replace("{ chat = 1 }", "{ dancing = 1 }"),
        GOOD.replace("{ chat = 1 }", "{ chat = 0 }"),
        GOOD.replace("select", "file"),  # a file without a digest
        GOOD.replace("bytes = 10\n", f"bytes = 10\n{PIN}\n", 1),  # a digest of what is not chosen
        GOOD.replace('kind = "hub"', 'kind = "disk"'),
        GOOD.replace("[[model.source]]", "[[model.sources]]"),
        "format = [",
        "format = 2\nquality_source = 'x'\nmodel = 3",
    ],
)
def test_a_broken_catalogue_is_our_bug(text: str) -> None:
    """It is packaged with us, so nobody else can have broken it."""
    with pytest.raises(InternalError):
        parse(text)
