"""The manifest that a finished pull leaves: what came, from where, and who judged it how. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from stoker.pull.source import Resolution
from stoker.store.facts import ModelFacts
from stoker.store.manifest import FileRole, Manifest, ManifestFile, Trust, Verdict
from stoker.store.store import Admitted
from stoker.types import Capability, Digest

_BAD_FIRST: Final = ("failed", "warn", "unknown", "ok")


def manifest_of(
    resolution: Resolution,
    admitted: Sequence[Admitted],
    scan: Verdict,
    replaced: Manifest | None,
    *,
    now: datetime,
) -> Manifest:
    """The manifest of a model whose files are all in the store.

    ``admitted`` are the resolution's files, in its order. What the user set on the manifest that
    this one replaces (aliases, pin) stays.
    """
    files = tuple(
        ManifestFile(file.name, file.role, result.digest, result.size)
        for file, result in zip(resolution.files, admitted, strict=True)
    )
    return Manifest(
        id=resolution.model,
        aliases=replaced.aliases if replaced else (),
        source=resolution.source,
        files=files,
        trust=Trust(
            integrity=_integrity(resolution, admitted),
            structure=_worst([result.structure for result in admitted]),
            hub_scan=scan,
            template=_worst([result.template for result in admitted]),
        ),
        licence=resolution.licence,
        created_at=replaced.created_at if replaced else now,
        verified_at=now,
        pinned=replaced.pinned if replaced else False,
    )


def with_facts(manifest: Manifest, facts: ModelFacts) -> Manifest:
    """The same, with what its files say about the model."""
    capabilities = list(facts.capabilities)
    if manifest.with_role(FileRole.MMPROJ) and Capability.VISION not in capabilities:
        capabilities.append(Capability.VISION)
    return replace(
        manifest,
        capabilities=tuple(capabilities),
        architecture=facts.architecture,
        parameters=facts.parameters,
        quantization=facts.quantization,
        context_length=facts.context_length,
    )


def known(digest: Digest, size: int, manifests: Iterable[Manifest], *, now: datetime) -> Admitted:
    """What is known of a blob that the store has: nothing gets in there without passing.

    The verdicts are those of a model that uses it; without one (a pull that was stopped between
    two files) only that it passed.
    """
    detail = "passed when these bytes were stored before"
    passed = Verdict("ok", detail, {}, now)
    trust = Trust(passed, passed, passed, passed)
    trust = next((m.trust for m in manifests if digest in m.digests and not m.damaged), trust)
    integrity = Verdict("ok", "matches the promised SHA-256", {"sha256": digest.hex}, now)
    return Admitted(digest, size, None, integrity, trust.structure, trust.template, reused=True)


def _integrity(resolution: Resolution, admitted: Sequence[Admitted]) -> Verdict:
    """The store's verdict, with who promised the digest."""
    verdict = _worst([result.integrity for result in admitted])
    said_by = {
        "source": f"{resolution.source.kind}:{resolution.source.location}",
        "revision": resolution.source.revision,
        **resolution.evidence,
    }
    return replace(verdict, evidence={**verdict.evidence, **said_by})


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=lambda verdict: _BAD_FIRST.index(verdict.verdict))
