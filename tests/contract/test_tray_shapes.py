"""The tray's own shapes and words against those of the daemon and of the command line."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from datetime import UTC
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, TypeAdapter

from stoker import schemas
from stoker.api.services import Services
from stoker.cli import output
from stoker_tray import shapes, state, words

PAIRS: dict[type, type[BaseModel]] = {
    shapes.Failure: schemas.ErrorView,
    shapes.Daemon: schemas.DaemonView,
    shapes.Server: schemas.ServerView,
    shapes.Memory: schemas.MemoryView,
    shapes.Model: schemas.ModelView,
    shapes.Gpu: schemas.GpuView,
    shapes.Resources: schemas.ResourcesView,
    shapes.Pull: schemas.PullView,
    shapes.Status: schemas.StatusView,
    shapes.Offer: schemas.OfferView,
    shapes.Upstream: schemas.UpstreamView,
    shapes.StoreChange: schemas.StoreChanged,
    shapes.DefaultChange: schemas.DefaultChanged,
}
LEFT_OUT = {
    schemas.ErrorView: {"facts"},  # any JSON; nothing that a menu could show
    schemas.StoreChanged: {"type"},
    schemas.DefaultChanged: {"type"},
}


# --- field by field --------------------------------------------------------------------------


@pytest.mark.parametrize(("mirror", "schema"), PAIRS.items(), ids=lambda one: one.__name__)
def test_a_shape_has_the_fields_of_its_schema(mirror: type, schema: type[BaseModel]) -> None:
    """The same names and types; a field that may be absent for one may be absent for both."""
    hints = typing.get_type_hints(mirror)
    ours = {
        one.name: (_plain(hints[one.name]), _default(one)) for one in dataclasses.fields(mirror)
    }

    theirs = {
        name: (_plain(field.annotation), "required" if field.is_required() else field.default)
        for name, field in schema.model_fields.items()
        if name not in LEFT_OUT.get(schema, set())
    }
    assert ours == theirs


def _default(field: dataclasses.Field[Any]) -> object:
    return "required" if field.default is dataclasses.MISSING else field.default


def _plain(hint: Any) -> str:
    """A type as text, the schemas' names replaced by the tray's, words of an enum by text."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "str"
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(sorted(_plain(one) for one in inner))
    if origin is tuple:
        return f"tuple[{_plain(inner[0])}]"
    names = {schema: mirror.__name__ for mirror, schema in PAIRS.items()}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "str"
    return str(names.get(hint, hint.__name__))


def test_every_event_is_handled() -> None:
    (union, _) = typing.get_args(schemas.Event)
    kinds = {one.model_fields["type"].default for one in typing.get_args(union)}

    assert kinds == {"snapshot", "model", *state._CHANGES}


# --- what the daemon sends is understood -----------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = {str: texts, float: numbers, AwareDatetime: st.datetimes(timezones=st.just(UTC))}


def _any(schema: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Objects of a schema with every field drawn, those with defaults included."""
    return st.builds(
        schema, **{name: _values(one.annotation) for name, one in schema.model_fields.items()}
    )


def _values(hint: Any) -> st.SearchStrategy[Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of([_values(one) for one in inner])
    if origin is tuple:
        return st.lists(_values(inner[0]), max_size=3).map(tuple)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return st.deferred(lambda: _any(hint))
    if origin is dict:
        values = texts | numbers if inner[1] is object else _values(inner[1])
        return st.dictionaries(texts, values, max_size=2)
    return PLAIN[hint] if hint in PLAIN else st.from_type(hint)


@given(_any(schemas.StatusView))
def test_any_status_is_read_as_it_was_meant(status: schemas.StatusView) -> None:
    sent = json.loads(schemas.Snapshot(status=status).model_dump_json())

    read = state.apply(state.State(), sent)

    ids = {one.id: one for one in status.models}
    assert read.daemon is not None
    assert dataclasses.asdict(read.daemon) == status.daemon.model_dump(mode="json")
    assert [one.id for one in read.models] == list(ids)
    for one in read.models:
        assert dataclasses.asdict(one) == _seen(ids[one.id])
    for pull in read.pulls:
        assert pull.id in {one.id for one in status.pulls}
    assert read.resources is not None
    assert read.resources.ram_used_bytes == status.resources.ram_used_bytes
    assert read.problems == status.problems


def _seen(model: schemas.ModelView) -> dict[str, Any]:
    shown = model.model_dump(mode="json")
    if shown["error"] is not None:
        del shown["error"]["facts"]
    return shown


@given(st.sampled_from(typing.get_args(typing.get_args(schemas.Event)[0])).flatmap(_any))
def test_any_event_is_understood(event: BaseModel) -> None:
    known = state.State(connected=True)

    after = state.apply(known, json.loads(event.model_dump_json()))

    is_over = isinstance(event, schemas.Goodbye)
    assert after.connected is not is_over


@given(st.lists(_any(schemas.OfferView), max_size=4, unique_by=lambda one: one.name))
def test_any_offers_are_understood(offers: list[schemas.OfferView]) -> None:
    sent = json.loads(TypeAdapter(list[schemas.OfferView]).dump_json(offers))

    read = state.parse_offers(sent)

    assert [dataclasses.asdict(one) for one in read] == sent


# --- the same words --------------------------------------------------------------------------


@given(st.integers(0, 10**17))
def test_sizes_look_as_on_the_command_line(count: int) -> None:
    assert words.size(count) == output.size(count)


@given(st.floats(0, 5_000_000))
def test_times_look_as_on_the_command_line(seconds: float) -> None:
    assert words.duration(seconds) == output.duration(seconds)


def test_damage_is_called_the_same_by_an_event_and_by_the_status() -> None:
    """So that it is not shown twice."""
    services = MagicMock()
    services.server.problems.return_value = services.store.problems.return_value = ()
    services.store.list.return_value = [types.SimpleNamespace(id="owner/repo:Q4", damaged=True)]

    (problem,) = Services._problems(services)

    assert problem == state.damaged_text("owner/repo:Q4")


def test_no_shape_is_forgotten() -> None:
    """Each dataclass that is read from the wire is compared above."""
    text = Path(shapes.__file__).read_text(encoding="utf-8")
    wire = text.partition("# --- shapes")[2].partition("# --- readers")[0]

    assert {one.__name__ for one in PAIRS} == {
        line.removeprefix("class ").rstrip(":")
        for line in wire.splitlines()
        if line.startswith("class ")
    }
