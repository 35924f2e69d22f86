"""How a lab pauses: the tuner relies on it, so its fake must do the same."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from stoker.engine.lab import LabInterrupted, Library, open_lab
from stoker.tuner.labs import Bench
from stoker.tuning.launch import Speeds, Trial
from tests.fakes.lab import FakeLabs

pytestmark = pytest.mark.anyio

TRIAL = Trial("here", 1, 1, 128, flash_attention=True)
DEADLINE_S = 60


@pytest.fixture(params=["fake", pytest.param("built-in", marks=pytest.mark.e2e)])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        async with FakeLabs(takes_s=0.05)(Library("here", tmp_path, None), cwd=tmp_path) as fake:
            yield fake
        return
    async with open_lab(built_in(), cwd=tmp_path / "cwd") as real:
        yield real


def built_in() -> Library:
    spec = importlib.util.find_spec("xllamacpp")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("xllamacpp*.so")]
    if not files:
        pytest.skip("the built-in wheel has no library here")
    return Library("here", files[0], None)


async def measure(lab: Bench, *, prompt: int = 64, generate: int = 4) -> Speeds | None:
    """None: it was interrupted."""
    try:
        with anyio.fail_after(DEADLINE_S):
            return await lab.measure(TRIAL, prompt=prompt, generate=generate, streams=2)
    except LabInterrupted:
        return None


async def test_a_paused_measurement_is_interrupted_once(lab: Bench, starter_gguf: Path) -> None:
    await lab.load(starter_gguf, extra_buffers=True)
    results: list[Speeds | None] = []

    async def one() -> None:
        results.append(await measure(lab, prompt=512, generate=512))  # seconds; the pause is early

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        await anyio.sleep(0.01)
        lab.pause()
        lab.pause()
        await anyio.sleep(0.3)
        assert results == []  # nothing comes out of a process that stands still
        lab.resume()
        lab.resume()
    again = await measure(lab)

    assert results == [None]
    assert again is not None
    assert again.decode_tokens_per_s > 0


async def test_a_measurement_begun_in_a_pause_is_interrupted_too(
    lab: Bench, starter_gguf: Path
) -> None:
    await lab.load(starter_gguf, extra_buffers=True)
    lab.pause()

    async with anyio.create_task_group() as tasks:
        results: list[Speeds | None] = []

        async def one() -> None:
            results.append(await measure(lab))

        tasks.start_soon(one)
        await anyio.sleep(0.05)
        assert results == []
        lab.resume()

    assert await measure(lab) is not None
