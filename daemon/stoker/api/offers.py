"""The catalogue, judged for this machine: what to suggest to somebody who wants a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stoker import catalogue
from stoker.catalogue import Entry
from stoker.hardware.assess import reserve_bytes
from stoker.hardware.probe import probe
from stoker.schemas import OfferView
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.types import Digest


def from_machine(store: Store, settings: Settings) -> list[OfferView]:
    """For this machine at this moment. Blocking."""
    facts = probe()
    free = facts.headroom_bytes - reserve_bytes(facts, settings.memory_reserve_bytes)
    stored = {
        digest for manifest in store.list() if not manifest.damaged for digest in manifest.digests
    }
    return judge(catalogue.load().entries, free, facts.effective_cpus, stored)


def judge(
    entries: Iterable[Entry], free_bytes: int, cpus: int, stored: Collection[Digest]
) -> list[OfferView]:
    """Those that fit, the best first; then those that do not, the smallest first. Pure."""
    every = tuple(entries)
    fitting = catalogue.recommend(every, free_bytes, cpus)
    rest = sorted((one for one in every if one not in fitting), key=lambda one: one.memory_bytes)
    return [
        OfferView(
            name=str(entry.name),
            title=entry.title,
            summary=entry.summary,
            licence=entry.licence,
            bytes=entry.bytes,
            memory_bytes=entry.memory_bytes,
            fits=entry in fitting,
            quick=entry.is_quick(cpus),
            stored=entry.digest in stored,
        )
        for entry in (*fitting, *rest)
    ]
