"""The control plane as its clients see it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import psutil
import pytest

from stoker import __version__, errors
from stoker.api import stream
from stoker.client import StokerClient
from stoker.events import BACKLOG
from stoker.history import Kind
from stoker.paths import from_environment
from stoker.schemas import (
    Goodbye,
    ModelChanged,
    PullChanged,
    Snapshot,
    StoreChanged,
    VerifyProgress,
)
from stoker.transport import Route, find
from stoker.types import ModelId, ModelState, PullState
from tests.integration.control_plane import (
    ControlPlane,
    Listener,
    control_plane,
    flip_a_byte,
    wait_for,
)

UNREACHABLE = "https://models.example/stuck.gguf"


@pytest.fixture
def plane(stoker_home: Path, transport: str) -> Iterator[ControlPlane]:
    with control_plane() as plane:
        yield plane


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[StokerClient]:
    with plane.client() as client:
        yield client


@pytest.fixture
def listener(plane: ControlPlane) -> Iterator[Listener]:
    listener = Listener(plane)
    yield listener
    listener.end()


def _way_in(route: Route) -> list[str]:
    return [f"{name}: {text}" for name, text in {"Host": route.host, **route.headers}.items()]


def raw(plane: ControlPlane, method: str, path: str, body: bytes = b"", *headers: str) -> Any:
    """Status, headers and body of one request, written by hand."""
    route = find(plane.paths.control_socket)
    with route.connect(10) as peer:
        head = [
            f"{method} {path} HTTP/1.1",
            *_way_in(route),
            "Connection: close",
            f"Content-Length: {len(body)}",
            *headers,
        ]
        peer.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        answer = b""
        while piece := peer.recv(65536):
            answer += piece
    top, _, rest = answer.partition(b"\r\n\r\n")
    lines = top.decode().lower().split("\r\n")
    return int(lines[0].split()[1]), lines[1:], rest


# --- the daemon ------------------------------------------------------------------------------


def test_status_shows_the_daemon_its_models_and_the_machine(
    plane: ControlPlane, client: StokerClient
) -> None:
    plane.add("tiny")

    status = client.status()

    assert (status.daemon.version, status.daemon.pid) == (__version__, os.getpid())
    assert status.daemon.uptime_s > 0
    assert status.daemon.home == str(plane.paths.data)
    assert status.server.enabled
    assert status.server.base_url == plane.base_url
    assert [(model.id, model.state) for model in status.models] == [("tiny", ModelState.UNLOADED)]
    assert status.resources.ram_total_bytes > 0
    assert [pull.state for pull in status.pulls] == [PullState.DONE]
    assert client.daemon_version == __version__


def test_stop_is_answered_and_asked_for(plane: ControlPlane, client: StokerClient) -> None:
    client.stop()

    assert plane.stops == ["asked"]


def test_history_is_listed_newest_first(plane: ControlPlane) -> None:
    history = plane.services.history
    history.note(Kind.LOAD, "tiny", 1.5, "ready")
    history.note(Kind.JOB, "scrub", 2.0, "sound")

    status, _, body = raw(plane, "GET", "/history?limit=1")
    _, _, loads = raw(plane, "GET", "/history?kind=load")

    assert status == 200
    assert [row["name"] for row in json.loads(body)] == ["scrub"]
    found = json.loads(loads)[0]
    assert found.pop("at").endswith(("Z", "+00:00"))
    assert found == {"kind": "load", "name": "tiny", "seconds": 1.5, "result": "ready"}


# --- refusals and errors ---------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Origin: http://evil.example", "Referer: x", "ORIGIN: null"])
@pytest.mark.parametrize("path", ["/status", "/no/such/path"])
def test_a_browser_is_refused_before_routing(plane: ControlPlane, header: str, path: str) -> None:
    status, headers, body = raw(plane, "GET", path, b"", header)

    assert status == 403
    assert json.loads(body)["code"] == "origin_not_allowed"
    assert f"x-stoker-version: {__version__}" in headers


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", b"", 404, "not_found"),
        ("GET", "/docs", b"", 404, "not_found"),
        ("GET", "/openapi.json", b"", 404, "not_found"),
        ("PUT", "/status", b"", 405, "method_not_allowed"),
        ("POST", "/load", b"{", 400, "bad_request"),
        ("POST", "/load", b"{}", 400, "bad_request"),
        ("POST", "/load", b'{"model": "x", "extra": 1}', 400, "bad_request"),
        ("POST", "/load", b'{"model": "x", "keep_alive_s": -2}', 400, "bad_request"),
        ("POST", "/load", b'{"model": "x"}', 404, "model_not_found"),
        ("POST", "/unload", b'{"model": "x"}', 404, "model_not_found"),
        ("POST", "/verify", b'{"models": ["x"]}', 404, "model_not_found"),
        ("DELETE", "/models/a/b%3AQ4", b"", 404, "model_not_found"),
        ("GET", "/models/..%2f..%2fetc", b"", 404, "model_not_found"),
        ("POST", "/pulls", b'{"reference": "::"}', 400, "bad_reference"),
        ("POST", "/pulls/none/pause", b"", 404, "pull_not_found"),
        ("GET", "/pulls/none", b"", 404, "pull_not_found"),
        ("POST", "/use", b'{"model": "x"}', 404, "model_not_found"),
        ("POST", "/use", b'{"model": "x", "keep_alive_s": 1}', 400, "bad_request"),
        ("POST", "/server", b"{}", 400, "bad_request"),
        ("POST", "/server", b'{"enabled": "perhaps"}', 400, "bad_request"),
        ("GET", "/events?resources=perhaps", b"", 400, "bad_request"),
        ("GET", "/history?limit=0", b"", 400, "bad_request"),
        ("GET", "/history?kind=other", b"", 400, "bad_request"),
    ],
)
def test_every_error_is_an_error_view(
    plane: ControlPlane, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    """Status, code, message and hint; and the version, as on every answer."""
    found, headers, answer = raw(plane, method, path, body, "Content-Type: application/json")

    view = json.loads(answer)
    assert (found, view["code"]) == (status, code)
    assert view["message"]
    assert view["hint"]
    assert f"x-stoker-version: {__version__}" in headers


def test_an_unknown_model_names_those_that_there_are(
    plane: ControlPlane, client: StokerClient
) -> None:
    plane.add("tiny")

    with pytest.raises(errors.UnknownModel) as caught:
        client.model("tinny")

    assert caught.value.facts["available"] == ["tiny"]
    assert "tiny" in caught.value.hint


def test_a_fault_of_ours_is_told_without_its_insides(
    plane: ControlPlane, client: StokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(plane.services, "status", broken)

    with pytest.raises(errors.InternalError) as caught:
        client.status()

    assert "secret" not in caught.value.message


# --- models ----------------------------------------------------------------------------------


def test_models_are_listed_and_shown(plane: ControlPlane, client: StokerClient) -> None:
    plane.add("tiny", seed=1)
    plane.add("other", seed=2)

    listed = client.models()
    shown = client.model("TINY")

    assert [model.id for model in listed] == ["other", "tiny"]
    assert shown == listed[1]
    assert shown.trust.integrity.verdict in {"ok", "warn"}
    assert shown.bytes == plane.blob("tiny").stat().st_size


def test_load_and_unload_start_and_end_a_worker(plane: ControlPlane, client: StokerClient) -> None:
    plane.add("tiny")

    loaded = client.load("tiny", keep_alive_s=-1)
    assert (loaded.id, loaded.state) == ("tiny", ModelState.READY)
    assert loaded.pid is not None
    assert psutil.pid_exists(loaded.pid)

    unloaded = client.unload("tiny")
    assert (unloaded.state, unloaded.pid) == (ModelState.UNLOADED, None)
    assert not psutil.pid_exists(loaded.pid)


def test_a_loaded_model_is_unloaded_and_removed(
    plane: ControlPlane, client: StokerClient, listener: Listener
) -> None:
    blob = plane.add("tiny")
    size = blob.stat().st_size
    pid = client.load("tiny").pid
    assert pid is not None

    removed = client.remove("tiny")

    assert (removed.id, removed.bytes_freed) == ("tiny", size)
    assert not blob.exists()
    assert not psutil.pid_exists(pid)
    assert client.models() == []
    wait_for(lambda: StoreChanged(id="tiny", change="removed") in listener.events or None)


def test_a_model_loaded_again_in_the_last_moment_is_unloaded(
    plane: ControlPlane, client: StokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may come between the unloading and the removal; no worker outlives its model."""
    plane.add("tiny")
    remove = plane.store.remove
    pids: list[int | None] = []

    def load_and_remove(model: ModelId) -> int:
        pids.append(anyio.from_thread.run(plane.services.lifecycle.load, "tiny").pid)
        return remove(model)

    monkeypatch.setattr(plane.store, "remove", load_and_remove)

    client.remove("tiny")

    (pid,) = pids
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_a_model_that_is_being_pulled_is_not_removed(
    plane: ControlPlane, client: StokerClient
) -> None:
    blob = plane.add("tiny")
    pull = client.pull(UNREACHABLE, name="tiny")

    with pytest.raises(errors.ModelInUse):
        client.remove("tiny")
    client.cancel_pull(pull.id)
    client.remove("tiny")

    assert not blob.exists()


