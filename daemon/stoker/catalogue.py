"""The models that Stoker knows by a short name. Data, a strict parser, what suits a machine.

Most entries pin one file by its digest; the others name a file of a repository on the Hub, which
the pull resolves and verifies. Cheap to import: clients show it without the daemon. Not for: what
is stored here (`store`), how a model is fetched (`pull`), nor what was measured (`recommend`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Literal, get_args

from stoker.errors import InternalError, StokerError
from stoker.tuning.speed import Reading, predict
from stoker.types import Digest, ModelId, RepoId

FORMAT: Final = 2

Use = Literal["chat", "coding", "vision", "embedding", "rerank", "speech"]
USES: Final[tuple[Use, ...]] = get_args(Use)
# Tokens per second below which a model is no pleasure: people read 8 a second; code is skimmed,
# and agents write much of it; vectors and ranks are made of at least so many runs of the model.
FLOORS: Final[Mapping[Use, float]] = {
    "chat": 8.0,
    "coding": 15.0,
    "vision": 8.0,
    "embedding": 8.0,
    "rerank": 8.0,
    "speech": 8.0,
}
WRITES: Final = frozenset(("chat", "coding", "vision", "speech"))  # others answer with numbers

_ENTRY_KEYS: Final = frozenset(
    (
        *("name", "title", "summary", "licence", "quality", "parameters", "active_parameters"),
        *("bytes", "projector_bytes", "sha256", "quantization", "memory_bytes", "source"),
    )
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository on the Hub."""

    repo: RepoId
    file: str


@dataclass(frozen=True, slots=True)
class HubChoice:
    """A model of a repository on the Hub, as in ``owner/repo:selector``; nothing is pinned."""

    repo: RepoId
    selector: str


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a wheel of a Python package index."""

    package: str
    version: str
    member: str
    wheel_bytes: int | None = None
    wheel_digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A model by short name, from any of its sources.

    With a digest it is exactly one file. Without one it is what the Hub has under its repository
    and selector at the time of the pull; its sizes are then about right.
    """

    name: ModelId
    title: str
    summary: str
    licence: str
    parameters: int
    active_parameters: int  # that work on each token: all, but in a mixture of experts
    bytes: int  # of the model, without a projector
    digest: Digest | None
    quantization: str
    memory_bytes: int  # what it needs to run with a context of 8,192 tokens
    sources: tuple[HubFile | WheelMember | HubChoice, ...]
    quality: tuple[tuple[Use, int], ...] = ()  # its rank for each use, the higher the better
    projector_bytes: int = 0  # the part that sees

    @property
    def uses(self) -> tuple[Use, ...]:
        return tuple(use for use, _ in self.quality)

    def rank(self, use: Use) -> int:
        """Its quality for a use; 0 when it is not meant for that."""
        return dict(self.quality).get(use, 0)

    @property
    def pinned(self) -> bool:
        return self.digest is not None

    @property
    def download_bytes(self) -> int:
        return self.bytes + self.projector_bytes

    @property
    def place(self) -> str:
        """Where it comes from, in words: ``owner/repo:selector``, or the package."""
        source = self.sources[0]
        match source:
            case HubFile():
                return f"{source.repo}:{self.quantization}"
            case HubChoice():
                return f"{source.repo}:{source.selector}"
            case WheelMember():
                return source.package

    @property
    def reading(self) -> Reading:
        """What is read for each token at the start of a conversation."""
        return Reading(
            weights_bytes=self.bytes * self.active_parameters / self.parameters,
            experts=self.active_parameters < self.parameters,
            parameters=self.active_parameters,
        )

    def tokens_per_s(self, cpus: int, bandwidth_bytes_per_s: float | None) -> float:
        """How fast it should write on a machine where nothing was measured with a model."""
        return predict(self.reading, bandwidth_bytes_per_s, cpus).tokens_per_s

    def is_quick(self, cpus: int, bandwidth_bytes_per_s: float | None) -> bool:
        """Whether that is fast enough for what it is best at."""
        floor = min((FLOORS[use] for use in self.uses), default=FLOORS["chat"])
        return self.tokens_per_s(cpus, bandwidth_bytes_per_s) >= floor


