from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stoker import catalogue
from stoker.api.offers import from_machine, judge
from stoker.catalogue import Catalogue
from stoker.settings import Settings
from stoker.store.manifest import Verdict
from stoker.store.store import Store
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.serving import add_model

ENTRIES = catalogue.load().entries
GIB = 1 << 30


def test_those_that_fit_come_first_and_none_is_left_out() -> None:
    """In the order of the recommendation; then the others, the smallest first."""
    offers = judge(ENTRIES, 4 * GIB, 4, ())

    fitting = [str(entry.name) for entry in catalogue.recommend(ENTRIES, 4 * GIB, 4)]
    assert [one.name for one in offers if one.fits] == fitting
    assert [one.fits for one in offers] == sorted((one.fits for one in offers), reverse=True)
    rest = [one.memory_bytes for one in offers if not one.fits]
    assert rest == sorted(rest)
    assert len(offers) == len(ENTRIES)
    assert rest


def test_an_offer_says_what_there_is_to_know() -> None:
    (offer,) = judge(ENTRIES[:1], GIB, 64, {ENTRIES[0].digest})

    entry = ENTRIES[0]
    assert (offer.name, offer.title, offer.licence) == (str(entry.name), entry.title, entry.licence)
    assert (offer.bytes, offer.memory_bytes) == (entry.bytes, entry.memory_bytes)
    assert (offer.fits, offer.quick, offer.stored) == (True, True, True)


def test_a_machine_without_memory_fits_nothing() -> None:
    assert not any(one.fits or one.stored for one in judge(ENTRIES, 0, 1, ()))


def test_what_is_stored_is_known_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its name, and not when they are damaged; the machine is really looked at."""
    store = Store(tmp_path / "store")
    store.open()
    manifest = add_model(store, str(ENTRIES[0].name), tiny_gguf())
    same = replace(ENTRIES[1], digest=manifest.model_file.digest)
    monkeypatch.setattr(catalogue, "load", lambda: Catalogue((ENTRIES[0], same)))

    before = {one.name: one.stored for one in from_machine(store, Settings())}
    store.commit(manifest.with_integrity(Verdict("failed", "a byte changed")))
    after = {one.name: one.stored for one in from_machine(store, Settings())}

    assert before == {str(ENTRIES[0].name): False, str(same.name): True}
    assert not any(after.values())
