"""A pull goes on where it stopped: after a cut, a pause, a restart of the daemon."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from stoker.errors import UnknownPull
from stoker.pull.state import restore
from stoker.types import ModelId, PullState
from tests.fakes.gguf_files import tiny_shards
from tests.fakes.hub import GZIP, IGNORE_RANGE, Blob, Cut, Drip, Hub, Stall
from tests.fakes.pulling import Bench, ended, model_bytes, reached, until

pytestmark = pytest.mark.anyio

SIZE = 1_000_000
CUTS = random.Random(20).sample(range(SIZE), 20)  # noqa: S311


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def bench(tmp_path: Path, hub: Hub) -> Bench:
    return Bench(tmp_path, hub)


def bytes_sent(hub: Hub) -> int:
    """What the CDN was asked for in all."""
    ranges = [r.headers.get("range", f"bytes=0-{SIZE}")[6:].split("-") for r in hub.sent("cdn")]
    return sum(int(last) - int(first) + 1 for first, last in ranges)


@pytest.mark.parametrize("after", CUTS)
async def test_a_cut_anywhere_is_healed(bench: Bench, hub: Hub, after: int) -> None:
    """One connection, cut at a random byte: the pull goes on from there and verifies."""
    model = model_bytes(SIZE)
    hub.publish("owner/x", {"m-Q4_0.gguf": model})
    hub.on_bytes.append(Cut(after))
    bench.tune(connections=1, chunk_bytes=2 * SIZE)

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error
    assert bench.store.path(bench.store.list()[0].files[0].digest).read_bytes() == model
    again = hub.sent("cdn")[1]
    assert again.headers["range"].startswith(f"bytes={after}-")


class Slow:
    """In the place of a lock: whoever wants it waits, and can be cancelled meanwhile."""

    async def __aenter__(self) -> None:
        await anyio.sleep(0.2)

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_what_has_ended_is_not_begun_again(bench: Bench, hub: Hub) -> None:
    """Although the daemon was stopped in the very moment of its end."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})

    async with bench.running() as puller:
        puller._saving = Slow()  # type: ignore[assignment]
        view = await puller.start("owner/x")
        await ended(puller, view.id)

    assert restore(bench.state_file) == []


async def test_twenty_cuts_in_one_pull(bench: Bench, hub: Hub) -> None:
    """A line that breaks again and again still gets there, over several connections."""
    model = model_bytes(SIZE)
    hub.publish("owner/x", {"m-Q4_0.gguf": model})
    hub.on_bytes.extend(Cut(at % 60_000) for at in CUTS)

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error
    assert bytes_sent(hub) < 3 * SIZE


@pytest.mark.parametrize("after", CUTS[:5])
async def test_a_restart_goes_on(bench: Bench, hub: Hub, after: int) -> None:
    """A daemon that ends in the middle: the next one finishes the pull and refetches little."""
    model = model_bytes(SIZE)
    hub.publish("owner/x", {"m-Q4_0.gguf": model})
    hub.always = Drip(after)
    bench.tune(connections=1, chunk_bytes=2 * SIZE, stall_s=60)
    async with bench.running() as puller:
        view = await puller.start("owner/x", name="mine")
        await reached(puller, view.id, PullState.FETCHING, bytes_done=after)
    hub.always = None
    hub.requests.clear()

    async with bench.running() as puller:
        assert [pull.id for pull in puller.list()] == [view.id]
        done = await ended(puller, view.id)
        await until(lambda: json.loads(bench.state_file.read_text())["pulls"] == [])

    assert done.state is PullState.DONE, done.error
    assert bench.store.find("mine").size_bytes == len(model)
    first = hub.sent("cdn")[0].headers["range"]
    assert int(first.removeprefix("bytes=").split("-")[0]) >= after


