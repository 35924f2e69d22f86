"""The file format of a manifest, versioned: bytes to `Manifest` and back. Pure.

docs/store-format.md is the contract; a change of any field raises VERSION there and here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from stoker.errors import ManifestInvalid, StokerError, StoreTooNew
from stoker.store.manifest import FileRole, Manifest, ManifestFile, SourceRecord, Trust, Verdict
from stoker.types import Capability, Digest, Filename, ModelId

VERSION: Final = 1
MAX_BYTES: Final = 4 << 20  # a model of 1000 shards takes some 300 kB
MAX_FILES: Final = 1100  # 1000 shards and a few projectors


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Verdict(_Document):
    verdict: Literal["ok", "warn", "failed", "unknown"]
    detail: str
    evidence: dict[str, JsonValue] = Field(default_factory=dict)
    at: Annotated[AwareDatetime | None, Field(strict=False)] = None


class _Trust(_Document):
    integrity: _Verdict
    structure: _Verdict
    hub_scan: _Verdict
    template: _Verdict


class _File(_Document):
    name: str
    role: Literal["model", "shard", "mmproj"]
    sha256: str
    bytes: Annotated[int, Field(gt=0)]


class _Source(_Document):
    kind: Literal["hub", "wheel", "url", "path"]
    location: str
    revision: str | None = None


class _Model(_Document):
    version: Literal[1]
    id: str
    aliases: list[str] = Field(default_factory=list)
    source: _Source
    files: Annotated[list[_File], Field(min_length=1, max_length=MAX_FILES)]
    trust: _Trust
    licence: str | None = None
    capabilities: list[str] = Field(default_factory=list)
    architecture: str | None = None
    parameters: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    created_at: Annotated[AwareDatetime, Field(strict=False)]
    verified_at: Annotated[AwareDatetime | None, Field(strict=False)] = None
    pinned: bool = False


class _Head(BaseModel):
    """Enough to tell a newer format from a broken file."""

    version: Annotated[int, Field(strict=True, ge=1)]


def dumps(manifest: Manifest) -> bytes:
    """The bytes of the manifest's file; readable, and the same for the same manifest.

    Raises ManifestInvalid for one that could not be read back.
    """
    try:
        document = _Model(
            version=VERSION,
            id=manifest.id.text,
            aliases=[alias.text for alias in manifest.aliases],
            source=_Source(
                kind=manifest.source.kind,
                location=manifest.source.location,
                revision=manifest.source.revision,
            ),
            files=[
                _File(
                    name=file.name.text,
                    role=file.role.value,
                    sha256=file.digest.hex,
                    bytes=file.size,
                )
                for file in manifest.files
            ],
            trust=_trust_document(manifest.trust),
            licence=manifest.licence,
            capabilities=[capability.value for capability in manifest.capabilities],
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            quantization=manifest.quantization,
            context_length=manifest.context_length,
            created_at=manifest.created_at,
            verified_at=manifest.verified_at,
            pinned=manifest.pinned,
        )
        raw = document.model_dump_json(indent=2).encode() + b"\n"
        _check_roles(manifest)
    except (ValidationError, ValueError) as error:
        raise ManifestInvalid(
            f"a manifest for {manifest.id} that makes no sense: {error}"
        ) from error
    if len(raw) > MAX_BYTES:
        raise ManifestInvalid(f"the manifest of {manifest.id} has {len(raw)} bytes")
    return raw


def loads(raw: bytes) -> Manifest:
    """Raises ManifestInvalid for what is not a manifest, StoreTooNew for a later format."""
    try:
        version = _Head.model_validate_json(raw).version
        manifest = None if version > VERSION else _from_document(_Model.model_validate_json(raw))
    except (ValidationError, ValueError, StokerError) as error:
        raise ManifestInvalid(f"not a manifest: {_first_line(error)}") from error
    if manifest is None:
        raise StoreTooNew("the manifest was written by a newer Stoker")
    _check_roles(manifest)
    return manifest


def _from_document(document: _Model) -> Manifest:
    return Manifest(
        id=ModelId.parse(document.id),
        aliases=tuple(ModelId.parse(alias) for alias in document.aliases),
        source=SourceRecord(
            document.source.kind, document.source.location, document.source.revision
        ),
        files=tuple(
            ManifestFile(
                Filename.parse(file.name),
                FileRole(file.role),
                Digest.parse(file.sha256),
                file.bytes,
            )
            for file in document.files
        ),
        trust=Trust(
            integrity=_verdict(document.trust.integrity),
            structure=_verdict(document.trust.structure),
            hub_scan=_verdict(document.trust.hub_scan),
            template=_verdict(document.trust.template),
        ),
        licence=document.licence,
        # A capability that this version does not know is one it cannot offer.
        capabilities=tuple(Capability(c) for c in document.capabilities if c in set(Capability)),
        architecture=document.architecture,
        parameters=document.parameters,
        quantization=document.quantization,
        context_length=document.context_length,
        created_at=document.created_at,
        verified_at=document.verified_at,
        pinned=document.pinned,
    )


def _check_roles(manifest: Manifest) -> None:
    if len(manifest.with_role(FileRole.MODEL)) != 1:
        raise ManifestInvalid(f"the manifest of {manifest.id} does not name exactly one model file")


def _trust_document(trust: Trust) -> _Trust:
    return _Trust(
        integrity=_verdict_document(trust.integrity),
        structure=_verdict_document(trust.structure),
        hub_scan=_verdict_document(trust.hub_scan),
        template=_verdict_document(trust.template),
    )


def _verdict_document(verdict: Verdict) -> _Verdict:
    return _Verdict.model_validate(
        {
            "verdict": verdict.verdict,
            "detail": verdict.detail,
            "evidence": dict(verdict.evidence),
            "at": verdict.at,
        }
    )


def _verdict(document: _Verdict) -> Verdict:
    return Verdict(document.verdict, document.detail, document.evidence, document.at)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    return str(error)
