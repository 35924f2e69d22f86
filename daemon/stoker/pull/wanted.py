"""What a reference asks for: the places to fetch it from, and the name to keep it under. Pure.

Not for: asking those places (`huggingface`, `wheel`, `url`, `local`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from stoker.catalogue import Catalogue, Entry, HubChoice, HubFile, WheelMember
from stoker.errors import BadReference, SourceOffline, StokerError, UnknownModel
from stoker.pull.source import Resolution
from stoker.pull.url import shown
from stoker.pull.wheel import parse_location
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.types import (
    HubRef,
    ModelId,
    NameRef,
    PathRef,
    UrlRef,
    parse_model_ref,
)

_HUB_HOSTS: Final = frozenset({"huggingface.co", "hf.co", "www.huggingface.co"})
_HUB_FILE: Final = re.compile(r"/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/(.+\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pinned:
    """A catalogue entry at one of its places."""

    entry: Entry
    place: HubFile | WheelMember


Place = Pinned | HubRef | UrlRef | PathRef


@dataclass(frozen=True, slots=True)
class Wanted:
    """``places`` are tried in order; ``model`` is None when the source is to name it."""

    places: tuple[Place, ...]
    model: ModelId | None


def wanted(
    reference: str,
    name: str | None,
    *,
    catalogue: Catalogue,
    manifests: Sequence[Manifest],
    settings: Settings,
) -> Wanted:
    """What the user asks for.

    Raises BadReference, UnknownModel with the names that are near, or SourceOffline.
    """
    ref = parse_model_ref(reference)
    model = ModelId.parse(name) if name else None
    result = _wanted(ref, model, catalogue, manifests, settings)
    if settings.offline and not all(isinstance(place, PathRef) for place in result.places):
        raise SourceOffline(f"{shown(reference)[:200]} would have to be downloaded")
    return result


def check_name(model: ModelId, resolution: Resolution, manifests: Iterable[Manifest]) -> None:
    """No pull may replace another model. Raises BadReference.

    A model replaces itself: the same bytes, or a newer version from the same place.
    """
    digests = {file.digest for file in resolution.files}
    for manifest in manifests:
        names = {manifest.id, *manifest.aliases}
        if model.text.lower() not in {name.text.lower() for name in names}:
            continue
        same_place = manifest.source.kind == resolution.source.kind and _base(
            manifest.source.location
        ) == _base(resolution.source.location)
        if manifest.id == model and (same_place or digests & manifest.digests):
            continue
        msg = f"the name {model} is taken by the model {manifest.id}"
        hint = f"Give another name with --name, or remove the old one: stoker rm {manifest.id}."
        raise BadReference(msg, hint=hint)


def _wanted(
    ref: HubRef | NameRef | UrlRef | PathRef,
    model: ModelId | None,
    catalogue: Catalogue,
    manifests: Sequence[Manifest],
    settings: Settings,
) -> Wanted:
    if isinstance(ref, UrlRef):
        return Wanted((_hub_url(ref, settings) or ref,), model)
    if isinstance(ref, PathRef):
        return Wanted((ref,), model)
    if isinstance(ref, HubRef):
        stored = _find(str(ref), manifests)
        if stored is not None and stored.damaged and ref.revision is None:
            return Wanted(_repair(stored), stored.id)
        return Wanted((ref,), model)
    entry, stored = catalogue.find(ref.name), _find(ref.name, manifests)
    damaged = stored is not None and stored.damaged
    if entry is not None and (entry.pinned or not damaged):
        places = tuple(_listed(entry, place) for place in entry.sources)
        return Wanted(places, model or entry.name)
    if stored is not None:
        return Wanted(_repair(stored), model or stored.id)
    raise _unknown(ref.name, catalogue)


def _listed(entry: Entry, place: HubFile | WheelMember | HubChoice) -> Place:
    """A place of the catalogue; without a digest it is what the Hub has there now."""
    if isinstance(place, HubChoice):
        return HubRef(place.repo, place.selector)
    return Pinned(entry, place)


def _find(name: str, manifests: Iterable[Manifest]) -> Manifest | None:
    lower = name.lower()
    return next(
        (m for m in manifests if lower in {n.text.lower() for n in (m.id, *m.aliases)}), None
    )


def _repair(manifest: Manifest) -> tuple[Place, ...]:
    """Where the very same bytes came from. Raises BadReference when that is not known."""
    source = manifest.source
    if source.kind == "path":
        return (PathRef(Path(source.location)),)
    try:
        if source.kind == "hub":
            parsed = parse_model_ref(source.location)
            if isinstance(parsed, HubRef):
                return (replace(parsed, revision=source.revision),)
        if source.kind == "url":
            return (UrlRef(source.location, manifest.model_file.digest),)
    except StokerError:
        pass  # a place that cannot be written as a reference, such as a file name with a space
    member = parse_location(source.location)
    if source.kind == "wheel" and member is not None:
        return (Pinned(_entry_of(manifest, member), member),)
    msg = f"it is not known where {manifest.id} came from"
    raise BadReference(msg, hint="Remove it with `stoker rm` and pull it by its full reference.")


def _entry_of(manifest: Manifest, place: WheelMember) -> Entry:
    file = manifest.model_file
    return Entry(
        name=manifest.id,
        title=manifest.id.text,
        summary="",
        licence=manifest.licence or "",
        parameters=manifest.parameters or 0,
        active_parameters=manifest.parameters or 0,
        bytes=file.size,
        digest=file.digest,
        quantization=manifest.quantization or "",
        memory_bytes=0,
        sources=(place,),
    )


def _hub_url(ref: UrlRef, settings: Settings) -> HubRef | None:
    """A file's address on the Hub, as the reference that also gets the Hub's scan verdict."""
    parts = urlsplit(ref.url)
    hosts = _HUB_HOSTS | {urlsplit(settings.hub_endpoint).hostname or ""}
    match = _HUB_FILE.fullmatch(unquote(parts.path))
    if ref.digest is not None or parts.hostname not in hosts or match is None:
        return None
    try:
        hub = parse_model_ref(f"{match[1]}:{match[3]}@{match[2]}")
    except BadReference:
        return None
    return hub if isinstance(hub, HubRef) else None


def _unknown(name: str, catalogue: Catalogue) -> UnknownModel:
    names = [entry.name.text for entry in catalogue.entries]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(names)}."
    msg = f"no model is known by the name {name!r}"
    return UnknownModel(msg, hint=f"{hint} Or give owner/repo.", available=names)


def _base(location: str) -> str:
    """The repository, package, address or path, without version, file and quantisation."""
    if "://" in location or Path(location).is_absolute():
        return location
    return re.split(r"==|:", location, maxsplit=1)[0].lower()
