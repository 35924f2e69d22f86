"""Do the bytes match what was promised? Pure: compares facts, reads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.store.finding import Finding
from stoker.types import Digest


@dataclass(frozen=True, slots=True)
class Expected:
    """What a source promised; None where it promised nothing."""

    size: int | None
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Observed:
    """What the bytes on disk are."""

    size: int
    digest: Digest


def check(expected: Expected, observed: Observed) -> tuple[Finding, ...]:
    """Everything that differs; empty when the bytes are what was promised. Raises nothing."""
    findings = []
    if observed.size == 0:
        findings.append(Finding("size_mismatch", "the file is empty"))
    elif expected.size is not None and observed.size != expected.size:
        text = f"the file has {observed.size} bytes; {expected.size} were promised"
        findings.append(Finding("size_mismatch", text))
    if expected.digest is not None and observed.digest != expected.digest:
        text = f"the file's digest is {observed.digest}; {expected.digest} was promised"
        findings.append(Finding("digest_mismatch", text))
    return tuple(findings)
