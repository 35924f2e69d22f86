from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.api import allowed, fields
from stoker.errors import BadRequest, NotCapable, StokerError
from stoker.types import Capability

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def _chat(**more: Any) -> fields.Request:
    body = {"model": "m", "messages": HELLO, **more}
    return fields.parse(CHAT, json.dumps(body).encode())


def _brief(value: Any) -> str:
    """A name for a case; a text and a number are two."""
    return repr(value)[:30]


def _picture(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_known_fields_pass_and_the_model_is_named() -> None:
    """What the engine gets is the checked fields with the model's own id."""
    request = _chat(temperature=0.5, stream=True, stop=["x"], max_tokens=16.0)

    sent = json.loads(request.body("owner/repo:Q4"))

    assert sent == {
        "model": "owner/repo:Q4",
        "messages": HELLO,
        "temperature": 0.5,
        "stream": True,
        "stop": ["x"],
        "max_tokens": 16,
    }
    assert (request.model, request.stream, request.ignored) == ("m", True, ())


def test_unknown_fields_are_dropped_and_named() -> None:
    """A client learns what had no effect; null counts as absent."""
    request = _chat(store=False, user="me", seed=None)

    assert request.ignored == ("store", "user")
    assert set(json.loads(request.payload)) == {"messages"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0), (300, 300), (1.5, 1.5), (-1, -1), (-0.1, -1), (-(10**400), -1), ("0", 0),
        ("300", 300),
        ("90s", 90), ("5m", 300), ("1h30m", 5400), ("5m0s", 300), ("1.5h", 5400), ("-1", -1),
        ("-1m", -1), ("2d", 172800), ("500ms", 0.5), ("100\u00b5s", 0.0001), (" 5m ", 300),
        ("+5m", 300),
    ],
    ids=_brief,
)  # fmt: skip
def test_keep_alive_is_understood_as_ollama_does(value: Any, seconds: float) -> None:
    """Numbers are seconds, texts are times, everything below zero means for ever."""
    request = _chat(keep_alive=value)

    assert request.keep_alive_s == pytest.approx(seconds)
    assert b"keep_alive" not in request.body("m")
    assert request.ignored == ()


@pytest.mark.parametrize(
    "value",
    [
        "", "soon", "5 minutes", "5m5", "m", "1e9", "nan", "inf", "-", "--1", "5w", "1h-5m", True,
        [], {}, 10**10, 10**400, "9" * 13, "1s" * 9, "\u0665m", "1..5s",
    ],
    ids=_brief,
)  # fmt: skip
def test_keep_alive_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        _chat(keep_alive=value)

    assert caught.value.facts["param"] == "keep_alive"


def test_without_keep_alive_the_model_stays_as_it_would() -> None:
    assert _chat().keep_alive_s is None
    assert _chat(keep_alive=None).keep_alive_s is None


