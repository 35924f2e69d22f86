"""Binding the endpoint's address, and how serving there ends."""

from __future__ import annotations

import socket
import sys
from functools import partial

import anyio.to_thread
import pytest
from starlette.responses import PlainTextResponse

from stoker.api import listen
from stoker.api.listen import BACKLOG, bind_endpoint, listening
from stoker.errors import BadSetting, PortTaken

APP = PlainTextResponse("served")


def test_a_taken_port_is_named() -> None:
    """The user learns which port another program has."""
    with bind_endpoint("127.0.0.1", 0) as first:
        first.listen()

        with pytest.raises(PortTaken) as caught:
            bind_endpoint("127.0.0.1", first.getsockname()[1])

    assert caught.value.facts["port"] > 0  # type: ignore[operator]


def test_an_address_of_another_machine_is_a_wrong_setting() -> None:
    """Such as ::1 where IPv6 is off; here an address from a range that nobody has."""
    with pytest.raises(BadSetting, match="cannot listen on"):
        bind_endpoint("192.0.2.1", 0)


def read_all(peer: socket.socket) -> bytes:
    received = b""
    while piece := peer.recv(4096):
        received += piece
    return received


def bound() -> socket.socket:
    listener = bind_endpoint("127.0.0.1", 0)
    listener.listen(BACKLOG)
    return listener


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="the loop accepts ahead there")
@pytest.mark.parametrize("speaks_at_once", [True, False])
async def test_who_has_just_connected_is_answered_at_the_end(
    monkeypatch: pytest.MonkeyPatch, *, speaks_at_once: bool
) -> None:
    """Neither before it was accepted nor before it has asked is a connection reset."""
    monkeypatch.setattr(listen, "_HEAR_S", 30.0)  # it ends as soon as it was asked
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    listener = bound()
    address = listener.getsockname()
    async with anyio.create_task_group() as tasks:
        async with listening(APP, listener):
            peer = socket.create_connection(address, 5)  # the loop has had no time to accept it
            if speaks_at_once:
                peer.sendall(request)
            else:
                tasks.start_soon(anyio.to_thread.run_sync, lambda: peer.sendall(request))
        answer = await anyio.to_thread.run_sync(read_all, peer)
        peer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"served")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="only systemd shares a socket")
async def test_who_waits_is_left_to_the_next_one_that_holds_the_socket() -> None:
    """As at the end of a daemon that has its socket from systemd."""
    with bound() as held:
        async with listening(APP, held.dup()) as server:
            peer = socket.create_connection(held.getsockname(), 5)
            server.leaves_rest = True
        accept = partial(anyio.to_thread.run_sync, held.accept)
        held.settimeout(5)

        waiting, address = await accept()

        assert address == peer.getsockname()
        waiting.close()
        peer.close()
