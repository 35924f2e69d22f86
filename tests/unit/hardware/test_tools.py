"""Nothing that is asked may hang or fail the one who asks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from stoker.hardware import tools


def test_a_missing_tool_gives_nothing(tmp_path: Path) -> None:
    assert tools.run(str(tmp_path / "absent")) is None


def test_a_tool_that_hangs_is_given_up() -> None:
    began = time.monotonic()

    assert tools.run("/bin/sleep", "60", timeout_s=0.05) is None
    assert time.monotonic() - began < 5


def test_a_driver_that_never_answers_is_given_up_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(tools, "_given_up", set())
    answer = threading.Event()
    asked: list[int] = []

    def look() -> str:
        asked.append(1)
        answer.wait(20)
        return "late"

    try:
        assert tools.within("a driver", look, "unknown") == "unknown"
        assert tools.within("a driver", look, "unknown") == "unknown"
        monkeypatch.setattr(tools, "_READ_TIMEOUT_S", 30)
        assert tools.within("another", lambda: "at once", "unknown") == "at once"
    finally:
        answer.set()
    assert len(asked) == 1


def test_a_look_that_fails_is_unknown() -> None:
    def fail() -> str:
        raise ZeroDivisionError

    assert tools.within("failing", fail, "unknown") == "unknown"
    assert tools.within("failing", lambda: "better now", "unknown") == "better now"
