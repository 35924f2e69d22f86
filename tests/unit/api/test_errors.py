from __future__ import annotations

import json

import pytest

from stoker import errors
from stoker.api.errors import STATUS, error_view, headers_of, openai_body, status_of
from stoker.api.routes import Flavour, engine_error, error_body, error_event


@pytest.mark.parametrize("cls", errors.all_errors().values(), ids=lambda cls: cls.__name__)
def test_every_error_has_a_status_and_both_bodies(cls: type[errors.StokerError]) -> None:
    """No class falls through to the base, unless it is the base."""
    error = cls("it went wrong", size=3)

    mapped = next(base for base in cls.__mro__ if base in STATUS)
    assert mapped is not errors.StokerError or cls is errors.StokerError
    assert 400 <= status_of(error) <= 599
    body = openai_body(error)["error"]
    assert body["code"] == cls.code
    assert body["type"] in {"invalid_request_error", "permission_error", "server_error"}
    assert body["message"] == f"it went wrong. {cls.hint}"
    assert body["size"] == 3
    assert error_view(error).facts == {"size": 3}
    json.dumps(body)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownModel("x"), 404),
        (errors.BodyTooLarge("x"), 413),
        (errors.ContextTooLong("x"), 400),
        (errors.HostNotAllowed("x"), 403),
        (errors.MemoryShort("x"), 507),
        (errors.QueueFull("x"), 503),
        (errors.WorkerLost("x"), 502),
        (errors.BlobDamaged("x"), 422),
        (errors.InternalError("x"), 500),
        (errors.Overtaken("x"), 409),
        (errors.UpstreamDown("x"), 503),
        (errors.UpstreamRefused("x"), 502),
    ],
)
def test_statuses_that_clients_rely_on(error: errors.StokerError, status: int) -> None:
    """Documented in docs/api.md; official clients retry by them."""
    assert status_of(error) == status
    assert ("Retry-After" in headers_of(error)) == (status == 503)


@pytest.mark.parametrize(
    ("told", "header"),
    [
        (12, "12"),
        (2.1, "3"),
        (600, "600"),
        (None, "2"),
        (0, "2"),
        (-1, "2"),
        (10**400, "2"),
        (float("nan"), "2"),
        ("soon", "2"),
    ],
)
def test_who_knows_when_to_come_back_says_it(told: object, header: str) -> None:
    """In whole seconds; what makes no sense is not passed on."""
    error = errors.QueueFull("x", queued=3, limit=3, position=4, retry_after_s=told)

    assert headers_of(error) == {"Retry-After": header}


def test_facts_cannot_replace_the_body_s_own_fields() -> None:
    """A fact named like a field loses."""
    body = openai_body(errors.BadRequest("x", code="forged", param="n"))["error"]

    assert body["code"] == "bad_request"
    assert body["param"] == "n"


def test_context_overflow_carries_both_numbers() -> None:
    """From the engine's structured error."""
    raw = {"error": {"code": 400, "message": "m", "n_prompt_tokens": 12031, "n_ctx": 8192}}

    error = engine_error(400, json.dumps(raw).encode())

    assert isinstance(error, errors.ContextTooLong)
    assert error.facts == {"n_prompt_tokens": 12031, "n_ctx": 8192}
    assert "12031" in error.message
    assert "8192" in error.message


def test_context_overflow_is_read_from_words_too() -> None:
    """Embedding models say it in a sentence."""
    text = (
        "input (600 tokens) is too large to process."
        " increase the physical batch size (current batch size: 512)"
    )

    error = engine_error(500, json.dumps({"error": {"message": text}}).encode())

    assert isinstance(error, errors.ContextTooLong)
    assert (error.facts["n_prompt_tokens"], error.facts["n_ctx"]) == (600, 512)


@pytest.mark.parametrize(
    ("status", "message", "cls"),
    [
        (501, "This server does not support embeddings", errors.NotCapable),
        (500, "image input is not supported - hint: you may need the mmproj", errors.NotCapable),
        (404, "File Not Found", errors.NotCapable),
        (400, '"prompt" is required', errors.BadRequest),
        (503, "Loading model", errors.CapacityError),
        (500, "Failed to parse tools: Missing tool type: 1", errors.BadRequest),
        (500, "Failed to parse messages: Missing tool call type: 5", errors.BadRequest),
        (500, "vector::_M_range_check: __n (which is 1) >= this->size()", errors.BadRequest),
        (500, "something broke", errors.EngineError),
        (401, "Invalid API Key", errors.EngineError),
    ],
)
def test_engine_errors_become_ours(
    status: int, message: str, cls: type[errors.StokerError]
) -> None:
    """By status, and by words where the status says nothing."""
    error = engine_error(status, json.dumps({"error": {"message": message}}).encode())

    assert type(error) is cls
    assert message in error.message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 3}', b"\xff"])
def test_nonsense_from_the_engine_is_still_an_error(body: bytes) -> None:
    """Whatever it sends."""
    assert type(engine_error(500, body)) is errors.EngineError


@pytest.mark.parametrize("flavour", list(Flavour))
def test_error_events_are_one_event(flavour: Flavour) -> None:
    """They end with a blank line and hold the code once."""
    event = error_event(flavour, errors.WorkerLost("gone\n\nreally"))

    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1
    data = json.loads(event.split(b"data: ", 1)[1])
    assert (data.get("error") or data)["code"] == "worker_lost"


def test_anthropic_bodies_say_that_they_are_errors() -> None:
    """Its clients look at the outer type."""
    assert error_body(Flavour.ANTHROPIC, errors.QueueFull("x"))["type"] == "error"
    assert "type" not in error_body(Flavour.OPENAI, errors.QueueFull("x"))
