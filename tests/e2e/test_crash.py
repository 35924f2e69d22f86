"""What dies is noticed, cleaned up and replaced; nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from stoker.errors import StokerError
from stoker.types import ModelState
from tests.fakes.asking import ENDLESS
from tests.fakes.daemon import Daemon, assert_gone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STORY: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell a very long story about a lighthouse keeper."}
]


def _wait_for(daemon: Daemon, state: ModelState, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while daemon.model("starter").state is not state:
        assert time.monotonic() < deadline, daemon.model("starter")
        time.sleep(0.05)


def test_killed_worker_ends_the_stream_with_an_error(api: openai.OpenAI, daemon: Daemon) -> None:
    """The client learns of it in the stream, and the next request is answered."""
    with api.chat.completions.create(
        model="starter", messages=STORY, max_tokens=2000, stream=True, extra_body=ENDLESS
    ) as stream:
        pieces = iter(stream)
        for _ in range(5):
            next(pieces)
        pid = daemon.model("starter").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            for _ in pieces:
                pass

    assert caught.value.code == "worker_lost"
    answer = api.chat.completions.create(
        model="starter", messages=STORY, max_tokens=8, extra_body=ENDLESS
    )
    assert answer.choices[0].message.content
    assert daemon.model("starter").pid != pid


def test_killed_daemon_leaves_no_worker(api: openai.OpenAI, daemon: Daemon) -> None:
    """`kill -9` of the daemon takes the workers with it; the next start is clean and restores."""
    api.chat.completions.create(model="starter", messages=STORY, max_tokens=4)
    deadline = time.monotonic() + 20
    while not daemon.paths.last_served.exists():  # written a moment after the answer
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = daemon.kill()

    assert workers
    assert_gone(workers)

    daemon.start()
    _wait_for(daemon, ModelState.READY)
    left = list(daemon.paths.run.glob("w-*.sock"))
    assert len(left) == 1


def test_daemon_killed_while_loading_leaves_no_worker(daemon: Daemon) -> None:
    """Three times in a row: a worker that is still loading goes, too, and the next start works."""
    for _ in range(3):
        loading = threading.Thread(target=_load_and_lose, args=(daemon,))
        loading.start()
        deadline = time.monotonic() + 20
        while not (workers := daemon.workers()):
            assert time.monotonic() < deadline
        daemon.kill()
        loading.join(20)

        assert_gone(workers)
        daemon.start()

    with daemon.client() as client:
        assert client.load("starter").state is ModelState.READY


def _load_and_lose(daemon: Daemon) -> None:
    with daemon.client() as client, contextlib.suppress(StokerError):
        client.load("starter")


def test_restart_restores_what_served_last(daemon: Daemon, api: openai.OpenAI) -> None:
    """After a restart the last model is ready again without a request."""
    api.chat.completions.create(model="starter", messages=STORY, max_tokens=4)

    assert daemon.stop() == 0
    daemon.start()

    _wait_for(daemon, ModelState.READY)


def test_unloaded_model_is_not_restored(daemon: Daemon) -> None:
    """What the user unloaded stays unloaded after a restart."""
    with daemon.client() as client:
        client.load("starter")
        client.unload("starter")

    daemon.stop()
    daemon.start()

    time.sleep(1)  # a restore would have begun by now
    assert daemon.model("starter").state is ModelState.UNLOADED


def test_stop_lets_a_running_answer_finish(
    tmp_path: Path, starter_gguf: Path, canary: Path
) -> None:
    """A graceful stop drains: the running stream ends as it should, then all processes go."""
    daemon = Daemon(tmp_path / "home", drain_timeout_s=200)  # however slow the machine is
    daemon.canary = canary
    with daemon:
        daemon.add(starter_gguf, "starter")
        with (
            openai.OpenAI(base_url=daemon.base_url, api_key="none", max_retries=0) as api,
            api.chat.completions.create(
                model="starter", messages=STORY, max_tokens=150, stream=True, extra_body=ENDLESS
            ) as stream,
        ):
            pieces = iter(stream)
            next(pieces)
            os.kill(daemon.pid, signal.SIGTERM)
            finish = [c.choices[0].finish_reason for c in pieces if c.choices][-1]

        assert finish == "length"
        assert daemon.process is not None
        assert daemon.process.wait(30) == 0


def test_disconnect_cancels_the_generation(daemon: Daemon, api: openai.OpenAI) -> None:
    """A client that goes away costs no more work."""
    with api.chat.completions.create(
        model="starter", messages=STORY, max_tokens=4000, stream=True, extra_body=ENDLESS
    ) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 20
    while daemon.model("starter").in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = daemon.model("starter").pid
    assert pid is not None

    # The engine notices a moment after the daemon; 4000 tokens would take it longer than this.
    worker = psutil.Process(pid)
    worker.cpu_percent()
    time.sleep(1)
    while worker.cpu_percent() >= 30:
        assert time.monotonic() < deadline
        time.sleep(1)
