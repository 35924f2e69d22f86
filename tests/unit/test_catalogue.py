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
    ("headroom", "best"),
    [(0, None), (GB, "starter"), (8 * GB, "qwen3.5-9b"), (64 * GB, "qwen3.6-35b-a3b")],
)
def test_the_best_that_fits_comes_first(headroom: int, best: str | None) -> None:
    """Only what runs in the free memory is recommended."""
    found = recommend(load().entries, headroom)

    assert (found[0].name.text if found else None) == best
    assert all(entry.memory_bytes <= headroom for entry in found)


@pytest.mark.parametrize(
    "text",
    ["", "format = 2", "format = 1\n[[model]]\nname = 'x'", "format = [", "format = 1\nmodel = 3"],
)
def test_a_broken_catalogue_is_our_bug(text: str) -> None:
    """It is packaged with us, so nobody else can have broken it."""
    with pytest.raises(InternalError):
        parse(text)