async def test_pause_and_resume(bench: Bench, hub: Hub) -> None:
    """Paused means that nothing runs; resumed means that nothing is fetched twice."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.append(Drip(400_000))
    bench.tune(connections=1, chunk_bytes=2 * SIZE, stall_s=60)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        await reached(puller, view.id, PullState.FETCHING, bytes_done=400_000)
        hub.requests.clear()

        paused = await puller.pause(view.id)

        assert paused.state is PullState.PAUSED
        assert puller.active == 0
        assert not puller.in_use(ModelId("owner/x:Q4_0"))
        resumed = await puller.resume(view.id)
        assert not resumed.state.ended
        assert (await ended(puller, view.id)).state is PullState.DONE
    start = hub.sent("cdn")[0].headers["range"].removeprefix("bytes=").split("-")[0]
    assert int(start) >= 400_000


async def test_a_paused_pull_stays_paused_after_a_restart(bench: Bench, hub: Hub) -> None:
    """What the user stopped does not start by itself; starting it again resumes it."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.append(Drip(1000))
    bench.tune(connections=1, stall_s=60)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        await until(lambda: bool(hub.sent("cdn")))
        await puller.pause(view.id)

    async with bench.running() as puller:
        assert puller.get(view.id).state is PullState.PAUSED
        assert puller.active == 0
        again = await puller.start("owner/x")
        assert again.id == view.id
        assert (await ended(puller, view.id)).state is PullState.DONE


async def test_cancel_throws_away(bench: Bench, hub: Hub) -> None:
    """A cancelled pull leaves no bytes, and is not begun again after a restart."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.append(Drip(40_000))
    bench.tune(connections=1, stall_s=60)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        await until(lambda: bool(hub.sent("cdn")))

        cancelled = await puller.cancel(view.id)

        assert cancelled.state is PullState.CANCELLED
        assert (bench.partials, bench.blobs) == ([], [])
    async with bench.running() as puller:
        assert puller.list() == []


async def test_cancel_while_paused_throws_away_too(bench: Bench, hub: Hub) -> None:
    """The bytes of a pull that was paused before go as well."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.append(Drip(40_000))
    bench.tune(connections=1, stall_s=60)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        await reached(puller, view.id, PullState.FETCHING, bytes_done=40_000)
        await puller.pause(view.id)
        assert bench.partials

        assert (await puller.cancel(view.id)).state is PullState.CANCELLED

        assert bench.partials == []
        assert (await puller.resume(view.id)).state is PullState.CANCELLED


async def test_an_unknown_pull(bench: Bench) -> None:
    """Asking for a pull that never was says so."""
    async with bench.running() as puller:
        with pytest.raises(UnknownPull):
            puller.get("nope")


async def test_a_failed_pull_can_be_resumed(bench: Bench, hub: Hub) -> None:
    """After too many cuts the pull fails and keeps what came; resuming goes on from there."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.extend([Cut(300_000), *[Cut(0)] * 4])
    bench.tune(connections=1, chunk_bytes=2 * SIZE)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        failed = await ended(puller, view.id)
        assert failed.state is PullState.FAILED
        assert failed.error is not None
        assert failed.error.code == "source_unreachable"
        hub.requests.clear()

        await puller.resume(view.id)

        assert (await ended(puller, view.id)).state is PullState.DONE
    assert hub.sent("cdn")[0].headers["range"].startswith("bytes=300000-")


async def test_a_stalled_connection_is_replaced(bench: Bench, hub: Hub) -> None:
    """No byte for the stall time, or hardly any: the pull reconnects and goes on."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.extend([Stall(1000), Drip(1000)])
    bench.tune(stall_s=0.2)

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error


async def test_a_server_without_ranges(bench: Bench, hub: Hub) -> None:
    """Whole files only: fetched in one go, from the start again after a cut."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.always = IGNORE_RANGE
    hub.on_bytes.extend([IGNORE_RANGE] * 4)

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error


async def test_an_expired_address_is_asked_for_again(bench: Bench, hub: Hub) -> None:
    """Signed addresses that work once: each further range asks the Hub anew."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.link_uses = 1
    bench.tune(connections=1)

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error
    assert len(hub.sent("hub", "/resolve/")) > 5


