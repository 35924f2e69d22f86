"""What a model is made of, where each byte came from, and every verdict. Pure values.

The file format is in `manifest_file`. Not for: where the bytes are (`layout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from stoker.schemas import FileView, StoredModelView, TrustView, VerdictView
from stoker.types import Capability, Digest, Filename, ModelId


class FileRole(StrEnum):
    """What a file is to its model."""

    MODEL = "model"
    SHARD = "shard"  # a further part of a split model; the first part is the model
    MMPROJ = "mmproj"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement with its evidence: who said it, when, from what."""

    verdict: Literal["ok", "warn", "failed", "unknown"]
    detail: str
    evidence: Mapping[str, object] = field(default_factory=dict)
    at: datetime | None = None

    def view(self) -> VerdictView:
        return VerdictView(
            verdict=self.verdict, detail=self.detail, evidence=dict(self.evidence), at=self.at
        )


@dataclass(frozen=True, slots=True)
class Trust:
    """Four separate verdicts; there is never one green tick for all."""

    integrity: Verdict
    structure: Verdict
    hub_scan: Verdict
    template: Verdict


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A blob and the part it plays."""

    name: Filename
    role: FileRole
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """Where the bytes came from."""

    kind: Literal["hub", "wheel", "url", "path"]
    location: str
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A stored model. ``files`` begin with the one that an engine is told to open."""

    id: ModelId
    aliases: tuple[ModelId, ...] = ()
    source: SourceRecord
    files: tuple[ManifestFile, ...]
    trust: Trust
    licence: str | None = None
    capabilities: tuple[Capability, ...] = ()
    architecture: str | None = None
    parameters: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    created_at: datetime
    verified_at: datetime | None = None
    pinned: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def damaged(self) -> bool:
        """Whether a blob of it was found changed or missing; such a model is not served."""
        return self.trust.integrity.verdict == "failed"

    @property
    def digests(self) -> frozenset[Digest]:
        return frozenset(file.digest for file in self.files)

    @property
    def model_file(self) -> ManifestFile:
        return next(file for file in self.files if file.role is FileRole.MODEL)

    def with_role(self, role: FileRole) -> tuple[ManifestFile, ...]:
        return tuple(file for file in self.files if file.role is role)

    def with_integrity(self, verdict: Verdict) -> Manifest:
        return replace(self, trust=replace(self.trust, integrity=verdict))

    def view(self) -> StoredModelView:
        """As the control API and `stoker list --json` show it."""
        return StoredModelView(
            id=self.id.text,
            source=f"{self.source.kind}:{self.source.location}",
            revision=self.source.revision,
            files=tuple(
                FileView(
                    name=file.name.text,
                    role=file.role.value,
                    sha256=file.digest.hex,
                    bytes=file.size,
                )
                for file in self.files
            ),
            bytes=self.size_bytes,
            verified_at=self.verified_at,
            trust=TrustView(
                integrity=self.trust.integrity.view(),
                structure=self.trust.structure.view(),
                hub_scan=self.trust.hub_scan.view(),
                template=self.trust.template.view(),
            ),
            pinned=self.pinned,
            capabilities=self.capabilities,
            architecture=self.architecture,
            parameters=self.parameters,
            quantization=self.quantization,
            context_length=self.context_length,
            licence=self.licence,
        )
