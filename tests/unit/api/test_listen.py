"""Binding the endpoint's address."""

from __future__ import annotations

import pytest

from stoker.api.listen import bind_endpoint
from stoker.errors import BadSetting, PortTaken


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
