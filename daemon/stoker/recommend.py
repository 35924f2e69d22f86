"""Which models of the catalogue suit this machine, how fast they will be, and why.

`judge` is pure: entries, a machine and what was measured on it go in, rows with a sentence each
come out. `from_machine` looks at the machine. Not for: the catalogue itself, nor downloads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from stoker import catalogue, paths
from stoker.catalogue import FLOORS, USES, WRITES, Entry, HubChoice, Use
from stoker.errors import StokerError
from stoker.hardware.assess import reserve_bytes, usable_total_bytes
from stoker.hardware.facts import HardwareFacts
from stoker.hardware.measure import known, with_measured
from stoker.hardware.probe import probe
from stoker.schemas_machine import PredictionView, RecommendationView
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuning.launch import Profile, Speeds, Tuned
from stoker.tuning.reading import reading
from stoker.tuning.speed import (
    Calibration,
    Label,
    Measured,
    Prediction,
    calibrate,
    predict,
    predict_prefill,
)
from stoker.types import Digest

log = structlog.get_logger(__name__)

_SPARSE: Final = 0.3  # of the parameters: below, that is what makes it quick
_CONFIDENCE: Final[dict[Label, str]] = {
    "measured": "measured on this machine",
    "calibrated": "calibrated with models measured on this machine",
    "estimated": "estimated from this machine's memory",
}
_USE_WORDS: Final[dict[Use, str]] = {
    "chat": "chats",
    "coding": "programming",
    "vision": "pictures",
    "embedding": "searching by meaning",
    "rerank": "sorting search results",
    "speech": "speech",
}


class Tunings(Protocol):
    """What was measured; `profiles.Profiles`."""

    def tuned(self, model: Digest, hardware: HardwareFacts, profile: Profile) -> Tuned | None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A machine as far as it matters to a recommendation."""

    budget_bytes: int  # that all models together may ever have
    free_bytes: int  # of it, now
    cpus: int
    bandwidth_bytes_per_s: float | None = None
    calibration: Calibration = field(default_factory=Calibration)


@dataclass(frozen=True, slots=True)
class Here:
    """What the store and the tuner know of an entry."""

    stored: bool = False
    speeds: Speeds | None = None


def from_machine(
    store: Store,
    settings: Settings,
    profiles: Tunings | None,
    places: paths.Paths | None = None,
) -> list[RecommendationView]:
    """For this machine at this moment: see `judge`. Blocking.

    Without `profiles` every speed is an estimate.
    """
    facts = probe()
    facts = with_measured(facts, known(places or paths.from_environment(), facts))
    reserve = reserve_bytes(facts, settings.memory_reserve_bytes)
    place = Place(
        budget_bytes=max(0, usable_total_bytes(facts) - reserve),
        free_bytes=max(0, facts.headroom_bytes - reserve),
        cpus=facts.effective_cpus,
        bandwidth_bytes_per_s=facts.bandwidth_bytes_per_s,
        calibration=calibration(store, profiles, facts, settings.profile),
    )
    manifests = [manifest for manifest in store.list() if not manifest.damaged]
    entries = catalogue.load().entries
    here = {
        entry: _here(stored, profiles, facts, settings.profile)
        for entry in entries
        if (stored := find(entry, manifests)) is not None
    }
    return judge(entries, place, here)


def calibration(
    store: Store, profiles: Tunings | None, hardware: HardwareFacts, profile: Profile
) -> Calibration:
    """What the models that were tuned on this machine say about all others. Blocking."""
    models = []
    for manifest in store.list():
        tuned = _tuned(manifest, profiles, hardware, profile)
        if tuned is None or manifest.damaged or tuned.best.gpu_layers:
            continue  # what a GPU computed says nothing of the processor
        try:
            read = reading(store.facts(manifest))
        except StokerError as error:
            log.warning("calibration_without", model=str(manifest.id), reason=error.code)
            continue
        speeds = tuned.speeds
        models.append(Measured(read, speeds.decode_tokens_per_s, speeds.prefill_tokens_per_s))
    return calibrate(models, hardware.bandwidth_bytes_per_s, hardware.effective_cpus)


def find(entry: Entry, manifests: Iterable[Manifest]) -> Manifest | None:
    """The stored model that this entry stands for: the same bytes, or the same place."""
    for manifest in manifests:
        if entry.digest is not None:
            # With a projector beside it, it is the entry with vision and not this one as well.
            if manifest.model_file.digest == entry.digest:
                return manifest
        elif any(_came_from(manifest, source) for source in entry.sources):
            return manifest
    return None


