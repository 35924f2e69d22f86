"""The GPUs that only a runtime's library tells of: asked when needed, believed within bounds."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from stoker.engine import graphics
from stoker.engine import lab as lab_module
from stoker.engine.lab import Device, Library
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.tuning import placement
from tests.fakes.hardware import GIB, machine

pytestmark = pytest.mark.anyio

CHILD = """
import json, os, sys
json.loads(sys.stdin.readline())
print(json.dumps({{"id": 0, "ok": {{"pid": os.getpid()}}}}), flush=True)
for line in sys.stdin:
    {answer}
"""
CPU: dict[str, Any] = {
    "name": "CPU",
    "description": "a processor",
    "kind": "cpu",
    "free_bytes": 16 * GIB,
    "total_bytes": 16 * GIB,
}
CARD: dict[str, Any] = {
    "name": "Vulkan0",
    "description": "a card",
    "kind": "gpu",
    "free_bytes": 7 * GIB,
    "total_bytes": 8 * GIB,
}
SEEN = GpuFacts("a card", "other", 8 * GIB, 7 * GIB, unified=False)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the lab's process runs; nothing is there until a test writes it."""
    path = tmp_path / "child.py"
    monkeypatch.setattr(lab_module, "_COMMAND", (sys.executable, "-I", str(path)))
    return path


def tells(child: Path, *devices: dict[str, Any]) -> None:
    answer = {"devices": devices}
    say = f'print(json.dumps({{"id": json.loads(line)["id"], "ok": {answer!r}}}), flush=True)'
    does(child, say)


def does(child: Path, answer: str) -> None:
    """What it does with each order."""
    child.write_text(CHILD.format(answer=answer), encoding="utf-8")


def on_windows(*gpus: GpuFacts) -> HardwareFacts:
    return dataclasses.replace(machine(gpus=gpus), system="windows")


async def look(child: Path, hardware: HardwareFacts, runtime: str = "x-vulkan") -> HardwareFacts:
    library = Library(runtime, child.parent / "lib", None)
    return await graphics.with_gpus(hardware, library, cwd=child.parent)


async def test_what_the_library_sees_is_placed_by(child: Path) -> None:
    tells(child, CPU, CARD)

    found = await look(child, on_windows())

    assert found == on_windows(SEEN)
    assert placement.room(found, "x-vulkan").free_bytes == 6 * GIB


async def test_a_card_without_known_memory_is_replaced_by_what_is_known(child: Path) -> None:
    tells(child, CPU, CARD)

    found = await look(child, machine(gpus=(GpuFacts("i915", "intel"),)))

    assert found.gpus == (SEEN,)


@pytest.mark.parametrize(
    ("gpus", "runtime"),
    [
        ((), "x"),
        ((GpuFacts("GPU", "nvidia", 8 * GIB, GIB),), "x-cuda"),
        ((GpuFacts("GPU", "intel", unified=True),), "x-vulkan"),
        ((), "x-metal"),
    ],
)
async def test_nothing_is_asked_where_enough_is_known(
    child: Path, gpus: tuple[GpuFacts, ...], runtime: str
) -> None:
    hardware = machine(gpus=gpus)

    assert await look(child, hardware, runtime) is hardware  # there is no program to ask


@pytest.mark.parametrize("answer", ["sys.exit(1)", "os.abort()", 'print("[]", flush=True)'])
async def test_a_driver_that_ends_the_process_tells_nothing(child: Path, answer: str) -> None:
    does(child, answer)

    assert await look(child, on_windows()) == on_windows()


async def test_a_driver_that_hangs_is_not_waited_for(
    child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphics, "_DEADLINE_S", 0.5)
    does(child, "pass")

    assert await look(child, on_windows()) == on_windows()


async def test_a_library_without_gpus_changes_nothing(child: Path) -> None:
    tells(child, CPU)

    assert await look(child, on_windows()) == on_windows()


@pytest.mark.parametrize(
    ("changes", "free", "unified"),
    [
        ({"free_bytes": 9 * GIB}, 8 * GIB, False),
        ({"free_bytes": 0, "total_bytes": 0}, None, False),
        ({"kind": "igpu"}, 7 * GIB, True),
    ],
)
def test_what_a_driver_says_is_bounded(
    changes: dict[str, Any],
    free: int | None,
    unified: bool,  # noqa: FBT001
) -> None:
    (found,) = graphics.gpus_of([Device(**{**CARD, **changes})])

    assert (found.vram_free_bytes, found.unified) == (free, unified)


def test_processors_and_accelerators_are_no_gpus() -> None:
    devices = [Device(**CPU), Device(**CARD), Device(**{**CARD, "kind": "accel"})]

    assert graphics.gpus_of(devices) == (SEEN,)


def test_a_card_without_a_description_has_its_name() -> None:
    (found,) = graphics.gpus_of([Device(**{**CARD, "description": ""})])

    assert found.name == "Vulkan0"
