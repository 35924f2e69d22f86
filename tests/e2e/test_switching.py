"""A stream is never cut because somebody wants another model: wanted, used or in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.schemas import ModelView
from stoker.types import ModelState
from tests.fakes.asking import Stream, complete
from tests.fakes.daemon import Daemon
from tests.fakes.two_models import SHAPE, room_for_one, stored

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

# Tokens of a stream; the model writes twenty to eighty a second.
LONG = 1800  # more than can come in the time of a load and of two answers by another model
SHORT = 800  # enough for others to arrive meanwhile, also where the test gets no processor
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, starter_gguf: Path, gemma_gguf: Path, canary: Path
) -> tuple[Path, int]:
    """A store with both models, and a limit that holds one of them."""
    folder = tmp_path_factory.mktemp("two") / "home"
    needs = stored(folder, starter_gguf, gemma_gguf, canary)
    return folder, room_for_one(needs.values())


@contextmanager
def running(home: Path, **settings: object) -> Iterator[Daemon]:
    with Daemon(home, restore_last="false", **SHAPE, **settings) as daemon:
        yield daemon


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[Future[object]]:
    """Do it in a thread of its own; the block ends when it has."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def until(daemon: Daemon, model: str, *states: ModelState) -> ModelView:
    deadline = time.monotonic() + WITHIN_S
    while (view := daemon.model(model)).state not in states:
        assert time.monotonic() < deadline, view
        time.sleep(0.02)
    return view


def whole(stream: Stream, tokens: int) -> bool:
    stream.wait()
    ended_well = (stream.finish_reason, stream.is_whole, stream.error) == ("length", True, None)
    assert ended_well, (stream.tokens, stream.finish_reason, stream.error)
    return stream.tokens >= tokens - 1  # the last event may hold no token, or a token no event


def use(daemon: Daemon, model: str) -> Callable[[], ModelView]:
    def work() -> ModelView:
        with daemon.client() as client:
            return client.use(model)

    return work


def test_a_stream_goes_on_beside_the_model_that_was_switched_to(home: tuple[Path, int]) -> None:
    """Where both fit: the other one is asked, used and asked again, and the first then leaves."""
    with running(home[0]) as daemon, Stream(daemon.base_url, "starter", LONG) as stream:
        worker = daemon.model("starter").pid

        before = complete(daemon.base_url, "gemma")
        used = use(daemon, "gemma")()
        after = complete(daemon.base_url, "gemma")
        still_ran, leaving = stream.runs, daemon.model("starter")

        assert [before.status_code, after.status_code] == [200, 200]
        assert (used.id, used.state) == ("gemma", ModelState.READY)
        assert still_ran, "the stream was too short to tell anything"
        assert leaving.in_flight == 1
        assert leaving.pid == worker
        assert whole(stream, LONG)
        until(daemon, "starter", ModelState.UNLOADED)
        assert daemon.model("gemma").state is ModelState.READY


def test_who_needs_its_memory_waits_for_the_end_of_a_stream(home: tuple[Path, int]) -> None:
    """Where one fits: a request and the switch wait, the stream ends as it should, then they go."""
    folder, limit = home
    with running(folder, memory_limit_bytes=limit) as daemon:
        base_url = daemon.base_url
        with (
            Stream(base_url, "starter", SHORT) as stream,
            beside(lambda: complete(base_url, "gemma")) as asked,
        ):
            until(daemon, "gemma", ModelState.QUEUED, ModelState.LOADING)
            with beside(use(daemon, "gemma")) as used:
                time.sleep(0.5)  # both have arrived, and nothing has come of it
                waits = not asked.done() and not used.done()
                view = daemon.model("starter")

                assert stream.runs, "the stream was too short to tell anything"
                assert waits
                assert view.in_flight == 1
                assert whole(stream, SHORT)

        assert getattr(asked.result(), "status_code", None) == 200
        assert getattr(used.result(), "state", None) is ModelState.READY
        until(daemon, "starter", ModelState.UNLOADED)


def test_an_unpinned_model_is_evicted_only_between_its_streams(home: tuple[Path, int]) -> None:
    """Two clients that want one model each, all the time: both are always answered in full."""
    folder, limit = home
    ends: list[tuple[str | None, bool, object]] = []

    def client(base_url: str, model: str) -> None:
        for _ in range(4):
            with Stream(base_url, model, 64) as stream:
                stream.wait()
            ends.append((stream.finish_reason, stream.is_whole, stream.error))

    with running(folder, memory_limit_bytes=limit) as daemon:
        base_url = daemon.base_url
        clients = [
            threading.Thread(target=client, args=(base_url, model))
            for model in ("starter", "gemma")
        ]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()

    assert ends == [("length", True, None)] * 8


def test_unloading_waits_for_the_stream(home: tuple[Path, int]) -> None:
    """As long as the user's own limit for that is not over."""
    with running(home[0], drain_timeout_s=400) as daemon:
        base_url = daemon.base_url
        with Stream(base_url, "starter", SHORT) as stream:

            def unload() -> object:
                with daemon.client() as client:
                    return client.unload("starter")

            with beside(unload) as unloaded:
                until(daemon, "starter", ModelState.DRAINING)
                assert not unloaded.done()
                assert whole(stream, SHORT)

        assert getattr(unloaded.result(), "state", None) is ModelState.UNLOADED
