"""Who only listens knows all that somebody knows who asks: a tray never needs to poll."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stoker.schemas import (
    DaemonChanged,
    DefaultChanged,
    Event,
    ModelChanged,
    ModelView,
    PullChanged,
    ResourcesSampled,
    RuntimeChanged,
    ServerChanged,
    Snapshot,
    StatusView,
    StoreChanged,
    UpstreamChanged,
)
from stoker.types import ModelState
from tests.integration.control_plane import ControlPlane, Listener, control_plane, wait_for

# What tells that a field of the status has changed. Problems are lines made of what others tell.
TOLD_BY: dict[str, tuple[type[Any], ...]] = {
    "daemon": (DaemonChanged,),
    "server": (ServerChanged,),
    "models": (ModelChanged, StoreChanged),
    "resources": (ResourcesSampled,),
    "pulls": (PullChanged,),
    "problems": (StoreChanged, ServerChanged, RuntimeChanged),
    "default": (DefaultChanged,),
    "upstreams": (UpstreamChanged,),
}
# What every client's own clock tells, and what is sampled now and then.
_CLOCKS = frozenset({"expires_in_s", "loading_s", "tokens_per_s", "memory", "kv_used"})


def test_every_field_of_the_status_has_its_events() -> None:
    """A new field needs one, or an event that carries it already."""
    assert set(TOLD_BY) == set(StatusView.model_fields)


class Mirror:
    """The status as it is known from events alone."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._known: dict[str, Any] = {}
        self._models: dict[str, ModelView] = {}
        self._pulls: dict[str, Any] = {}
        for event in events:
            self._apply(event)

    @property
    def status(self) -> dict[str, Any]:
        models = {name: _lasting(view) for name, view in self._models.items()}
        return {**self._known, "models": models, "pulls": self._pulls}

    def _apply(self, event: Event) -> None:
        match event:
            case Snapshot():
                self._known = _known(event.status)
                self._models = {model.id: model for model in event.status.models}
                self._pulls = {pull.id: pull for pull in event.status.pulls}
            case ModelChanged():
                if event.model.id in self._models or event.model.state is not ModelState.UNLOADED:
                    self._models[event.model.id] = event.model
            case StoreChanged(change="added"):
                fresh = ModelView(id=event.id, state=ModelState.UNLOADED)
                self._models.setdefault(event.id, fresh)
            case StoreChanged(change="removed"):
                self._models.pop(event.id, None)
            case PullChanged():
                self._pulls[event.pull.id] = event.pull
            case ServerChanged():
                self._known["server"] = event.server
            case DefaultChanged():
                self._known["default"] = event.model
            case UpstreamChanged():
                self._known["upstreams"] = (event.upstream,)


def _known(status: StatusView) -> dict[str, Any]:
    names = ("server", "default", "upstreams")
    return {name: getattr(status, name) for name in names}


def _lasting(view: ModelView) -> dict[str, Any]:
    return view.model_dump(exclude=set(_CLOCKS))


def _asked(plane: ControlPlane) -> dict[str, Any]:
    """The same as a client sees it that asks."""
    with plane.client() as client:
        status = client.status()
    return {
        **_known(status),
        "models": {model.id: _lasting(model) for model in status.models},
        "pulls": {pull.id: pull for pull in status.pulls},
    }


@pytest.fixture
def plane(stoker_home: Path) -> Iterator[ControlPlane]:
    with control_plane() as plane:
        yield plane


@pytest.fixture
def listener(plane: ControlPlane) -> Iterator[Listener]:
    listener = Listener(plane, resources=False)
    yield listener
    listener.end()


def _chat(plane: ControlPlane, model: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": model, "messages": messages, "max_tokens": 3, "stream": True}
    with httpx2.Client(timeout=30, trust_env=False) as client:
        assert client.post(f"{plane.base_url}/chat/completions", json=body).status_code == 200


def _crash(plane: ControlPlane) -> None:
    with plane.client() as client:
        pid = next(model.pid for model in client.status().models if model.id == "b")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: plane.client().status().models[1].state is not ModelState.READY)


def _expire(plane: ControlPlane) -> None:
    plane.clock.ahead_s += 1e6
    plane.portal.call(plane.services.lifecycle.tick)


def _removed(plane: ControlPlane) -> None:
    with plane.client() as client:
        client.remove("b")


def _with_client(do: Callable[[Any], object]) -> Callable[[ControlPlane], None]:
    def step(plane: ControlPlane) -> None:
        with plane.client() as client:
            do(client)

    return step


STEPS: tuple[tuple[str, Callable[[ControlPlane], object]], ...] = (
    ("a model is added", lambda plane: plane.add("a")),
    ("another", lambda plane: plane.add("b", seed=1)),
    ("one is loaded", _with_client(lambda client: client.load("a"))),
    ("it answers", lambda plane: _chat(plane, "a")),
    ("it is pinned", _with_client(lambda client: client.pin("a", pinned=True))),
    ("the user changes", _with_client(lambda client: client.use("b"))),
    ("the worker is killed", _crash),
    ("it comes back", lambda plane: _chat(plane, "b")),
    ("a pin is taken back", _with_client(lambda client: client.pin("a", pinned=False))),
    ("both were idle for long", _expire),
    ("the server is switched off", _with_client(lambda client: client.server(enabled=False))),
    ("and on", _with_client(lambda client: client.server(enabled=True))),
    ("a model is removed", _removed),
)


def test_events_alone_tell_what_the_status_says(plane: ControlPlane, listener: Listener) -> None:
    """After each step of a day in the life, at the latest when the daemon's timer comes round."""
    for what, step in STEPS:
        step(plane)
        plane.portal.call(plane.services.lifecycle.tick)
        try:
            wait_for(lambda: Mirror(listener.events).status == _asked(plane))
        except AssertionError:
            assert (what, Mirror(listener.events).status) == (what, _asked(plane))


def test_the_speed_of_a_long_answer_is_told(plane: ControlPlane, listener: Listener) -> None:
    """And that nothing comes any more, when it has ended."""
    plane.add("a")
    _chat(plane, "a")
    wait_for(lambda: any(event.model.tokens_per_s for event in listener.of(ModelChanged)))

    plane.clock.ahead_s += 60
    plane.portal.call(plane.services.lifecycle.tick)

    wait_for(lambda: listener.of(ModelChanged)[-1].model.tokens_per_s == 0)
