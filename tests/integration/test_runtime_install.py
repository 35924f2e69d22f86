"""Runtimes installed by the real pip from an index on loopback; nothing real is compiled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import psutil
import pytest

from stoker import paths
from stoker.errors import BuildFailed, CompilerMissing, DiskFull, SourceOffline, StokerError
from stoker.hardware.facts import CompilerFacts, GpuFacts, HardwareFacts
from stoker.paths import Paths
from stoker.runtimes import build, install, manifest, pip, running, tidy
from stoker.runtimes.pins import Native, Pins, Tool, Wheels
from stoker.settings import Settings
from tests.fakes.hardware import BASELINE, machine
from tests.fakes.package_index import Behaviour, PackageIndex, Served, engine_source, wheel
from tests.fakes.pulling import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="the fake server is a shell script"),
]

ENGINE, VERSION = "fake-engine", "0.3.36"
TOOL = "fake-build-tool"
GPU, GPU_VERSION = "fake-gpu-engine", "2026.1"
COMPILER = CompilerFacts("/usr/bin/c++", "gcc", "12.2.0")
NVIDIA = GpuFacts("Test RTX", "nvidia", driver="580.65.06")


_IMPATIENT = (
    "from stoker.runtimes import guarded; guarded._STEP_BACK = "
    "'import os, sys; os.execvp(sys.argv[1], sys.argv[1:])'; guarded.main()"
)


@dataclass
class World:
    """An index, a home, and what an install told."""

    index: PackageIndex
    places: Paths
    source: Served
    tool: Served
    hardware: HardwareFacts
    told: list[tuple[float, str]] = field(default_factory=list)

    @property
    def pins(self) -> Pins:
        native = Native(
            package=ENGINE,
            version=VERSION,
            sdist_sha256=self.source.sha256,
            sdist_bytes=len(self.source.content),
            tools=(Tool(package=TOOL, version="1.0", sha256=(self.tool.sha256,)),),
        )
        wheels = Wheels(
            package=GPU,
            version=GPU_VERSION,
            index=self.index.url,
            most_bytes=1000,
            variants={"cuda": ("cu132", "cu128"), "rocm": ("rocm-7.2.4",), "vulkan": ("vulkan",)},
        )
        return Pins(format=1, native=native, wheels=wheels)

    def rebuild(self, behaviour: Behaviour) -> None:
        """Serve another source."""
        name, content = engine_source(ENGINE, VERSION, behaviour)
        self.source.name, self.source.content = name, content

    async def install(self, kind: str = "native", *, offline: bool = False) -> manifest.Runtime:
        return await install.install(
            kind,
            places=self.places,
            hardware=self.hardware,
            settings=Settings(package_index=self.index.url, offline=offline),
            progress=lambda share, words: self.told.append((share, words)),
        )

    def left(self) -> list[str]:
        """What lies among the runtimes."""
        folder = self.places.runtimes
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def processes(self) -> list[str]:
        """Those that work for this home."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or ())
            if str(self.places.runtimes) in words and process.pid != os.getpid():
                found.append(words)
        return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(install, "NEEDED_BYTES", 1)
    # At idle priority a busy machine might not let them run at all before the test's deadline.
    monkeypatch.setattr(running, "_GUARD", (sys.executable, "-c", _IMPATIENT))
    with PackageIndex() as index:
        built = World(
            index=index,
            places=paths.from_environment({"STOKER_HOME": str(tmp_path / "home")}),
            source=index.publish(ENGINE, *engine_source(ENGINE, VERSION, Behaviour())),
            tool=index.publish(TOOL, *wheel(TOOL, "1.0", {"fake_build_tool.py": b""})),
            hardware=replace(
                machine(cores=2, flags=BASELINE | {"avx", "sse4_2", "avx_vnni"}, gpus=(NVIDIA,)),
                compiler=COMPILER,
            ),
        )
        monkeypatch.setattr(install, "pins", lambda: built.pins)
        yield built
    assert built.processes() == []


