from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.fakes.bert_gguf import write_bert
from tests.fakes.daemon import Daemon


@pytest.fixture(scope="session")
def bert_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert") / "tiny-bert.gguf")


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine's self-test runs once; the daemons after the first start with its verdict."""
    return tmp_path_factory.mktemp("canary") / "canary.json"


@pytest.fixture
def daemon(tmp_path: Path, starter_gguf: Path, canary: Path) -> Iterator[Daemon]:
    """A running daemon whose store holds the real starter."""
    daemon = Daemon(tmp_path / "home")
    daemon.canary = canary
    with daemon:
        daemon.add(starter_gguf, "starter")
        yield daemon


@pytest.fixture
def api(daemon: Daemon) -> Iterator[openai.OpenAI]:
    """The official client, told nothing but the base URL."""
    with openai.OpenAI(base_url=daemon.base_url, api_key="none", max_retries=0) as client:
        yield client
