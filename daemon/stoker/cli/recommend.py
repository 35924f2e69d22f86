"""`recommend`: which models suit this machine, how fast they will be, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import typer

from stoker import errors
from stoker.cli import connection
from stoker.cli.fitting import fitted, wrapped
from stoker.cli.output import print_json, size

if TYPE_CHECKING:
    from stoker.client import StokerClient
    from stoker.schemas_machine import RecommendationView

_SHOWN: Final = 5  # for one use, without --all
_OTHERS: Final = {  # in words for a person
    "chat": "to talk with",
    "coding": "for programming",
    "vision": "to look at pictures",
    "embedding": "to search texts by meaning",
    "rerank": "to sort search results",
    "speech": "to understand speech",
}
_LEGEND: Final = "DOWNLOAD is what is fetched once; MEMORY is what it needs while it runs"
_SPEED_LEGEND: Final = (
    "; SPEED is how many tokens (about three quarters of a word each) it writes per second; people"
    " read about 8 in that time"
)


def register(app: typer.Typer) -> None:
    app.command()(recommend)


def recommend(
    use: str | None = typer.Option(
        None, "--use", help="One of: chat, coding, vision, embedding, rerank, speech."
    ),
    every: bool = typer.Option(
        False, "--all", help="Also what would be slow here, or is too large."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/cli.md)."),
) -> None:
    """Say which models suit this machine, the best first, and why."""
    if use is not None and use not in _OTHERS:
        msg = f"not a use: {use!r}"
        raise errors.BadUsage(msg, hint=f"Give one of: {', '.join(_OTHERS)}.")
    with connection.daemon() as client:
        rows = client.recommend(use)
    if not every:
        rows = [row for row in rows if row.fits and row.quick]
    if as_json:
        print_json(rows)
        return
    print(_report(rows, use or "chat", every=every))
    if use is None:
        _print_others(rows)


def best(client: StokerClient) -> RecommendationView | None:
    """What to offer to somebody who has no model yet: the best that can run right now."""
    try:
        rows = client.recommend("chat")
    except errors.StokerError:  # an offer is a kindness; the command itself must not fail of it
        return None
    ready = [row for row in rows if row.fits_now]
    return next((row for row in ready if row.quick), ready[0] if ready else None)


def offer(row: RecommendationView) -> str:
    """The best fit, in a sentence and a half."""
    return f"{row.title} suits this machine best ({about(row)}, {speed(row)}): {row.summary}"


def _report(rows: Sequence[RecommendationView], use: str, *, every: bool) -> str:
    mine = [row for row in rows if row.use == use]
    if not mine:
        if every:
            return f"The catalogue has no model {_OTHERS[use]}."
        more = f"stoker recommend --use {use} --all"
        return f"No model {_OTHERS[use]} runs well here. `{more}` shows the rest."
    shown = mine if every else mine[:_SHOWN]
    head = f"Models {_OTHERS[use]}, the best for this machine first:"
    lines = [head, _table(shown), ""]
    for row in [row for row in shown if row.fits] if every else shown[:1]:
        lines += wrapped(f"{row.title}: {row.why}", "  ")
    legend = _LEGEND + (_SPEED_LEGEND if any(row.speed is not None for row in shown) else "")
    verb = "Use" if shown[0].stored else "Get"
    return "\n".join(
        [*lines, *wrapped(f"{legend}."), f"{verb} the first with: {command(shown[0])}"]
    )


def _table(rows: Sequence[RecommendationView]) -> str:
    cells = [
        (
            row.name,
            about(row),
            size(row.memory_bytes),
            speed(row),
            row.licence,
            state(row) or row.summary,
        )
        for row in rows
    ]
    headers = ("MODEL", "DOWNLOAD", "MEMORY", "SPEED", "LICENCE", "WHAT IT IS")
    return fitted(headers, cells, right={"DOWNLOAD", "MEMORY"})


def _print_others(rows: Sequence[RecommendationView]) -> None:
    """The first of every other use, a line each."""
    first = {row.use: row for row in reversed(rows)}
    lines = [
        (f"{_OTHERS[use]}:", first[use].name, about(first[use]), f"stoker recommend --use {use}")
        for use in _OTHERS
        if use != "chat" and use in first
    ]
    if lines:
        print()
        print(fitted(("THE BEST HERE", "MODEL", "DOWNLOAD", "MORE OF THEM"), lines))


def about(row: RecommendationView) -> str:
    """How much is downloaded, as exactly as it is known."""
    return size(row.bytes) if row.pinned else f"~{size(row.bytes)}"


def speed(row: RecommendationView) -> str:
    """``12 tokens/s, estimated``; how sure it is belongs to the number."""
    if row.speed is None:
        return "-"
    value = row.speed.decode_tokens_per_s
    figure = f"{value:.0f}" if value >= 10 else f"{value:.1f}"  # noqa: PLR2004  # two figures
    return f"{figure} tokens/s, {row.speed.label}"


def state(row: RecommendationView) -> str:
    """What stands against a model, or that it is here already; usually nothing."""
    if row.stored:
        return "(in the store) " + row.summary
    if not row.fits:
        return "(too large) " + row.summary
    if not row.quick:
        return "(slow here) " + row.summary
    return "" if row.fits_now else "(free some memory first) " + row.summary


def command(row: RecommendationView) -> str:
    return f"stoker run {row.name}" if row.stored else f"stoker pull {row.name}"
