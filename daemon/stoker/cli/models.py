"""`list`, `show`, `rm` and `verify`: what the store holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from stoker.cli import connection, progress, recommend
from stoker.cli.boundary import ExitCode
from stoker.cli.output import clean_line, moment, paint, pairs, plural, print_json, size, table

if TYPE_CHECKING:
    from stoker.schemas import StoredModelView, VerdictView, VerifyView
    from stoker.schemas_machine import RecommendationView

_SOME = typer.Argument(help="Models of `stoker list`.", metavar="MODEL...")
_ANY = typer.Argument(None, help="Models; all when none is named.", metavar="[MODEL]...")
_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")


def register(app: typer.Typer) -> None:
    app.command("list")(list_models)
    for command in (show, rm, verify):
        app.command()(command)


def list_models(as_json: bool = _JSON) -> None:
    """List the stored models."""
    with connection.daemon() as client:
        models = client.models()
        best = None if models or as_json else recommend.best(client)
    if as_json:
        print_json(list(models))
    elif not models:
        print(_empty(best))
    else:
        print(_model_list(models))


def _empty(best: RecommendationView | None) -> str:
    if best is None:
        return "The store is empty. Pull a first model with `stoker pull starter`."
    more = "More: `stoker recommend`."
    return f"The store is empty. {recommend.offer(best)}\nGet it: `stoker pull {best.name}`. {more}"


def _model_list(models: Sequence[StoredModelView]) -> str:
    """Four verdicts side by side: there is no single green tick."""
    rows = [
        (
            model.id,
            size(model.bytes),
            model.quantization or "-",
            *(verdict.verdict for _, verdict in verdicts(model)),
            moment(model.verified_at),
        )
        for model in models
    ]
    headers = ("MODEL", "SIZE", "QUANT", "INTEGRITY", "STRUCTURE", "HUB SCAN", "TEMPLATE")
    return table((*headers, "VERIFIED"), rows, right={"SIZE"})


def show(
    model: str = typer.Argument(help="A model of `stoker list`."), as_json: bool = _JSON
) -> None:
    """Show what a model is and what was checked."""
    with connection.daemon() as client:
        view = client.model(model)
    if as_json:
        print_json(view)
        return
    print(_facts(view))
    print()
    rows = [(file.name, file.role, size(file.bytes), file.sha256) for file in view.files]
    print(table(("FILE", "ROLE", "SIZE", "SHA-256"), rows, right={"SIZE"}))
    print()
    print(_verdict_table(view))


def _facts(view: StoredModelView) -> str:
    parameters = f"{view.parameters / 1e6:,.0f} million" if view.parameters else None
    return pairs(
        [
            ("Model", view.id),
            ("Source", view.source),
            ("Revision", view.revision),
            ("Size", size(view.bytes)),
            ("Architecture", view.architecture),
            ("Parameters", parameters),
            ("Quantisation", view.quantization),
            ("Context", f"{view.context_length} tokens" if view.context_length else None),
            ("Can do", ", ".join(view.capabilities)),
            ("Licence", view.licence),
            ("Pinned", "yes" if view.pinned else None),
            ("Verified", moment(view.verified_at)),
        ]
    )


def verdicts(view: StoredModelView) -> list[tuple[str, VerdictView]]:
    """The four checks by name, in the order in which they are shown everywhere."""
    trust = view.trust
    return [
        ("integrity", trust.integrity),
        ("structure", trust.structure),
        ("hub scan", trust.hub_scan),
        ("template", trust.template),
    ]


def _verdict_table(view: StoredModelView) -> str:
    rows = [(name, verdict.verdict, verdict.detail) for name, verdict in verdicts(view)]
    return table(("CHECK", "VERDICT", "DETAIL"), rows)


def rm(
    models: list[str] = _SOME,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = _JSON,
) -> None:
    """Remove models; files that other models use stay."""
    with connection.daemon() as client:
        views = [client.model(model) for model in models]  # all exist, or nothing is removed
        if not yes and sys.stdin.isatty():
            names = ", ".join(view.id for view in views)
            total = size(sum(view.bytes for view in views))
            typer.confirm(f"Remove {names} ({total})?", abort=True)
        removed = [client.remove(view.id) for view in views]
    if as_json:
        print_json(removed)
        return
    for entry in removed:
        print(f"Removed {entry.id}; {size(entry.bytes_freed)} freed.")


def verify(
    models: list[str] = _ANY,
    as_json: bool = _JSON,
) -> None:
    """Hash stored files again and compare.

    Exit code 1 when one is not what it was; its model is not served any more.
    """
    results: list[VerifyView] = []
    meter = progress.Meter()
    with connection.daemon() as client, progress.showing() as show_step:
        for step in client.verify(list(models or ())):
            show_step(meter.step("Verifying", step.bytes_done, step.bytes_total))
            if step.result is not None:
                results.append(step.result)
    if as_json:
        print_json(results)
    else:
        print(_findings(results))
    if not all(result.ok for result in results):
        raise typer.Exit(ExitCode.FAILED)


def _findings(results: Sequence[VerifyView]) -> str:
    if not results:
        return "Nothing to verify: the store is empty."
    rows = [
        (result.id, result.file, "ok" if result.ok else "DAMAGED", result.finding or "")
        for result in results
    ]
    bad = sorted({result.id for result in results if not result.ok})
    total = plural(len(results), "file")
    verdict = f"{total} verified, all as they were."
    if bad:
        names = " ".join(clean_line(name) for name in bad)
        verdict = f"Not as it was: {names}. It is not served. Pull it again to repair it."
        verdict = paint(verdict, "red")
    return f"{table(('MODEL', 'FILE', 'RESULT', 'FINDING'), rows)}\n{verdict}"
