"""What is read of an engine's own figures, and what is not believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.engine.heartbeat import Beat, read_beat

# As llama.cpp b11549 sends it, without the HELP lines of most.
PAGE = b"""\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 25
llamacpp:prompt_seconds_total 0.041
llamacpp:tokens_predicted_total 1.23457e+06
llamacpp:n_decode_total 1.23457e+06
llamacpp:n_tokens_max 41
llamacpp:prompt_tokens_seconds 609.756
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
llamacpp:n_busy_slots_per_decode 1
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 7
"""
SLOTS: list[dict[str, Any]] = [
    {"id": 0, "n_ctx": 4096, "is_processing": True, "n_prompt_tokens": 1000, "params": {"n": 1}},
    {"id": 1, "n_ctx": 4096, "is_processing": False},
]


def test_a_beat_is_what_moves_what_waits_and_what_is_held() -> None:
    beat = read_beat(PAGE, json.dumps(SLOTS).encode(), 4000)

    assert beat == Beat(marks=(1_234_570.0, 25.0, 1_234_570.0, 1000), busy=3, kv_used=0.25)


def test_slots_show_the_steps_that_rounded_counters_hide() -> None:
    later = [{**SLOTS[0], "n_prompt_tokens": 1001}, SLOTS[1]]
    before, after = (read_beat(PAGE, json.dumps(one).encode(), 4000) for one in (SLOTS, later))

    assert before.marks != after.marks


@pytest.mark.parametrize("page", [b"", b"\xff\xfe\n", b"<html>", b"other:n_decode_total 7\n"])
def test_a_page_that_tells_nothing_is_a_beat_without_marks(page: bytes) -> None:
    assert read_beat(page) == Beat()


@pytest.mark.parametrize("number", [b"NaN", b"inf", b"-1", b"1e300", b"", b"x", b"0x7", b"1 2"])
def test_numbers_that_are_none_are_left_out(number: bytes) -> None:
    page = b"llamacpp:n_decode_total " + number + b"\nllamacpp:requests_processing " + number

    assert read_beat(page) == Beat()


@pytest.mark.parametrize(
    "slots",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'[{"n_prompt_tokens": -1}]',
        b'[{"n_prompt_tokens": "1000"}]',
        b'[{"n_prompt_tokens": 1e300}]',
        b'[{"n_prompt_tokens": true}]',
        b'[{"n_prompt_tokens": ' + b"9" * 5000 + b"}]",
        json.dumps([{}] * 1025).encode(),
    ],
)
def test_slots_that_make_no_sense_leave_the_rest(slots: bytes) -> None:
    beat = read_beat(PAGE, slots, 4000)

    assert beat.kv_used is None
    assert beat.busy == 3
    assert len(beat.marks) == 3


def test_memory_is_never_more_than_full() -> None:
    """Slots may share cells, and each counts them."""
    assert read_beat(PAGE, json.dumps(SLOTS).encode(), 500).kv_used == 1.0
    assert read_beat(PAGE, json.dumps(SLOTS).encode(), 0).kv_used is None


@given(st.binary(), st.binary(), st.integers())
def test_no_answer_breaks_it(page: bytes, slots: bytes, cells: int) -> None:
    beat = read_beat(page, slots, cells)

    assert beat.busy is None or beat.busy >= 0
    assert beat.kv_used is None or 0 <= beat.kv_used <= 1
