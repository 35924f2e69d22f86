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
    bytes: int
    digest: Digest
    quantization: str
    memory_bytes: int  # what it needs to run with a context of 8,192 tokens
    sources: tuple[HubFile | WheelMember, ...]


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


def recommend(entries: Iterable[Entry], headroom_bytes: int) -> tuple[Entry, ...]:
    """The entries that run in the memory that is free, the best first."""
    return tuple(reversed([entry for entry in entries if entry.memory_bytes <= headroom_bytes]))


def _entry(fields: Mapping[str, Any]) -> Entry:
    return Entry(
        name=ModelId.parse(fields["name"]),
        title=fields["title"],
        summary=fields["summary"],
        licence=fields["licence"],
        parameters=int(fields["parameters"]),
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