# --- pulls -----------------------------------------------------------------------------------


def test_a_pull_is_accepted_at_once_and_can_be_steered(client: StokerClient) -> None:
    """It can be found, paused, resumed and cancelled by any client."""
    pull = client.pull(UNREACHABLE, name="tiny")
    again = client.pull(UNREACHABLE, name="tiny")

    assert not pull.state.ended
    assert again.id == pull.id
    assert [one.id for one in client.pulls()] == [pull.id]
    assert client.pause_pull(pull.id).state is PullState.PAUSED
    assert client.resume_pull(pull.id).state is not PullState.PAUSED
    assert client.cancel_pull(pull.id).state is PullState.CANCELLED
    assert client.pull_view(pull.id).state is PullState.CANCELLED


def test_a_pull_is_answered_with_202(plane: ControlPlane) -> None:
    body = json.dumps({"reference": UNREACHABLE, "name": "tiny"}).encode()

    status, _, answer = raw(plane, "POST", "/pulls", body, "Content-Type: application/json")

    assert status == 202
    assert json.loads(answer)["reference"] == UNREACHABLE


def test_a_pull_tells_its_way_as_events(plane: ControlPlane, listener: Listener) -> None:
    plane.add("tiny")

    wait_for(lambda: StoreChanged(id="tiny", change="added") in listener.events or None)
    states = [event.pull.state for event in listener.of(PullChanged)]
    assert states[-1] is PullState.DONE
    assert isinstance(listener.events[0], Snapshot)


