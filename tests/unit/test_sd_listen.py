from __future__ import annotations

import os
import socket
import sys

import pytest

from stoker import sd_listen
from stoker.sd_listen import handed_over

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 1),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "64"}, 64),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "65"}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "9" * 5000}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": " 1"}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1_0"}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "٣"}, 0),
        ({"LISTEN_PID": "7", "LISTEN_FDS": ""}, 0),
        ({"LISTEN_PID": "7"}, 0),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 0),
        ({"LISTEN_PID": "", "LISTEN_FDS": "1"}, 0),
        ({"LISTEN_FDS": "1"}, 0),
        ({}, 0),
    ],
)
def test_only_what_is_meant_for_us_counts(environ: dict[str, str], count: int) -> None:
    """A parent's variables, and nonsense, are no sockets."""
    assert handed_over(environ, 7) == count


def test_variables_of_another_process_are_removed_too() -> None:
    """No child of ours takes them for its own, should it get that number."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/h"}

    assert sd_listen.take(environ) == ()
    assert environ == {"HOME": "/h"}


def _taken(descriptors: list[int]) -> list[socket.socket]:
    """What `take` makes of these; 3 and following have other uses in this process."""
    return [found for one in descriptors if (found := sd_listen._listener(one)) is not None]


def test_only_sockets_to_accept_on_are_taken() -> None:
    """Anything else is left alone; so is what is not open at all."""
    read, write = os.pipe()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket() as unbound,
        socket.create_connection(listening.getsockname()) as connected,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
    ):
        others = [one.fileno() for one in (unbound, connected, datagrams, local)]
        given = [os.dup(listening.fileno()), *others, read, write, 9999]
        for descriptor in given[:-1]:
            os.set_inheritable(descriptor, True)  # noqa: FBT003  # it takes no keyword

        (taken,) = _taken(given)

        with taken:
            assert taken.getsockname() == listening.getsockname()
            assert not taken.get_inheritable()
        assert connected.getpeername() == listening.getsockname()  # it is open
    os.close(read)
    os.close(write)


def test_one_that_was_left_shut_is_taken() -> None:
    """A daemon that was killed while its server was off could not make it listen again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    with socket.create_server(address) as listening:
        listening.shutdown(socket.SHUT_RD)

        (taken,) = _taken([os.dup(listening.fileno())])

        with taken:
            assert taken.getsockname() == address
