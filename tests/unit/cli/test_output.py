from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from stoker.cli import output


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (98_362_432, "98 MB"),
        (1_339_752_704, "1.3 GB"),
        (999_999_999, "1.0 GB"),
        (134_217_728_000, "134 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_have_at_most_three_figures(count: float | None, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (7500, "2 h 5 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text


def test_foreign_text_cannot_steer_the_terminal() -> None:
    """Escape sequences, bells and hidden direction marks are dropped; tab and newline stay."""
    assert output.clean("a\x1b[31mb\x07\u202ec\td\n") == "a[31mbc\td\n"
    assert output.clean_line(" two\nlines \x1b") == "two lines"


def test_text_of_any_language_stays_whole() -> None:
    """French and Japanese spaces, a Persian word and a joined emoji are printed as they are."""
    spaces = "oui\u00a0! 10\u202f000 \u65e5\u3000"
    joined = "\u06cc\u200c\u062e \U0001f469\u200d\U0001f52c"
    text = spaces + joined

    assert output.clean(text) == text


def test_table_aligns_numbers_to_the_right_and_leaves_no_trailing_space() -> None:
    text = output.table(("NAME", "SIZE"), [("a", "9 MB"), ("longer", "98 MB")], right={"SIZE"})

    assert text.splitlines() == ["NAME     SIZE", "a        9 MB", "longer  98 MB"]


def test_pairs_leave_out_what_is_unknown() -> None:
    assert output.pairs([("Model", "a"), ("Licence", None), ("Size", 3)]) == "Model  a\nSize   3"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    assert output.paint("x", "red", _Terminal()) == "\x1b[31mx\x1b[0m"
    assert output.paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("x", "red", _Terminal()) == "x"


def test_moment_names_the_absence() -> None:
    assert output.moment(None) == "never"
    assert output.moment(datetime(2026, 1, 2, 12, 0, tzinfo=UTC)).startswith("2026-01-0")