# --- events ----------------------------------------------------------------------------------


def test_a_snapshot_comes_first_then_changes(plane: ControlPlane, client: StokerClient) -> None:
    plane.add("tiny")
    listener = Listener(plane)

    client.load("tiny")
    listener.end()

    first = listener.events[0]
    assert isinstance(first, Snapshot)
    assert [model.id for model in first.status.models] == ["tiny"]
    states = [event.model.state for event in listener.of(ModelChanged)]
    assert ModelState.LOADING in states
    assert ModelState.READY in states
    assert isinstance(listener.events[-1], Goodbye)


def test_a_client_that_was_too_slow_gets_a_new_snapshot(
    plane: ControlPlane, listener: Listener
) -> None:
    bus = plane.services.bus

    def flood() -> None:
        for number in range(BACKLOG + 10):
            bus.publish(StoreChanged(id=f"m{number}", change="added"))

    plane.portal.call(flood)

    last = StoreChanged(id=f"m{BACKLOG + 9}", change="added")
    wait_for(lambda: last in listener.events or None)
    second = listener.events[1]
    assert isinstance(second, Snapshot)
    assert len(listener.of(StoreChanged)) < BACKLOG


def test_a_quiet_stream_is_kept_alive_and_goes_on(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings pass, and an event after them still arrives."""
    monkeypatch.setattr(stream, "PING_S", 0.01)
    route = find(plane.paths.control_socket)
    with route.connect(10) as peer:
        peer.sendall("\r\n".join(["GET /events HTTP/1.1", *_way_in(route), "", ""]).encode())
        received = b""
        while received.count(b": ping\n\n") < 3:
            received += peer.recv(65536)
        plane.portal.call(plane.services.bus.publish, Goodbye())
        while b"goodbye" not in received:
            received += peer.recv(65536)

    assert b"content-type: text/event-stream" in received.lower()
    assert b"content-length" not in received.lower()


def test_a_listener_that_leaves_is_forgotten(plane: ControlPlane, client: StokerClient) -> None:
    """So that nothing is sampled for nobody."""
    events = client.events()
    assert isinstance(next(events), Snapshot)
    assert plane.services.bus.watched

    events.close()

    wait_for(lambda: not plane.services.bus.watched or None)


def test_an_open_stream_does_not_hold_up_the_end(stoker_home: Path) -> None:
    with control_plane() as plane:
        listener = Listener(plane)
        ending = time.monotonic()

    assert time.monotonic() - ending < 2
    wait_for(lambda: isinstance(listener.events[-1], Goodbye) or None)
    listener._thread.join(10)


def test_without_the_daemon_the_client_says_so(stoker_home: Path) -> None:
    """Also when its socket file is still there, as after a crash."""
    with control_plane():
        pass
    places = from_environment()
    assert places.control_socket.exists()

    with StokerClient(places) as client, pytest.raises(errors.DaemonNotRunning):
        client.status()


# --- verify ----------------------------------------------------------------------------------


def results(lines: list[VerifyProgress]) -> list[tuple[str, bool]]:
    return [(line.result.id, line.result.ok) for line in lines if line.result]


def test_sound_models_are_verified_with_progress(
    plane: ControlPlane, client: StokerClient, listener: Listener
) -> None:
    plane.add("a", seed=1)
    plane.add("b", seed=2)
    before = client.model("a").verified_at

    lines = list(client.verify())

    assert results(lines) == [("a", True), ("b", True)]
    total = sum(model.bytes for model in client.models())
    assert {line.bytes_total for line in lines} == {total}
    counts = [line.bytes_done for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == total
    after = client.model("a").verified_at
    assert before is not None
    assert after is not None
    assert after > before
    wait_for(lambda: StoreChanged(id="b", change="verified") in listener.events or None)


def test_only_the_models_asked_for_are_verified(plane: ControlPlane, client: StokerClient) -> None:
    plane.add("a", seed=1)
    plane.add("b", seed=2)

    assert results(list(client.verify(["b"]))) == [("b", True)]


def test_a_flipped_byte_is_found_and_its_models_are_not_served(
    plane: ControlPlane, client: StokerClient, listener: Listener
) -> None:
    """Also the one that was loaded, and another model that is made of the same bytes."""
    blob = plane.add("tiny")
    plane.add("twin")
    plane.add("sound", seed=1)
    loaded = client.load("twin").pid
    assert loaded is not None
    flip_a_byte(blob)

    lines = list(client.verify(["tiny"]))

    found = lines[-1].result
    assert found is not None
    assert (found.id, found.ok) == ("tiny", False)
    assert found.finding
    assert not psutil.pid_exists(loaded)
    for name in ("tiny", "twin"):
        assert client.model(name).trust.integrity.verdict == "failed"
        with pytest.raises(errors.BlobDamaged):
            client.load(name)
    told = {StoreChanged(id=name, change="damaged") for name in ("tiny", "twin")}
    wait_for(lambda: told <= set(listener.of(StoreChanged)) or None)
    assert client.load("sound").state is ModelState.READY


def test_a_missing_blob_is_found(plane: ControlPlane, client: StokerClient) -> None:
    plane.add("tiny").unlink()

    lines = list(client.verify())

    assert results(lines) == [("tiny", False)]
    assert lines[-1].bytes_done == lines[-1].bytes_total


def test_an_empty_store_is_verified_at_once(client: StokerClient) -> None:
    assert list(client.verify()) == []


def test_hashing_stops_when_the_client_goes_away(plane: ControlPlane, client: StokerClient) -> None:
    plane.add("a", seed=1)
    plane.add("b", seed=2)
    before = client.model("a").verified_at
    plane.store.hold = True

    lines = client.verify()
    assert next(lines).result is None
    lines.close()

    wait_for(lambda: plane.store.was_cancelled or None)
    plane.store.hold = False
    assert client.model("a").verified_at == before


def test_the_daemon_answers_others_while_it_hashes(
    plane: ControlPlane, client: StokerClient
) -> None:
    plane.add("tiny")
    plane.store.hold = True
    lines = client.verify()
    next(lines)

    assert plane.client().status().models[0].id == "tiny"

    plane.store.hold = False
    assert results(list(lines)) == [("tiny", True)]
