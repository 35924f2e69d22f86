"""The models with short names."""

from __future__ import annotations

import pytest

from stoker.catalogue import HubFile, WheelMember, load, parse, recommend
from stoker.errors import InternalError

GB = 1_000_000_000


def test_the_packaged_catalogue_is_sound() -> None:
    """Every entry can be fetched, is named once, and needs more memory than its file."""
    entries = load().entries

    assert entries[0].name.text == "starter"
    assert len({entry.name for entry in entries}) == len(entries) >= 9
    assert len({entry.digest for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.sources
        assert entry.memory_bytes > entry.bytes
        assert entry.active_parameters <= entry.parameters
        assert entry.licence in {"Apache-2.0", "MIT"}
        assert all(isinstance(source, HubFile | WheelMember) for source in entry.sources)


def test_entries_go_from_small_to_good() -> None:
    """The order of the file is what `recommend` stands on."""
    sizes = [entry.memory_bytes for entry in load().entries]

    assert sizes == sorted(sizes)


def test_a_name_is_found_whatever_its_case() -> None:
    """Users type names, not constants."""
    catalogue = load()

    assert catalogue.find("Qwen3.5-4B") is catalogue.find("qwen3.5-4b") is not None
    assert catalogue.find("nothing") is None


@pytest.mark.parametrize(
    ("headroom", "cpus", "best"),
    [
        (0, 8, None),
        (GB, 8, "starter"),
        (8 * GB, 16, "qwen3.5-9b"),
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
    found = recommend(load().entries, headroom, cpus)

    assert (found[0].name.text if found else None) == best
    assert all(entry.memory_bytes <= headroom for entry in found)


def test_what_is_slow_comes_last_and_the_quickest_of_it_first() -> None:
    """It is not hidden: a patient person may want it all the same."""
    found = recommend(load().entries, 64 * GB, 2)

    quick = [entry.is_quick(2) for entry in found]
    slow = [entry for entry in found if not entry.is_quick(2)]
    assert quick == sorted(quick, reverse=True)
    assert len(found) == len(load().entries)
    assert [entry.name.text for entry in (slow[0], slow[-1])] == ["qwen3.6-35b-a3b", "qwen3.5-9b"]


@pytest.mark.parametrize(
    "text",
    ["", "format = 2", "format = 1\n[[model]]\nname = 'x'", "format = [", "format = 1\nmodel = 3"],
)
def test_a_broken_catalogue_is_our_bug(text: str) -> None:
    """It is packaged with us, so nobody else can have broken it."""
    with pytest.raises(InternalError):
        parse(text)
