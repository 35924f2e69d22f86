"""`tune`: measure the fastest settings of a model on this computer, or see what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from stoker import errors
from stoker.cli import boundary, connection, progress
from stoker.cli.fitting import fitted, wrapped
from stoker.cli.output import (
    clean_line,
    duration,
    moment,
    note,
    plural,
    print_json,
    table,
)

if TYPE_CHECKING:
    from stoker.client import StokerClient
    from stoker.schemas import SpeedsView, TuneView

_POLL_S: Final = 0.5
_ACTIVE: Final = frozenset(("waiting", "running", "paused"))
_MOST_BYTES: Final = 4 << 20  # of a file to import; a thousand models take 1 MB
_SAME: Final = 0.005  # a difference that two runs of the same settings have, too
_SETTINGS: Final = (
    ("threads", "threads to write"),
    ("threads_batch", "threads to read"),
    ("ubatch", "tokens read at once"),
    ("flash_attention", "flash attention"),
    ("extra_buffers", "weights laid out for this CPU"),
    ("runtime", "runtime"),
)
_STATES: Final = {
    "none": "not measured yet",
    "waiting": "waits",
    "running": "is being measured",
    "paused": "is interrupted, goes on by itself",
    "done": "measured",
    "failed": "failed",
    "cancelled": "cancelled",
}
_SHORT_STATES: Final = {"paused": "interrupted"}


def register(app: typer.Typer) -> None:
    app.command()(tune)


def tune(  # one for each option
    model: str | None = typer.Argument(None, help="A model of `stoker list`; without: all."),
    *,
    seconds: float | None = typer.Option(
        None, "--seconds", min=1, max=3600, help="How long to measure; otherwise 90 seconds."
    ),
    again: bool = typer.Option(False, "--again", help="Measure although it was measured before."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Do not wait for the end."),
    cancel: bool = typer.Option(False, "--cancel", help="End the measuring of this model."),
    export: str | None = typer.Option(
        None, "--export", help="Write all that was measured to this file; `-` is the output."
    ),
    import_from: str | None = typer.Option(
        None, "--import", help="Take over what was measured on a computer like this one."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/cli.md)."),
) -> None:
    """Measure which settings make a model fastest here, and use them.

    Stoker does this by itself when nobody asks anything; with a MODEL it begins at once. Requests
    go first at any time. Ctrl-C only stops watching.
    """
    if (cancel or seconds or again or detach) and model is None:
        raise errors.BadUsage("this needs a MODEL", hint="See `stoker list` for their names.")
    if sum((cancel, export is not None, import_from is not None)) > 1:
        msg = "--cancel, --export and --import exclude each other"
        raise errors.BadUsage(msg, hint="Give one of them.")
    with connection.daemon() as client:
        if export is not None:
            _export(client, Path(export))
        elif import_from is not None:
            _import(client, Path(import_from), as_json=as_json)
        elif model is None:
            _list(client.tunes(), as_json=as_json)
        elif cancel:
            view = client.tune_cancel(model)
            print_json(view) if as_json else print(f"{view.model}: {_STATES[view.state]}")
        else:
            _tune(client, model, seconds, again=again, detach=detach, as_json=as_json)


def _tune(
    client: StokerClient,
    model: str,
    seconds: float | None,
    *,
    again: bool,
    detach: bool,
    as_json: bool,
) -> None:
    from stoker.schemas_machine import TuneRequest

    view = client.tune(TuneRequest(model=model, seconds=seconds, again=again))
    if detach and view.state in _ACTIVE:
        print_json(view) if as_json else print(_detached(view))
        return
    known = view.state == "done"
    view = watch(client, view)
    if as_json:
        print_json(view)
        return
    print(result(view))
    if known:
        print(f"It was measured {moment(view.measured_at)}; `--again` measures anew.")


def watch(
    client: StokerClient, view: TuneView, *, sleep: Callable[[float], None] = time.sleep
) -> TuneView:
    """Show progress until the search has ended. Raises what made it fail."""
    try:
        with progress.showing() as show:
            while view.state in _ACTIVE:
                show(_step(view))
                sleep(_POLL_S)
                view = _find(client, view.model)
    except KeyboardInterrupt:
        note(_detached(view))
        raise typer.Exit(boundary.INTERRUPTED) from None
    if view.error is not None and view.state == "failed":
        error = view.error
        raise errors.from_wire(error.code, error.message, error.hint, error.facts)
    if view.state != "done":
        raise errors.StokerError(
            f"the measuring of {view.model} ended: {view.state}",
            hint=f"Start it again with `stoker tune {view.model}`.",
        )
    return view


def _find(client: StokerClient, model: str) -> TuneView:
    for view in client.tunes():
        if view.model == model:
            return view
    raise errors.UnknownModel(f"there is no model {model!r} any more")


def _step(view: TuneView) -> progress.Step:
    left = max(0.0, view.budget_s - view.spent_s) if view.state == "running" else None
    return progress.Step(f"{view.model}: {view.note or _STATES[view.state]}", eta_s=left)


def _detached(view: TuneView) -> str:
    return (
        f"The measuring of {view.model} goes on in the background; see `stoker tune`, "
        f"end it with `stoker tune {view.model} --cancel`."
    )


# --- what was measured -----------------------------------------------------------------------


def result(view: TuneView) -> str:
    """Before and after, and the settings behind it, for somebody who only wants it fast."""
    if view.speeds is None or view.baseline is None:
        return f"{view.model}: {_STATES[view.state]}"
    head = (
        f"{view.model}: {plural(view.trials, 'setting')} measured in {duration(view.spent_s)},"
        f" for the profile {view.profile}."
    )
    lines = [head, "", _speed_table(view.baseline, view.speeds), "", _verdict(view)]
    if view.settings:
        lines += ["", "The settings:", *_settings_lines(view.settings)]
    if view.note:
        lines += ["", f"Note: {clean_line(view.note)}."]
    return "\n".join(lines)


def _speed_table(before: SpeedsView, after: SpeedsView) -> str:
    rows = [
        ("reads a prompt", before.prefill_tokens_per_s, after.prefill_tokens_per_s),
        ("writes an answer", before.decode_tokens_per_s, after.decode_tokens_per_s),
        ("four answers at once", before.batch_tokens_per_s, after.batch_tokens_per_s),
    ]
    headers = ("tokens per second", "before", "now", "")
    return table(
        headers,
        [(what, f"{a:.1f}", f"{b:.1f}", _change(a, b)) for what, a, b in rows],
        right=("before", "now"),
    )


def _change(before: float, after: float) -> str:
    if before <= 0:
        return ""
    share = after / before - 1
    return "the same" if abs(share) < _SAME else f"{share:+.0%}"


def _verdict(view: TuneView) -> str:
    if view.speeds == view.baseline:
        return "The settings in use were the fastest already; nothing changes."
    return "Stoker uses the faster settings from now on."


def _settings_lines(settings: dict[str, str | int | bool]) -> list[str]:
    width = max(len(text) for _, text in _SETTINGS)
    return [
        f"  {text.ljust(width)}  {clean_line(_value(settings[name]))}"
        for name, text in _SETTINGS
        if name in settings
    ]


def _value(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _list(views: list[TuneView], *, as_json: bool) -> None:
    if as_json:
        print_json(views)
        return
    if not views:
        print("There is no model that could be measured. Get one with `stoker pull`.")
        return
    headers = ("MODEL", "STATE", "PROFILE", "READS/S", "WRITES/S", "FASTER", "MEASURED", "NOTE")
    rows = [
        (
            view.model,
            _SHORT_STATES.get(view.state, _STATES[view.state]),
            view.profile,
            f"{view.speeds.prefill_tokens_per_s:.0f}" if view.speeds else "-",
            f"{view.speeds.decode_tokens_per_s:.1f}" if view.speeds else "-",
            _faster(view),
            moment(view.measured_at) if view.measured_at else "-",
            _note(view),
        )
        for view in views
    ]
    print(fitted(headers, rows, right=("READS/S", "WRITES/S", "FASTER")))
    if any(view.speeds for view in views):
        text = (
            "READS/S and WRITES/S are tokens per second; a token is about three quarters of a word."
        )
        print("\n".join(["", *wrapped(text)]))


def _note(view: TuneView) -> str:
    if view.state == "done":
        return ""
    if view.error is not None:
        return view.error.message
    return view.note or ""


def _faster(view: TuneView) -> str:
    """The largest gain in one word: the table has room for one."""
    before, now = view.baseline, view.speeds
    if before is None or now is None:
        return "-"
    gains = [
        now.prefill_tokens_per_s / max(before.prefill_tokens_per_s, 1e-9),
        now.decode_tokens_per_s / max(before.decode_tokens_per_s, 1e-9),
        now.batch_tokens_per_s / max(before.batch_tokens_per_s, 1e-9),
    ]
    best = max(gains) - 1
    return "-" if best < _SAME else f"up to {best:+.0%}"


# --- files -----------------------------------------------------------------------------------


def _export(client: StokerClient, file: Path) -> None:
    document = client.tune_export()
    if str(file) == "-":
        print_json(document)
        return
    try:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise errors.BadUsage(
            f"cannot write {file}: {error.strerror or error}", hint="Choose another place."
        ) from error
    models = document.get("models")
    count = len(models) if isinstance(models, list) else 0
    print(f"What was measured of {plural(count, 'model')} is in {file}.")


def _import(client: StokerClient, file: Path, *, as_json: bool) -> None:
    view = client.tune_import(_read(file))
    if as_json:
        print_json(view)
    else:
        print(f"The settings of {plural(view.taken, 'model')} were taken over.")


def _read(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise errors.BadTuningFile(f"{file} is too large for a file of tuned settings")
        document = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise errors.BadTuningFile(f"cannot read {file}: {error}") from error
    if not isinstance(document, dict):
        raise errors.BadTuningFile(f"{file} holds no tuned settings")
    return document
