"""Where a short name of the catalogue leads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stoker.catalogue import Catalogue, Entry, HubChoice, load
from stoker.pull.wanted import Pinned, Wanted, wanted
from stoker.settings import Settings
from stoker.store.manifest import Manifest, SourceRecord, Verdict
from stoker.store.store import Store
from stoker.types import HubRef, RepoId
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.serving import add_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def entry() -> Entry:
    """One that the Hub resolves."""
    return next(one for one in load().entries if not one.pinned)


@pytest.fixture
def stored(tmp_path: Path, entry: Entry) -> Manifest:
    store = Store(tmp_path / "store")
    store.open()
    manifest = add_model(store, entry.name.text, tiny_gguf())
    source = SourceRecord("hub", f"{entry.place.split(':')[0]}:x-Q8_0.gguf", COMMIT)
    return replace(manifest, source=source)


def _asked(entry: Entry, *manifests: Manifest) -> Wanted:
    return wanted(
        entry.name.text,
        None,
        catalogue=Catalogue([entry]),
        manifests=manifests,
        settings=Settings(),
    )


def test_an_entry_with_a_digest_is_pinned() -> None:
    entry = load().entries[0]

    found = _asked(entry)

    assert found.model == entry.name
    assert all(isinstance(place, Pinned) and place.entry is entry for place in found.places)


def test_an_entry_without_one_is_asked_of_the_hub(entry: Entry) -> None:
    source = entry.sources[0]
    assert isinstance(source, HubChoice)

    assert _asked(entry) == Wanted((HubRef(source.repo, source.selector),), entry.name)


def test_a_newer_version_of_it_may_be_pulled(entry: Entry, stored: Manifest) -> None:
    """The place is the same; `check_name` lets it replace itself."""
    (place,) = _asked(entry, stored).places

    assert isinstance(place, HubRef)
    assert place.revision is None


def test_a_damaged_one_is_repaired_with_the_very_same_bytes(entry: Entry, stored: Manifest) -> None:
    """Not with what the Hub has today: a repair must not change the model."""
    damaged = stored.with_integrity(Verdict("failed", "a byte changed"))

    (place,) = _asked(entry, damaged).places

    assert isinstance(place, HubRef)
    assert (place.repo, place.revision) == (RepoId.parse(entry.place.split(":")[0]), COMMIT)
    assert place.selector == "x-Q8_0.gguf"
