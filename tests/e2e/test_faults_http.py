"""Hostile and broken requests against the real engine: a clear answer, and the worker lives on."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.e2e

CHAT: dict[str, Any] = {
    "model": "starter",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4,
}
TOOL_CALL: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{}]}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"grammar": "root ::= " + "(" * 100_000}, id="deep grammar"),
        pytest.param({"grammar": 'root ::= "a"' + ' "a"?' * 40_000}, id="wide grammar"),
        pytest.param({"json_schema": {"enum": [str(n) for n in range(10_000)]}}, id="wide enum"),
        pytest.param(
            {"json_schema": {"properties": {f"p{n}": {} for n in range(3000)}}}, id="wide object"
        ),
        pytest.param({"json_schema": {"type": "string", "pattern": "^" + "a?" * 9000}}, id="regex"),
        pytest.param({"json_schema": {"$ref": "#"}}, id="endless schema"),
        pytest.param({"json_schema": {"$ref": "file:///etc/passwd"}}, id="schema from a file"),
        pytest.param({"tools": [1]}, id="no tool"),
        pytest.param({"tools": [{"type": "function", "function": {}}]}, id="nameless tool"),
        pytest.param({"messages": [*CHAT["messages"], TOOL_CALL]}, id="nameless tool call"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, id="no text"),
    ],
)
def test_what_the_engine_cannot_bear_is_a_bad_request(
    daemon: Daemon, fields: dict[str, Any]
) -> None:
    """It is refused in seconds, with a code, and the same worker answers the next request."""
    url = f"{daemon.base_url}/chat/completions"
    with httpx2.Client(timeout=60) as client:
        client.post(url, json=CHAT)
        worker = daemon.model("starter").pid

        answer = client.post(url, json={**CHAT, **fields}, timeout=30)

        after = client.post(url, json=CHAT)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_request"
    assert after.status_code == 200
    assert daemon.model("starter").pid == worker


@pytest.mark.parametrize("token", [-1, 10**9, 2**40])
def test_tokens_that_are_not_in_the_vocabulary_are_a_bad_request(
    daemon: Daemon, token: int
) -> None:
    """Too large ones included, which the engine would cut to other tokens."""
    root = daemon.base_url.removesuffix("/v1")
    with httpx2.Client(timeout=60) as client:
        text = client.post(f"{root}/detokenize", json={"model": "starter", "tokens": [token]})
        more = client.post(f"{root}/v1/completions", json={"model": "starter", "prompt": [token]})

    assert [text.status_code, more.status_code] == [400, 400]


def test_what_is_not_http_is_told_so_in_json(daemon: Daemon) -> None:
    """The endpoint's own protocol, with its limits on heads, is what the daemon serves with."""
    address = urlsplit(daemon.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as peer:
        peer.sendall(b"nonsense\r\n\r\n")
        answer = b""
        while piece := peer.recv(65536):
            answer += piece

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"