def judge(
    entries: Sequence[Entry], place: Place, here: Mapping[Entry, Here]
) -> list[RecommendationView]:
    """Use by use, a row per use that an entry is meant for. Pure.

    Within a use: what can run here and is quick, the best first; then what can run and is slow,
    the quickest first; then what is too large, the smallest first.
    """
    rows: list[RecommendationView] = []
    for use in USES:
        fitting = [one for one in entries if one.memory_bytes <= place.budget_bytes]
        ranked = catalogue.rank(fitting, use, lambda one: _speed(one, place, here)[0])
        large = [one for one in entries if one.rank(use) and one not in ranked]
        large.sort(key=lambda one: one.memory_bytes)
        rows += [
            _view(entry, use, place, here, best=not number)
            for number, entry in enumerate((*ranked, *large))
        ]
    return rows


def _tuned(
    stored: Manifest, profiles: Tunings | None, hardware: HardwareFacts, profile: Profile
) -> Tuned | None:
    if profiles is None:
        return None
    return profiles.tuned(stored.model_file.digest, hardware, profile)


def _here(
    stored: Manifest, profiles: Tunings | None, hardware: HardwareFacts, profile: Profile
) -> Here:
    tuned = _tuned(stored, profiles, hardware, profile)
    return Here(stored=True, speeds=tuned.speeds if tuned else None)


def _came_from(manifest: Manifest, source: object) -> bool:
    if not isinstance(source, HubChoice) or manifest.source.kind != "hub":
        return False
    repo, _, file = manifest.source.location.lower().partition(":")
    return repo == str(source.repo).lower() and source.selector.lower() in file


def _speed(entry: Entry, place: Place, here: Mapping[Entry, Here]) -> tuple[float, Label]:
    measured = here.get(entry, Here()).speeds
    if measured is not None:
        return measured.decode_tokens_per_s, "measured"
    found = predict(entry.reading, place.bandwidth_bytes_per_s, place.cpus, place.calibration)
    return found.tokens_per_s, found.label


def _prediction(
    entry: Entry, use: Use, place: Place, here: Mapping[Entry, Here]
) -> PredictionView | None:
    if use not in WRITES:
        return None
    decode, label = _speed(entry, place, here)
    measured = here.get(entry, Here()).speeds
    prefill = predict_prefill(entry.reading, place.calibration)
    if measured is not None:
        prefill = Prediction(measured.prefill_tokens_per_s, label)
    return PredictionView(
        decode_tokens_per_s=decode,
        label=label,
        prefill_tokens_per_s=prefill.tokens_per_s if prefill else None,
        prefill_label=prefill.label if prefill else None,
    )


def _view(
    entry: Entry, use: Use, place: Place, here: Mapping[Entry, Here], *, best: bool
) -> RecommendationView:
    decode, label = _speed(entry, place, here)
    fits, quick = entry.memory_bytes <= place.budget_bytes, decode >= FLOORS[use]
    return RecommendationView(
        name=str(entry.name),
        title=entry.title,
        summary=entry.summary,
        use=use,
        licence=entry.licence,
        source=entry.place,
        bytes=entry.download_bytes,
        memory_bytes=entry.memory_bytes,
        quantization=entry.quantization,
        speed=_prediction(entry, use, place, here),
        fits=fits,
        fits_now=entry.memory_bytes <= place.free_bytes,
        quick=quick,
        stored=here.get(entry, Here()).stored,
        pinned=entry.pinned,
        why=_why(entry, use, place, (decode, label), best=best and quick),
    )


# --- in words --------------------------------------------------------------------------------


def _why(entry: Entry, use: Use, place: Place, speed: tuple[float, Label], *, best: bool) -> str:
    """One sentence: what decided, with its numbers."""
    needed, budget, free = entry.memory_bytes, place.budget_bytes, place.free_bytes
    if needed > budget:
        return f"Too large: it needs {_gb(needed)}, and models may have {_gb(budget)} here."
    text = _pace(entry, use, speed)
    lead = f"The best for {_USE_WORDS[use]} that runs well here: {text}" if best else text
    sentence = lead[:1].upper() + lead[1:]
    if needed > free:
        return f"{sentence}; {_gb(needed - free)} of memory must become free first."
    return f"{sentence}."


def _pace(entry: Entry, use: Use, speed: tuple[float, Label]) -> str:
    value, label = speed
    quick = value >= FLOORS[use]
    if use not in WRITES:
        return "quick enough on this machine" if quick else "it fits, but will be slow here"
    about = f"about {_figure(value)} tokens/s ({_CONFIDENCE[label]})"
    if not quick:
        return f"it fits, but writes only {about}; {FLOORS[use]:g} are comfortable"
    if entry.active_parameters < entry.parameters * _SPARSE:
        share = _figure(entry.active_parameters / entry.parameters * 100)
        return f"it writes {about}, because only {share} % of it works on each token"
    return f"it writes {about}"


def _figure(value: float) -> str:
    """Two figures; more would pretend to know."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"  # noqa: PLR2004  # where one digit is two figures


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