async def test_the_branch_moves_during_the_pull(bench: Bench, hub: Hub) -> None:
    """All bytes are of the commit that was resolved first, also after a new commit."""
    old = model_bytes(SIZE)
    commit = hub.publish("owner/x", {"m-Q4_0.gguf": old})
    hub.on_bytes.append(Stall(1000))
    bench.tune(stall_s=0.3)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        await until(lambda: bool(hub.sent("cdn")))
        hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE, 5)})
        done = await ended(puller, view.id)

    assert done.state is PullState.DONE, done.error
    assert bench.store.list()[0].source.revision == commit


async def test_a_broken_state_file_is_no_obstacle(bench: Bench) -> None:
    """Pulls are easily begun again; the daemon must start."""
    bench.state_file.parent.mkdir()
    bench.state_file.write_text('{"format": 1, "pulls": [{')

    async with bench.running() as puller:
        assert puller.list() == []


async def test_one_packed_answer_is_asked_for_again(bench: Bench, hub: Hub) -> None:
    """A single node that compresses is not the end."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.append(GZIP)

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error


async def test_two_pulls_share_the_line(bench: Bench, hub: Hub) -> None:
    """Two different models at once; a third waits for its turn and gets it."""
    for number in range(3):
        hub.publish(f"owner/x{number}", {"m-Q4_0.gguf": model_bytes(SIZE, number)})

    async with bench.running() as puller:
        views = [await puller.start(f"owner/x{number}") for number in range(3)]
        states = [(await ended(puller, view.id)).state for view in views]

    assert states == [PullState.DONE] * 3
    assert len(bench.blobs) == 3


async def test_a_cancelled_split_model_leaves_no_shard(bench: Bench, hub: Hub) -> None:
    """What was complete goes too, unless a model needs it."""
    hub.publish("owner/kept", {"projector-Q4_0.gguf": model_bytes(1000, 5)})
    await bench.pull("owner/kept")
    hub.publish("owner/split", dict(tiny_shards(2)))
    bench.tune(connections=1, stall_s=60)
    async with bench.running() as puller:
        hub.on_bytes.extend([Cut(10**9), Drip(10)])
        view = await puller.start("owner/split")
        await until(lambda: len(bench.blobs) == 2)  # a model's, and one shard

        await puller.cancel(view.id)

    (model,) = bench.store.list()
    assert bench.blobs == [bench.store.path(model.files[0].digest)]
    assert bench.partials == []


async def test_cancel_after_a_restart_throws_away_too(bench: Bench, hub: Hub) -> None:
    """The next daemon knows what a paused pull has left in the store."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.on_bytes.append(Drip(40_000))
    bench.tune(connections=1, stall_s=60)
    async with bench.running() as puller:
        view = await puller.start("owner/x")
        await reached(puller, view.id, PullState.FETCHING, bytes_done=40_000)
        await puller.pause(view.id)
        assert bench.partials

    async with bench.running() as puller:
        await puller.cancel(view.id)

    assert bench.partials == []


async def test_another_version_at_the_same_address_begins_anew(bench: Bench, hub: Hub) -> None:
    """Without a digest only the server can tell that its file has changed; halves never mix."""
    old, new = model_bytes(SIZE, 1), model_bytes(SIZE, 2)
    commit = hub.publish("owner/x", {"m.gguf": old})
    url = hub.link("owner/x", commit, "m.gguf")
    bench.tune(connections=1, stall_s=60)
    async with bench.running() as puller:
        hub.on_bytes.extend([Cut(10**9), Drip(40_000)])
        view = await puller.start(url)
        await reached(puller, view.id, PullState.FETCHING, bytes_done=40_000)
        await puller.pause(view.id)
        hub.publish("owner/x", {"m.gguf": new})
        hub.repositories["owner/x"].commits[commit]["m.gguf"] = Blob(new)
        await puller.resume(view.id)

        assert (await ended(puller, view.id)).error is None

    assert [path.read_bytes() for path in bench.blobs] == [new]
