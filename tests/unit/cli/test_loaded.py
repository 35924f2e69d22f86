from __future__ import annotations

import json

import pytest

from stoker import errors, schemas
from stoker.cli import loaded as commands
from stoker.types import ModelState

from .conftest import Run, StubClient, loaded, pulling


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("forever", -1)],
)
def test_durations_as_people_type_them(text: str, seconds: float) -> None:
    assert commands.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "1w", "5 minutes"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(errors.BadUsage):
        commands.seconds(text)


def test_load_passes_the_idle_time(run: Run, client: StubClient) -> None:
    assert "starter is ready, context 8192 tokens" in run("load", "starter").out
    run("load", "starter", "--keep-alive", "30m")

    assert client.asked == [("load", "starter", None), ("load", "starter", 1800.0)]


def test_load_can_pin(run: Run, client: StubClient) -> None:
    assert "It is pinned." in run("load", "starter", "--pin").out
    assert client.asked == [("load", "starter", None, True)]


def test_pin_is_put_on_and_taken_off(run: Run, client: StubClient) -> None:
    assert run("pin", "starter").out == "starter is pinned; it is ready.\n"
    assert run("pin", "starter", "--off").out == "starter is not pinned.\n"
    assert json.loads(run("pin", "starter", "--json").out)["pinned"] is True
    assert client.asked == [
        ("pin", "starter", True),
        ("pin", "starter", False),
        ("pin", "starter", True),
    ]


def test_use_says_before_how_long_it_takes_and_what_it_changes(
    run: Run, client: StubClient
) -> None:
    """On stderr, because the result is what comes after."""
    client.loaded_models = [
        loaded("starter", default=True),
        loaded("qwen", state=ModelState.UNLOADED, expected_load_s=3.2, memory=None),
    ]
    client.default = "starter"

    ran = run("use", "QWEN")

    assert ran.err == "Changing from starter to qwen: about 3 s.\n"
    assert "Requests that name no model go to it, instead of starter." in ran.out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"state": ModelState.READY, "expected_load_s": 3.0}, ""),
        ({"state": ModelState.UNLOADED}, ""),
        ({"state": ModelState.UNLOADED, "expected_load_s": 0.2}, "Loading qwen: about 1 s.\n"),
        (
            {"state": ModelState.LOADING, "expected_load_s": 9.0, "loading_s": 4.0},
            "Loading qwen: about 5 s.\n",
        ),
        ({"state": ModelState.LOADING, "expected_load_s": 3.0, "loading_s": 4.0}, ""),
    ],
)
def test_use_promises_no_time_that_nobody_knows(
    run: Run, client: StubClient, changes: dict[str, object], told: str
) -> None:
    client.loaded_models = [loaded("qwen", **changes)]

    assert run("use", "qwen").err == told
    assert run("use", "qwen", "--json").err == ""


def test_use_says_that_the_model_comes_back(run: Run, client: StubClient) -> None:
    assert "loaded again when Stoker starts" in run("use", "starter").out
    assert json.loads(run("use", "starter", "--json").out)["state"] == "ready"
    assert client.asked == [("use", "starter")] * 2


def test_unload_reports_the_state(run: Run, client: StubClient) -> None:
    assert run("unload", "starter").out == "starter is unloaded.\n"


def test_ps_leaves_out_what_is_not_loaded(run: Run, client: StubClient) -> None:
    client.loaded_models = [loaded(), loaded("other", state=ModelState.UNLOADED)]

    assert "other" not in run("ps").out
    assert [model["id"] for model in json.loads(run("ps", "--json").out)] == ["starter"]


def test_ps_tells_why_a_model_failed(run: Run, client: StubClient) -> None:
    error = schemas.ErrorView(code="worker_failed", message="out of memory", hint="")
    client.loaded_models = [loaded(state=ModelState.FAILED, error=error)]

    assert "starter: out of memory" in run("ps").out


def test_status_shows_the_default_and_other_servers(run: Run, client: StubClient) -> None:
    client.default = "starter"
    down = schemas.ErrorView(code="upstream_down", message="it refuses", hint="Start it.")
    client.upstreams = (
        schemas.UpstreamView(
            name="box", base_url="https://box/v1", state="up", models=("box/a",), latency_s=0.0123
        ),
        schemas.UpstreamView(name="old", base_url="https://old/v1", state="down", error=down),
    )

    out = run("status").out

    assert "Default   starter" in out
    shown = [line.split() for line in out.splitlines()]
    assert ["box", "up", "1", "0", "12", "ms", "https://box/v1"] in shown
    assert "old: it refuses. Start it." in out


def test_status_shows_endpoint_models_and_downloads(run: Run, client: StubClient) -> None:
    client.loaded_models = [loaded(), loaded("other", state=ModelState.UNLOADED)]
    client.pull_views = [pulling()]

    out = run("status").out

    assert "http://127.0.0.1:4328/v1" in out
    assert "running for 2 h 5 min" in out
    assert "TOKENS/S" in out
    assert "42.5" in out
    assert "1 more model stored" in out
    assert "40 MB of 98 MB" in out


def test_status_json_has_the_documented_shape(run: Run, client: StubClient) -> None:
    client.loaded_models = [loaded()]

    view = json.loads(run("status", "--json").out)

    assert {"version", "pid", "uptime_s"} <= set(view["daemon"])
    assert {"enabled", "base_url", "lan"} <= set(view["server"])
    model = {"id", "state", "engine", "runtime", "pid", "context", "memory", "tokens_per_s"}
    assert model | {"in_flight"} <= set(view["models"][0])
    assert {"expected_load_s", "loading_s", "default", "pinned"} <= set(view["models"][0])
    memory = {"predicted_bytes", "resident_bytes", "peak_bytes", "correction"}
    assert set(view["models"][0]["memory"]) == memory
    assert {"default", "upstreams"} <= set(view)
    assert {"cpu_percent", "ram_used_bytes", "ram_total_bytes", "gpus"} <= set(view["resources"])
