from __future__ import annotations

import pytest

from stoker import schemas
from stoker.cli import tables
from stoker.types import ModelState

from .conftest import loaded

LONG = "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M"
MEMORY = schemas.MemoryView(
    predicted_bytes=400_000_000, resident_bytes=330_000_000, peak_bytes=390_000_000
)
BUSY = loaded(
    default=True,
    pinned=True,
    memory=MEMORY,
    kv_used=0.123,
    in_flight=1,
    queued=2,
    expires_in_s=1740.0,
)
LOADING = loaded(
    "qwen", state=ModelState.LOADING, memory=None, loading_s=4.2, expected_load_s=12.4,
    context=None, tokens_per_s=None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_elsewhere_than_on_a_terminal_it_is_always_a_table() -> None:
    """A script reads columns; lines stay whole."""
    lines = tables.details([BUSY, LOADING, loaded(LONG)]).splitlines()

    assert [line.split()[0] for line in lines] == ["MODEL", "starter", "qwen", LONG]
    assert lines[1].split() == [
        *("starter", "ready,", "default,", "pinned", "400", "MB", "330", "MB", "390", "MB"),
        *("8192", "12", "%", "42.5", "1", "2", "29", "min"),
    ]
    assert "loading, 4 s of about 12 s" in lines[2]


@pytest.mark.parametrize("width", [60, 80])
def test_on_a_narrow_terminal_each_model_has_lines_of_its_own(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Nothing is left out and nothing is wider than the terminal, but a name that is."""
    monkeypatch.setenv("COLUMNS", str(width))

    text = tables.details([BUSY, LOADING, loaded(LONG)])

    assert text.splitlines()[:5] == [
        "starter: ready, default, pinned",
        "  memory    330 MB now, 390 MB at most, 400 MB predicted",
        "  context   8192 tokens, 12 % used",
        "  requests  1 running, 2 waiting, 42.5 tokens/s",
        "  unloads   in 29 min",
    ]
    assert "qwen: loading, 4 s of about 12 s" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_summary_fits_a_usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    lines = tables.summary([BUSY]).splitlines()

    assert lines[0].split()[:2] == ["MODEL", "STATE"]
    assert max(map(len, lines)) <= 80


def test_what_went_wrong_is_told_below_with_what_to_do() -> None:
    error = schemas.ErrorView(code="memory_short", message="too large", hint="Try Q4.")
    models = [loaded("a", state=ModelState.FAILED, error=error), loaded("b", rung=2)]

    lines = tables.summary(models).splitlines()

    assert lines[-2:] == [
        "a: too large. Try Q4.",
        "b: held back because it failed (step 2)",
    ]


@pytest.mark.parametrize(
    ("elapsed_s", "expected_s", "text"),
    [
        (4.2, 12.4, "4 s of about 12 s"),
        (14.0, 12.4, "14 s"),
        (4.2, None, "4 s"),
        (0.0, 0.2, "0 s of about 1 s"),
    ],
)
def test_a_load_says_how_far_it_is(elapsed_s: float, expected_s: float | None, text: str) -> None:
    assert tables.progress(elapsed_s, expected_s) == text


def test_foreign_text_does_not_steer_the_terminal() -> None:
    server = schemas.UpstreamView(name="box", base_url="https://box\x1b[2J/v1", state="up")

    assert "\x1b" not in tables.upstreams([server])
    assert "\x1b" not in tables.details([loaded("a\x1b[31m")])
