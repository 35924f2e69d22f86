"""Judge the bytes of a finished partial: promised length and digest, structure, chat template.

Reads, decides, changes nothing; `Store.admit` acts on the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from stoker.errors import (
    DigestMismatch,
    GgufError,
    RefusedError,
    SizeMismatch,
    TemplateRefused,
    VerificationError,
)
from stoker.store import disk, template
from stoker.store.facts import ModelFacts, model_facts
from stoker.store.finding import Finding
from stoker.store.gguf import GgufHeader, read_header
from stoker.store.gguf_checks import PROJECTOR
from stoker.store.manifest import FileRole, Verdict
from stoker.store.partial import Partial
from stoker.store.verify import Observed, check

_MISMATCHES: Final = {"size_mismatch": SizeMismatch, "digest_mismatch": DigestMismatch}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in bytes that passed, as verdicts with their evidence."""

    facts: ModelFacts | None
    structure: Verdict
    template: Verdict


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why bytes did not pass: for the quarantine, and as the error to raise."""

    findings: tuple[Finding, ...]
    error: VerificationError | RefusedError


def compare(partial: Partial, observed: Observed) -> Refusal | None:
    """Why these are not the promised bytes; None when they are."""
    findings = check(partial.expected, observed)
    if not findings:
        return None
    kind = _MISMATCHES[findings[0].code]
    return Refusal(findings, kind("; ".join(map(str, findings))))


def integrity(partial: Partial, observed: Observed, at: datetime) -> Verdict:
    """The verdict for bytes that `compare` found no fault with."""
    evidence: dict[str, object] = {"sha256": observed.digest.hex, "bytes": observed.size}
    if partial.expected.digest is None:
        detail = "nobody promised a SHA-256 for this file; Stoker recorded its own"
        return Verdict("warn", detail, evidence, at)
    return Verdict("ok", "matches the promised SHA-256", evidence, at)


def inspect(partial: Partial, role: FileRole, size: int, at: datetime) -> Inspection | Refusal:
    """Check that it is a sound file of its kind, with a template that may run."""
    try:
        with disk.wrapped("read a partial", partial.path), partial.reader() as stream:
            header = read_header(stream, size)
        facts = _ROLE_FACTS[role](header, size)
    except GgufError as error:
        return Refusal((Finding(error.code, error.message),), error)
    findings = tuple(found for text in header.templates.values() for found in template.lint(text))
    if findings:
        error_text = "; ".join(dict.fromkeys(map(str, findings)))
        return Refusal(findings, TemplateRefused(error_text))
    return Inspection(facts, _structure(header, at), _template(header, at))


def _structure(header: GgufHeader, at: datetime) -> Verdict:
    kind: Literal["ok", "warn"] = "warn" if header.warnings else "ok"
    detail = "; ".join(header.warnings[:5]) or "the GGUF header is sound"
    evidence = {"gguf_version": header.version, "tensors": len(header.tensors)}
    return Verdict(kind, detail, evidence, at)


def _template(header: GgufHeader, at: datetime) -> Verdict:
    if not header.templates:
        return Verdict("unknown", "the file has no chat template", {}, at)
    return Verdict(
        "ok", "nothing unsafe in the chat template", {"count": len(header.templates)}, at
    )


def _of_model(header: GgufHeader, size: int) -> ModelFacts:
    return model_facts(header, size)


def _of_shard(header: GgufHeader, _size: int) -> None:
    if (header.integer("split.no") or 0) < 1:
        raise GgufError("this file is not a further shard of a split model")


def _of_projector(header: GgufHeader, _size: int) -> None:
    if header.architecture != PROJECTOR:
        raise GgufError(f"this is a {header.architecture!r} model, not a multimodal projector")


_ROLE_FACTS: Final[dict[FileRole, Callable[[GgufHeader, int], ModelFacts | None]]] = {
    FileRole.MODEL: _of_model,
    FileRole.SHARD: _of_shard,
    FileRole.MMPROJ: _of_projector,
}
