"""`bench`: how fast a model is here, through the endpoint, in figures that can be compared."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import typer

from stoker import errors
from stoker.cli import boundary, connection, progress
from stoker.cli.fitting import fitted, wrapped
from stoker.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from stoker.cli.bench_runs import Bench, Results, Task
    from stoker.client import StokerClient
    from stoker.schemas import ModelView

DEPTHS: Final = "0,1024,4096"
STREAMS: Final = "1,2,4,8"
_QUICK_DEPTHS: Final = "0,1024"
_QUICK_STREAMS: Final = "1,4"
_MOST_STREAMS: Final = 64
_MOST_DEPTH: Final = 1_000_000
_DEFAULT_CONTEXT: Final = 4096  # of an engine that does not tell
_BUSY_PERCENT: Final = 25.0
_PERCENT: Final = 100
_WITHOUT_CAPABILITY: Final = "bench measures models that write; this one gives vectors or ranks"


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    model: str = typer.Argument(help="A model of `stoker list`."),
    quick: bool = typer.Option(False, "--quick", help="Fewer runs: a rough picture in less time."),
    depths: str | None = typer.Option(
        None, "--depths", help=f"Lengths of the conversation before it writes.  [{DEPTHS}]"
    ),
    streams: str | None = typer.Option(
        None, "--streams", help=f"How many answers at the same time.  [{STREAMS}]"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/bench.md)."),
) -> None:
    """Measure how fast a model is on this machine.

    Through the endpoint, as any program would use it. Best while nothing else runs. Ctrl-C ends it
    and prints what was measured until then.
    """
    from stoker.cli.bench_endpoint import Endpoint
    from stoker.cli.bench_runs import FULL, QUICK, Bench, Task

    chosen_depths = _numbers(depths or (_QUICK_DEPTHS if quick else DEPTHS), 0, _MOST_DEPTH)
    chosen_streams = _numbers(streams or (_QUICK_STREAMS if quick else STREAMS), 1, _MOST_STREAMS)
    with connection.daemon() as client:
        view, base_url, remarks = _ready(client, model)
    task = Task(
        context=view.context or _DEFAULT_CONTEXT,
        parallel=view.parallel or 1,
        effort=QUICK if quick else FULL,
        depths=chosen_depths,
        streams=chosen_streams,
        patient=depths is not None,
    )
    with Endpoint(base_url, view.id) as endpoint, progress.showing() as show:
        runs = Bench(endpoint, task, _say(show))
        runs.results.remarks += remarks
        _run(runs)
    report = _json(view, task, runs.results)
    print_json(report) if as_json else print(_text(view, task, runs.results))
    if not runs.results.complete:
        raise typer.Exit(boundary.INTERRUPTED)


def _numbers(text: str, least: int, most: int) -> tuple[int, ...]:
    """``0,1024`` in ascending order. Raises BadUsage."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(least <= one <= most for one in found):
        msg = f"not a list of numbers from {least} to {most}: {text!r}"
        raise errors.BadUsage(msg, hint="Write them with commas: 1,2,4.")
    return tuple(found)


def _ready(client: StokerClient, model: str) -> tuple[ModelView, str, list[str]]:
    """The loaded model, the endpoint's address, and what may spoil the figures."""
    from stoker.types import Capability

    stored = client.model(model)
    if not {Capability.CHAT, Capability.COMPLETION} & set(stored.capabilities):
        raise errors.NotCapable(_WITHOUT_CAPABILITY)
    status = client.status()
    remarks = []
    if status.resources.cpu_percent > _BUSY_PERCENT:
        percent = f"{status.resources.cpu_percent:.0f} %"
        remarks.append(
            f"other programs used {percent} of the processor; alone, the model may be faster"
        )
    if any(one.in_flight for one in status.models):
        remarks.append("Stoker was answering other programs at the same time")
    with progress.waiting(f"Loading {stored.id} …"):
        view = client.load(stored.id)
    return view, status.server.base_url, remarks


def _say(show: progress.Show) -> Callable[[str], None]:
    return lambda text: show(progress.Step(text))


def _run(runs: Bench) -> None:
    """Ctrl-C ends the bench, not the report. Raises StokerError when nothing was measured."""
    try:
        runs.run()
    except KeyboardInterrupt:
        runs.results.remarks.append("stopped by Ctrl-C; the rest was not measured")
    except errors.StokerError as error:
        if not runs.results.prefill:
            raise
        runs.results.remarks.append(f"ended early: {error.message}")


# --- the report ------------------------------------------------------------------------------


def _json(view: ModelView, task: Task, results: Results) -> dict[str, Any]:
    from stoker.cli.bench_runs import QUICK, SEED

    return {
        "model": view.id,
        "engine": view.engine,
        "runtime": view.runtime,
        "context": task.context,
        "parallel": task.parallel,
        "quick": task.effort == QUICK,
        "seed": SEED,
        **dataclasses.asdict(results),
    }


def _text(view: ModelView, task: Task, results: Results) -> str:
    head = f"{view.id} on {view.runtime or view.engine or 'its engine'}:"
    about = f"context {task.context:,} tokens, up to {task.parallel} answers at once"
    rows = _rows(results)
    lines = [*wrapped(f"{head} {about}"), "", fitted(("WHAT", "RESULT", "IN OTHER WORDS"), rows)]
    lines += ["", *wrapped("A token is about three quarters of a word; 500 tokens are a page.")]
    if results.decode:
        one = results.decode[0]
        share = min(1.0, one.seen_tokens_per_s / one.tokens_per_s) * _PERCENT
        text = f"A program sees {share:.1f} % of the writing speed that the engine counts."
        lines += wrapped(text)
    for remark in results.remarks:
        lines += wrapped(f"note: {remark}", "      ")
    return "\n".join(lines)


def _rows(results: Results) -> list[tuple[str, str, str]]:
    rows = [
        (
            f"reading {one.prompt_tokens} tokens",
            _speed(one.tokens_per_s),
            f"a page that you send is understood in {_seconds(500 / one.tokens_per_s)}",
        )
        for one in results.prefill
    ]
    rows += [
        (
            f"first word, {one.prompt_tokens} tokens sent",
            _seconds(one.p50_s),
            "the wait before an answer begins",
        )
        for one in results.first_token
    ]
    rows += [
        (
            f"writing, {_after(one.depth)}",
            _speed(one.tokens_per_s),
            f"a page is written in {_seconds(500 / one.tokens_per_s)}",
        )
        for one in results.decode
    ]
    rows += [
        (
            f"{one.streams} at the same time" if one.streams > 1 else "one at a time",
            _speed(one.tokens_per_s),
            f"{_together(one.streams)} after {_seconds(one.first_p50_s)}",
        )
        for one in results.streams
    ]
    return rows


def _together(streams: int) -> str:
    return "all together; each begins" if streams > 1 else "it begins"


def _after(depth: int) -> str:
    return f"after {depth} tokens" if depth else "at the start"


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.1f} tokens/s"


def _seconds(value: float) -> str:
    """``40 ms``, ``2.5 s``, ``3 min``."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:  # noqa: PLR2004  # three figures would be too many
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min"
