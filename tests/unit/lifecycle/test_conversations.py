"""Saving conversations when a worker goes, and restoring them when one comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from stoker.engine.base import Address
from stoker.engine.slots import Slot
from stoker.engine.upstream import Upstream
from stoker.lifecycle import conversations as module
from stoker.lifecycle.conversation_files import Kept, all_kept, tokens_of
from stoker.lifecycle.conversations import Conversations, worth_restoring, worth_saving
from stoker.tuning.launch import LaunchPlan, MemoryNeed
from stoker.types import Digest
from tests.fakes.slots import SlotsWorker, listening
from tests.unit.lifecycle.test_conversation_files import DIGEST, OTHER, PLAN

pytestmark = pytest.mark.anyio

LIMIT = 1 << 30
A, B, C = ([number] * 200 for number in (1, 2, 3))


class World:
    """Conversations, and workers that come and go."""

    def __init__(self, root: Path, limit_bytes: int = LIMIT) -> None:
        self.root = root
        self.kept = Conversations(root, limit_bytes)

    async def plan(self, plan: LaunchPlan = PLAN, digest: Digest = DIGEST) -> LaunchPlan:
        return await self.kept.prepare(digest, plan)

    @asynccontextmanager
    async def worker(self, plan: LaunchPlan) -> AsyncIterator[tuple[SlotsWorker, Upstream]]:
        worker = SlotsWorker(plan.conversations or self.root, plan.parallel)
        async with listening(worker) as upstream:
            yield worker, upstream

    async def saved(self, *talks: Sequence[int], plan: LaunchPlan = PLAN) -> int:
        """A worker served these, in this order, and went."""
        plan = await self.plan(plan)
        async with self.worker(plan) as (worker, upstream):
            for slot, talk in enumerate(talks):
                worker.serve(slot, talk)
            draft = await self.kept.save(upstream, plan)
        return await self.kept.keep(draft)

    async def loaded(self, plan: LaunchPlan = PLAN, digest: Digest = DIGEST) -> list[list[int]]:
        """What is in the slots of a new worker."""
        plan = await self.plan(plan, digest)
        async with self.worker(plan) as (worker, upstream):
            await self.kept.beside(plan, anyio.lowlevel.checkpoint())
            count = await self.kept.restore(upstream, plan)
            assert count == len(worker.restored)
            return [slot for slot in worker.slots if slot]

    def names(self) -> list[str]:
        return [
            path.suffix for path in self.root.rglob("*") if path.is_file() and path.suffix != ".TAG"
        ]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "conversations")


# --- there and back ---------------------------------------------------------------------------


async def test_conversations_come_back_newest_first(world: World) -> None:
    assert await world.saved(A, B, C) == 3

    assert await world.loaded() == [C, B, A]


async def test_no_more_come_back_than_there_are_slots(world: World) -> None:
    await world.saved(A, B, C)

    assert await world.loaded(replace(PLAN, parallel=2)) == [C, B]


async def test_several_sessions_add_up(world: World) -> None:
    """Each load serves one conversation, and the earlier ones are still there."""
    await world.saved(A)
    await world.saved(B)

    assert await world.loaded() == [B, A]


async def test_one_that_went_on_is_kept_once(world: World) -> None:
    await world.saved(A)
    await world.saved([*A, 5, 5, 5])

    assert await world.loaded() == [[*A, 5, 5, 5]]


@pytest.mark.parametrize(
    ("plan", "digest"),
    [
        (PLAN, OTHER),
        (replace(PLAN, runtime="r-2"), DIGEST),
        (replace(PLAN, kv_type="q8_0"), DIGEST),
        (replace(PLAN, flash_attention=False), DIGEST),
    ],
)
async def test_nothing_comes_back_to_another_model_runtime_or_setting(
    world: World, plan: LaunchPlan, digest: Digest
) -> None:
    await world.saved(A)

    assert await world.loaded(plan, digest) == []


async def test_a_conversation_that_is_too_long_now_stays_on_disk(world: World) -> None:
    await world.saved(A)
    short = replace(PLAN, context=128, cells=4096)

    assert await world.loaded(short) == []
    assert await world.loaded() == [A]


async def test_short_ones_are_not_worth_a_file(world: World) -> None:
    assert await world.saved([1] * (module.LEAST_TOKENS - 1)) == 0
    assert world.names() == []


async def test_what_nobody_used_is_not_written_again(world: World) -> None:
    await world.saved(A, B)
    plan = await world.plan()

    async with world.worker(plan) as (worker, upstream):
        worker.serve(3, [0, 0])  # the decode that shows that it is ready
        await world.kept.restore(upstream, plan)
        first = await world.kept.save(upstream, plan)
        worker.serve(0, [*B, 9])
        second = await world.kept.save(upstream, plan)
        third = await world.kept.save(upstream, plan)
        await world.kept.keep(second)

    assert (first.count, second.count, third.count) == (0, 1, 0)
    assert worker.saved == [0]
    assert await world.loaded() == [[*B, 9], A]


async def test_a_successor_takes_over_what_was_said(world: World) -> None:
    old_plan, new_plan = await world.plan(), await world.plan(replace(PLAN, threads=1))
    async with world.worker(old_plan) as (old, up), world.worker(new_plan) as (new, new_up):
        old.serve(0, A)

        assert await world.kept.carry_over(up, old_plan, new_up, new_plan) == 1

    assert new.slots[0] == A


async def test_a_successor_of_another_kind_takes_nothing(world: World) -> None:
    old_plan, new_plan = await world.plan(), await world.plan(replace(PLAN, kv_type="q8_0"))
    async with world.worker(old_plan) as (old, up), world.worker(new_plan) as (new, new_up):
        old.serve(0, A)

        assert await world.kept.carry_over(up, old_plan, new_up, new_plan) == 0

    assert old.saved == new.restored == []


# --- switched off -----------------------------------------------------------------------------


async def test_switched_off_nothing_is_made_or_asked(tmp_path: Path) -> None:
    world = World(tmp_path / "conversations", limit_bytes=0)

    assert await world.saved(A) == 0
    assert await world.loaded() == []
    assert not world.root.exists()


async def test_switching_it_off_removes_what_was_kept(world: World) -> None:
    await world.saved(A)

    Conversations(world.root, 0).tidy([DIGEST])

    assert not world.root.exists()


@pytest.mark.parametrize("change", [{"embedding": True}, {"pooling": 4}])
async def test_a_model_without_conversations_has_no_folder(
    world: World, change: dict[str, object]
) -> None:
    plan = await world.plan(replace(PLAN, **change))  # type: ignore[arg-type]

    assert plan.conversations is None
    assert not world.root.exists()


async def test_a_folder_that_no_engine_could_be_told_is_not_used(tmp_path: Path) -> None:
    assert (await World(tmp_path / "a\nb").plan()).conversations is None


async def test_a_folder_that_cannot_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "conversations").write_text("in the way")

    assert (await World(tmp_path / "conversations").plan()).conversations is None


# --- what goes wrong --------------------------------------------------------------------------


async def test_a_damaged_file_never_reaches_the_engine(world: World) -> None:
    await world.saved(A, B)
    (damaged,) = (kept for kept in all_kept(world.root) if kept.size and _is(kept, A))
    damaged.path.write_bytes(damaged.path.read_bytes()[:-1] + b"!")
    world.kept = Conversations(world.root, LIMIT)  # another run of the daemon

    assert await world.loaded() == [B]
    assert not damaged.path.exists()


async def test_a_file_that_changed_since_it_was_hashed_is_hashed_again(world: World) -> None:
    await world.saved(A)
    (kept,) = all_kept(world.root)
    kept.path.write_bytes(b"x" * kept.size)

    assert await world.loaded() == []


async def test_a_file_that_the_engine_refuses_is_removed(world: World) -> None:
    await world.saved(A)
    plan = await world.plan()

    async with world.worker(plan) as (worker, upstream):
        worker.refuses = True
        assert await world.kept.restore(upstream, plan) == 0

    assert world.names() == []


async def test_a_file_that_ends_the_engine_is_not_tried_again(world: World) -> None:
    await world.saved(A, B)
    plan = await world.plan()

    async with world.worker(plan) as (worker, upstream):
        worker.dies = True
        assert await world.kept.restore(upstream, plan) == 0

    assert await world.loaded() == [A]


async def test_what_was_in_a_worker_that_crashed_is_not_tried_again(world: World) -> None:
    await world.saved(A, B)
    plan = await world.plan(replace(PLAN, parallel=1))
    async with world.worker(plan) as (_, upstream):
        await world.kept.restore(upstream, plan)

        await world.kept.distrust(upstream)

    assert await world.loaded() == [A]


async def test_an_engine_that_takes_too_long_to_restore_is_not_waited_for(world: World) -> None:
    await world.saved(A)
    plan = await world.plan()

    async with world.worker(plan) as (worker, upstream):
        worker.hangs = True
        with anyio.fail_after(30):
            assert await world.kept.restore(upstream, plan, timeout_s=3) == 0

    assert world.names() == []


async def test_a_load_that_is_given_up_meanwhile_costs_no_conversation(world: World) -> None:
    await world.saved(A)
    plan = await world.plan()

    async with world.worker(plan) as (worker, upstream):
        worker.hangs = True
        with anyio.move_on_after(0.2):
            await world.kept.restore(upstream, plan)

    assert await world.loaded() == [A]


async def test_an_engine_that_takes_too_long_to_save_leaves_nothing(world: World) -> None:
    plan = await world.plan()
    async with world.worker(plan) as (worker, upstream):
        worker.serve(0, A)
        worker.hangs = True
        with anyio.fail_after(30):
            draft = await world.kept.save(upstream, plan, timeout_s=3)
    draft.asked[0].write_text("half")

    assert await world.kept.keep(draft) == 0
    assert world.names() == []


@pytest.mark.parametrize("fault", ["refuses", "dies", "writes_half"])
async def test_an_engine_that_cannot_save_leaves_nothing(world: World, fault: str) -> None:
    plan = await world.plan()
    async with world.worker(plan) as (worker, upstream):
        worker.serve(0, A)
        setattr(worker, fault, True)
        draft = await world.kept.save(upstream, plan)

    assert await world.kept.keep(draft) == 0
    assert world.names() == []


async def test_a_worker_that_is_gone_is_no_error(world: World) -> None:
    await world.saved(A)
    plan, gone = await world.plan(), Upstream(Address(socket=Path("/nowhere/w.sock")), "key")

    assert (await world.kept.save(gone, plan)).count == 0
    assert await world.kept.restore(gone, plan) == 0


async def test_a_model_removed_meanwhile_keeps_nothing(world: World) -> None:
    plan = await world.plan()
    async with world.worker(plan) as (worker, upstream):
        worker.serve(0, A)
        draft = await world.kept.save(upstream, plan)
    world.kept.forget(DIGEST)

    assert await world.kept.keep(draft) == 0
    assert world.kept.used_bytes() == 0


async def test_a_launch_that_fails_says_so(world: World) -> None:
    await world.saved(A)

    async def launch() -> None:
        raise RuntimeError("it does not start")

    with pytest.raises(RuntimeError, match="does not start"):
        await world.kept.beside(await world.plan(), launch())


async def test_the_limit_holds_over_all_models(world: World) -> None:
    await world.saved(A, B, C)
    size = all_kept(world.root)[0].size
    world.kept = Conversations(world.root, 2 * size)

    await world.saved([4] * 200, plan=replace(PLAN, kv_type="q8_0"))

    assert world.kept.used_bytes() == 2 * size
    assert await world.loaded() == [C]


# --- decisions --------------------------------------------------------------------------------

ROOMY = replace(PLAN, memory=MemoryNeed(0, 4096 * 100, 0, 0, 0, 0))  # 100 bytes for a token


def slots(*sizes: int) -> tuple[Slot, ...]:
    return tuple(Slot(id=n, tokens=size, task=n, busy=False) for n, size in enumerate(sizes))


@pytest.mark.parametrize(
    ("room", "chosen"), [(100_000, [2, 1, 0]), (55_000, [2, 1]), (25_000, [2]), (10_000, [])]
)
def test_the_newest_are_saved_as_far_as_they_are_likely_to_fit(
    room: int, chosen: list[int]
) -> None:
    found = worth_saving(slots(300, 300, 200), ROOMY, -1, room)

    assert [slot.id for slot in found] == chosen


def test_a_slot_that_works_is_left_alone() -> None:
    busy = Slot(id=0, tokens=300, task=5, busy=True)

    assert worth_saving([busy], ROOMY, -1, LIMIT) == ()


def test_restored_are_no_more_than_the_cells_hold() -> None:
    found = [Kept(Path(f"/{n}"), size, "", 0, 0) for n, size in enumerate((3000, 2000, 1000))]

    assert [kept.tokens for kept in worth_restoring(found, PLAN)] == [3000, 1000]


def _is(kept: Kept, tokens: Sequence[int]) -> bool:
    return list(tokens_of(kept.path) or ()) == list(tokens)