class Catalogue:
    """Entries in the order of the file: by the memory that they need."""

    def __init__(self, entries: Iterable[Entry], quality_source: str = "") -> None:
        self.entries = tuple(entries)
        self.quality_source = quality_source
        self._by_name = {entry.name.text.lower(): entry for entry in self.entries}

    def find(self, name: str) -> Entry | None:
        """By short name, whatever the case."""
        return self._by_name.get(name.lower())


def load() -> Catalogue:
    """The packaged catalogue."""
    return parse(resources.files("stoker").joinpath("catalogue.toml").read_text("utf-8"))


def parse(text: str) -> Catalogue:
    """A catalogue from TOML. Raises InternalError for anything that is not exactly one."""
    try:
        document = tomllib.loads(text)
        if document["format"] != FORMAT:
            msg = f"unknown format {document['format']!r}"
            raise InternalError(msg)
        entries = [_entry(fields) for fields in document["model"]]
        return Catalogue(entries, document["quality_source"])
    except (StokerError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"the catalogue cannot be read: {error}"
        raise InternalError(msg) from error


def rank(entries: Iterable[Entry], use: Use, speed: Callable[[Entry], float]) -> tuple[Entry, ...]:
    """The entries that are meant for a use, the best first.

    Those that are quick come first, by quality and then by speed; then the others, the quickest
    first. `speed` is in tokens per second.
    """
    speeds = {entry: speed(entry) for entry in entries if entry.rank(use)}

    def order(entry: Entry) -> tuple[bool, int, float]:
        slow = speeds[entry] < FLOORS[use]
        return slow, 0 if slow else -entry.rank(use), -speeds[entry]

    return tuple(sorted(speeds, key=order))


def recommend(
    entries: Iterable[Entry],
    headroom_bytes: int,
    cpus: int,
    bandwidth_bytes_per_s: float | None,
) -> tuple[Entry, ...]:
    """The entries for a chat that run in the memory that is free, the best first; see `rank`."""
    fitting = [entry for entry in entries if entry.memory_bytes <= headroom_bytes]
    return rank(fitting, "chat", lambda entry: entry.tokens_per_s(cpus, bandwidth_bytes_per_s))


def _entry(fields: Mapping[str, Any]) -> Entry:
    if unknown := set(fields) - _ENTRY_KEYS:
        msg = f"unknown: {', '.join(sorted(unknown))}"
        raise ValueError(msg)
    digest = fields.get("sha256")
    entry = Entry(
        name=ModelId.parse(fields["name"]),
        title=fields["title"],
        summary=fields["summary"],
        licence=fields["licence"],
        parameters=int(fields["parameters"]),
        active_parameters=int(fields.get("active_parameters", fields["parameters"])),
        bytes=int(fields["bytes"]),
        digest=Digest.parse(digest) if digest else None,
        quantization=fields["quantization"],
        memory_bytes=int(fields["memory_bytes"]),
        sources=tuple(_source(source) for source in fields["source"]),
        quality=_quality(fields["quality"]),
        projector_bytes=int(fields.get("projector_bytes", 0)),
    )
    unpinned = [isinstance(source, HubChoice) for source in entry.sources]
    if not unpinned or set(unpinned) == {entry.pinned}:
        msg = f"{entry.name}: a digest goes with files, a selector goes without"
        raise ValueError(msg)
    return entry


def _quality(fields: Mapping[str, int]) -> tuple[tuple[Use, int], ...]:
    if not fields or not set(fields) <= set(USES) or not all(fields[use] > 0 for use in fields):
        msg = f"not a quality: {dict(fields)!r}"
        raise ValueError(msg)
    return tuple((use, fields[use]) for use in USES if use in fields)


def _source(fields: Mapping[str, Any]) -> HubFile | WheelMember | HubChoice:
    match fields["kind"]:
        case "hub" if "select" in fields:
            return HubChoice(RepoId.parse(fields["repo"]), fields["select"])
        case "hub":
            return HubFile(RepoId.parse(fields["repo"]), fields["file"])
        case "wheel":
            digest = fields.get("wheel_sha256")
            return WheelMember(
                package=fields["package"],
                version=fields["version"],
                member=fields["member"],
                wheel_bytes=fields.get("wheel_bytes"),
                wheel_digest=Digest.parse(digest) if digest else None,
            )
        case kind:
            msg = f"unknown kind of source {kind!r}"
            raise ValueError(msg)
