"""As on Windows: control plane and workers on loopback TCP, with the real engine and model."""

from __future__ import annotations

from pathlib import Path

import openai
import psutil
import pytest

from stoker import transport
from tests.fakes.daemon import Daemon, assert_gone

pytestmark = pytest.mark.e2e

QUESTION = "What is the capital of France? Answer in one short sentence."


@pytest.fixture
def loopback(tmp_path: Path, starter_gguf: Path, canary: Path) -> Daemon:
    daemon = Daemon(tmp_path / "home", test_control="tcp")
    daemon.canary = canary
    daemon.home.mkdir()
    return daemon


def ports_of(pid: int) -> set[int]:
    """The ports of loopback that it listens on; a port of any other address fails the test."""
    found = [
        one.laddr
        for one in psutil.Process(pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert {where.ip for where in found} <= {"127.0.0.1"}
    return {where.port for where in found}


def ask(daemon: Daemon) -> str:
    with openai.OpenAI(base_url=daemon.base_url, api_key="none", max_retries=0) as api:
        answer = api.chat.completions.create(
            model="starter",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=32,
        )
    return answer.choices[0].message.content or ""


def test_a_chat_without_any_unix_socket(loopback: Daemon, starter_gguf: Path) -> None:
    """Pull, load, chat, unload and a clean stop; the file with the token is gone after it."""
    with loopback:
        loopback.add(starter_gguf, "starter")
        told = ask(loopback)
        worker = psutil.Process(loopback.model("starter").pid)
        found = transport.read(loopback.paths.control_file)

        assert "Paris" in told
        assert found is not None
        assert found.pid == loopback.pid
        assert found.port in ports_of(loopback.pid)
        assert len(ports_of(worker.pid)) == 1
        assert not list(loopback.paths.run.glob("*.sock"))
        with loopback.client() as client:
            client.unload("starter")
        assert_gone([worker])

        assert loopback.stop() == 0
        assert not loopback.paths.control_file.exists()


def test_a_killed_daemon_takes_its_worker_along_and_is_replaced(
    loopback: Daemon, starter_gguf: Path
) -> None:
    """Its file stays behind, and stops nobody from starting."""
    with loopback:
        loopback.add(starter_gguf, "starter")
        ask(loopback)
        before = transport.read(loopback.paths.control_file)

        assert_gone(loopback.kill())
        assert loopback.cli("status").returncode == 3
        assert loopback.paths.control_file.exists()

        loopback.start()
        after = transport.read(loopback.paths.control_file)
        assert before is not None
        assert after is not None
        assert after.token != before.token
        assert loopback.cli("stop").returncode == 0
