"""`stoker bench` with the real engine and the real model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.e2e


def test_a_quick_bench_measures_everything(daemon: Daemon) -> None:
    """The engine reports its timings through the endpoint, and they agree with our clock."""
    ran = daemon.cli(
        "bench", "starter", "--quick", "--json", "--depths", "0,256,20000", "--streams", "1,4",
        timeout_s=300,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["complete"]
    assert report["prefill"][0]["prompt_tokens"] == 512
    assert [one["depth"] for one in report["decode"]] == [0, 256]
    assert [one["streams"] for one in report["streams"]] == [1, 4]
    assert any("depth 20000 left out" in remark for remark in report["remarks"])
    figures = [one["tokens_per_s"] for one in (*report["prefill"], *report["decode"])]
    assert all(0.1 < figure < 100_000 for figure in figures)
    for one in report["decode"]:
        assert 0.5 < one["seen_tokens_per_s"] / one["tokens_per_s"] < 2
    # 512 tokens are read before the first word; the wait cannot be shorter than that.
    page = report["first_token"][-1]
    assert page["prompt_tokens"] == 512
    assert page["p50_s"] > 0.9 * 512 / max(report["prefill"][0]["runs"])


def _heeds_interrupts() -> None:
    """Also where whoever runs the tests ignores them, as a shell's background jobs do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_it_and_the_model_is_free_again(daemon: Daemon) -> None:
    """Within seconds, with what was measured, and no answer goes on behind its back."""
    command = [sys.executable, "-I", "-m", "stoker", "bench", "starter", "--json"]
    bench = subprocess.Popen(
        command,
        env=daemon.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heeds_interrupts,  # noqa: PLW1509  # no threads hold locks in this process
    )
    try:
        deadline = time.monotonic() + 60
        while not any(model.in_flight for model in daemon.status().models):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        bench.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = bench.communicate(timeout=30)
    finally:
        bench.kill()
        bench.communicate()

    assert bench.returncode == 130, err
    assert time.monotonic() - began < 15
    assert json.loads(out)["complete"] is False
    deadline = time.monotonic() + 10
    while any(model.in_flight for model in daemon.status().models):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_recommend_knows_this_machine(daemon: Daemon) -> None:
    """The starter fits wherever the tests run, and is stored."""
    ran = daemon.cli("recommend", "--all", "--json")

    assert ran.returncode == 0, ran.stderr
    rows = {row["name"]: row for row in json.loads(ran.stdout) if row["use"] == "chat"}
    assert rows["starter"]["fits"]
    assert rows["starter"]["speed"]["label"] in {"estimated", "calibrated", "measured"}
