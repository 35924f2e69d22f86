"""An engine that was never tested here is tested before its first load, when there is memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.errors import MemoryShort
from stoker.types import ModelState
from tests.fakes.engine import FakeEngine
from tests.fakes.serving import Serving, serving

pytestmark = pytest.mark.anyio


class Untested(FakeEngine):
    """Tested by its first `prepare`; tells who was loaded in that moment."""

    async def prepare(self, model: Path, runtime: str = "") -> bool:
        if not self.tested:
            self.running_at_test = sum(one.resident_bytes() is not None for one in self.workers)
        self.tested = True
        return await super().prepare(model, runtime)

    running_at_test = -1


def untested(served: Serving) -> Untested:
    engine = served.engine
    engine.__class__, engine.tested = Untested, False
    assert isinstance(engine, Untested)
    return engine


async def test_what_does_not_fit_is_refused_without_a_test() -> None:
    async with serving(available_bytes=1 << 20) as served:
        engine = untested(served)

        with pytest.raises(MemoryShort) as caught:
            await served.lifecycle.load("m")

        assert "needed_bytes" in caught.value.facts
        assert not engine.tested
        assert engine.launches == []


async def test_others_leave_before_the_test_begins() -> None:
    async with serving(models=("m", "n"), memory_reserve_bytes=0) as served:
        await served.lifecycle.load("m")
        served.leave_room_for_one()
        engine = untested(served)

        await served.lifecycle.load("n")

        assert engine.tested
        assert engine.running_at_test == 0
        assert served.lifecycle.states()[served.store.find("m").id] is ModelState.UNLOADED


async def test_what_fits_is_tested_once() -> None:
    async with serving() as served:
        engine = untested(served)
        engine.needs_safe_mode = True

        await served.lifecycle.load("m")

        assert engine.tested
        assert not engine.launches[0].extra_buffers


async def test_a_renewal_that_changes_nothing_tests_nothing() -> None:
    async with serving() as served:
        await served.lifecycle.load("m")
        engine = untested(served)

        assert not await served.lifecycle.renew(served.store.find("m").id)
        assert not engine.tested


async def test_a_known_finding_is_planned_with_at_once() -> None:
    """Nobody leaves for memory that the safe mode does not take."""
    async with serving() as served:
        served.engine.needs_safe_mode = True

        await served.lifecycle.load("m")

        assert not served.engine.launches[0].extra_buffers
