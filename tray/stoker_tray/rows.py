"""The longer parts of the menu: models, offers, downloads, problems. Pure.

Lists of any length stay usable: no level has more than `MOST_ROWS` rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from stoker.types import ModelState, PullState
from stoker_tray.face import Command, Row, Verb
from stoker_tray.shapes import Model, Offer, Pull
from stoker_tray.state import State, damaged_text
from stoker_tray.words import (
    clean,
    duration,
    known,
    left,
    line,
    listed,
    name,
    percent,
    plural,
    size,
    speed,
)

MOST_ROWS: Final = 25  # fits a laptop's screen without scrolling
MODELS_FIRST: Final = 12
OFFERS: Final = 10  # the best ones; `stoker recommend` shows all
PULLS_FIRST: Final = 3  # that run at once, or need a person; with all else one screen
MESSAGE: Final = 50  # characters of a foreign message beside a name
_PROBLEM: Final = 110
_LONGEST_LOAD_S: Final = 3600.0
_MOST_REQUESTS: Final = 100_000  # more is no count
_RANGE_NAME: Final = 20

LOADED: Final = frozenset({ModelState.READY, ModelState.DRAINING})
COMING: Final = frozenset({ModelState.QUEUED, ModelState.LOADING})

# --- models ----------------------------------------------------------------------------------


def models_row(state: State) -> Row:
    """The switch: one click uses another model. Without any model, where to get one."""
    if not state.models:
        where = "choose one in “Add model”" if fitting(state) else "run: stoker pull starter"
        return Row("models", f"No model yet — {where}")
    ordered = sorted(state.models, key=_place)
    problems = set(state.problems)
    pairs = [
        (model.id, _model_row(model, is_damaged=damaged_text(model.id) in problems))
        for model in ordered
    ]
    rows = [row for _, row in pairs[:MODELS_FIRST]]
    if pairs[MODELS_FIRST:]:
        rows.append(Row("more", "More", children=grouped(pairs[MODELS_FIRST:], "more")))
    none = not any(model.state in LOADED | COMING for model in state.models)
    unload = Command(Verb.UNLOAD_ALL)
    rows += [
        Row("separator", separator=True),
        Row("none", "None (unload)", unload, checked=none, radio=True),
    ]
    return Row("models", "Models", children=tuple(rows))


def _place(model: Model) -> tuple[bool, str, str]:
    return model.state not in LOADED | COMING, model.id.casefold(), model.id


def _model_row(model: Model, *, is_damaged: bool) -> Row:
    """A damaged model is not served: it can only be looked at."""
    if is_damaged:
        return Row(f"model:{model.id}", f"{name(model.id)} — damaged")
    marks = ["default" if model.default else "", "pinned" if model.pinned else ""]
    detail = listed([*marks, model_detail(model)])
    return Row(
        key=f"model:{model.id}",
        text=f"{name(model.id)} — {detail}" if detail else name(model.id),
        command=Command(Verb.USE, model.id),
        checked=model.state in LOADED | COMING,
        radio=True,
    )


def model_detail(model: Model) -> str:
    """What a person weighs before switching: its state, its memory, how long it takes to load."""
    expected = left(expected_s(model))
    match model.state:
        case ModelState.READY:
            return listed(["in use" if model.in_flight > 0 else "ready", memory(model)])
        case ModelState.LOADING:
            return "loading"  # the header counts the seconds
        case ModelState.QUEUED:
            return listed(["waiting to load", expected])
        case ModelState.DRAINING:
            return listed(["unloading", memory(model)])
        case ModelState.FAILED:
            return failure(model)
    return f"loads in {expected}" if expected else ""


def failure(model: Model) -> str:
    message = line(model.error.message, MESSAGE) if model.error else ""
    return f"failed: {message}" if message else "failed"


def load_s(model: Model) -> float | None:
    """How long its last load took, when that is a sensible time."""
    return known(model.load_s, _LONGEST_LOAD_S) or None


def expected_s(model: Model) -> float | None:
    """How long a load of it takes, about; as long as its last one where nothing better is said."""
    return known(model.expected_load_s, _LONGEST_LOAD_S) or load_s(model)


def memory_bytes(model: Model) -> float:
    """What its worker really has; what was predicted while that cannot be read."""
    if model.memory is None:
        return 0
    resident = model.memory.resident_bytes
    return model.memory.predicted_bytes if resident is None else resident


def memory(model: Model) -> str:
    return size(memory_bytes(model) or None)


def answering(model: Model) -> str:
    """``ready, 31 tokens/s``; with several requests, how many."""
    doing = "answering" if model.in_flight > 0 else "ready"
    if 1 < model.in_flight < _MOST_REQUESTS:
        doing = f"answering {model.in_flight} requests"
    waiting = f"{model.queued} waiting" if 0 < model.queued < _MOST_REQUESTS else ""
    return listed([doing, speed(model.tokens_per_s), waiting])


# --- offers ----------------------------------------------------------------------------------


def fitting(state: State) -> tuple[Offer, ...]:
    """Models of the catalogue that could be added now, best first."""
    pulled = {one for pull in state.pulls if not pull.ended for one in (pull.reference, pull.model)}
    there = {model.id for model in state.models}
    return tuple(
        offer
        for offer in state.offers
        if offer.fits and not offer.stored and offer.name not in there | pulled
    )


def offers_row(state: State) -> Row | None:
    pairs = [(offer.name, _offer_row(offer)) for offer in fitting(state)[:OFFERS]]
    if not pairs:
        return None
    return Row("add", "Add model", children=grouped(pairs, "add"))


def _offer_row(offer: Offer) -> Row:
    verdict = "runs well here" if offer.quick else "slow here"
    title = offer.title if clean(offer.title) else offer.name
    return Row(
        key=f"offer:{offer.name}",
        text=f"{name(title)} — {listed([size(offer.bytes), verdict])}",
        command=Command(Verb.PULL, offer.name),
    )


# --- downloads -------------------------------------------------------------------------------

RUNNING: Final = frozenset(
    {PullState.QUEUED, PullState.RESOLVING, PullState.FETCHING, PullState.VERIFYING}
)


def pull_rows(state: State) -> tuple[Row, ...]:
    """Downloads that run, wait or need a person; a failed one until its model is there."""
    there = {model.id for model in state.models}
    running = [pull for pull in state.pulls if pull.state in RUNNING]
    resting = [pull for pull in state.pulls if pull.state == PullState.PAUSED]
    failed = [
        pull for pull in state.pulls if pull.state == PullState.FAILED and pull.model not in there
    ]
    pairs = [(pull_name(pull), _pull_row(pull)) for pull in (*running, *resting, *failed)]
    rows = [row for _, row in pairs[:PULLS_FIRST]]
    rest = pairs[PULLS_FIRST:]
    if rest:
        rows.append(
            Row("pulls", f"{plural(len(rest), 'more download')}", children=grouped(rest, "pulls"))
        )
    return tuple(rows)


def _pull_row(pull: Pull) -> Row:
    actions = {
        PullState.PAUSED: ((Verb.RESUME, "Resume"), (Verb.CANCEL, "Cancel")),
        PullState.FAILED: ((Verb.RESUME, "Try again"),),
    }.get(PullState(pull.state), ((Verb.PAUSE, "Pause"), (Verb.CANCEL, "Cancel")))
    return Row(
        key=f"pull:{pull.id}",
        text=f"{name(pull_name(pull))} — {pull_detail(pull)}",
        children=tuple(Row(verb.value, text, Command(verb, pull.id)) for verb, text in actions),
    )


def pull_name(pull: Pull) -> str:
    """The model, or what was asked for; without an address's query, which may be a secret."""
    if pull.model:
        return pull.model
    if "://" not in pull.reference:
        return pull.reference
    return pull.reference.partition("?")[0].rpartition("/")[2] or "a download"