@pytest.mark.parametrize(
    "name",
    [
        "chat_template", "chat_parser", "n_discard", "id_slot", "slot_id", "lora", "grammar_lazy",
        "grammar_triggers", "preserved_tokens", "generation_prompt", "speculative",
        "speculative.n_max", "previous_response_id", "conversation", "background",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", sorted(allowed.ALLOWED))
def test_dangerous_fields_are_refused_everywhere(path: str, name: str) -> None:
    """They steer the engine or promise a memory; no route accepts them."""
    with pytest.raises(BadRequest) as caught:
        fields.parse(path, json.dumps({"model": "m", name: 0}).encode())

    assert caught.value.facts["param"] == name


def test_refused_field_that_is_switched_off_is_only_ignored() -> None:
    """Clients send their defaults."""
    assert _chat(background=False, chat_template=None).ignored == ("background", "chat_template")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", True),
        ("temperature", 11),
        ("top_p", 1.5),
        ("n", 10**9),
        ("n", 0),
        ("max_tokens", -2),
        ("max_tokens", 2**63),
        ("max_tokens", 1.5),
        ("stream", "true"),
        ("stop", ["x"] * 65),
        ("stop", "x" * 1025),
        ("stop", [1]),
        ("stop", {}),
        ("grammar", "x" * 262_145),
        ("messages", {}),
        ("messages", []),
        ("messages", "hello"),
        ("tools", "all"),
        ("tool_choice", 1),
        ("response_format", []),
        ("logit_bias", {str(n): 1 for n in range(4097)}),
        ("reasoning_format", "loud"),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"a b": 1}),
        ("seed", 2**64),
        ("model", 7),
        ("model", "x" * 301),
        ("model", "a\nb"),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    """The answer says which field and what it may be."""
    with pytest.raises(BadRequest) as caught:
        _chat(**{name: value})

    assert caught.value.facts["param"] == name
    assert "must be" in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        json.dumps({"messages": [[[]] * 3], "tools": 1}).encode() + b"x",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Never another exception, never a long computation."""
    with pytest.raises(BadRequest):
        fields.parse(CHAT, body)


def test_depth_is_bounded() -> None:
    """The engine's recursion is not for a client to try out."""
    deep: Any = "x"
    for _ in range(fields.MAX_DEPTH):
        deep = [deep]

    with pytest.raises(BadRequest, match="nested deeper"):
        _chat(response_format={"schema": deep})


def test_number_of_values_is_bounded() -> None:
    """Ten million numbers in a body that is small enough."""
    body = b'{"input":[' + b"0," * 2_000_001 + b"0]}"

    with pytest.raises(BadRequest, match="more than"):
        fields.parse("/v1/embeddings", body)


@pytest.mark.parametrize("body", ['{"x": "\\ud800"}', '{"x": 1e999}'])
def test_what_json_cannot_carry_is_refused(body: str) -> None:
    """A lone surrogate or an infinity inside a message."""
    raw = f'{{"model":"m","messages":[{body}]}}'.encode()

    with pytest.raises(BadRequest):
        fields.parse(CHAT, raw)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/cat.png",
        "file:///etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png,raw",
        "DATA:,x",
        "",
        None,
        7,
        {"url": "x"},
    ],
)
def test_pictures_come_inside_the_request_or_not_at_all(url: Any) -> None:
    """Stoker fetches nothing for a request."""
    with pytest.raises(BadRequest) as caught:
        _chat(messages=_picture(url))

    assert caught.value.facts["param"] == "image_url"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"content": [{"type": "image_url", "image_url": "http://a/b"}]}]}),
        ("/v1/responses", {"input": [{"content": [{"type": "input_image", "image_url": "http://a"}]}]}),
        (
            "/v1/messages",
            {
                "max_tokens": 1,
                "messages": [
                    {"content": [{"type": "image", "source": {"type": "url", "url": "http://a"}}]}
                ],
            },
        ),
    ],
)  # fmt: skip
def test_every_api_has_its_own_way_to_name_a_picture(path: str, body: dict[str, Any]) -> None:
    """All of them are checked."""
    with pytest.raises(BadRequest):
        fields.parse(path, json.dumps({"model": "m", **body}).encode())


