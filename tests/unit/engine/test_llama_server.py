"""What a server program is told: its arguments, its environment, and who may be believed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import anyio
import pytest

from stoker.engine import server_child
from stoker.engine.llama_server import (
    LlamaServerEngine,
    Program,
    arguments,
    child_environment,
    listens,
)
from stoker.errors import BadReference, InternalError, RuntimeUnsupported, WorkerFailed
from stoker.paths import Paths, from_environment
from stoker.tuning.launch import LaunchPlan, MemoryNeed
from tests.fakes.hardware import machine

PLAN = LaunchPlan(
    model_id="owner/name:Q4",
    model_path=Path("/store/m.gguf"),
    mmproj_path=None,
    context=4096,
    parallel=3,
    threads=5,
    threads_batch=6,
    batch=1024,
    ubatch=256,
    n_outputs_max=7,
    cache_ram_mib=99,
    checkpoints=8,
    kv_unified=True,
    embedding=False,
    pooling=None,
    extra_buffers=True,
    gpu_layers=0,
    memory=MemoryNeed(0, 0, 0, 0, 0, 0),
    cells=12288,
    cpu_experts=11,
    kv_type="q8_0",
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="paths of another kind")


@pytest.fixture
def paths(stoker_home: Path) -> Paths:
    made = from_environment()
    made.create()
    return made


def value_of(words: tuple[str, ...], option: str) -> str:
    return words[words.index(option) + 1]


def test_every_number_of_the_plan_reaches_the_program() -> None:
    words = arguments(PLAN, "../w-1.sock")

    told = {
        "--host": "../w-1.sock",
        "--model": "/store/m.gguf",
        "--alias": "owner/name:Q4",
        "--ctx-size": "12288",
        "--kv-unified-per-slot": "4096",
        "--parallel": "3",
        "--threads": "5",
        "--threads-batch": "6",
        "--batch-size": "1024",
        "--ubatch-size": "256",
        "--cache-ram": "99",
        "--ctx-checkpoints": "8",
        "--n-gpu-layers": "0",
        "--n-cpu-moe": "11",
        "--cache-type-k": "q8_0",
        "--cache-type-v": "q8_0",
        "--flash-attn": "on",
        "--fit": "off",
        "--cors-origins": "",
    }
    assert {option: value_of(words, option) for option in told} == told
    assert {"--kv-unified", "--cache-idle-slots", "--repack", "--no-ui"} <= set(words)
    assert {"--no-context-shift", "--offline", "--slots", "--no-warmup"} <= set(words)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"extra_buffers": False}, "--no-repack"),
        ({"kv_unified": False}, "--no-kv-unified"),
        ({"kv_unified": False}, "--no-cache-idle-slots"),
        ({"cache_ram_mib": 0}, "--no-cache-idle-slots"),
        ({"flash_attention": False}, "off"),
        ({"embedding": True}, "--embedding"),
        ({"pooling": 4}, "rank"),
        ({"mmproj_path": Path("/store/p.gguf")}, "/store/p.gguf"),
        ({"mmproj_path": Path("/store/p.gguf"), "gpu_layers": 9}, "--mmproj-offload"),
        ({"conversations": Path("/state/c/k")}, "--slot-save-path"),
    ],
)
def test_every_choice_changes_a_word(change: dict[str, object], word: str) -> None:
    changed = arguments(replace(PLAN, **change), "h")  # type: ignore[arg-type]

    assert word in changed
    assert changed != arguments(PLAN, "h")


def test_no_setting_is_left_to_the_program() -> None:
    """A field that is added to plans must be thought of here."""
    derived = {"n_outputs_max"}  # from the slots, by the program itself
    not_for_it = {"memory", "reasons", "runtime", "profile"}
    other = {
        "model_id": "other",
        "model_path": Path("/other"),
        "mmproj_path": Path("/p"),
        "conversations": Path("/c"),
        "pooling": 1,
        "kv_type": "q4_0",
        "cells": 99999,
        "context": 99999,
    }
    for field in fields(LaunchPlan):
        if field.name in derived | not_for_it:
            continue
        now = getattr(PLAN, field.name)
        value = other.get(field.name, (not now) if isinstance(now, bool) else None)
        value = value if value is not None else now + 1
        changed = replace(PLAN, **{field.name: value})  # type: ignore[arg-type]  # of any field
        assert arguments(changed, "h") != arguments(PLAN, "h"), field.name


@pytest.mark.parametrize("name", ["--model", "a,b", "a\nb", "", "-x", "a b"])
def test_a_model_name_is_never_an_option_or_a_list(name: str) -> None:
    with pytest.raises(BadReference):
        arguments(replace(PLAN, model_id=name), "h")


@pytest.mark.parametrize("path", ["--offline", "relative.gguf", "/a\nb.gguf", "/a\0b"])
def test_a_file_is_an_absolute_printable_path(path: str) -> None:
    with pytest.raises(InternalError):
        arguments(replace(PLAN, model_path=Path(path)), "h")


def test_the_socket_is_named_from_its_own_folder(tmp_path: Path) -> None:
    """A comma in the user's path would make two addresses of it."""
    home = tmp_path / "a,b"
    places = Paths(home, home, home, home / "run")
    engine = LlamaServerEngine(places, machine(), runtime="r", program=Program(Path("/p")))

    spawn = engine.spawn(PLAN, places.run / "w-1.sock", "k")

    words = spawn.order["arguments"]
    assert isinstance(words, list)
    assert value_of(tuple(words), "--host") == "../w-1.sock"
    assert spawn.cwd.parent == places.run
    assert "k" not in words


