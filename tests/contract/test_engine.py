"""One suite for every engine: the fake one, and the built-in one with a real model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest

from stoker.engine.base import Engine, Worker
from stoker.engine.llama_server import LlamaServerEngine
from stoker.engine.probe import client
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.errors import WorkerFailed, WorkerTimeout
from stoker.hardware.probe import probe
from stoker.paths import Paths, from_environment
from stoker.store.facts import ModelFacts, model_facts
from stoker.store.gguf import read_header
from stoker.tuning.launch import LaunchPlan
from stoker.tuning.plan import Wishes, make_plan
from stoker.types import FailureKind
from tests.fakes.engine import Behaviour, FakeEngine, write_model
from tests.fakes.models import STARTER
from tests.fakes.native import native_folder, program_in

pytestmark = pytest.mark.anyio

READY_S = 60  # a busy machine; the real one takes under a second
GONE_S = 10
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Rig:
    """An engine with a model it can load."""

    engine: Engine
    plan: LaunchPlan
    paths: Paths

    async def launch(self) -> Worker:
        return await self.engine.launch(self.plan, timeout_s=READY_S)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)

    def sockets(self) -> list[Path]:
        return list(self.paths.run.glob("*.sock"))


@pytest.fixture
def paths(stoker_home: Path) -> Paths:
    made = from_environment()
    made.create()
    return made


def plan_for(model: Path, wishes: Wishes) -> LaunchPlan:
    return make_plan("public/name:Q4", model, STARTER, probe(), wishes)


def native_engine(paths: Paths, *, in_place: bool = sys.platform == "linux") -> LlamaServerEngine:
    return LlamaServerEngine(
        paths,
        probe(),
        runtime="llama-cpp-python-test",
        program=program_in(native_folder()),
        in_place=in_place,
    )


@pytest.fixture(
    params=[
        "fake",
        *(
            pytest.param(name, marks=pytest.mark.e2e)
            for name in (
                "xllamacpp",
                "native",
                "native-watched",
                "native-tcp",
                "native-watched-tcp",
            )
        ),
    ]
)
def rig(request: pytest.FixtureRequest, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """`watched`: with a process of ours beside the program; the default where there is no exec."""
    if request.param == "fake":
        model = write_model(paths.data / "m.gguf")
        return Rig(FakeEngine(paths.run, Behaviour()), plan_for(model, Wishes(context=512)), paths)
    if request.param.endswith("-tcp"):
        monkeypatch.setenv("STOKER_TEST_CONTROL", "tcp")
    engine: Engine = (
        XllamacppEngine(paths, probe())
        if request.param == "xllamacpp"
        else native_engine(paths, in_place="watched" not in request.param)
    )
    model = request.getfixturevalue("starter_gguf")
    return Rig(engine, plan_for(model, Wishes(context=512)), paths)


@pytest.fixture
def fake(paths: Paths) -> Callable[..., Rig]:
    """The fake engine with switches."""

    def make(**switches: object) -> Rig:
        model = write_model(paths.data / "m.gguf")
        engine = FakeEngine(paths.run, Behaviour(**switches))  # type: ignore[arg-type]
        return Rig(engine, plan_for(model, Wishes(context=512)), paths)

    return make


def wait_gone(pids: list[int]) -> list[int]:
    """The processes that still run at the deadline; they need not be our children."""
    deadline = time.monotonic() + GONE_S
    for pid in pids:
        try:
            psutil.Process(pid).wait(timeout=max(0.01, deadline - time.monotonic()))
        except psutil.NoSuchProcess:
            continue
        except psutil.TimeoutExpired:
            pass
    return [pid for pid in pids if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def grandchild_of(worker: Worker) -> int:
    return psutil.Process(worker.pid).children()[0].pid


# --- start, serve, stop ----------------------------------------------------------------------


async def test_a_ready_worker_decodes_and_stop_means_gone(rig: Rig) -> None:
    worker = await rig.launch()
    async with client(worker.address, worker.key) as http:
        body = {"prompt": "one two", "max_tokens": 3, "ignore_eos": True}
        answer = await http.post("/v1/completions", json=body)
    pid, resident = worker.pid, worker.resident_bytes()

    report = await worker.stop(5)

    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert answer.json()["model"] == "public/name:Q4"
    assert resident is not None
    assert resident > 1_000_000
    assert report.asked
    assert not psutil.pid_exists(pid)
    assert rig.sockets() == []
    assert worker.resident_bytes() is None


async def test_what_is_expected_is_begun_and_used_once(rig: Rig) -> None:
    """Asking twice begins nothing more; the launch takes it, and the next one its own."""
    rig.engine.expect()
    rig.engine.expect()
    (begun,) = rig.processes()
    first = await rig.launch()
    second = await rig.launch()
    async with client(first.address, first.key) as http:
        answer = await http.post("/v1/completions", json={"prompt": "one", "max_tokens": 1})

    assert first.pid == begun.pid
    assert second.pid != begun.pid
    assert answer.status_code == 200
    for worker in (first, second):
        assert (await worker.stop(5)).asked
    assert rig.processes() == []


async def test_nothing_is_left_of_what_was_expected(rig: Rig) -> None:
    rig.engine.expect()
    begun = [process.pid for process in rig.processes()]

    rig.engine.relax()

    assert begun
    assert wait_gone(begun) == []
    assert rig.processes() == []
    rig.engine.relax()


async def test_a_process_that_did_not_last_is_no_loss(rig: Rig) -> None:
    """The kernel may have taken it, or the user."""
    rig.engine.expect()
    (begun,) = rig.processes()
    begun.kill()
    assert wait_gone([begun.pid]) == []

    worker = await rig.launch()

    assert worker.pid != begun.pid
    await worker.stop(5)


async def test_stopping_again_gives_the_same_report(rig: Rig) -> None:
    worker = await rig.launch()

    reports = [await worker.stop(5), await worker.stop(5), await worker.wait()]

    assert reports[0] == reports[1] == reports[2]


async def test_a_request_without_the_key_is_refused(rig: Rig) -> None:
    worker = await rig.launch()

    async with client(worker.address, "wrong") as http:
        answer = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        health = await http.get("/health")

    assert answer.status_code == 401
    assert health.status_code == 200
    await worker.stop(5)


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(rig: Rig) -> None:
    """Never cut in silence."""
    worker = await rig.launch()

    async with client(worker.address, worker.key) as http:
        answer = await http.post(
            "/v1/completions", json={"prompt": "word " * 2000, "max_tokens": 1}
        )

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "exceed_context_size_error"
    assert answer.json()["error"]["n_ctx"] == 512
    await worker.stop(5)


async def test_several_requests_are_served_at_once(rig: Rig) -> None:
    """More than there are slots; each gets its own whole answer."""
    worker = await rig.launch()
    counts: list[int] = []

    async def ask(http: httpx2.AsyncClient, number: int) -> None:
        body = {"prompt": f"count {number} " * 20, "max_tokens": 5, "ignore_eos": True}
        answer = await http.post("/v1/completions", json=body)
        counts.append(answer.json()["usage"]["completion_tokens"])

    async with client(worker.address, worker.key) as http, anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(ask, http, number)

    assert counts == [5] * 8
    await worker.stop(5)


async def test_what_is_asked_is_not_logged(rig: Rig) -> None:
    worker = await rig.launch()
    async with client(worker.address, worker.key) as http:
        await http.post("/v1/completions", json={"prompt": "Xanadu secret", "max_tokens": 2})
        body = {"messages": [{"role": "user", "content": "Xanadu secret"}], "max_tokens": 2}
        await http.post("/v1/chat/completions", json=body)

    report = await worker.stop(5)

    assert report.tail
    assert "Xanadu" not in "\n".join(report.tail)
    assert worker.key not in "\n".join(report.tail)


# --- failures --------------------------------------------------------------------------------


async def test_a_killed_worker_is_reported_with_its_kind(rig: Rig) -> None:
    worker = await rig.launch()

    os.kill(worker.pid, signal.SIGKILL)
    with anyio.fail_after(GONE_S):
        report = await worker.wait()

    assert report.kind is FailureKind.KILLED
    assert report.returncode == -signal.SIGKILL
    assert rig.sockets() == []
    assert await worker.stop(1) == report


async def test_a_bad_file_fails_the_launch_with_its_kind(rig: Rig) -> None:
    bad = rig.paths.data / "bad.gguf"
    bad.write_bytes(b"this is not a model" * 100)

    with pytest.raises(WorkerFailed) as caught:
        await rig.engine.launch(replace(rig.plan, model_path=bad), timeout_s=READY_S)

    assert caught.value.facts["kind"] == "bad_file"
    assert caught.value.facts["tail"]
    assert rig.processes() == []
    assert rig.sockets() == []


async def test_a_launch_that_takes_too_long_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(WorkerTimeout):
        await rig.engine.launch(rig.plan, timeout_s=0.02)

    assert rig.processes() == []
    assert rig.sockets() == []


async def test_a_cancelled_launch_leaves_nothing(rig: Rig) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(rig.launch)
        with anyio.fail_after(READY_S):
            while not rig.processes():  # a process announces itself to nobody
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()

    assert rig.processes() == []
    assert rig.sockets() == []


PARENT = """
    import sys, anyio, structlog
    from pathlib import Path
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.path.insert(0, {root!r})
    from tests.contract import test_engine as suite

    async def main():
        rig = suite.rig_in_child(Path({model!r}), {fake!r})
        worker = await rig.launch()
        print(worker.pid, flush=True)
        await anyio.sleep(600)

    anyio.run(main)
