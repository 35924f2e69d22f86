from __future__ import annotations

from pathlib import Path

import pytest

from stoker.lifecycle import last_served
from stoker.lifecycle.budget import with_memory
from stoker.lifecycle.rate import TokenRate
from stoker.types import ModelId
from tests.fakes.serving import GIB, machine


def test_rate_is_tokens_over_the_window() -> None:
    """Ten tokens a second, counted one by one, and nothing after a while."""
    rate = TokenRate()
    for step in range(51):
        rate.add(1, 100 + step / 10)

    assert rate.per_second(105) == pytest.approx(10, rel=0.1)
    assert rate.per_second(120) == 0


def test_last_served_survives_a_restart(tmp_path: Path) -> None:
    """Written whole, read back, forgotten."""
    file = tmp_path / "state" / "last-served.json"

    last_served.write(file, ModelId("owner/repo:Q4"))

    assert last_served.read(file) == ModelId("owner/repo:Q4")
    assert list(file.parent.iterdir()) == [file]
    last_served.write(file, None)
    assert last_served.read(file) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": 3}', '{"model": "../x"}', '{"model": null}']
)
def test_broken_last_served_is_nothing(tmp_path: Path, text: str) -> None:
    """A daemon starts whatever the file holds."""
    file = tmp_path / "last-served.json"
    file.write_text(text, encoding="utf-8")

    assert last_served.read(file) is None


def test_memory_changes_both_ways_and_never_below_nothing() -> None:
    """The cgroup's headroom follows when there is one."""
    assert with_memory(machine(2 * GIB), GIB).headroom_bytes == 3 * GIB
    assert with_memory(machine(2 * GIB), -3 * GIB).headroom_bytes == 0
