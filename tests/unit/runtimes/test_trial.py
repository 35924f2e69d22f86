"""How many layers of a model a runtime computes on a GPU while it is compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from stoker.engine.lab import Library
from stoker.errors import LabFailed
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.runtimes import trial
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hardware import GIB, machine

pytestmark = pytest.mark.anyio


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf())
    return path


def on(monkeypatch: pytest.MonkeyPatch, *gpus: GpuFacts) -> list[dict[str, Any]]:
    """Let this machine have these GPUs; how it was looked at."""
    looks: list[dict[str, Any]] = []

    def probe(**how: Any) -> HardwareFacts:
        looks.append(how)
        return machine(gpus=gpus)

    monkeypatch.setattr(trial, "probe", probe)
    return looks


async def layers(model: Path, runtime: str) -> int:
    """Of a library that cannot be asked: there is none."""
    library = Library(runtime, model.parent / "lib", None)
    return await trial.gpu_layers(model, library, model.parent)


def gpu(free: int | None) -> GpuFacts:
    return GpuFacts("GPU", "nvidia", 8 * GIB, free)


async def test_a_runtime_for_a_gpu_is_measured_on_it(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    looks = on(monkeypatch, gpu(6 * GIB))

    assert await layers(model, "x-cuda") > 1
    assert looks == [{"fresh_gpus": True}]


async def test_a_runtime_for_the_processor_is_measured_there(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    looks = on(monkeypatch, gpu(6 * GIB))

    assert await layers(model, "x") == 0
    assert looks == []


@pytest.mark.parametrize("free", [None, 0])
async def test_without_room_on_the_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, model: Path, free: int | None
) -> None:
    """On the processor it would be found slow, and refused for what it was not made for."""
    on(monkeypatch, gpu(free))

    with pytest.raises(LabFailed, match="GPU"):
        await layers(model, "x-cuda")


async def test_where_only_its_library_tells_of_a_gpu_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    on(monkeypatch)

    async def with_gpus(hardware: HardwareFacts, library: Library, *, cwd: Path) -> HardwareFacts:
        assert (library.runtime, cwd) == ("x-vulkan", model.parent)
        return dataclasses.replace(hardware, gpus=(gpu(6 * GIB),))

    monkeypatch.setattr(trial, "with_gpus", with_gpus)

    assert await layers(model, "x-vulkan") > 1
