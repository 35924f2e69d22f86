from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.api import waiting
from stoker.lifecycle.effects import Waiting
from stoker.types import ModelId, ModelState

QWEN, STARTER = ModelId("qwen"), ModelId("starter")


def _waiting(**changes: Any) -> Waiting:
    facts: dict[str, Any] = {
        "position": 1,
        "queued": 1,
        "model": QWEN,
        "state": ModelState.LOADING,
        "current": QWEN,
        "loading_s": 4.2,
        "expected_s": 12.4,
        "ahead": (),
    }
    return Waiting(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "qwen is loading, 4 s of about 12 s"),
        ({"position": 3, "queued": 7}, "queued 3 of 7, qwen is loading, 4 s of about 12 s"),
        ({"expected_s": None}, "qwen is loading, 4 s so far"),
        ({"loading_s": 14.0}, "qwen is loading, 14 s so far"),
        ({"loading_s": None, "expected_s": None}, "qwen is loading"),
        ({"loading_s": 0.1, "expected_s": 0.2}, "qwen is loading, 0 s of about 1 s"),
        (
            {"position": 2, "queued": 2, "state": ModelState.QUEUED, "current": STARTER},
            "queued 2 of 2, starter is loading, 4 s of about 12 s",
        ),
        (
            {"state": ModelState.QUEUED, "current": None, "ahead": (STARTER,)},
            "starter must end its answers first",
        ),
        (
            {"queued": 2, "state": ModelState.QUEUED, "current": None, "ahead": (STARTER, QWEN)},
            "queued 1 of 2, 2 models must end their answers first",
        ),
        ({"state": ModelState.QUEUED, "current": None}, "qwen is not loaded yet"),
        ({"state": ModelState.READY, "current": None}, "qwen is ready"),
    ],
)
def test_a_comment_says_where_a_request_stands(changes: dict[str, Any], text: str) -> None:
    assert waiting.queued(_waiting(**changes)) == f": {text}\n\n".encode()


def test_a_request_whose_place_is_not_known_still_waits() -> None:
    assert waiting.queued(None) == b": waiting for the model\n\n"


@given(st.text(max_size=300))
def test_a_comment_is_one_plain_line_whatever_the_names_are(name: str) -> None:
    """No line break, no letter beyond ASCII: nothing that a client could take for an event."""
    comments = [
        waiting.queued(_waiting(model=ModelId(name), current=ModelId(name))),
        waiting.queued(_waiting(model=ModelId(name), current=None, ahead=(ModelId(name),))),
        waiting.asking(name),
        waiting.READING,
    ]

    for comment in comments:
        assert comment.startswith(b": ")
        assert comment.endswith(b"\n\n")
        assert comment[:-2].decode("ascii").isprintable()
