"""What a server says of its models: the sound part of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import UpstreamError
from stoker.types import Capability
from stoker.upstreams.names import (
    LONGEST_NAME,
    MOST_MODELS,
    Place,
    is_name,
    parse_models,
)


def _list(*entries: Any) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def test_models_are_listed_below_the_name_of_their_server() -> None:
    first, second = parse_models(_list({"id": "qwen", "created": 5}, {"id": "org/big"}), "gpu")

    assert (first.id, first.upstream, first.name, first.created) == ("gpu/qwen", "gpu", "qwen", 5)
    assert (second.id, second.name, second.created) == ("gpu/org/big", "org/big", 0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        None,
        7,
        ["a"],
        " a",
        "a\n",
        "a\x1b[2J",
        "a\u202eb",
        "a\u0000",
        "\ud800",
        "x" * (LONGEST_NAME + 1),
    ],
)
def test_a_name_that_is_not_sound_is_left_out(name: Any) -> None:
    """It would be shown in terminals and sent in requests."""
    assert [one.name for one in parse_models(_list({"id": name}, {"id": "ok"}), "gpu")] == ["ok"]


def test_each_model_is_listed_once() -> None:
    models = parse_models(_list({"id": "a", "created": 1}, {"id": "a", "created": 2}), "gpu")

    assert [one.created for one in models] == [1]


def test_a_long_list_is_cut() -> None:
    assert len(parse_models(_list(*({"id": f"m{n}"} for n in range(5000))), "gpu")) == MOST_MODELS


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>log in</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"data": {"id": "a"}}',
        b'{"data": null}',
        b"[" * 100_000,
        b'{"data": ' + b"1" * 10_000 + b"}",
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_no_list_is_refused(document: bytes) -> None:
    with pytest.raises(UpstreamError):
        parse_models(document, "gpu")


@pytest.mark.parametrize("entry", [None, 1, "qwen", [], {}, {"name": "qwen"}])
def test_an_entry_that_is_no_model_is_left_out(entry: Any) -> None:
    assert [one.name for one in parse_models(_list(entry, {"id": "ok"}), "gpu")] == ["ok"]


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"max_model_len": 8192}, 8192),
        ({"context_length": 4096}, 4096),
        ({"stoker": {"context": 2048}, "max_model_len": 8192}, 2048),
        ({"max_model_len": "8192"}, None),
        ({"max_model_len": -1}, None),
        ({"max_model_len": True}, None),
        ({"max_model_len": 1e400}, None),
        ({"max_model_len": 2**80}, None),
        ({"stoker": "yes"}, None),
        ({}, None),
    ],
)
def test_the_context_is_taken_where_it_makes_sense(
    entry: dict[str, Any], context: int | None
) -> None:
    assert parse_models(_list({"id": "a", **entry}), "gpu")[0].context == context


@pytest.mark.parametrize("created", ["1", 1.5, -1, True, 2**70, None, {}])
def test_a_date_that_is_none_is_left_out(created: Any) -> None:
    assert parse_models(_list({"id": "a", "created": created}), "gpu")[0].created == 0


def test_another_stoker_says_what_its_models_can_do() -> None:
    about = {"capabilities": ["vision", "chat", "nonsense", 7, ["chat"]]}

    model = parse_models(_list({"id": "a", "stoker": about}), "gpu")[0]

    assert model.capabilities == (Capability.CHAT, Capability.VISION)


def test_what_another_stoker_has_from_elsewhere_is_left_out() -> None:
    """It would not forward it for us."""
    entries = {"id": "far/a", "stoker": {"upstream": "far"}}, {"id": "b", "stoker": {}}

    assert [one.name for one in parse_models(_list(*entries), "gpu")] == ["b"]


def test_only_wanted_models_are_listed() -> None:
    document = _list({"id": "qwen3-8b"}, {"id": "Qwen"}, {"id": "gpt-oss"}, {"id": "other"})

    models = parse_models(document, "gpu", ("qwen*", "gpt-oss"))

    assert [one.name for one in models] == ["qwen3-8b", "gpt-oss"]


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_any_entry_is_survived(entry: Any) -> None:
    """Whatever the JSON holds, the answer is a list of sound models."""
    for entries in ([entry], [{"id": entry, "created": entry, "stoker": entry}]):
        assert all(is_name(one.name) for one in parse_models(_list(*entries), "gpu"))


@pytest.mark.parametrize(
    ("base_url", "path", "url"),
    [
        ("https://a.example/v1", "/v1/chat/completions", "https://a.example/v1/chat/completions"),
        ("https://a.example/v1", "/tokenize", "https://a.example/tokenize"),
        ("https://a.example/x/v1/", "/v1/models", "https://a.example/x/v1/models"),
        ("https://a.example/api", "/v1/models", "https://a.example/api/models"),
        ("http://[::1]:8000/v1", "/v1/models", "http://[::1]:8000/v1/models"),
    ],
)
def test_our_paths_are_found_below_its_address(base_url: str, path: str, url: str) -> None:
    assert Place.of(base_url).url(path) == url


@pytest.mark.parametrize(
    ("base_url", "loopback"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://[::1]/v1", True),
        ("http://localhost/v1", True),
        ("http://localhost.example/v1", False),
        ("http://192.168.1.2/v1", False),
        ("https://box/v1", False),
    ],
)
def test_this_machine_is_told_from_its_address_alone(base_url: str, *, loopback: bool) -> None:
    assert Place.of(base_url).loopback is loopback
