"""The next plan is made when the memory of stopped workers is seen again, or does not come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import anyio
import pytest

from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.lifecycle.reclaim import Reclaim, Wanted, gpu_free_bytes, missing, wanted
from tests.fakes.hardware import GIB, machine

MIB = 1024 * 1024


def card(free: int | None, *, unified: bool = False) -> GpuFacts:
    return GpuFacts("card", "nvidia", 24 * GIB, free, unified=unified)


# --- what must be seen -------------------------------------------------------------------------


def test_most_of_what_a_worker_had_must_be_seen_again() -> None:
    """Not all of it: other programs go on meanwhile."""
    want = wanted(machine(available=4 * GIB), 2 * GIB, 0)

    assert want == Wanted(4 * GIB + 2 * GIB * 3 // 4 - 64 * MIB)
    assert missing(machine(available=5 * GIB), want)
    assert not missing(machine(available=6 * GIB), want)


def test_a_cgroup_counts_where_it_is_tighter() -> None:
    want = wanted(machine(available=8 * GIB, headroom=GIB), 2 * GIB, 0)

    assert missing(machine(available=10 * GIB, headroom=GIB), want)
    assert not missing(machine(available=10 * GIB, headroom=3 * GIB), want)


@pytest.mark.parametrize("taken", [0, 20 * MIB, 85 * MIB])
def test_a_small_worker_is_not_waited_for(taken: int) -> None:
    """Free memory goes up and down by as much anyhow."""
    before = machine(available=4 * GIB)

    assert not missing(before, wanted(before, taken, 0))
    assert not missing(machine(available=4 * GIB - 60 * MIB), wanted(before, 0, 0))


def test_memory_of_a_gpu_must_come_back_too() -> None:
    before = machine(available=4 * GIB, gpus=(card(GIB), card(2 * GIB)))
    want = wanted(before, 0, 8 * GIB)

    assert want.gpu_bytes == 3 * GIB + 6 * GIB - 64 * MIB
    assert missing(before, want)
    assert not missing(machine(available=4 * GIB, gpus=(card(9 * GIB), card(2 * GIB))), want)
    assert not missing(machine(available=4 * GIB), want)  # nobody tells any more


def test_a_gpu_that_tells_nothing_is_not_waited_for() -> None:
    for gpus in ((), (card(None),), (card(GIB, unified=True),)):
        before = machine(available=4 * GIB, gpus=gpus)

        assert gpu_free_bytes(before) is None
        assert wanted(before, 0, 8 * GIB).gpu_bytes is None


# --- waiting -----------------------------------------------------------------------------------


@dataclass
class Machine:
    """Its free memory, look by look; the last one stays."""

    free: list[int]
    gpu_free: list[int] = field(default_factory=list)
    looks: int = 0

    def __call__(self) -> HardwareFacts:
        gpus = tuple(card(one) for one in self._next(self.gpu_free))
        (available,) = self._next(self.free)
        self.looks += 1
        return machine(available=available, gpus=gpus)

    def _next(self, values: list[int]) -> Iterator[int]:
        if values:
            yield values.pop(0) if len(values) > 1 else values[0]


@pytest.mark.anyio
async def test_nothing_is_looked_at_when_nothing_was_stopped() -> None:
    here = Machine([GIB])

    assert await Reclaim(here, at_once=False).settled()
    assert here.looks == 0


@pytest.mark.anyio
async def test_it_waits_until_the_memory_is_there() -> None:
    here = Machine([GIB, GIB, GIB, 3 * GIB, 4 * GIB])
    reclaim = Reclaim(here, at_once=False, still_s=60)

    await reclaim.note(4 * GIB)
    back = await reclaim.settled()

    assert back
    assert here.looks == 5  # one before, four after


@pytest.mark.anyio
async def test_several_that_stop_together_are_one_sum() -> None:
    here = Machine([GIB, 3 * GIB, 5 * GIB])
    reclaim = Reclaim(here, at_once=False)

    await reclaim.note(2 * GIB)
    await reclaim.note(2 * GIB)
    back = await reclaim.settled()

    assert back
    assert here.free == [5 * GIB]


@pytest.mark.anyio
async def test_what_somebody_else_took_is_not_waited_for_long() -> None:
    """When no more comes, the plan is made with what is there."""
    here = Machine([GIB])
    reclaim = Reclaim(here, at_once=False, timeout_s=60, still_s=0.05)

    await reclaim.note(4 * GIB)
    with anyio.fail_after(10):
        back = await reclaim.settled()

    assert not back
    assert await reclaim.settled()  # nothing is left to wait for


@pytest.mark.anyio
async def test_a_driver_that_is_silent_for_long_is_waited_for() -> None:
    """It gives back late, and then all at once."""
    here = Machine([GIB], gpu_free=[GIB, *[GIB] * 4, 9 * GIB])
    reclaim = Reclaim(here, at_once=False, timeout_s=60, still_s=0)

    await reclaim.note(0, 8 * GIB)
    back = await reclaim.settled()

    assert back
    assert here.gpu_free == [9 * GIB]


@pytest.mark.anyio
async def test_a_gpu_that_gives_nothing_back_holds_up_nobody_for_ever() -> None:
    reclaim = Reclaim(Machine([GIB], gpu_free=[GIB]), timeout_s=0.1)

    await reclaim.note(0, 8 * GIB)
    with anyio.fail_after(10):
        assert not await reclaim.settled()


@pytest.mark.anyio
async def test_what_stopped_long_ago_is_not_waited_for() -> None:
    here = Machine([GIB])
    reclaim = Reclaim(here, at_once=False, timeout_s=0.01)

    await reclaim.note(4 * GIB)
    await anyio.sleep(0.03)
    settled = await reclaim.settled()

    assert settled
    assert here.looks == 1


@pytest.mark.anyio
async def test_where_memory_is_free_at_once_only_that_of_a_gpu_is_waited_for() -> None:
    """Nobody looks at all without one; somebody else may have taken the memory meanwhile."""
    here = Machine([GIB], gpu_free=[GIB, GIB, 9 * GIB])
    reclaim = Reclaim(here, at_once=True)

    await reclaim.note(4 * GIB)
    assert await reclaim.settled()
    assert here.looks == 0

    await reclaim.note(4 * GIB, 8 * GIB)
    assert await reclaim.settled()
    assert here.gpu_free == [9 * GIB]
