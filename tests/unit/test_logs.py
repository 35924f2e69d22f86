from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from stoker import logs


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """A configured log; the test run's own logging comes back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    file = tmp_path / "stoker.log"
    logs.configure("info", file)
    yield file
    for handler in root.handlers[:]:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_event_is_one_line_with_its_fields(log_file: Path) -> None:
    structlog.get_logger("stoker.test").info("model_ready", model="starter", seconds=1.5)

    [line] = log_file.read_text().splitlines()
    assert "event='model_ready'" in line
    assert "model='starter'" in line
    assert "seconds=1.5" in line
    assert "level='info'" in line


def test_records_of_other_libraries_take_the_same_way(log_file: Path) -> None:
    logging.getLogger("uvicorn.error").warning("something %s", "odd")

    assert "event='something odd'" in log_file.read_text()


def test_chatty_libraries_are_quiet(log_file: Path) -> None:
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("apscheduler.scheduler").info("job ran")

    assert log_file.read_text() == ""


def test_secrets_do_not_reach_the_file(log_file: Path) -> None:
    structlog.get_logger("stoker.test").info(
        "fetch",
        url="https://cdn.example/file?X-Signature=abc123",
        authorization="Bearer s3cret",
        prompt="my diary",
        reason="refused Bearer abcdef123456 and hf_abcdefghijk",
    )

    text = log_file.read_text()
    for secret in ("abc123", "s3cret", "my diary", "abcdef"):
        assert secret not in text


def test_control_characters_cannot_forge_a_line(log_file: Path) -> None:
    structlog.get_logger("stoker.test").info("request", model="a\nlevel='error'\x1b[31m")

    text = log_file.read_text()
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


def test_a_traceback_stays_on_its_line(log_file: Path) -> None:
    try:
        int("boom")
    except ValueError:
        structlog.get_logger("stoker.test").exception("failed")

    [line] = log_file.read_text().splitlines()
    assert "ValueError: invalid literal" in line


def test_a_log_file_that_cannot_be_written_stops_nobody(
    log_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The records go to stderr, and the first one says why."""
    folder = log_file.with_name("a-folder")
    folder.mkdir()

    logs.configure("info", folder)
    logging.getLogger("any").info("still here")

    told = capsys.readouterr().err
    assert "the log file cannot be written" in told
    assert "still here" in told
