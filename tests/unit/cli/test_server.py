from __future__ import annotations

import json

import pytest

from .conftest import Run, StubClient


def test_on_says_where_it_is(run: Run, client: StubClient) -> None:
    assert run("server", "on").out == f"The server is on: {client.base_url}\n"
    assert client.asked == [("server", True)]


def test_off_says_how_to_get_it_back(run: Run, client: StubClient) -> None:
    assert "stoker server on" in run("server", "off").out
    assert client.asked == [("server", False)]


@pytest.mark.parametrize(("word", "enabled"), [("on", True), ("off", False)])
def test_json_is_the_server_of_the_status(
    run: Run, client: StubClient, word: str, *, enabled: bool
) -> None:
    shown = json.loads(run("server", word, "--json").out)

    assert shown == {"enabled": enabled, "base_url": client.base_url, "lan": False}


def test_without_a_word_nothing_is_switched(run: Run, client: StubClient) -> None:
    ran = run("server")

    assert ran.code == 2
    assert client.asked == []
