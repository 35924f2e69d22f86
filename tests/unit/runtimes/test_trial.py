"""How many layers of a model a runtime computes on a GPU while it is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker.errors import LabFailed
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.runtimes import trial
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hardware import GIB, machine


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


def gpu(free: int | None) -> GpuFacts:
    return GpuFacts("GPU", "nvidia", 8 * GIB, free)


def test_a_runtime_for_a_gpu_is_measured_on_it(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    looks = on(monkeypatch, gpu(6 * GIB))

    assert trial.gpu_layers(model, "x-cuda") > 1
    assert looks == [{"fresh_gpus": True}]


def test_a_runtime_for_the_processor_is_measured_there(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    looks = on(monkeypatch, gpu(6 * GIB))

    assert trial.gpu_layers(model, "x") == 0
    assert looks == []


@pytest.mark.parametrize("free", [None, 0])
def test_without_room_on_the_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, model: Path, free: int | None
) -> None:
    """On the processor it would be found slow, and refused for what it was not made for."""
    on(monkeypatch, gpu(free))

    with pytest.raises(LabFailed, match="GPU"):
        trial.gpu_layers(model, "x-cuda")