def test_only_the_program_gets_the_key_and_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    monkeypatch.setenv("LLAMA_ARG_MODEL", "/evil.gguf")
    monkeypatch.setenv("HF_TOKEN", "t")

    given = child_environment(Path("/ours"), "the key")

    name = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    assert given["LLAMA_API_KEY"] == "the key"
    assert given[name].split(":")[0] == "/ours"
    assert not {"LLAMA_ARG_MODEL", "HF_TOKEN", "HOME"} & set(given)


def test_a_program_that_is_gone_is_said_before_anything_starts(paths: Paths) -> None:
    engine = LlamaServerEngine(paths, machine(), runtime="gone-1", program=Program(Path("/no/x")))

    with pytest.raises(RuntimeUnsupported, match="gone-1"):
        engine.check_supported()


@pytest.mark.anyio
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("echo 'ggml.c:1: GGML_ASSERT(x) failed' >&2; exit 1", "assert"),
        ("kill -SEGV $$", "crash"),
        ("kill -ILL $$", "backend"),
        ("exit 3", "unknown"),
    ],
)
async def test_how_the_program_ended_is_known(
    paths: Paths, body: str, kind: str, *, in_place: bool
) -> None:
    """The same whether our process became the program or stands beside it."""
    program = paths.data / "server"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o700)
    engine = LlamaServerEngine(
        paths, machine(), runtime="r-1", program=Program(program), in_place=in_place
    )

    with pytest.raises(WorkerFailed) as caught:
        await engine.launch(PLAN, timeout_s=30)

    assert caught.value.facts["kind"] == kind


@pytest.mark.anyio
async def test_a_file_that_is_no_program_fails_with_words(paths: Paths) -> None:
    program = paths.data / "server"
    program.write_bytes(b"\0\0not a program")
    program.chmod(0o700)
    engine = LlamaServerEngine(paths, machine(), runtime="r-1", program=Program(program))

    with pytest.raises(WorkerFailed) as caught:
        await engine.launch(PLAN, timeout_s=30)

    assert "cannot start the server program" in str(caught.value.facts["tail"])


@pytest.mark.anyio
async def test_a_worker_that_reads_no_stdin_is_told_to_stop_at_once(paths: Paths) -> None:
    """By TERM, not after the whole grace."""
    program = paths.data / "server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    engine = LlamaServerEngine(
        paths, machine(), runtime="r-1", program=Program(program), in_place=True
    )
    from stoker.engine.worker import WorkerProcess

    worker = WorkerProcess.start(engine.spawn(PLAN, paths.run / "w-1.sock", "k"))
    try:
        with anyio.fail_after(20):
            await worker.greeted()
            report = await worker.stop(15)
    finally:
        await worker.stop(0)

    assert report.asked
    assert report.returncode == -15


def test_only_the_worker_itself_counts_as_listening_on_its_port() -> None:
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        port = ours.getsockname()[1]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            assert listens(os.getpid(), port)
            assert not listens(child.pid, port)
        finally:
            child.kill()
            child.communicate()
    assert not listens(os.getpid(), port)


def test_a_free_port_can_be_bound() -> None:
    port = server_child.free_port()

    with socket.socket() as ours:
        ours.bind(("127.0.0.1", port))
