"""`plan`: how a model would run here, what that costs, why, and what one could gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import typer

from stoker.cli import connection, progress
from stoker.cli.fitting import wrapped
from stoker.cli.output import clean_line, paint, pairs, plural, print_json, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stoker.schemas_machine import PlanSpeedView, PlanView

Value = str | int | float | bool | None
Settings = dict[str, Value]

_WORDS_PER_TOKEN: Final = 0.75  # of English, roughly
_SOURCE: Final = {
    "rule": "a rule",
    "dry-run": "tried out with the engine, without loading",
    "measured": "measured on this computer",
    "user": "your choice",
}
_LABEL: Final = {
    "measured": "measured on this computer",
    "calibrated": "from what was measured on this computer",
    "estimated": "estimated",
}
_PRECISION: Final = {
    "f16": "in full precision",
    "q8_0": "in half the space (q8_0)",
    "q4_0": "in a quarter of the space (q4_0)",
}


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(  # noqa: PLR0913  # one for each option
    model: str = typer.Argument(help="A model of `stoker list`."),
    *,
    profile: Literal["chat", "coding", "batch", "quiet", "battery"] | None = typer.Option(
        None, "--profile", help="As if this profile were set."
    ),
    context: int | None = typer.Option(
        None, "--context", min=256, help="As if conversations had to be this long, in tokens."
    ),
    parallel: int | None = typer.Option(
        None, "--parallel", min=1, max=64, help="As if so many requests were served at once."
    ),
    threads: int | None = typer.Option(None, "--threads", min=1, help="As if threads were set."),
    ubatch: int | None = typer.Option(
        None, "--ubatch", min=32, max=4096, help="As if prompts were read in such steps."
    ),
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = typer.Option(
        None, "--kv-type", help="As if conversations were kept in this precision."
    ),
    gpu_layers: int | None = typer.Option(
        None, "--gpu-layers", min=0, help="As if so many layers were put on the GPU."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/cli.md)."),
) -> None:
    """Show how a model would run here: settings, memory, speed, and why.

    Loads nothing. The options try something out; `stoker config set` makes it so.
    """
    from stoker.schemas_machine import PlanRequest

    request = PlanRequest(
        model=model,
        profile=profile,
        context=context,
        parallel=parallel,
        threads=threads,
        ubatch=ubatch,
        kv_type=kv_type,
        gpu_layers=gpu_layers,
    )
    with connection.daemon() as client, progress.waiting(f"Planning {model} …"):
        view = client.plan(request)
    if as_json:
        print_json(view)
    else:
        print("\n".join(_page(view)))


def _page(view: PlanView) -> Iterator[str]:
    now = "runs with these settings now" if view.loaded else "would run like this now"
    yield paint(clean_line(f"{view.model} {now} (profile {view.profile})"), "bold")
    if view.evicts:
        yield from wrapped(_making_room(view))
    yield ""
    yield from _settings(view)
    yield ""
    yield from _memory(view)
    if view.speed is not None:
        yield ""
        yield paint("Speed", "bold")
        yield from wrapped(f"  {_speed(view.speed)}", "  ")
    if view.gains:
        yield ""
        yield paint("What you could gain", "bold")
        for gain in view.gains:
            yield from wrapped(f"  - {gain.text}", "    ")
            if gain.command:
                yield f"    {clean_line(gain.command)}"


def _making_room(view: PlanView) -> str:
    """What becomes of other models."""
    names, one = _listed(view.evicts), len(view.evicts) == 1
    when = "To load it again" if view.loaded else "To make room"
    if not view.waits:
        return f"{when}, Stoker would first unload {names}."
    answered = "has answered its requests" if one else "have answered their requests"
    then = f"wait until {names} {answered} and unload {'it' if one else 'them'}"
    return f"{when}, Stoker would first {then}."


def _listed(names: Sequence[str]) -> str:
    """As in a sentence: ``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


# --- settings ----------------------------------------------------------------------------------


def _settings(view: PlanView) -> Iterator[str]:
    """Each in plain words, with its reason below; the technical rest is in --json."""
    reasons = {reason.setting: reason for reason in view.reasons}
    for name, say in _SAID.items():
        if name not in view.settings:
            continue
        line = say(view.settings)
        if line is None:
            continue
        yield from wrapped(line, "  ")
        reason = reasons.get(name)
        if reason is not None:
            why = f"{reason.why} [{_SOURCE[reason.source]}]"
            yield from (paint(part, "dim") for part in wrapped(f"    {why}", "    "))


def _context(settings: Settings) -> str | None:
    tokens = _number(settings, "context")
    words = round(tokens * _WORDS_PER_TOKEN, -2)
    if settings.get("embedding"):
        return f"Reads texts of up to {tokens:,} tokens (about {words:,.0f} words)"
    return f"Holds conversations of up to {tokens:,} tokens (about {words:,.0f} words)"


