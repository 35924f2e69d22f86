"""`doctor`: what this machine can run, what is wrong with it, and the fix. Needs no daemon."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer

from stoker import paths
from stoker.cli import checks
from stoker.cli.boundary import ExitCode
from stoker.cli.fitting import fitted, wrapped
from stoker.cli.output import Colour, paint, plural, print_json, size
from stoker.hardware.assess import Finding, reserve_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stoker.catalogue import Entry
    from stoker.hardware.facts import HardwareFacts
    from stoker.settings import Settings

_SHOWN: Final = 4  # models; --json has all
_LABEL: Final[dict[str, tuple[str, Colour]]] = {
    "ok": ("ok  ", "green"),
    "warn": ("WARN", "yellow"),
    "fail": ("FAIL", "red"),
}

# Who knows more about this machine than its hardware adds to `doctor` here. Must not raise.
extra_findings: list[Callable[[paths.Paths, HardwareFacts], Sequence[Finding]]] = []


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/cli.md)."),
) -> None:
    """Say what this machine can run and what is wrong.

    Works without the daemon. Exit code 1 when something is broken.
    """
    from stoker import catalogue

    places = paths.from_environment()
    with _quiet():
        facts = _facts(places)
        wishes, findings = _look(places, facts)
    reserve = reserve_bytes(facts, wishes.memory_reserve_bytes if wishes else None)
    fitting = catalogue.recommend(
        catalogue.load().entries,
        facts.headroom_bytes - reserve,
        facts.effective_cpus,
        facts.bandwidth_bytes_per_s,
    )
    broken = any(finding.level == "fail" for finding in findings)
    if as_json:
        print_json(
            {
                "ok": not broken,
                "findings": [dataclasses.asdict(finding) for finding in findings],
                "machine": _machine_json(facts),
                "recommended": [_entry_json(entry, facts) for entry in fitting],
            }
        )
    else:
        _print(findings, fitting, facts)
    if broken:
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _quiet() -> Iterator[None]:
    """What a probe notes for the daemon's log would stand between the lines of the report."""
    import structlog

    before, was_set = structlog.get_config(), structlog.is_configured()
    structlog.configure(processors=[_drop])
    try:
        yield
    finally:
        if was_set:
            structlog.configure(**before)
        else:
            structlog.reset_defaults()


def _drop(*_: object) -> NoReturn:
    import structlog

    raise structlog.DropEvent


def _facts(places: paths.Paths) -> HardwareFacts:
    """This machine, with what the daemon measured of it; measured now when it did not."""
    from stoker.hardware import measure, probe

    facts = probe.probe(fresh_gpus=True)
    measured = measure.known(places, facts)
    if measured is None or measured.bandwidth_bytes_per_s is None:
        measured = measure.measure_once(places, facts)
    return measure.with_measured(facts, measured)


def _look(places: paths.Paths, facts: HardwareFacts) -> tuple[Settings | None, list[Finding]]:
    """The settings when they are sound, and everything that was found."""
    from stoker.hardware.assess import assess
    from stoker.hardware.probe import disk_free_bytes

    wishes, settings_finding = checks.check_settings(places)
    free = disk_free_bytes(places.data)
    hardware = assess(facts, disk_free_bytes=free, tray_host=checks.tray_host())
    findings = [
        settings_finding,
        checks.check_folders(places),
        *checks.check_daemon(wishes),
        *checks.check_update(wishes),
        *hardware,
        *(finding for look in extra_findings for finding in look(places, facts)),
    ]
    return wishes, findings


def _print(findings: Sequence[Finding], fitting: Sequence[Entry], facts: HardwareFacts) -> None:
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        _print_finding(finding, width)
    print()
    if not fitting:
        print("No model of the catalogue fits in the memory that is free now.")
        return
    rows = [
        (entry.name, size(entry.bytes), size(entry.memory_bytes), entry.summary)
        for entry in fitting[:_SHOWN]
        if _is_quick(entry, facts)
    ]
    head = "Models that fit in the memory that is free now and are quick here, the best first:"
    if rows:
        headers = ("MODEL", "DOWNLOAD", "MEMORY", "WHAT IT IS GOOD FOR")
        print("\n".join(wrapped(head)))
        print(fitted(headers, rows, right={"DOWNLOAD", "MEMORY"}))
        print(f"Get the first with: stoker pull {rows[0][0]}")
    slow = ", ".join(str(entry.name) for entry in fitting if not _is_quick(entry, facts))
    if slow:
        too = ", too," if rows else ""
        text = f"These fit{too} but will be slow on {plural(facts.effective_cpus, 'core')}: {slow}"
        print("\n".join(wrapped(text)))


def _print_finding(finding: Finding, width: int) -> None:
    """Its level and topic, and beside them what was found and what to do."""
    indent = " " * (width + 8)
    first, *more = wrapped(f"{indent}{finding.text.strip()}", indent) or [""]
    print(f"{_level(finding)}  {finding.topic.ljust(width)}  {first.strip()}")
    if finding.fix:
        more += wrapped(f"{indent}-> {finding.fix}", f"{indent}   ")
    for line in more:
        print(line)


def _level(finding: Finding) -> str:
    label, colour = _LABEL[finding.level]
    return paint(label, colour)


def _machine_json(facts: HardwareFacts) -> dict[str, Any]:
    derived = {"effective_cpus": facts.effective_cpus, "headroom_bytes": facts.headroom_bytes}
    return {**dataclasses.asdict(facts), **derived}


def _is_quick(entry: Entry, facts: HardwareFacts) -> bool:
    return entry.is_quick(facts.effective_cpus, facts.bandwidth_bytes_per_s)


def _entry_json(entry: Entry, facts: HardwareFacts) -> dict[str, Any]:
    return {
        "name": str(entry.name),
        "title": entry.title,
        "summary": entry.summary,
        "licence": entry.licence,
        "bytes": entry.bytes,
        "memory_bytes": entry.memory_bytes,
        "quick": _is_quick(entry, facts),
    }
