from __future__ import annotations

from pathlib import Path

from stoker import catalogue, recommend
from stoker.api.offers import from_machine, judge
from stoker.recommend import Here, Place
from stoker.settings import Settings
from stoker.store.store import Store

ENTRIES = catalogue.load().entries
GB = 1_000_000_000
SMALL = Place(budget_bytes=12 * GB, free_bytes=5 * GB, cpus=4)


def test_those_that_fit_come_first_and_none_is_left_out() -> None:
    """In the order of the recommendation; then the others, the smallest first."""
    rows = recommend.judge(ENTRIES, SMALL, {})
    offers = judge(rows)

    chats = [row.name for row in rows if row.use == "chat" and row.fits_now]
    fitting = [one.name for one in offers if one.fits]
    assert fitting[: len(chats)] == chats
    assert [one.fits for one in offers] == sorted((one.fits for one in offers), reverse=True)
    rest = [one.memory_bytes for one in offers if not one.fits]
    assert rest == sorted(rest)
    assert {one.name for one in offers} == {str(entry.name) for entry in ENTRIES}
    assert len(offers) == len(ENTRIES)
    assert chats
    assert rest


def test_an_offer_says_what_there_is_to_know() -> None:
    entry = ENTRIES[0]
    offers = judge(recommend.judge(ENTRIES, SMALL, {entry: Here(stored=True)}))

    (offer,) = [one for one in offers if one.stored]
    assert (offer.name, offer.title, offer.licence) == (str(entry.name), entry.title, entry.licence)
    assert (offer.bytes, offer.memory_bytes) == (entry.download_bytes, entry.memory_bytes)
    assert (offer.fits, offer.quick) == (True, True)


def test_a_model_for_two_uses_is_offered_once_and_judged_for_a_chat() -> None:
    """Ten tokens per second are enough to talk, and too few for programming."""
    place = Place(30 * GB, 30 * GB, 4, bandwidth_bytes_per_s=35 * GB)
    rows = recommend.judge(ENTRIES, place, {})
    name = "granite-4.2-3b"

    (offer,) = [one for one in judge(rows) if one.name == name]

    assert {row.use: row.quick for row in rows if row.name == name} == {
        "chat": True,
        "coding": False,
    }
    assert offer.quick


def test_a_machine_without_memory_fits_nothing() -> None:
    offers = judge(recommend.judge(ENTRIES, Place(0, 0, 1), {}))

    assert not any(one.fits or one.stored for one in offers)


def test_the_machine_is_really_looked_at(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.open()

    offers = from_machine(store, Settings(memory_reserve_bytes=0))

    assert next(one for one in offers if one.name == "starter").fits
    assert not any(one.stored for one in offers)
