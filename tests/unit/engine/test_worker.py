"""What a worker is told about the user, and small decisions around its process."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from stoker.engine import worker
from stoker.engine.base import Address, ExitReport
from stoker.engine.xllamacpp import order
from stoker.types import FailureKind
from tests.fakes.hardware import machine
from tests.fakes.models import STARTER


def test_the_environment_holds_nothing_of_the_user() -> None:
    given = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/lib",
        "SystemRoot": "C:\\Windows",
        "HOME": "/home/u",
        "HF_TOKEN": "hf_x",
        "https_proxy": "http://p",
        "OPENAI_API_KEY": "k",
        "LD_PRELOAD": "x.so",
        "PYTHONPATH": "/evil",
    }

    kept = worker.environment(given)

    ours = {"LC_ALL", "GGML_NO_BACKTRACE", "GOMP_SPINCOUNT"}
    assert set(kept) == {"PATH", "LD_LIBRARY_PATH", "SystemRoot", *ours}


def test_a_failure_carries_kind_status_and_last_words() -> None:
    tail = tuple(f"line {n}" for n in range(9))

    error = worker.failure(ExitReport(FailureKind.OUT_OF_MEMORY, -9, tail))

    assert error.facts == {"kind": "out_of_memory", "returncode": -9, "tail": list(tail[-5:])}
    assert "memory" in error.message


def test_the_order_leaves_no_setting_to_the_engine() -> None:
    """Every value of the plan that the engine understands reaches it."""
    from stoker.tuning.plan import Wishes, make_plan

    plan = make_plan("owner/m:Q4", Path("/m.gguf"), STARTER, machine(), Wishes())

    told = order(plan, Path("/run/w.sock"), "key")

    for name in plan.__slots__:
        if name not in {"model_path", "mmproj_path", "memory", "reasons", "runtime", "profile"}:
            assert told[name] == getattr(plan, name)
    assert told["model"] == "/m.gguf"
    assert told["socket"] == "/run/w.sock"


def test_only_sockets_of_workers_are_swept(tmp_path: Path) -> None:
    for name in ("w-1.sock", "w-2.sock", "control.sock", "w-3.txt"):
        (tmp_path / name).touch()

    assert worker.remove_stale_sockets(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"control.sock", "w-3.txt"}


@pytest.mark.anyio
@pytest.mark.parametrize("read_order", [True, False])
async def test_a_child_that_ends_at_once_is_cleared_away(
    tmp_path: Path, *, read_order: bool
) -> None:
    """Also when it never read its order, and when its folder was swept out of /tmp meanwhile."""
    code = "input()" if read_order else ""
    spawn = worker.Spawn(
        (sys.executable, "-I", "-c", code), {"pad": "x" * 200_000}, Address(), "key", tmp_path / "e"
    )

    process = worker.WorkerProcess.start(spawn)
    with anyio.fail_after(30):
        greeting, report = await process.greeted(), await process.wait()

    assert greeting is None
    assert report.returncode == 0
    assert process._process.stdout is not None
    assert process._process.stdout.closed


def test_a_folder_for_conversations_reaches_the_child() -> None:
    from dataclasses import replace

    from stoker.tuning.plan import Wishes, make_plan

    plan = make_plan("owner/m:Q4", Path("/m.gguf"), STARTER, machine(), Wishes())

    told = order(replace(plan, conversations=Path("/state/c/k")), None, "key")

    assert told["conversations"] == "/state/c/k"
    assert order(plan, None, "key")["conversations"] is None


STATUS = (
    "Name:\tengine\nVmHWM:\t  900 kB\nRssAnon:\t 300 kB\nRssFile:\t 500 kB\nRssShmem:\t  8 kB\n"
)


def test_memory_of_its_own_is_what_is_not_mapped() -> None:
    assert worker.anonymous_in(STATUS) == 308 * 1024


@pytest.mark.parametrize(
    "status", ["", "RssAnon: 1 kB", STATUS.replace("300 kB", ""), STATUS.replace("300", "many")]
)
def test_a_status_without_the_figures_says_nothing(status: str) -> None:
    assert worker.anonymous_in(status) is None


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="told apart on Linux only")
async def test_the_most_memory_is_remembered_after_the_end(tmp_path: Path) -> None:
    code = "import sys; a = bytearray(b'x') * 50_000_000; print('{}', flush=True); input(); input()"
    spawn = worker.Spawn((sys.executable, "-I", "-c", code), {}, Address(), "key", tmp_path)
    process = worker.WorkerProcess.start(spawn)
    with anyio.fail_after(30):
        await process.greeted()

        seen = process.peak_bytes()
        await process.stop(5)

    assert seen is not None
    assert 50_000_000 < seen < 100_000_000
    assert process.peak_bytes() == seen


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
async def test_what_a_worker_writes_is_private(tmp_path: Path) -> None:
    """The engine itself knows nothing of modes, and conversations are saved by it."""
    code = "open('file', 'w').close()"
    spawn = worker.Spawn((sys.executable, "-I", "-c", code), {}, Address(), "key", tmp_path)

    process = worker.WorkerProcess.start(spawn)
    with anyio.fail_after(30):
        await process.wait()

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
