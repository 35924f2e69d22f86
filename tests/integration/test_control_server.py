"""The server's switch and the loaded models, as the clients of the control plane see them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from stoker import catalogue, errors
from stoker.client import StokerClient
from stoker.schemas import (
    DaemonChanged,
    ModelChanged,
    ModelView,
    ResourcesSampled,
    ResourcesView,
    ServerChanged,
    Snapshot,
)
from stoker.transport import find
from stoker.types import ModelState
from tests.fakes.engine import Behaviour
from tests.integration.control_plane import ControlPlane, Listener, control_plane, wait_for


@pytest.fixture
def plane(stoker_home: Path) -> Iterator[ControlPlane]:
    with control_plane() as plane:
        plane.add("a", seed=1)
        plane.add("b", seed=2)
        yield plane


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[StokerClient]:
    with plane.client() as client:
        yield client


def model(client: StokerClient, name: str) -> ModelView:
    return next(view for view in client.status().models if view.id == name)


def answers(base_url: str) -> bool:
    """Whether somebody listens there."""
    parts = urlsplit(base_url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), 5).close()
    except ConnectionRefusedError:
        return False
    return True


# --- on and off ------------------------------------------------------------------------------


def test_off_and_on(plane: ControlPlane, client: StokerClient) -> None:
    """The port is closed and open again; the control plane answers all the while."""
    client.load("a")
    address = client.status().server.base_url

    off = client.server(enabled=False)
    assert (off.enabled, client.status().server) == (False, off)
    assert not answers(address)
    assert model(client, "a").state is ModelState.UNLOADED

    on = client.server(enabled=True)
    assert (on.enabled, on.base_url) == (True, address)
    assert answers(address)
    wait_for(lambda: model(client, "a").state is ModelState.READY)


def test_while_off_loads_are_refused_and_all_else_works(
    plane: ControlPlane, client: StokerClient
) -> None:
    client.server(enabled=False)

    for call in (client.load, client.use):
        with pytest.raises(errors.ServerOff) as caught:
            call("a")
        assert "stoker server on" in caught.value.hint
    assert client.unload("a").state is ModelState.UNLOADED
    plane.add("c", seed=3)
    assert list(client.verify(["c"]))[-1].result is not None
    assert client.remove("c").bytes_freed


def test_a_daemon_that_was_off_comes_back_off(stoker_home: Path) -> None:
    """Nothing is loaded until it is switched on; then what was loaded before."""
    with control_plane() as plane, plane.client() as client:
        plane.add("a")
        client.load("a")
        client.server(enabled=False)

    with control_plane() as plane, plane.client() as client:
        assert not client.status().server.enabled
        with pytest.raises(errors.ServerOff):
            client.load("a")
        assert plane.engine.launches == []

        client.server(enabled=True)

        wait_for(lambda: model(client, "a").state is ModelState.READY)


def test_the_switch_is_an_event(plane: ControlPlane, client: StokerClient) -> None:
    listener = Listener(plane)
    client.server(enabled=False)
    client.server(enabled=True)
    wait_for(lambda: len(listener.of(ServerChanged)) == 2)
    listener.end()

    assert [event.server.enabled for event in listener.of(ServerChanged)] == [False, True]


# --- which models are loaded -----------------------------------------------------------------


def test_use_loads_one_and_lets_the_others_go(plane: ControlPlane, client: StokerClient) -> None:
    pid = client.load("a").pid
    assert pid is not None

    used = client.use("b")

    assert (used.id, used.state) == ("b", ModelState.READY)
    wait_for(lambda: model(client, "a").state is ModelState.UNLOADED)
    assert not psutil.pid_exists(pid)
    assert model(client, "b").state is ModelState.READY


def test_a_use_that_fails_takes_nothing_away(plane: ControlPlane, client: StokerClient) -> None:
    client.load("a")
    plane.engine.prepare_error = errors.CanaryFailed("wrong tokens")

    with pytest.raises(errors.CanaryFailed):
        client.use("b")

    assert model(client, "a").state is ModelState.READY


def slow(plane: ControlPlane, name: str) -> None:
    """From now on the model loads for longer than any test takes."""
    plane.engine.by_model = {name: Behaviour(start_ms=60_000)}


@contextmanager
def asked(plane: ControlPlane, path: str, name: str) -> Iterator[None]:
    """Ask for the model, do the block while it is being loaded, then hang up."""
    route = find(plane.paths.control_socket)
    body = json.dumps({"model": name})
    lines = {"Host": route.host, **route.headers, "Content-Length": str(len(body))}
    lines["Content-Type"] = "application/json"
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    with plane.client() as client, route.connect(10) as peer:
        peer.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n{body}".encode())
        wait_for(lambda: model(client, name).state is ModelState.LOADING)
        yield


def test_the_newest_use_wins(plane: ControlPlane, client: StokerClient) -> None:
    """Who asked before is told, the load is given up, and the newer model stays."""
    client.load("b")
    slow(plane, "a")
    told: list[errors.StokerError] = []

    def use_a() -> None:
        with plane.client() as other, pytest.raises(errors.CapacityError) as caught:
            other.use("a")
        told.append(caught.value)

    older = threading.Thread(target=use_a)
    older.start()
    wait_for(lambda: model(client, "a").state is ModelState.LOADING)

    used = client.use("b")

    older.join(10)
    assert used.state is ModelState.READY
    assert (told[0].message, told[0].hint) == (
        "b was chosen before a was ready",
        "To change back: stoker use a",
    )
    wait_for(lambda: model(client, "a").state is ModelState.UNLOADED)
    assert model(client, "b").state is ModelState.READY


@pytest.mark.parametrize("path", ["/use", "/load"])
def test_a_load_that_nobody_waits_for_is_given_up(
    plane: ControlPlane, client: StokerClient, path: str
) -> None:
    """Its client hung up; nothing else was changed."""
    client.load("b")
    slow(plane, "a")

    with asked(plane, path, "a"):
        pass

    wait_for(lambda: model(client, "a").state is ModelState.UNLOADED)
    assert model(client, "b").state is ModelState.READY
    assert plane.engine.workers[1:] == [] or not psutil.pid_exists(plane.engine.workers[1].pid)


def test_a_load_that_another_waits_for_goes_on(plane: ControlPlane, client: StokerClient) -> None:
    """Only the last one to hang up gives it up."""
    slow(plane, "a")

    with asked(plane, "/load", "a"):
        with asked(plane, "/use", "a"):
            wait_for(lambda: model(client, "a").queued == 2)
        wait_for(lambda: model(client, "a").queued == 1)
        assert model(client, "a").state is ModelState.LOADING


def test_what_was_used_is_what_comes_back(plane: ControlPlane, client: StokerClient) -> None:
    client.load("a")

    client.use("b")

    saved = plane.paths.last_served
    wait_for(lambda: saved.exists() and json.loads(saved.read_text())["model"] == "b")


def test_free_unloads_what_is_idle_and_says_what_it_gave(
    plane: ControlPlane, client: StokerClient
) -> None:
    """And when there is nothing to unload, nothing."""
    pids = [client.load(name).pid for name in ("a", "b")]
    taken = sum(worker.resident_bytes() or 0 for worker in plane.engine.workers)

    freed = client.free()

    assert sorted(freed.models) == ["a", "b"]
    assert 0 < freed.bytes_freed <= 2 * taken
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)
    assert client.free().models == ()
    assert plane.paths.last_served.exists()


def test_a_view_tells_how_long_the_last_load_took(
    plane: ControlPlane, client: StokerClient
) -> None:
    """Also after it was unloaded; None for what was never loaded."""
    assert model(client, "a").load_s is None

    loaded = client.load("a")
    client.unload("a")

    assert loaded.load_s is not None
    assert loaded.load_s > 0
    assert model(client, "a").load_s == loaded.load_s
    assert model(client, "b").load_s is None


def test_load_times_are_recalled(plane: ControlPlane, client: StokerClient) -> None:
    """From the history, whatever names are in it; what this daemon measured is newer."""
    plane.services.lifecycle.recall_load_times({"a": 2.5, "../x": 1.0, "gone": 3.0})
    assert model(client, "a").load_s == 2.5

    measured = client.load("a").load_s
    plane.services.lifecycle.recall_load_times({"a": 2.5})

    assert model(client, "a").load_s == measured != 2.5


def test_the_catalogue_is_judged_for_this_machine(client: StokerClient) -> None:
    offers = client.catalogue()

    assert {one.name for one in offers} == {str(one.name) for one in catalogue.load().entries}
    assert [one.fits for one in offers] == sorted((one.fits for one in offers), reverse=True)


# --- events ----------------------------------------------------------------------------------


def test_who_wants_no_samples_gets_everything_else(
    plane: ControlPlane, client: StokerClient
) -> None:
    """And none are taken for it."""
    listener = Listener(plane, resources=False)
    bus = plane.services.bus
    assert (bus.listened, bus.watched) == (True, False)
    sample = ResourcesView(cpu_percent=1, ram_used_bytes=2, ram_total_bytes=3)
    plane.portal.call(bus.publish, ResourcesSampled(resources=sample))
    client.load("a")
    listener.end()

    assert isinstance(listener.events[0], Snapshot)
    assert listener.of(ResourcesSampled) == []
    assert listener.of(ModelChanged)


def test_a_found_update_is_told_once(plane: ControlPlane, client: StokerClient) -> None:
    """In the status, and as an event when it is news."""
    assert client.status().daemon.update is None
    listener = Listener(plane)
    for version in ("9.9.9", "9.9.9", None):
        plane.portal.call(plane.services.found_update, version)
    listener.end()

    told = [event.daemon.update for event in listener.of(DaemonChanged)]
    assert told == ["9.9.9", None]
    plane.portal.call(plane.services.found_update, "9.9.9")
    assert client.status().daemon.update == "9.9.9"
