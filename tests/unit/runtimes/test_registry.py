"""What is found on this machine, and what is remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stoker.engine.llama_server import NEEDED_OPTIONS, LlamaServerEngine
from stoker.engine.xllamacpp import XllamacppEngine, built_in_name
from stoker.paths import Paths, from_environment
from stoker.runtimes import registry
from stoker.runtimes.registry import Record, State
from stoker.tuning.placement import gpu_runtime
from tests.fakes.hardware import machine
from tests.unit.runtimes.test_manifest import RUNTIME, place


@pytest.fixture
def places(stoker_home: Path) -> Paths:
    made = from_environment()
    made.create()
    return made


def test_damaged_and_strange_folders_are_told_and_not_used(places: Paths) -> None:
    good = place(places.runtimes)
    (places.runtimes / ".partial-1").mkdir()
    (places.runtimes / "strange").mkdir()
    (places.runtimes / "file").write_text("x")

    found = registry.installed(places.runtimes)

    assert [one.folder for one in found.runtimes] == [good]
    assert [one.name for one in found.damaged] == ["file", "strange"]
    assert all(one.reason for one in found.damaged)


@pytest.mark.skipif(os.name == "nt", reason="its file system has no such names")
def test_a_name_that_no_json_can_carry_does_not_break_the_list(places: Paths) -> None:
    places.runtimes.mkdir(parents=True, exist_ok=True)
    for name in (b"bad\xff", b"red\x1b[31m", b"two\nlines"):
        os.mkdir(os.path.join(os.fsencode(places.runtimes), name))  # noqa: PTH102, PTH118  # bytes

    assert registry.installed(places.runtimes) == registry.Found()


def test_nothing_installed_is_nothing_found(places: Paths) -> None:
    assert registry.installed(places.runtimes) == registry.Found()


def test_the_built_in_one_is_always_there() -> None:
    own = registry.built_in()

    assert own.name == built_in_name()
    assert (own.kind, own.folder) == ("builtin", None)


@pytest.mark.parametrize(
    ("system", "machine", "metal"),
    [("darwin", "arm64", True), ("darwin", "x86_64", False), ("linux", "aarch64", False)],
)
def test_on_apples_processors_the_built_in_one_computes_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    metal: bool,  # noqa: FBT001
) -> None:
    """Its wheel for them is built with Metal; a plan knows by the name."""
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)

    name = built_in_name()

    assert gpu_runtime(name) == metal
    assert name.startswith("xllamacpp-")


def test_its_library_is_found_without_importing_it() -> None:
    library = registry.library(registry.built_in())

    assert library is not None
    assert library.path.is_file()
    assert library.bindings is None
    assert library.runtime == built_in_name()


def test_a_compiled_one_brings_its_bindings(places: Paths) -> None:
    folder = place(places.runtimes)
    runtime = registry.installed(places.runtimes).runtimes[0]
    assert registry.library(runtime) is None, "its library is not there"
    (folder / "lib").mkdir()
    (folder / "lib" / "libllama.so").touch()
    (folder / "lib" / "libllama.dylib").touch()

    library = registry.library(runtime)

    assert library is not None
    assert library.bindings == folder
    assert library.search == (folder / "lib",)


def test_each_is_run_by_its_own_adapter(places: Paths) -> None:
    place(places.runtimes)
    compiled = registry.installed(places.runtimes).runtimes[0]

    own = registry.adapter(registry.built_in(), places, machine())
    native = registry.adapter(compiled, places, machine())

    assert isinstance(own, XllamacppEngine)
    assert isinstance(native, LlamaServerEngine)
    assert native.runtime == RUNTIME.name


# --- the user's own program ------------------------------------------------------------------


def program(folder: Path, body: str) -> Path:
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


ALL = " ".join(NEEDED_OPTIONS)


@pytest.mark.skipif(os.name != "posix", reason="a shell script as a program")
@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("version: 8123 (abcdef0)", "llama-server-8123"),
        ("version: 0.5.0-dev (build 1, commit 0c1e570)", "llama-server-0.5.0-dev-1"),
    ],
)
def test_a_program_on_the_path_is_known_by_its_version(
    tmp_path: Path, version: str, name: str
) -> None:
    found = registry.on_path(program(tmp_path, f"echo '{version}'; echo ' {ALL} '"))

    assert found is not None
    assert found.name == name
    assert found.kind == "path"
    assert found.server == tmp_path / "llama-server"


@pytest.mark.skipif(os.name != "posix", reason="a shell script as a program")
@pytest.mark.parametrize(
    "body",
    [
        "echo 'version: 1 (a)'",
        "exit 1",
        "echo nonsense",
        "kill -9 $$",
        "head -c 9 /dev/zero",
    ],
)
def test_a_program_that_we_cannot_run_is_not_listed(tmp_path: Path, body: str) -> None:
    assert registry.on_path(program(tmp_path, body)) is None


@pytest.mark.skipif(os.name != "posix", reason="a shell script as a program")
def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_PROGRAM_TIMEOUT_S", 0.2)

    assert registry.on_path(program(tmp_path, "exec sleep 60")) is None


def test_the_program_of_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert registry.on_path() is None
    if os.name == "posix":
        program(tmp_path, f"echo 'version: 9 (a)'; echo ' {ALL} '")
        found = registry.on_path()
        assert found is not None
        assert found.version == "9"


# --- the state -------------------------------------------------------------------------------


def test_the_choice_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "state" / "runtimes.json"
    state = State(
        current="a",
        previous="b",
        held=True,
        chosen=True,
        records={"a": Record(outcome="slower", message="m", speedup=0.5, build="x")},
    )

    registry.write_state(file, state)

    assert registry.read_state(file) == state


@pytest.mark.parametrize("raw", ["", "{", "[]", '{"held": 3}', '{"records": {"a": 1}}'])
def test_a_damaged_state_chooses_nothing(tmp_path: Path, raw: str) -> None:
    file = tmp_path / "runtimes.json"
    file.write_text(raw)

    assert registry.read_state(file) == State()


def test_what_a_newer_version_adds_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "runtimes.json"
    file.write_text(json.dumps({"current": "a", "new": {"deep": 1}}))

    assert registry.read_state(file).current == "a"
