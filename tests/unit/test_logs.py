"""Logging: one line per event, without secrets and without line breaks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stoker import logs


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Logging into a file; afterwards everything is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    logs.configure("info", tmp_path / "stoker.log")
    yield tmp_path / "stoker.log"
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_event_is_one_line_with_its_fields(log_file: Path) -> None:
    """Level, logger, event and fields stand in one line."""
    structlog.get_logger("stoker.pull").info("pull_done", model="starter", seconds=3)

    (line,) = log_file.read_text().splitlines()
    assert "level='info'" in line
    assert "logger='stoker.pull'" in line
    assert "event='pull_done' " in line
    assert "model='starter' seconds=3" in line


def test_a_level_is_heeded(log_file: Path) -> None:
    """What is below the level is not written."""
    structlog.get_logger("stoker").debug("detail")

    assert log_file.read_text() == ""


def test_records_of_libraries_look_the_same(log_file: Path) -> None:
    """A library's own logging goes through the same formatter."""
    logging.getLogger("uvicorn.error").warning("a %s", "warning")

    assert "event='a warning'" in log_file.read_text()


@pytest.mark.parametrize("name", ["authorization", "token", "key", "api_key", "Password", "prompt"])
def test_a_secret_field_is_hidden(log_file: Path, name: str) -> None:
    """Its value is never written, whatever it is."""
    structlog.get_logger("stoker").info("event", **{name: "s3cret-value"})

    assert "s3cret" not in log_file.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cret-value-123",
        "token hf_s3cretvalue123",
        "GET https://host.example/f?X-Signature=s3cretvalue123",
    ],
)
def test_a_secret_in_a_text_is_hidden(log_file: Path, text: str) -> None:
    """Tokens and the queries of signed addresses are cut out of messages."""
    structlog.get_logger("stoker").info("event", detail=text)
    logging.getLogger("library").warning(text)

    assert "s3cret" not in log_file.read_text()


def test_an_exception_stays_in_one_line(log_file: Path) -> None:
    """A traceback is part of its event; nobody can forge a line with a message."""
    error = ValueError("first\nlevel='info' event='forged'")

    structlog.get_logger("stoker").error("failed", exc_info=error)

    (line,) = log_file.read_text().splitlines()
    assert "ValueError" in line


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=100))
def test_whatever_a_server_sends_stays_in_one_line(log_file: Path, text: str) -> None:
    """No control character reaches a terminal that shows the log."""
    log_file.write_text("")

    structlog.get_logger("stoker").info("event", detail=text)
    logging.getLogger("library").warning("%s", text)

    line = log_file.read_text().removesuffix("\n")
    assert line.count("\n") == 1
    assert line.replace("\n", "").isprintable()