"""


def rig_in_child(model: Path, switches: dict[str, object] | None) -> Rig:
    """For the process that is killed; `switches` of the fake engine, None for the built-in one.

    The switch `native` asks for the compiled one: True in place, False watched.
    """
    paths = from_environment()
    engine: Engine = XllamacppEngine(paths, probe())
    if switches is not None and "native" in switches:
        engine = native_engine(paths, in_place=bool(switches["native"]))
    elif switches is not None:
        engine = FakeEngine(paths.run, Behaviour(**switches))  # type: ignore[arg-type]
    return Rig(engine, plan_for(model, Wishes(context=512)), paths)


@pytest.fixture
def parent(paths: Paths) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a small daemon-like process of its own; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(model: Path, switches: dict[str, object] | None) -> subprocess.Popen[str]:
        code = PARENT.format(root=str(ROOT), model=str(model), fake=switches)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def kill_when_ready(process: subprocess.Popen[str]) -> list[int]:
    """Kill the parent once its worker is ready; the worker and what it started."""
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    family = [worker, *(child.pid for child in psutil.Process(worker).children())]
    process.kill()
    process.wait()
    return family


def kill_while_loading(process: subprocess.Popen[str]) -> list[int]:
    """Kill the parent as soon as its worker process exists."""
    deadline = time.monotonic() + READY_S
    family: list[int] = []
    while not family and time.monotonic() < deadline:
        family = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait()
    assert family
    return family


def test_a_worker_dies_with_its_parent_and_takes_its_helpers_along(
    parent: Callable[..., subprocess.Popen[str]], paths: Paths
) -> None:
    family = kill_when_ready(parent(write_model(paths.data / "m.gguf"), {"grandchild": True}))

    assert len(family) == 2
    assert wait_gone(family) == []


def test_a_loading_worker_dies_with_its_parent(
    parent: Callable[..., subprocess.Popen[str]], paths: Paths
) -> None:
    family = kill_while_loading(parent(write_model(paths.data / "m.gguf"), {"start_ms": 600_000}))

    assert wait_gone(family) == []


@pytest.mark.e2e
@pytest.mark.parametrize("when", [kill_when_ready, kill_while_loading])
@pytest.mark.parametrize("switches", [None, {"native": True}, {"native": False}])
def test_a_real_worker_dies_with_its_parent(
    parent: Callable[..., subprocess.Popen[str]],
    paths: Paths,
    starter_gguf: Path,
    when: Callable[[subprocess.Popen[str]], list[int]],
    switches: dict[str, object] | None,
) -> None:
    if switches is not None:
        native_folder()  # skips, in this process
    family = when(parent(starter_gguf, switches))

    assert wait_gone(family) == []


# --- misbehaviour that only the fake can be asked for ------------------------------------------


async def test_a_worker_that_heeds_nothing_is_killed_with_its_helpers(
    fake: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.engine.worker._TERM_WAIT_S", 0.05)
    worker = await fake(ignore_stop=True, grandchild=True).launch()
    family = [worker.pid, grandchild_of(worker)]

    report = await worker.stop(0.05)

    assert report.asked
    assert wait_gone(family) == []


async def test_helpers_of_a_crashed_worker_are_ended(fake: Callable[..., Rig]) -> None:
    worker = await fake(grandchild=True).launch()
    helper = grandchild_of(worker)

    os.kill(worker.pid, signal.SIGKILL)
    await worker.wait()

    assert wait_gone([helper]) == []


async def test_a_flood_of_log_does_not_stop_a_worker(fake: Callable[..., Rig]) -> None:
    worker = await fake(fill_stderr=True).launch()

    report = await worker.stop(5)

    assert 0 < len(report.tail) <= 60


async def test_never_ready_is_a_timeout_though_it_listens(fake: Callable[..., Rig]) -> None:
    rig = fake(never_ready=True)

    with pytest.raises(WorkerTimeout):
        await rig.engine.launch(rig.plan, timeout_s=0.5)

    assert rig.processes() == []


@pytest.mark.parametrize(
    ("last_words", "kind"),
    [
        ("oom", "out_of_memory"),
        ("architecture", "unsupported_architecture"),
        ("assert", "assert"),
        ("silent", "unknown"),
    ],
)
async def test_a_failed_start_is_classified(
    fake: Callable[..., Rig], last_words: str, kind: str
) -> None:
    rig = fake(crash_at_start=last_words)

    with pytest.raises(WorkerFailed) as caught:
        await rig.launch()

    assert caught.value.facts["kind"] == kind


async def test_a_crash_in_a_request_ends_the_worker_with_its_kind(fake: Callable[..., Rig]) -> None:
    worker = await fake(crash_after=2).launch()

    with pytest.raises(httpx2.TransportError):
        async with client(worker.address, worker.key) as http:
            await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 5})

    with anyio.fail_after(GONE_S):
        assert (await worker.wait()).kind is FailureKind.ASSERT


async def test_stop_cannot_be_cancelled_half_way(fake: Callable[..., Rig]) -> None:
    worker = await fake().launch()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await worker.stop(5)

    assert not psutil.pid_exists(worker.pid)


async def test_switches_stand_in_the_file_name() -> None:
    path = Path("m.start-ms-50.wedge.crash-at-start-oom.gguf")

    behaviour = Behaviour.from_name(path)

    assert behaviour == Behaviour(start_ms=50, wedge=True, crash_at_start="oom")


# --- memory: what was planned against what is used ---------------------------------------------


def facts_of(model: Path) -> ModelFacts:
    with model.open("rb") as stream:
        size = model.stat().st_size
        return model_facts(read_header(stream, size), size)


def peak_bytes(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("context", [1024, 8192])
async def test_predicted_memory_is_right_within_a_tenth(
    paths: Paths, starter_gguf: Path, context: int
) -> None:
    """At the peak, after all slots worked; never under by more than 2 %."""
    plan_facts = facts_of(starter_gguf)
    plan = make_plan("m", starter_gguf, plan_facts, probe(), Wishes(context=context))
    worker = await XllamacppEngine(paths, probe()).launch(plan, timeout_s=READY_S)

    async def ask(http: httpx2.AsyncClient, number: int) -> None:
        body = {"prompt": f"{number} word " * 150, "max_tokens": 4}
        await http.post("/v1/completions", json=body)

    async with client(worker.address, worker.key) as http, anyio.create_task_group() as group:
        for number in range(plan.parallel):
            group.start_soon(ask, http, number)
    ratio = plan.memory.total_bytes / peak_bytes(worker.pid)
    await worker.stop(5)

    assert dict(plan_facts.matrix_bytes)["Q4_1"] > 0.5 * plan_facts.file_bytes
    assert 0.98 <= ratio <= 1.10
