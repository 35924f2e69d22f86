"""A conversation goes on after its model was unloaded: real engines, real models, real files.

What counts is how much of the prompt the engine says it read, not a clock: reading is what takes
the time. `tests/benchmarks/conversations.py` measures the rest.
"""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stoker.engine.base import Engine
from stoker.engine.upstream import Upstream
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.hardware.probe import probe
from stoker.lifecycle.conversations import Conversations
from stoker.paths import Paths, from_environment
from stoker.store.facts import model_facts
from stoker.store.gguf import read_header
from stoker.tuning.launch import LaunchPlan, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import Digest
from tests.contract.test_engine import native_engine
from tests.fakes.daemon import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

READY_S = 120
LIMIT = 1 << 30
DIGEST = Digest("ab" * 32)
STORY = "".join(
    f"On day {day} the miller counted his sacks and wrote it down. " for day in range(80)
)
SHORT = STORY[:1800]  # where the length does not matter
FASTER = 5  # times: what has to be read without a saved conversation, by what is read with it


@dataclass
class Rig:
    """An engine with a real model, and conversations kept in a folder."""

    engine: Engine
    plan: LaunchPlan
    kept: Conversations

    @asynccontextmanager
    async def loaded(self, *, save: bool = True) -> AsyncIterator[Upstream]:
        """A worker that comes and goes as the lifecycle lets it."""
        plan = await self.kept.prepare(DIGEST, self.plan)
        worker = await self.kept.beside(plan, self.engine.launch(plan, timeout_s=READY_S))
        try:
            async with Upstream(worker.address, worker.key) as upstream:
                await self.kept.restore(upstream, plan)
                yield upstream
                if save:
                    await self.save(upstream)
        finally:
            await worker.stop(5)

    async def save(self, upstream: Upstream) -> None:
        plan = await self.kept.prepare(DIGEST, self.plan)
        assert await self.kept.keep(await self.kept.save(upstream, plan))


@pytest.fixture(params=["xllamacpp", "native"])
def engine(request: pytest.FixtureRequest, stoker_home: Path) -> Engine:
    paths: Paths = from_environment()
    paths.create()
    return XllamacppEngine(paths, probe()) if request.param == "xllamacpp" else native_engine(paths)


def rig_of(engine: Engine, model: Path, **wishes: Any) -> Rig:
    size = model.stat().st_size
    with model.open("rb") as stream:
        facts = model_facts(read_header(stream, size), size)
    wanted = Wishes(context=8192, parallel=4, **wishes)
    plan = make_plan("public/name:Q4", model, facts, probe(), wanted, runtime=engine.runtime)
    return Rig(engine, plan, Conversations(from_environment().conversations, LIMIT))


@pytest.fixture
def rig(engine: Engine, starter_gguf: Path) -> Rig:
    return rig_of(engine, starter_gguf)


@dataclass(frozen=True)
class Turn:
    """What it said, how many tokens it had to read for that, and how many there were."""

    said: str
    read: int
    prompt: int


async def complete(upstream: Upstream, prompt: str) -> Turn:
    body = json.dumps({"prompt": prompt, "n_predict": 12, "temperature": 0}).encode()
    kind = [(b"content-type", b"application/json")]
    answer = await upstream.open("POST", "/completion", kind, body)
    found = json.loads(await answer.read(1 << 24))
    times = found["timings"]
    return Turn(found["content"], times["prompt_n"], times["prompt_n"] + times["cache_n"])


@pytest.mark.anyio
async def test_the_second_turn_reads_only_what_is_new(rig: Rig) -> None:
    """And says the same as without an unload: what is restored is what was computed."""
    async with rig.loaded(save=False) as upstream:
        first = await complete(upstream, STORY)
        await rig.save(upstream)
        second = f"{STORY}{first.said} On the next day"
        at_once = await complete(upstream, second)

    async with rig.loaded(save=False) as upstream:
        later = await complete(upstream, second)

    assert first.read == first.prompt > 1000
    assert later.read * FASTER <= later.prompt
    assert later == at_once


@pytest.mark.anyio
async def test_several_conversations_come_back(rig: Rig) -> None:
    stories = [f"Story {n}. {SHORT[n:]}" for n in range(3)]
    async with rig.loaded() as upstream:
        for story in stories:
            await complete(upstream, story)

    async with rig.loaded(save=False) as upstream:
        turns = [await complete(upstream, f"{story} And") for story in stories]

    assert max(turn.read for turn in turns) < 20


@pytest.mark.anyio
async def test_other_settings_begin_anew(rig: Rig) -> None:
    async with rig.loaded() as upstream:
        first = await complete(upstream, SHORT)

    rig.plan = replace(rig.plan, kv_type="q8_0")
    async with rig.loaded(save=False) as upstream:
        again = await complete(upstream, SHORT)

    assert again.read == first.read


