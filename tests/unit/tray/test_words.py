"""Names made harmless and short, and figures that can be true."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from stoker_tray import words
from tests.fakes import tray_states


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("  two\n lines\t", "two lines"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("\x1b[31mred\x00", "[31mred"),
        ("\u202eabc\u2066\u200f", "abc"),
        ("\ud800\udfff", ""),
        ("👩‍👧", "👩‍👧"),
        ("\u200d\u200c", ""),
        ("می‌خواهم", "می‌خواهم"),
    ],
)
def test_a_cleaned_text_is_one_line_without_controls(text: str, expected: str) -> None:
    assert words.clean(text) == expected


def test_a_line_is_cut_at_its_end() -> None:
    assert words.line("not enough memory for it", 11) == "not enough…"
    assert words.line("not enough", 10) == "not enough"


def test_a_cut_tears_no_mark_from_its_letter() -> None:
    assert words.line("ae\u0301\u0302\u0303x", 4) == "a…"
    assert words.name("abcd" + "e\u0301" * 10, 9) == "abcd…e\u0301e\u0301"


def test_a_name_of_nothing_visible_still_has_a_name() -> None:
    assert words.name("\x00\u202e") == "unnamed"


@given(tray_states.words)
def test_any_text_gets_short_and_stays_clean(text: str) -> None:
    short, called = words.line(text, 20), words.name(text, 20)

    assert len(short) <= 20
    assert 0 < len(called) <= 22
    assert words.clean(short) == short
    assert words.clean(words.clean(text)) == words.clean(text)


@pytest.mark.parametrize("absurd", [None, -1, 10**400, math.nan, math.inf, -math.inf])
def test_what_cannot_be_true_is_not_said(absurd: float | None) -> None:
    assert words.size(absurd) == ""
    assert words.duration(absurd) == ""
    assert words.left(absurd) == ""
    assert words.speed(absurd) == ""
    assert words.part(absurd, 10) == ""
    assert words.percent(1, absurd) == ""


@pytest.mark.parametrize(
    ("used", "total", "expected"),
    [
        (5.1e9, 24e9, "5.1 of 24.0 GB"),
        (512e6, 8.2e9, "512 MB of 8.2 GB"),
        (5.1e9, None, "5.1 GB"),
        (0, 1e9, "0 bytes of 1.0 GB"),
    ],
)
def test_a_part_of_a_whole(used: float, total: float | None, expected: str) -> None:
    assert words.part(used, total) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "about 1 s"),
        (3.4, "about 3 s"),
        (12, "about 10 s"),
        (58, "about 1 min"),
        (200, "about 3 min"),
    ],
)
def test_what_is_left_of_a_load_does_not_flicker(seconds: float, expected: str) -> None:
    assert words.left(seconds) == expected


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [(0, 9, "0 %"), (37, 100, "37 %"), (999, 1000, "99 %"), (9, 9, "100 %"), (20, 9, "100 %")],
)
def test_a_hundred_percent_is_done(done: int, total: int, expected: str) -> None:
    assert words.percent(done, total) == expected


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.0, ""), (4.24, "4.2 tokens/s"), (31.2, "31 tokens/s")]
)
def test_a_speed_has_two_figures(rate: float, expected: str) -> None:
    assert words.speed(rate) == expected
