"""What the tray knows: the daemon's status as it was told, and what the tray itself is doing.

Pure. Not for: how it looks (`view`), nor where events come from (`wire`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, TypeVar

from stoker.types import ModelState
from stoker_tray.shapes import (
    BadEvent,
    Daemon,
    DefaultChange,
    Model,
    Offer,
    Pull,
    Resources,
    Server,
    Status,
    StoreChange,
    read,
    reader,
)
from stoker_tray.words import known as figure

__all__ = ["BadEvent", "State", "apply", "damaged_text", "parse_offers", "parse_snapshot"]

T = TypeVar("T")

_LONGEST_LOAD_S: Final = 86400.0
_MOST_ENDED: Final = 50  # pulls that have ended; the daemon itself keeps as many


@dataclass(frozen=True, slots=True)
class State:
    """A value: every change makes a new one. Ids of models and of pulls are unique in it."""

    connected: bool = False
    daemon: Daemon | None = None
    server: Server | None = None
    models: tuple[Model, ...] = ()
    resources: Resources | None = None
    pulls: tuple[Pull, ...] = ()
    problems: tuple[str, ...] = ()
    loading_since: Mapping[str, float] = field(default_factory=dict)  # model id: when it began
    latest: str | None = None  # the model that began to load, or to answer, last

    # What the tray itself knows; a lost connection does not change it.
    autostart: bool | None = None  # None: not known, or there is no such switch here
    autostart_tray: bool | None = None
    offers: tuple[Offer, ...] = ()
    muted: frozenset[str] = frozenset()  # `notices.Kind` values
    busy: str | None = None  # what the tray is doing, e.g. "Starting Stoker"
    note: str | None = None  # why the last thing that was asked for did not happen
    note_until_s: float | None = None  # after that the note is old; None: no end

    @classmethod
    def disconnected(cls, before: State | None = None) -> Self:
        """Nothing known of the daemon; what the tray itself knew before stays."""
        if before is None:
            return cls()
        return cls(
            autostart=before.autostart,
            autostart_tray=before.autostart_tray,
            offers=before.offers,
            muted=before.muted,
            busy=before.busy,
            note=before.note,
            note_until_s=before.note_until_s,
        )

    def model(self, model_id: str) -> Model | None:
        return next((one for one in self.models if one.id == model_id), None)

    def pull(self, pull_id: str) -> Pull | None:
        return next((one for one in self.pulls if one.id == pull_id), None)


def damaged_text(model_id: str) -> str:
    """The problem that the daemon's status lists for a damaged model."""
    return f"{model_id} is damaged and is not served; pull it again to repair it"


# --- from JSON -------------------------------------------------------------------------------


def parse_snapshot(
    status: object, before: State | None = None, now_s: float | None = None
) -> State:
    """From the answer of ``GET /status``, or the ``status`` of a snapshot. Raises BadEvent.

    What the tray itself knew ``before`` is kept.
    """
    told = read(Status, status)
    kept = before if before is not None else State()
    models = _unique(told.models, lambda model: model.id)
    known = kept.loading_since
    loading = {
        model.id: known.get(model.id, _began(model, now_s))
        for model in models
        if model.state == ModelState.LOADING
    }
    return replace(
        State.disconnected(kept),
        connected=True,
        daemon=told.daemon,
        server=told.server,
        models=models,
        resources=told.resources,
        pulls=_unique(told.pulls, lambda pull: pull.id),
        problems=told.problems,
        loading_since={name: since for name, since in loading.items() if since is not None},
        latest=_still_loaded(kept.latest, models) or _used_last(models),
    )


def parse_offers(offers: object) -> tuple[Offer, ...]:
    """From the answer of ``GET /catalogue``. Raises BadEvent."""
    listed: tuple[Offer, ...] = reader(tuple[Offer, ...])(offers)
    return _unique(listed, lambda offer: offer.name)


def apply(state: State, event: object, now_s: float | None = None) -> State:
    """The state after one event of ``GET /events``. Raises BadEvent.

    An event of an unknown type changes nothing, and so does any before the first snapshot.
    Without the time the progress of a load that begins is not known.
    """
    if not isinstance(event, Mapping) or not isinstance(event.get("type"), str):
        raise BadEvent("something without a type")
    kind = event["type"]
    if kind == "snapshot":
        return parse_snapshot(event.get("status"), state, now_s)
    if not state.connected:
        return state
    if kind == "model":
        return _with_model(state, read(Model, event.get("model")), now_s)
    change = _CHANGES.get(kind)
    return state if change is None else change(state, event)


