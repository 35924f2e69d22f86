"""`stoker bench` with the real engine and the real model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.fakes.daemon import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_a_quick_bench_measures_everything(daemon: Daemon) -> None:
    """The engine reports its timings through the endpoint."""
    report = quick_bench(daemon, "--depths", "0,256,20000", "--streams", "1,4")

    assert report["complete"]
    assert report["prefill"][0]["prompt_tokens"] == 512
    assert [one["depth"] for one in report["decode"]] == [0, 256]
    assert [one["streams"] for one in report["streams"]] == [1, 4]
    assert any("depth 20000 left out" in remark for remark in report["remarks"])
    figures = [one["tokens_per_s"] for one in (*report["prefill"], *report["decode"])]
    assert all(0.1 < figure < 100_000 for figure in figures)
    assert report["first_token"][-1]["prompt_tokens"] == 512


def test_the_engines_timings_agree_with_our_clock(daemon: Daemon) -> None:
    """Best of three: either side may have to wait for a processor while the other does not."""
    assert any(agrees(quick_bench(daemon, "--depths", "0", "--streams", "1")) for _ in range(3))


def agrees(report: dict[str, Any]) -> bool:
    [decode], [prefill] = report["decode"], report["prefill"]
    # 512 tokens are read before the first word; the wait cannot be shorter than that.
    least_s = 0.9 * 512 / max(prefill["runs"])
    waits_s: float = report["first_token"][-1]["p50_s"]
    ratio: float = decode["seen_tokens_per_s"] / decode["tokens_per_s"]
    return waits_s > least_s and 0.5 < ratio < 2


def quick_bench(daemon: Daemon, *options: str) -> dict[str, Any]:
    ran = daemon.cli("bench", "starter", "--quick", "--json", *options, timeout_s=300)
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


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
