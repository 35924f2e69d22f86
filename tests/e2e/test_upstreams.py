"""A Stoker in front of another one, both as real daemons, with the real engine and model."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.e2e

QUESTION = "What is the capital of France? Answer in one short sentence."


def _port_to_keep() -> int:
    """A free one that no system gives away by itself while the daemon restarts."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311  # not a secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def far(tmp_path: Path, starter_gguf: Path, canary: Path) -> Iterator[Daemon]:
    """The bigger machine, on a port that it keeps."""
    daemon = Daemon(tmp_path / "far", port=_port_to_keep())
    daemon.canary = canary
    with daemon:
        daemon.add(starter_gguf, "starter")
        yield daemon


@pytest.fixture
def near(tmp_path: Path, far: Daemon) -> Iterator[Daemon]:
    """The machine that people ask; it has no model of its own."""
    upstream = {"name": "far", "base_url": far.base_url, "check_every_s": 5}
    with Daemon(tmp_path / "near", upstreams=json.dumps([upstream])) as daemon:
        _until(lambda: daemon.status().upstreams[0].state == "up")
        yield daemon


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _ask(daemon: Daemon, model: str, *, stream: bool = False) -> str:
    with openai.OpenAI(base_url=daemon.base_url, api_key="none", max_retries=0) as api:
        messages = [{"role": "user", "content": QUESTION}]
        call = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 32}
        answer = api.chat.completions.create(**call, stream=stream)  # type: ignore[call-overload]
        if stream:
            return "".join(part.choices[0].delta.content or "" for part in answer if part.choices)
        return str(answer.choices[0].message.content)


def test_models_of_another_stoker_are_used_as_if_they_were_here(near: Daemon, far: Daemon) -> None:
    """The same words as from there, whole and streamed, and no worker here."""
    with openai.OpenAI(base_url=near.base_url, api_key="none") as api:
        listed = [model.id for model in api.models.list()]

    told = _ask(near, "far/starter"), _ask(near, "far/starter", stream=True)

    assert listed == ["far/starter"]
    assert told == (_ask(far, "starter"), _ask(far, "starter"))
    assert "Paris" in told[0]
    assert near.workers() == []


def test_another_stoker_that_dies_is_told_and_comes_back(near: Daemon, far: Daemon) -> None:
    far.kill()
    with pytest.raises(openai.InternalServerError) as told:
        _ask(near, "far/starter")
    _until(lambda: near.status().upstreams[0].state == "down")
    shown = near.cli("status").stdout

    far.start()
    _until(lambda: near.status().upstreams[0].state == "up")

    assert told.value.status_code == 503
    assert told.value.code == "upstream_down"
    assert "far" in shown
    assert "Paris" in _ask(near, "far/starter")