@pytest.mark.anyio
async def test_a_damaged_file_costs_time_and_nothing_else(rig: Rig) -> None:
    async with rig.loaded() as upstream:
        first = await complete(upstream, SHORT)
    (file,) = from_environment().conversations.rglob("*.state")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    rig.kept = Conversations(from_environment().conversations, LIMIT)

    async with rig.loaded(save=False) as upstream:
        again = await complete(upstream, SHORT)

    assert again.read == first.read
    assert not file.exists()


@pytest.mark.anyio
async def test_without_flash_attention_it_works_as_well(engine: Engine, starter_gguf: Path) -> None:
    """The engine keeps its values in another order then."""
    rig = rig_of(engine, starter_gguf, flash_attention=False)
    async with rig.loaded() as upstream:
        first = await complete(upstream, SHORT)

    async with rig.loaded(save=False) as upstream:
        later = await complete(upstream, f"{SHORT}{first.said} On the next day")

    assert later.read < 20


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["xllamacpp"], indirect=True)
async def test_a_model_with_a_sliding_window_goes_on(engine: Engine, gemma_gguf: Path) -> None:
    """The built-in engine saves its checkpoints along; without them it would read all again."""
    rig = rig_of(engine, gemma_gguf)
    async with rig.loaded() as upstream:
        first = await complete(upstream, STORY)

    async with rig.loaded(save=False) as upstream:
        later = await complete(upstream, f"{STORY}{first.said} On the next day")

    assert first.read > 1000
    assert later.read * FASTER <= later.prompt


# --- the whole daemon -------------------------------------------------------------------------

QUESTION = {"role": "user", "content": f"{SHORT} How many sacks were there?"}


@pytest.fixture
def keeping(daemon: Daemon) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=daemon.base_url, timeout=300, trust_env=False) as http:
        yield http


def chat(http: httpx2.Client, messages: list[dict[str, str]]) -> tuple[dict[str, str], int]:
    """The answer's message, and how many tokens were read for it."""
    body = {"model": "starter", "messages": messages, "max_tokens": 12, "temperature": 0}
    answer = http.post("/chat/completions", json=body)
    answer.raise_for_status()
    found = answer.json()
    content = found["choices"][0]["message"]["content"]
    return {"role": "assistant", "content": content}, found["timings"]["prompt_n"]


def second_turn(http: httpx2.Client, daemon: Daemon) -> tuple[int, int]:
    """Tokens read for the first turn, and after an unload for the second."""
    said, first = chat(http, [QUESTION])
    with daemon.client() as client:
        client.unload("starter")
    _, second = chat(http, [QUESTION, said, {"role": "user", "content": "And then?"}])
    return first, second


def test_a_conversation_goes_on_after_an_unload(daemon: Daemon, keeping: httpx2.Client) -> None:
    first, second = second_turn(keeping, daemon)

    assert first > 300
    assert second * FASTER <= first


def test_what_is_kept_is_private(daemon: Daemon, keeping: httpx2.Client) -> None:
    second_turn(keeping, daemon)

    found = [daemon.paths.conversations, *daemon.paths.conversations.rglob("*")]
    states = [path for path in found if path.suffix == ".state"]
    assert states
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert path.suffix == ".TAG" or mode == (0o700 if path.is_dir() else 0o600)


def test_a_conversation_outlives_the_daemon(daemon: Daemon, keeping: httpx2.Client) -> None:
    said, first = chat(keeping, [QUESTION])

    daemon.stop()
    daemon.start()
    with httpx2.Client(base_url=daemon.base_url, timeout=300, trust_env=False) as http:
        _, second = chat(http, [QUESTION, said, {"role": "user", "content": "And then?"}])

    assert second * FASTER <= first


def test_switched_off_nothing_is_kept(tmp_path: Path, starter_gguf: Path, canary: Path) -> None:
    daemon = Daemon(tmp_path / "home", keep_conversations=False)
    daemon.canary = canary
    with daemon:
        daemon.add(starter_gguf, "starter")
        with httpx2.Client(base_url=daemon.base_url, timeout=300, trust_env=False) as http:
            first, second = second_turn(http, daemon)

    assert second > first
    assert not daemon.paths.conversations.exists()


def test_a_removed_model_takes_its_conversations_along(
    daemon: Daemon, keeping: httpx2.Client
) -> None:
    second_turn(keeping, daemon)

    with daemon.client() as client:
        client.remove("starter")

    assert not list(daemon.paths.conversations.rglob("*.state"))