def pull_detail(pull: Pull) -> str:
    share = percent(pull.bytes_done, pull.bytes_total)
    amount = f"{share} of {size(pull.bytes_total)}" if share else size(pull.bytes_done or None)
    match pull.state:
        case PullState.QUEUED:
            return "waiting"
        case PullState.RESOLVING:
            return "looking it up"
        case PullState.VERIFYING:
            return "verifying"
        case PullState.PAUSED:
            return listed(["paused", amount])
        case PullState.FAILED:
            message = line(pull.error.message, MESSAGE) if pull.error else ""
            return f"failed: {message}" if message else "failed"
    time = duration(pull.eta_s)
    return listed([amount or "starting", f"{time} left" if time else ""])


# --- problems --------------------------------------------------------------------------------


def problems_row(state: State) -> Row | None:
    if not state.problems:
        return None
    shown = state.problems[: MOST_ROWS - 1]
    rows = [Row(f"problem:{i}", line(text, _PROBLEM) or "unnamed") for i, text in enumerate(shown)]
    rest = len(state.problems) - len(shown)
    if rest:
        rows.append(Row("rest", f"and {rest} more: see the logs"))
    count = plural(len(state.problems), "problem")
    return Row("problems", count, children=tuple(rows))


# --- long lists ------------------------------------------------------------------------------


def grouped(pairs: Sequence[tuple[str, Row]], key: str) -> tuple[Row, ...]:
    """The rows, at most `MOST_ROWS` on a level: below ranges ``first … last`` when there are more.

    Each row comes with the name under which a person looks for it.
    """
    if len(pairs) <= MOST_ROWS:
        return tuple(row for _, row in pairs)
    per_group = MOST_ROWS
    while per_group * MOST_ROWS < len(pairs):
        per_group *= MOST_ROWS
    groups = [pairs[start : start + per_group] for start in range(0, len(pairs), per_group)]
    return tuple(
        Row(f"{key}:{number}", _range(group), children=grouped(group, f"{key}:{number}"))
        for number, group in enumerate(groups)
    )


def _range(group: Sequence[tuple[str, Row]]) -> str:
    first, last = group[0][0], group[-1][0]
    return f"{name(first, _RANGE_NAME)} … {name(last, _RANGE_NAME)}"


def total(numbers: Iterable[float | None], most: float = 10**18) -> float | None:
    """The sum of what is known; None when nothing is."""
    found = [value for value in (known(number, most) for number in numbers) if value is not None]
    return sum(found) if found else None