def _with_model(state: State, model: Model, now_s: float | None) -> State:
    before = state.model(model.id)
    if model == before or (before is None and model.state == ModelState.UNLOADED):
        return state  # the last word on a model that has just been removed
    since = state.loading_since
    if (model.state == ModelState.LOADING) != (model.id in since):
        since = {name: at for name, at in since.items() if name != model.id}
        began = _began(model, now_s)
        if model.state == ModelState.LOADING and began is not None:
            since[model.id] = began
    return replace(
        state,
        models=_put(state.models, before, model),
        loading_since=since,
        latest=model.id if _comes_to_the_front(before, model) else state.latest,
    )


def _began(model: Model, now_s: float | None) -> float | None:
    """When its load began, on our own clock; None without one."""
    if now_s is None:
        return None
    return now_s - (figure(model.loading_s, _LONGEST_LOAD_S) or 0.0)


def _comes_to_the_front(before: Model | None, model: Model) -> bool:
    if model.state not in {ModelState.LOADING, ModelState.READY}:
        return False
    was_busy = before is not None and before.in_flight > 0
    return before is None or before.state != model.state or (model.in_flight > 0 and not was_busy)


def _with_pull(state: State, event: Mapping[str, Any]) -> State:
    pull = read(Pull, event.get("pull"))
    before = state.pull(pull.id)
    pulls = state.pulls
    if before is None:  # a new pull takes the place of those of the same reference that ended
        pulls = tuple(one for one in pulls if not (one.ended and one.reference == pull.reference))
    pulls = _put(pulls, before, pull)
    ended = [one.id for one in pulls if one.ended]
    if len(ended) > _MOST_ENDED:
        old = set(ended[:-_MOST_ENDED])
        pulls = tuple(one for one in pulls if one.id not in old)
    return replace(state, pulls=pulls)


def _with_resources(state: State, event: Mapping[str, Any]) -> State:
    return replace(state, resources=read(Resources, event.get("resources")))


def _with_server(state: State, event: Mapping[str, Any]) -> State:
    return replace(state, server=read(Server, event.get("server")))


def _with_daemon(state: State, event: Mapping[str, Any]) -> State:
    return replace(state, daemon=read(Daemon, event.get("daemon")))


def _with_default(state: State, event: Mapping[str, Any]) -> State:
    chosen = read(DefaultChange, event).model
    models = tuple(
        one if one.default == (one.id == chosen) else replace(one, default=one.id == chosen)
        for one in state.models
    )
    return replace(state, models=models)


def _with_store(state: State, event: Mapping[str, Any]) -> State:
    change = read(StoreChange, event)
    problem = damaged_text(change.id)
    problems = tuple(text for text in state.problems if text != problem)
    there = state.model(change.id)
    if change.change == "removed":
        models = tuple(model for model in state.models if model is not there)
        offers = _marked(state.offers, change.id, stored=False)
        return replace(state, models=models, offers=offers, problems=problems)
    if change.change == "damaged":
        return replace(state, problems=(*problems, problem))
    if change.change in {"added", "verified"}:
        models = state.models
        if there is None:
            models = (*models, Model(change.id, ModelState.UNLOADED.value))
        offers = _marked(state.offers, change.id, stored=True)
        return replace(state, models=models, offers=offers, problems=problems)
    return state


def _left(state: State, event: Mapping[str, Any]) -> State:
    _ = event
    return State.disconnected(state)


def _not_shown(state: State, event: Mapping[str, Any]) -> State:
    """What the tray knows of, and has no place for."""
    _ = event
    return state


_CHANGES: Final[Mapping[str, Callable[[State, Mapping[str, Any]], State]]] = {
    "pull": _with_pull,
    "resources": _with_resources,
    "store": _with_store,
    "server": _with_server,
    "daemon": _with_daemon,
    "default": _with_default,
    "goodbye": _left,
    "runtime": _not_shown,
    "tune": _not_shown,
    "upstream": _not_shown,
}


def _marked(offers: tuple[Offer, ...], name: str, *, stored: bool) -> tuple[Offer, ...]:
    return tuple(replace(one, stored=stored) if one.name == name else one for one in offers)


def _put(items: tuple[T, ...], before: T | None, item: T) -> tuple[T, ...]:
    if before is None:
        return (*items, item)
    return tuple(item if one is before else one for one in items)


def _unique(items: Iterable[T], key: Callable[[T], str]) -> tuple[T, ...]:
    """The last word on each id, in the order of the first."""
    return tuple({key(item): item for item in items}.values())


def _still_loaded(name: str | None, models: Iterable[Model]) -> str | None:
    present = {ModelState.LOADING, ModelState.READY, ModelState.DRAINING}
    return next((one.id for one in models if one.id == name and one.state in present), None)


def _used_last(models: Iterable[Model]) -> str | None:
    """As far as a snapshot tells: one that answers, else the one that may stay the longest."""
    ready = [model for model in models if model.state == ModelState.READY]
    best = max(ready, key=lambda one: (one.in_flight > 0, one.expires_in_s or 0.0), default=None)
    return best.id if best is not None else None
