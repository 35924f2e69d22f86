"""Models in memory and other servers as tables, or one below the other where a table is too wide.

Pure, but for the width of the terminal. Not for: fetching them (`loaded`, `daemon`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from stoker.cli.fitting import columns, fitted, wrapped
from stoker.cli.output import clean_line, duration, size, table

if TYPE_CHECKING:
    from stoker.schemas import ModelView, UpstreamView

_INDENT: Final = "  "
_WORDS: Final = frozenset({"MODEL", "STATE", "UNLOADS IN"})  # columns without figures


def summary(models: Sequence[ModelView]) -> str:
    """What `status` says of the models that have a worker, or should have one."""
    headers = ("MODEL", "STATE", "MEMORY", "TOKENS/S", "RUNNING", "WAITING", "UNLOADS IN")
    rows = [
        (
            model.id,
            standing(model),
            size(_taken(model)),
            f"{model.tokens_per_s:.1f}" if model.tokens_per_s else "-",
            model.in_flight,
            model.queued,
            duration(model.expires_in_s),
        )
        for model in models
    ]
    return _shown(models, headers, rows)


def details(models: Sequence[ModelView]) -> str:
    """All that is known of each: what `ps` says."""
    headers = (
        *("MODEL", "STATE", "PREDICTED", "NOW", "PEAK", "CONTEXT", "USED"),
        *("TOKENS/S", "RUNNING", "WAITING", "UNLOADS IN"),
    )
    rows = [
        (
            model.id,
            standing(model),
            size(model.memory.predicted_bytes) if model.memory else "-",
            size(model.memory.resident_bytes) if model.memory else "-",
            size(model.memory.peak_bytes) if model.memory else "-",
            model.context or "-",
            _percent(model.kv_used) or "-",
            f"{model.tokens_per_s:.1f}" if model.tokens_per_s else "-",
            model.in_flight,
            model.queued,
            duration(model.expires_in_s),
        )
        for model in models
    ]
    return _shown(models, headers, rows)


def upstreams(servers: Sequence[UpstreamView]) -> str:
    """The other servers whose models are served here."""
    headers = ("UPSTREAM", "STATE", "MODELS", "RUNNING", "ANSWERS IN", "ADDRESS")
    rows = [
        (
            server.name,
            server.state,
            len(server.models),
            server.in_flight,
            "-" if server.latency_s is None else f"{server.latency_s * 1000:.0f} ms",
            server.base_url,
        )
        for server in servers
    ]
    faults = [
        f"{server.name}: {server.error.message.rstrip('.')}. {server.error.hint}"
        for server in servers
        if server.error
    ]
    text = fitted(headers, rows, right={"MODELS", "RUNNING", "ANSWERS IN"})
    return "\n".join([text, *_lines(faults)])


def standing(model: ModelView) -> str:
    """Its state and what sets it apart: ``ready, default, pinned``."""
    parts: list[str] = [model.state.value]
    if model.loading_s is not None:
        parts.append(progress(model.loading_s, model.expected_load_s))
    parts += [word for word, so in (("default", model.default), ("pinned", model.pinned)) if so]
    return ", ".join(parts)


def progress(elapsed_s: float, expected_s: float | None) -> str:
    """``4 s of about 12 s``; ``14 s`` when nobody knows, or when it takes longer."""
    if expected_s is None or elapsed_s > expected_s:
        return duration(elapsed_s)
    return f"{duration(elapsed_s)} of about {duration(max(1.0, expected_s))}"


# --- parts -----------------------------------------------------------------------------------


def _shown(
    models: Sequence[ModelView],
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> str:
    limit = columns()
    cells = [[clean_line(str(cell)) for cell in row] for row in rows]
    width = sum(max(map(len, column)) + 2 for column in zip(headers, *cells, strict=True)) - 2
    if limit is None or width <= limit:
        text = table(headers, cells, right=set(headers) - _WORDS)
    else:
        text = "\n".join(line for model in models for line in _entry(model))
    return "\n".join([text, *_lines(_remarks(models))])


def _entry(model: ModelView) -> list[str]:
    """A model in lines of its own."""
    parts = [("memory", _memory(model)), ("context", _context(model)), ("requests", _work(model))]
    if model.expires_in_s is not None:
        parts.append(("unloads", f"in {duration(model.expires_in_s)}"))
    return [
        *wrapped(f"{model.id}: {standing(model)}", _INDENT),
        *(f"{_INDENT}{label.ljust(8)}  {text}" for label, text in parts if text),
    ]


def _memory(model: ModelView) -> str:
    if model.memory is None:
        return ""
    memory = model.memory
    figures = (
        ("now", memory.resident_bytes),
        ("at most", memory.peak_bytes),
        ("predicted", memory.predicted_bytes),
    )
    return ", ".join(f"{size(count)} {word}" for word, count in figures if count is not None)


def _context(model: ModelView) -> str:
    if not model.context:
        return ""
    used = _percent(model.kv_used)
    return f"{model.context} tokens{f', {used} used' if used else ''}"


def _work(model: ModelView) -> str:
    speed = f", {model.tokens_per_s:.1f} tokens/s" if model.tokens_per_s else ""
    return f"{model.in_flight} running, {model.queued} waiting{speed}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _taken(model: ModelView) -> int | None:
    if model.memory is None:
        return None
    return model.memory.resident_bytes or model.memory.predicted_bytes


def _remarks(models: Iterable[ModelView]) -> Iterable[str]:
    for model in models:
        if model.error:
            yield f"{model.id}: {model.error.message.rstrip('.')}. {model.error.hint}".rstrip()
        if model.rung:
            yield f"{model.id}: held back because it failed (step {model.rung})"


def _lines(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in wrapped(text, _INDENT)]
