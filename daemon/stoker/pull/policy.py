"""Whether a file that a hub's scanners have looked at may be kept. Pure.

Facts block, opinions warn, and silence is not an alarm: a hub scans later than it publishes. Not
for: digests, sizes, names and structure, which have no switch (`store`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal

from stoker.errors import ScanRefused
from stoker.pull.source import RemoteFile, Resolution, ScanReport
from stoker.store.manifest import Verdict

Preset = Literal["standard", "strict"]

_REFUSED: Final = ("unsafe", "suspicious")
_DISPLAY: Final = {
    "avScan": "ClamAV",
    "pickleImportScan": "picklescan",
    "protectAiScan": "Protect AI",
    "jFrogScan": "JFrog",
    "virusTotalScan": "VirusTotal",
}


def judge(resolution: Resolution, preset: Preset, now: datetime) -> Verdict:
    """The verdict of the source's scanners over all files, with what each scanner said.

    Raises ScanRefused with the scanner's name and message when the preset does not allow a file.
    """
    if not resolution.scanned:
        return Verdict(verdict="unknown", detail="this source has no scanners", evidence={}, at=now)
    words = [_judge_file(file, preset) for file in resolution.files]
    evidence: dict[str, object] = {
        "revision": resolution.source.revision,
        "files": {file.path: _evidence(file.scan) for file in resolution.files},
    }
    if "caution" in words:
        detail = "the hub's scanners advise caution"
        return Verdict(verdict="warn", detail=detail, evidence=evidence, at=now)
    if all(word == "safe" for word in words):
        detail = "the hub's scanners call every file safe"
        return Verdict(verdict="ok", detail=detail, evidence=evidence, at=now)
    detail = "the hub has not finished scanning"
    return Verdict(verdict="unknown", detail=detail, evidence=evidence, at=now)


def _judge_file(file: RemoteFile, preset: Preset) -> str:
    """The file's status in one word. Raises ScanRefused."""
    report = file.scan
    if report is None:
        if preset == "strict":
            _refuse(file, "has not been scanned yet", "Wait, or set trust to standard.")
        return "unscanned"
    for word in _REFUSED:
        voices = list(_voices(report, word))
        if report.status == word or voices:
            who = "; ".join(voices) or "the hub's scan"
            _refuse(file, f"is called {word} by {who}", ScanRefused.hint)
    if any(True for _ in _voices(report, "caution")) or report.status == "caution":
        if preset == "strict":
            _refuse(
                file, "is to be taken with caution", "Choose another, or set trust to standard."
            )
        return "caution"
    if report.status != "safe" and preset == "strict":
        _refuse(file, f"has the scan status {report.status!r}", "Wait, or set trust to standard.")
    return report.status


def _refuse(file: RemoteFile, finding: str, hint: str) -> None:
    msg = f"{file.name} {finding}"
    raise ScanRefused(msg, hint=hint, file=file.path, scan=_evidence(file.scan))


def _voices(report: ScanReport, word: str) -> Iterator[str]:
    for name, result in report.scanners.items():
        if result.get("status") == word:
            message = result.get("message")
            said = f" ({str(message)[:300]})" if message else ""
            yield f"{_DISPLAY.get(name, name)}{said}"


def _evidence(report: ScanReport | None) -> dict[str, object]:
    if report is None:
        return {"status": "absent"}
    scanners = {name: dict(result) for name, result in report.scanners.items()}
    return {"status": report.status, **scanners}
