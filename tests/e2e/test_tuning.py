"""Tuning with the real engine: it never stands in anybody's way, and what it found is used."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from stoker.hardware.probe import probe
from stoker.schemas import TuneView
from stoker.schemas_machine import PlanRequest, TuneRequest
from stoker.store.disk import read_file
from stoker.tuning.keys import tuning_key
from stoker.types import ModelState
from tests.fakes.asking import ENDLESS
from tests.fakes.daemon import Daemon, assert_gone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STORY: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell a very long story about a lighthouse keeper."}
]
WITHIN_S = 110.0  # the first look waits behind everything else on a busy machine


def wait_for(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def labs(daemon: Daemon) -> list[psutil.Process]:
    """The processes that measure."""
    found = []
    for process in daemon.workers():
        try:
            if any("lab_child" in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def view(daemon: Daemon) -> TuneView:
    with daemon.client() as client:
        return next(one for one in client.tunes() if one.model == "starter")


def start(daemon: Daemon) -> list[psutil.Process]:
    """A search that would take long; the labs that measure for it."""
    with daemon.client() as client:
        client.tune(TuneRequest(model="starter", seconds=3600, again=True))
    wait_for(lambda: (view(daemon).note or "").startswith("tries"))
    measuring = labs(daemon)
    assert measuring
    return measuring


def stopped(processes: list[psutil.Process]) -> bool:
    """Those that are still there; a dry run may have ended meanwhile."""
    alive = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            alive.add(process.status())
    return alive == {psutil.STATUS_STOPPED}


def test_a_request_stands_before_a_measurement(daemon: Daemon, api: openai.OpenAI) -> None:
    """While it runs the lab does not get a single cycle; afterwards it goes on by itself."""
    api.chat.completions.create(model="starter", messages=STORY, max_tokens=2)
    measuring = start(daemon)
    assert not stopped(measuring)

    with api.chat.completions.create(
        model="starter", messages=STORY, max_tokens=1500, stream=True, extra_body=ENDLESS
    ) as stream:
        pieces = iter(stream)
        next(pieces)
        # It was told before the request went out; on a busy machine it takes notice when it is
        # given a processor again.
        wait_for(lambda: stopped(measuring))
        wait_for(lambda: view(daemon).state == "paused")
        measuring = [process for process in measuring if process.is_running()]
        before = [process.cpu_times().user for process in measuring]
        told = [next(pieces) for _ in range(40)]
        after = [process.cpu_times().user for process in measuring]

    assert any(piece.choices[0].delta.content for piece in told if piece.choices)
    assert after == before
    wait_for(lambda: not stopped(measuring) and view(daemon).state == "running")
    with daemon.client() as client:
        assert client.tune_cancel("starter").state == "cancelled"
    assert_gone(measuring)


def test_the_first_answer_does_not_wait_for_any_tuning(daemon: Daemon, api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model="starter", messages=STORY, max_tokens=4)

    assert answer.choices[0].message.content
    assert view(daemon).state == "none"
    assert view(daemon).trials == 0


def test_a_killed_daemon_leaves_no_lab(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.load("starter")
    measuring = start(daemon)

    processes = daemon.kill()

    # A dry run may have ended meanwhile, but not the search.
    assert {process.pid for process in measuring} & {process.pid for process in processes}
    assert_gone(processes)


def test_a_lab_that_is_stopped_is_gone_with_the_daemon(daemon: Daemon, api: openai.OpenAI) -> None:
    """A stopped process does not notice that its parent has ended; it must go all the same."""
    with daemon.client() as client:
        client.load("starter")  # a load ends the labs
    start(daemon)
    with api.chat.completions.create(
        model="starter", messages=STORY, max_tokens=400, stream=True, extra_body=ENDLESS
    ) as stream:
        next(iter(stream))
        wait_for(lambda: stopped(labs(daemon)))
        processes = daemon.kill()

        assert_gone(processes)


def test_settings_from_a_file_are_used_at_the_first_load(daemon: Daemon, tmp_path: Path) -> None:
    """Also by the next daemon, which measures nothing again."""
    with daemon.client() as client:
        digest = client.model("starter").files[0].sha256
        runtime = next(one for one in client.runtimes().runtimes if one.current).name
        document = _document(digest, runtime)
        assert client.tune_import(document).taken == 1
        loaded = client.load("starter")
        plan = client.plan(PlanRequest(model="starter"))

    assert loaded.state is ModelState.READY
    measured = {reason.setting for reason in plan.reasons if reason.source == "measured"}
    assert {"ubatch", "flash_attention", "threads"} <= measured
    assert plan.settings["ubatch"] == 256
    assert plan.settings["flash_attention"] is False

    daemon.stop()
    daemon.start()
    assert view(daemon).state == "done"
    with daemon.client() as client:
        assert client.plan(PlanRequest(model="starter")).settings["ubatch"] == 256
        assert client.tune_export() == document
    files = list(daemon.paths.tuning.glob("*.json"))
    assert [json.loads(read_file(file, 1 << 20))["model"] for file in files] == [digest]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_whole_search(daemon: Daemon) -> None:
    """Long enough for a machine that others use, too; its result is what plans are made of."""
    with daemon.client() as client:
        client.load("starter")

    ran = daemon.cli("tune", "starter", "--seconds", "120", timeout_s=360)

    if "may be busy" in ran.stderr:
        pytest.skip("THE MACHINE IS TOO BUSY TO MEASURE ANYTHING")
    assert ran.returncode == 0, ran.stderr
    assert "writes an answer" in ran.stdout
    found = view(daemon)
    assert found.state == "done"
    assert found.settings is not None
    assert labs(daemon) == []
    with daemon.client() as client:
        plan = client.plan(PlanRequest(model="starter"))
    assert plan.settings["threads"] == found.settings["threads"]
    assert "measured" in {reason.source for reason in plan.reasons}
    assert daemon.model("starter").state is ModelState.READY


def _document(digest: str, runtime: str) -> dict[str, object]:
    """As `stoker tune --export` writes it, for this machine."""
    cpus = probe().effective_cpus
    speeds = {
        "prefill_tokens_per_s": 900.0,
        "decode_tokens_per_s": 80.0,
        "batch_tokens_per_s": 150.0,
    }
    best = {
        "runtime": runtime,
        "threads": cpus,
        "threads_batch": cpus,
        "ubatch": 256,
        "flash_attention": False,
        "extra_buffers": True,
        "gpu_layers": 0,
    }
    tuned = {
        "key": tuning_key(probe()),
        "profile": "chat",
        "best": best,
        "speeds": speeds,
        "baseline": speeds,
        "trials": 12,
        "seconds": 60.0,
        "at": "2026-01-02T03:04:05Z",
        "complete": True,
    }
    model = {"version": 1, "model": digest, "tuned": [tuned], "surveys": []}
    return {"kind": "stoker-tuning", "version": 1, "models": [model]}