# --- compiled --------------------------------------------------------------------------------


async def test_what_is_built_is_described_stripped_and_in_its_place(world: World) -> None:
    runtime = await world.install()

    assert world.left() == ["fake-engine-0.3.36-avx2-avxvnni"]
    assert runtime == manifest.read(world.places.runtimes / runtime.name)
    assert runtime.engine == "llama-server"
    assert runtime.digest == world.source.sha256
    assert "GGML_AVX_VNNI=ON" in runtime.cmake
    folder = runtime.folder
    assert folder is not None
    assert sorted(path.name for path in (folder / "bin").iterdir()) == [
        "llama-bench",
        "llama-server",
    ]
    assert sorted(path.name for path in (folder / "lib").iterdir()) == [
        "libllama.so",
        "libllama.so.0",
        "libllama.so.0.5",
        "libother.so",
    ]
    assert not (folder / "include").exists()
    assert (folder / "llama_cpp/lib/libllama.so").samefile(folder / "lib/libllama.so.0.5")
    assert len(list(folder.glob("*.dist-info/licenses/LICENSE.md"))) == 1
    assert runtime.bytes == sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != manifest.FILE
    )


async def test_progress_only_grows_and_counts_the_steps(world: World) -> None:
    await world.install()

    shares = [share for share, _ in world.told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
    words = [text for _, text in world.told]
    assert "compiling, 3 of 6 steps" in words
    assert "compiling, 1 of 1 steps" not in words  # CMake's own, before the build
    assert words.index("downloading the source") < words.index("compiling, 1 of 6 steps")


async def test_the_build_sees_the_recipe_and_none_of_the_user_s_flags(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-march=native")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PIP_TARGET", "/nowhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    runtime = await world.install()

    assert runtime.folder is not None
    seen = json.loads((runtime.folder / "llama_cpp/seen.json").read_text())
    environ = seen["environ"]
    assert environ["CMAKE_ARGS"].split() == [f"-D{item}" for item in runtime.cmake]
    assert environ["CMAKE_BUILD_PARALLEL_LEVEL"] == "2"
    assert environ["HTTPS_PROXY"] == "http://127.0.0.1:9"
    assert "CFLAGS" not in environ
    assert "/nowhere" not in environ.values()
    assert Path(environ["TMPDIR"]).is_relative_to(world.places.runtimes)


async def test_a_second_one_stands_beside_the_first(world: World) -> None:
    """The first may serve meanwhile, and another processor's build must not come out of a cache."""
    await world.install()
    world.hardware = replace(
        world.hardware, cpu=replace(world.hardware.cpu, flags=BASELINE | {"avx", "sse4_2"})
    )
    other = await world.install()
    again = await world.install()

    assert world.left() == [
        "fake-engine-0.3.36-avx2",
        "fake-engine-0.3.36-avx2-2",
        "fake-engine-0.3.36-avx2-avxvnni",
    ]
    assert again.name == "fake-engine-0.3.36-avx2-2"
    assert other.folder is not None
    seen = json.loads((other.folder / "llama_cpp/seen.json").read_text())
    assert "-DGGML_AVX_VNNI=OFF" in seen["environ"]["CMAKE_ARGS"]


@pytest.mark.parametrize("when", ["downloading", "compiling"])
async def test_a_cancelled_install_leaves_nothing(world: World, when: str) -> None:
    world.rebuild(Behaviour(hang_at=3))
    if when == "downloading":
        world.index.held.add(world.source.name)

    def reached() -> bool:
        if when == "downloading":
            return f"/files/{world.source.name}" in world.index.asked
        return "compiling, 2 of 6 steps" in [words for _, words in world.told]

    async with anyio.create_task_group() as group:
        group.start_soon(world.install)
        await until(reached)
        assert world.processes() != []
        group.cancel_scope.cancel()

    assert world.left() == []
    assert world.processes() == []


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        (
            "c++: fatal error: Killed signal terminated program cc1plus",
            BuildFailed,
            "out_of_memory",
        ),
        (
            "c++: error: unrecognized command-line option '-mavxvnni'",
            BuildFailed,
            "compiler_too_old",
        ),
        ("a.cpp:1:2: error: expected ';' before '}'", BuildFailed, "unknown"),
        ("CMake Error: No CMAKE_CXX_COMPILER could be found.", CompilerMissing, None),
        ("a.s: fatal error: No space left on device", DiskFull, None),
    ],
)
async def test_a_failed_build_says_why_and_leaves_nothing(
    world: World, said: str, kind: type[StokerError], reason: str | None
) -> None:
    world.rebuild(Behaviour(say=("warning: harmless", said, "ninja: build stopped")))

    with pytest.raises(kind) as caught:
        await world.install()

    assert world.left() == []
    if reason is not None:
        assert caught.value.facts["reason"] == reason
        assert said in str(caught.value.facts["tail"])
        assert said[:40] in caught.value.message


