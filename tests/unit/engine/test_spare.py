"""A process that waits for its order does not wait for ever."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import psutil
import pytest

from stoker.engine import spare as spare_module
from stoker.engine.spare import Spare

pytestmark = pytest.mark.anyio

WAITS = (sys.executable, "-I", "-c", "input()")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process may have to wait for a processor before it is gone."""
    monkeypatch.setattr(spare_module, "_KILLED_S", 30)


def children() -> list[psutil.Process]:
    return psutil.Process().children()


async def test_it_is_ended_when_nobody_came(tmp_path: Path) -> None:
    spare = Spare(WAITS, tmp_path / "e", patience_s=0.05)
    spare.expect()
    assert len(children()) == 1

    with anyio.fail_after(30):
        while children():  # noqa: ASYNC110  # of another process there is no event
            await anyio.sleep(0.01)

    assert spare.take() is None


async def test_expecting_again_starts_its_time_anew(tmp_path: Path) -> None:
    spare = Spare(WAITS, tmp_path / "e", patience_s=3600)
    spare.expect()
    first = spare._timer
    spare.expect()

    assert first is not None
    assert first.cancelled()
    assert len(children()) == 1
    spare.drop()
    assert children() == []
    assert spare._timer is None


async def test_one_that_cannot_be_started_is_none(tmp_path: Path) -> None:
    """The launch tries it again, and reports it."""
    spare = Spare((str(tmp_path / "no-such-program"),), tmp_path / "e")

    spare.expect()

    assert spare.take() is None