def _parallel(settings: Settings) -> str | None:
    count = _number(settings, "parallel")
    return f"Serves {plural(count, 'request')} at once; more wait for their turn"


def _kv_type(settings: Settings) -> str | None:
    if settings.get("embedding"):
        return None
    return f"Remembers conversations {_PRECISION.get(str(settings['kv_type']), '')}"


def _threads(settings: Settings) -> str | None:
    if settings.get("embedding"):
        return None
    return f"Writes answers with {plural(_number(settings, 'threads'), 'thread')}"


def _threads_batch(settings: Settings) -> str | None:
    return f"Reads prompts with {plural(_number(settings, 'threads_batch'), 'thread')}"


def _ubatch(settings: Settings) -> str | None:
    if settings.get("embedding"):
        return None
    return f"Reads prompts in steps of {_number(settings, 'ubatch'):,} tokens"


def _flash(settings: Settings) -> str | None:
    how = "the fused way (flash attention)" if settings["flash_attention"] else "the plain way"
    return f"Looks back at a conversation in {how}"


def _gpu_layers(settings: Settings) -> str | None:
    layers = _number(settings, "gpu_layers")
    if not layers:
        return "Computes on the processor"
    kept = _number(settings, "cpu_experts")
    beside = f"; the experts of {plural(kept, 'layer')} stay with the processor" if kept else ""
    return f"Puts up to {plural(layers, 'layer')} on the graphics processor{beside}"


def _cache(settings: Settings) -> str | None:
    mib = _number(settings, "cache_ram_mib")
    return f"Keeps what older conversations have read, up to {size(mib << 20)}" if mib else None


def _extra_buffers(settings: Settings) -> str | None:
    if settings["extra_buffers"]:
        return None
    return "Uses the model's weights as they are in the file"


def _correction(settings: Settings) -> str | None:
    factor = settings["correction"]
    if not isinstance(factor, float):
        return None
    return f"Counts {abs(factor - 1):.0%} {'more' if factor > 1 else 'less'} memory than computed"


def _runtime(settings: Settings) -> str | None:
    return f"Engine: {settings['runtime']}" if settings["runtime"] else None


_SAID: Final[dict[str, Callable[[Settings], str | None]]] = {
    "context": _context,
    "parallel": _parallel,
    "kv_type": _kv_type,
    "threads": _threads,
    "threads_batch": _threads_batch,
    "ubatch": _ubatch,
    "flash_attention": _flash,
    "gpu_layers": _gpu_layers,
    "cache_ram_mib": _cache,
    "extra_buffers": _extra_buffers,
    "correction": _correction,
    "runtime": _runtime,
}


def _number(settings: Settings, name: str) -> int:
    value = settings.get(name)
    return value if isinstance(value, int) else 0


# --- memory and speed --------------------------------------------------------------------------


def _memory(view: PlanView) -> Iterator[str]:
    memory = view.memory
    how = _SOURCE["dry-run"] if memory.label == "calibrated" else _LABEL[memory.label]
    yield paint(f"Memory: {size(memory.total_bytes)} ({how})", "bold")
    rows = [
        ("The model itself", memory.weights_bytes),
        ("Memory for conversations", memory.kv_bytes),
        ("Going back in conversations", memory.cache_bytes),
        ("Work space", memory.compute_bytes),
        ("The engine and its dictionary", memory.runtime_bytes),
        ("Copies laid out for this processor", memory.repack_bytes),
    ]
    learnt, more = memory.learnt_bytes, "more" if memory.learnt_bytes > 0 else "less"
    rows.append((f"What it took {more} than that before", abs(learnt)))
    shown = [(f"  {label}", size(count)) for label, count in rows if count]
    when = "then" if view.evicts else "now"
    shown.append((f"  Free for models {when}", size(memory.usable_bytes)))
    shown.append(("  Left for other programs", size(memory.reserved_bytes)))
    if memory.gpu_bytes:
        shown.append(("  On the graphics processor", size(memory.gpu_bytes)))
    yield pairs(shown)


def _speed(speed: PlanSpeedView) -> str:
    decode = speed.decode_tokens_per_s
    parts = [f"writes about {_rate(decode)} tokens/s ({_rate(decode * _WORDS_PER_TOKEN)} words/s)"]
    if speed.prefill_tokens_per_s is not None:
        parts.append(f"reads prompts at about {_rate(speed.prefill_tokens_per_s)} tokens/s")
    if speed.batch_tokens_per_s is not None:
        parts.append(f"writes {_rate(speed.batch_tokens_per_s)} tokens/s for four requests at once")
    return f"{', '.join(parts)} ({_LABEL[speed.label]})"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"  # noqa: PLR2004  # two figures