@pytest.mark.parametrize("server", [None, "#!/bin/sh\necho broken library; exit 127\n"])
async def test_a_build_without_a_server_that_starts_is_none(
    world: World, server: str | None
) -> None:
    world.rebuild(Behaviour(server=server))

    with pytest.raises(BuildFailed) as caught:
        await world.install()

    assert caught.value.facts["reason"] == "incomplete"
    assert world.left() == []


async def test_a_source_that_is_not_the_pinned_one_is_never_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = world.pins
    monkeypatch.setattr(install, "pins", lambda: pinned)
    world.rebuild(Behaviour(extra={"llama_cpp/evil.py": ""}))

    with pytest.raises(BuildFailed) as caught:
        await world.install()

    assert caught.value.facts["reason"] == "hash"
    assert not any("compiling" in words for _, words in world.told)
    assert world.left() == []


async def test_a_tool_that_comes_only_as_source_is_not_built(world: World) -> None:
    name, content = engine_source(TOOL, "1.0", Behaviour())
    world.tool.name, world.tool.content = name, content

    with pytest.raises(BuildFailed) as caught:
        await world.install()

    assert caught.value.facts["reason"] == "not_found"
    assert world.left() == []


async def test_offline_asks_nobody(world: World) -> None:
    with pytest.raises(SourceOffline):
        await world.install(offline=True)

    assert world.index.asked == []
    assert not world.places.runtimes.exists()


async def test_too_little_room_is_told_with_numbers_before_anything_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "NEEDED_BYTES", 1 << 60)

    with pytest.raises(DiskFull) as caught:
        await world.install()

    assert caught.value.facts["needed_bytes"] == 1 << 60
    assert world.index.asked == []


async def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    world: World, small_disk: Path
) -> None:
    world.places = replace(world.places, data=small_disk)
    world.rebuild(Behaviour(fill_bytes=40_000_000))

    with pytest.raises(DiskFull):
        await world.install()

    assert world.left() == []


async def test_silence_ends_the_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BUILD", running.Limits(total_s=60, silence_s=2))
    world.rebuild(Behaviour(hang_at=3))

    with pytest.raises(BuildFailed) as caught:
        await world.install()

    assert caught.value.facts["reason"] == "too_slow"
    assert "said nothing for 2 s" in caught.value.message
    assert world.left() == []


async def test_without_any_pip_the_environment_s_own_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "finder", lambda: None)
    if importlib.util.find_spec("ensurepip") is None:
        with pytest.raises(BuildFailed) as caught:
            await world.install()
        assert caught.value.facts["reason"] == "no_pip"
    else:
        runtime = await world.install()
        assert world.left() == [runtime.name]