def test_pictures_and_sounds_ask_for_a_capability() -> None:
    """A data: picture needs a model that sees."""
    seen = _chat(messages=_picture("data:image/png;base64,AAAA"))
    heard = _chat(messages=[{"content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}])

    assert seen.media == {Capability.VISION}
    assert heard.media == {Capability.AUDIO}
    assert _chat().media == frozenset()


def test_pictures_are_bounded_in_number_and_size() -> None:
    """A hundred pictures, or one of a gigabyte, cost nothing but an answer."""
    with pytest.raises(BadRequest, match="more than"):
        _chat(messages=_picture("data:image/png;base64,AAAA") * 33)
    with pytest.raises(BadRequest, match="20 MB"):
        _chat(messages=_picture("data:image/png;base64," + "A" * (28 * 1024 * 1024)))


def test_tool_input_is_not_mistaken_for_a_picture() -> None:
    """What a tool was called with may hold any URL."""
    use = {"type": "tool_use", "id": "1", "name": "get", "input": {"image_url": "https://a"}}
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": [use]}]}

    assert fields.parse("/v1/messages", json.dumps(body).encode()).media == frozenset()


def test_stored_files_are_not_there() -> None:
    """A file id of another service means nothing here."""
    with pytest.raises(NotCapable):
        _chat(messages=[{"content": [{"type": "file", "file": {"file_id": "f-1"}}]}])


@pytest.mark.parametrize("path", sorted(allowed.ALLOWED))
def test_required_fields_are_named_when_missing(path: str) -> None:
    """The first missing one is the parameter of the error."""
    with pytest.raises(BadRequest, match="is missing"):
        fields.parse(path, b'{"model":"m"}')


def test_ignored_header_holds_only_header_characters() -> None:
    """A field's name is a client's text."""
    assert fields.ignored_header(("a\r\nB: c", "ü", "ok_1")) == b"a??B??c, ?, ok_1"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_an_error_of_ours(body: bytes) -> None:
    """Nothing else escapes the parser."""
    with contextlib.suppress(StokerError):
        fields.parse(CHAT, body)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(allowed.ALLOWED)), st.data())
def test_any_values_give_valid_json_or_an_error_of_ours(path: str, data: st.DataObject) -> None:
    """Wrong types for every field of every route."""
    known, _ = allowed.ALLOWED[path]
    chosen = st.sampled_from([*sorted(known), "model", "lora", "x"])
    values = data.draw(st.dictionaries(chosen, _VALUES, max_size=6))
    try:
        request = fields.parse(path, json.dumps(values).encode())
    except StokerError:
        return
    sent = json.loads(request.body("m"))
    assert set(sent) <= {*known, "model"}


@pytest.mark.parametrize(
    "more",
    [
        {"grammar": "root ::= " + "(" * 201},
        {"grammar": 'root ::= "a"' + ' | "a"' * 1001},
        {"grammar": "root ::= " + "a? " * 1001},
        {"json_schema": {"enum": list(range(1001))}},
        {"json_schema": {"properties": {str(n): {} for n in range(1001)}}},
        {"json_schema": {"anyOf": [{"enum": list(range(900))}] * 12}},
        {"json_schema": {"const": "x" * 262_145}},
        {"json_schema": {"pattern": "a?" * 501}},
        {"response_format": {"json_schema": {"schema": {"enum": list(range(1001))}}}},
        {"tools": [{"function": {"name": "f", "parameters": {"enum": list(range(1001))}}}]},
        {"tools": [{"name": "f", "input_schema": {"enum": list(range(1001))}}]},
        {"tools": [1]},
        {"tools": [{"function": 1}]},
    ],
)
def test_grammars_that_would_stop_the_engine_are_refused(more: dict[str, Any]) -> None:
    """Deep, or with too many branches, wherever a grammar or a schema may stand."""
    with pytest.raises(BadRequest) as caught:
        _chat(**more)

    assert caught.value.facts["param"] == next(iter(more))


def test_symbols_inside_texts_of_a_grammar_do_not_count() -> None:
    """Neither do those in character classes and comments."""
    quoted = '"' + "(" * 300 + "|" * 2000 + r"\"" + '"'
    grammar = f"root ::= {quoted} [(|\\]?]  # {'(' * 300}"

    assert json.loads(_chat(grammar=grammar).payload)["grammar"] == grammar


def test_a_property_may_be_called_pattern() -> None:
    """What looks like a keyword may be a name."""
    schema = {"properties": {"pattern": {"type": "string", "pattern": "^a+$"}}}

    assert json.loads(_chat(json_schema=schema).payload)["json_schema"] == schema


@pytest.mark.parametrize("tokens", [[-1], [2**31], [1.5], [True], ["a"], [[1]], []])
def test_tokens_are_numbers_that_the_engine_can_hold(tokens: list[Any]) -> None:
    """It would cut the others to some other token."""
    body = json.dumps({"model": "m", "tokens": tokens}).encode()

    with pytest.raises(BadRequest):
        fields.parse("/detokenize", body)
