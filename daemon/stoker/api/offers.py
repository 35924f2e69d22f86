"""The catalogue, judged for this machine: what to suggest to somebody who wants a model.

The short form of `recommend`, for menus: each model once, judged by what is free now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stoker.late import late
from stoker.schemas import OfferView
from stoker.schemas_machine import RecommendationView
from stoker.settings import Settings
from stoker.store.store import Store

if TYPE_CHECKING:
    from stoker import recommend
    from stoker.recommend import Tunings
else:  # asked for now and then
    recommend = late("stoker.recommend")


def from_machine(
    store: Store, settings: Settings, profiles: Tunings | None = None
) -> list[OfferView]:
    """For this machine at this moment. Blocking."""
    return judge(recommend.from_machine(store, settings, profiles))


def judge(rows: Iterable[RecommendationView]) -> list[OfferView]:
    """Those that fit now as they were recommended; then those that do not, the smallest first.

    Recommendations begin with models for a chat, and so do these. Pure.
    """
    first: dict[str, RecommendationView] = {}
    for row in rows:
        first.setdefault(row.name, row)
    fitting = [row for row in first.values() if row.fits_now]
    rest = sorted((r for r in first.values() if not r.fits_now), key=lambda r: r.memory_bytes)
    return _offers((*fitting, *rest))


def _offers(rows: Sequence[RecommendationView]) -> list[OfferView]:
    return [
        OfferView(
            name=row.name,
            title=row.title,
            summary=row.summary,
            licence=row.licence,
            bytes=row.bytes,
            memory_bytes=row.memory_bytes,
            fits=row.fits_now,
            quick=row.quick,
            stored=row.stored,
        )
        for row in rows
    ]