_DAEMON = """
import anyio, json, sys
from pathlib import Path
from stoker import paths
from stoker.runtimes import install, running
from stoker.runtimes.pins import Pins
from stoker.settings import Settings
from stoker.hardware.facts import CompilerFacts
from dataclasses import replace
from tests.fakes.hardware import machine

home, index, pinned, guard = sys.argv[1:]
running._GUARD = (sys.executable, "-c", guard)
install.pins = lambda: Pins.model_validate_json(pinned)
install.NEEDED_BYTES = 1
hardware = replace(machine(), compiler=CompilerFacts("/usr/bin/c++", "gcc", "12.2.0"))

async def main():
    await install.install(
        "native", places=paths.from_environment({"STOKER_HOME": home}), hardware=hardware,
        settings=Settings(package_index=index), progress=lambda s, w: print(w, flush=True))

anyio.run(main)
"""


async def test_a_killed_daemon_takes_its_compilers_along(world: World) -> None:
    world.rebuild(Behaviour(hang_at=3))
    home = str(world.places.data)
    arguments = [home, world.index.url, world.pins.model_dump_json(), _IMPATIENT]

    def watch() -> None:
        command = [sys.executable, "-c", _DAEMON, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
            late = threading.Timer(60, daemon.kill)
            late.start()
            try:
                assert daemon.stdout is not None
                assert any("2 of 6" in line for line in daemon.stdout)
            finally:
                late.cancel()
                daemon.kill()

    await anyio.to_thread.run_sync(watch)

    await until(lambda: not world.processes())
    assert [name.startswith(".partial-") for name in world.left()] == [True]
    assert tidy.sweep(world.places) == 1
    assert world.left() == []


# --- wheels ----------------------------------------------------------------------------------


def _publish(index: PackageIndex, version: str = GPU_VERSION, content: bytes = b"gpu") -> Served:
    files = {"fake_gpu_engine/__init__.py": b"", "fake_gpu_engine/engine.so": content}
    return index.publish(GPU, *wheel(GPU, version, files))


async def test_a_wheel_for_the_graphics_processor_lands_with_its_digest(world: World) -> None:
    served = _publish(world.index)

    runtime = await world.install("cuda")

    assert runtime.name == "fake-gpu-engine-2026.1-cu128"
    assert world.left() == [runtime.name]
    assert runtime.engine == "xllamacpp"
    assert runtime.kind == "cuda"
    assert runtime.digest == served.sha256
    assert runtime.folder is not None
    assert (runtime.folder / "fake_gpu_engine/engine.so").read_bytes() == b"gpu"
    assert f"/simple/cu128/{GPU}/" in world.index.asked


async def test_no_other_index_is_asked_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public index has a wheel of the same name and version that uses no GPU."""
    _publish(world.index)
    with PackageIndex() as public:
        _publish(public, content=b"cpu")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", public.url)
        monkeypatch.setenv("PIP_INDEX_URL", public.url)

        runtime = await world.install("vulkan")

        assert public.asked == []
    assert runtime.folder is not None
    assert (runtime.folder / "fake_gpu_engine/engine.so").read_bytes() == b"gpu"


async def test_a_wheel_that_differs_from_its_listing_is_refused(world: World) -> None:
    _publish(world.index).listed_sha256 = "0" * 64

    with pytest.raises(BuildFailed) as caught:
        await world.install("cuda")

    assert caught.value.facts["reason"] == "hash"
    assert world.left() == []


@pytest.mark.parametrize("answer", ["nothing", "another version", "source only"])
async def test_an_index_without_the_pinned_wheel_is_told(world: World, answer: str) -> None:
    if answer == "another version":
        _publish(world.index, "2027.1")
    elif answer == "source only":
        world.index.publish(GPU, *engine_source(GPU, GPU_VERSION, Behaviour()))

    with pytest.raises(BuildFailed) as caught:
        await world.install("cuda")

    assert caught.value.facts["reason"] == "not_found"
    assert world.left() == []


async def test_a_cancelled_download_of_a_wheel_leaves_nothing(world: World) -> None:
    served = _publish(world.index)
    world.index.held.add(served.name)

    async with anyio.create_task_group() as group:
        group.start_soon(world.install, "cuda")
        await until(lambda: f"/files/{served.name}" in world.index.asked)
        group.cancel_scope.cancel()

    assert world.left() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 30 MB, where this user may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
