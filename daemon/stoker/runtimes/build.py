"""Compile the native runtime with pip, in a private environment; compilers at idle priority.

Pip brings a few pinned tools (CMake, Ninja and what ties them to pip), then the pinned source, and
builds it without the network. Everything happens below one folder that the caller removes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import structlog

from stoker.errors import BuildFailed, CompilerMissing
from stoker.hardware.facts import HardwareFacts
from stoker.runtimes import pip, tidy
from stoker.runtimes.manifest import server_name
from stoker.runtimes.pins import Native
from stoker.runtimes.recipe import Recipe
from stoker.runtimes.running import Ended, Limits, Pulse, run
from stoker.store import disk

log = structlog.get_logger(__name__)

Progress = Callable[[float, str], None]  # the share that is done, and what is being done

NEEDED_BYTES: Final = 1_500_000_000  # measured: 0.87 GB at the peak; another compiler may need more
_JOB_BYTES: Final = 700_000_000  # measured: the largest source takes 0.65 GB
_TOOLS: Final = Limits(total_s=3600, silence_s=300)
_DOWNLOAD: Final = Limits(total_s=4 * 3600, silence_s=300)  # pip's own retries take 90 s
# At idle priority a busy machine may not let us run for long: patience costs nothing.
_BUILD: Final = Limits(total_s=12 * 3600, silence_s=3600)
_TRY: Final = Limits(total_s=120, silence_s=120)

# Where each phase begins, as a share of all; measured on two cores, compiling is nearly all of it.
_SHARES: Final = {
    "tools": 0.0,
    "download": 0.03,
    "configure": 0.06,
    "compile": 0.08,
    "install": 0.98,
}
_STEP: Final = re.compile(r"^\[(\d{1,6})/(\d{1,6})\] ")

_COMPILERS: Final = ("c++", "g++", "clang++")
_HINTS: Final = (  # a word of /etc/os-release, and what brings a compiler there
    ("debian", "sudo apt install build-essential"),
    ("fedora", "sudo dnf install gcc-c++ make"),
    ("rhel", "sudo dnf install gcc-c++ make"),
    ("suse", "sudo zypper install gcc-c++"),
    ("arch", "sudo pacman -S base-devel"),
    ("alpine", "apk add build-base"),
    ("gentoo", "emerge sys-devel/gcc"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One build: what, where, how fast."""

    native: Native
    recipe: Recipe
    folder: Path  # ours alone, and removed by the caller
    jobs: int
    index: str | None  # overrides pip's own
    progress: Progress


async def build(job: Job) -> Path:
    """The folder of a built runtime, stripped. Raises BuildFailed, CompilerMissing or DiskFull."""
    work = job.folder / "tmp"
    disk.make_folder(work)
    environ = pip.environment(work, index=job.index)
    job.progress(_SHARES["tools"], "preparing the build tools")
    command, python = await pip.private(job.folder, environ)
    await _tools(job, command, environ)
    environ = pip.path_with(python.parent, environ)
    source = await _download(job, command, environ)
    made = await _compile(job, command, environ, source)
    job.progress(_SHARES["install"], "testing that it starts")
    await anyio.to_thread.run_sync(tidy.strip, made)
    await _starts(job, made, environ)
    return made


def jobs_for(hardware: HardwareFacts) -> int:
    """Compilers at once: as many as run and fit. Pure.

    No processor is left out for others: at idle priority they take it when they want it.
    """
    return max(1, min(hardware.effective_cpus, hardware.headroom_bytes // _JOB_BYTES))


def check_compiler(hardware: HardwareFacts, os_release: str | None = None) -> None:
    """Raises CompilerMissing. A compiler that came after the daemon's start is found too."""
    if hardware.compiler is not None or hardware.system == "windows":
        return  # Windows' own is not on the path; CMake knows where to look
    if any(shutil.which(name) for name in _COMPILERS):
        return
    raise CompilerMissing("there is no C++ compiler", hint=compiler_hint(hardware, os_release))


def compiler_hint(hardware: HardwareFacts, os_release: str | None = None) -> str:
    """What to type to get a compiler on this system."""
    if hardware.system == "darwin":
        return "Run `xcode-select --install`, and try again."
    if os_release is None:
        try:
            os_release = Path("/etc/os-release").read_text("utf-8", "replace")[:10_000]
        except OSError:
            os_release = ""
    ids = " ".join(re.findall(r"^ID(?:_LIKE)?=(.*)$", os_release, re.MULTILINE)).lower()
    for word, what in _HINTS:
        if word in ids:
            return f"Run `{what}`, and try again."
    return CompilerMissing.hint


class Phases:
    """How far the build is, from the lines that pip and its tools print. Pure."""

    def __init__(self) -> None:
        self._phase = "configure"

    def see(self, line: str) -> tuple[float, str] | None:
        """The share done and what is being done, when this line changes it."""
        if "*** Configuring CMake" in line:
            return _SHARES["configure"], "configuring"
        if "*** Building project" in line:
            self._phase = "compile"
            return _SHARES["compile"], "compiling"
        if "*** Installing project" in line:
            self._phase = "install"
            return _SHARES["install"], "installing"
        step = _STEP.match(line)
        if step is None or self._phase != "compile":  # CMake's own tests print such steps too
            return None
        done, total = int(step[1]), max(1, int(step[2]))
        room = _SHARES["install"] - _SHARES["compile"]
        return (
            _SHARES["compile"] + room * min(1.0, done / total),
            f"compiling, {done} of {total} steps",
        )


async def _tools(job: Job, command: tuple[str, ...], environ: Mapping[str, str]) -> None:
    wanted = job.folder / "tools.txt"
    wanted.write_text("".join(f"{tool.requirement}\n" for tool in job.native.tools), "ascii")
    ended = await run(
        [
            *command,
            *pip.arguments("install", "--require-hashes", "--no-deps"),
            *("--no-binary=:none:", "--only-binary=:all:", "--requirement", str(wanted)),
        ],
        cwd=job.folder / "tmp",
        environ=environ,
        limits=_TOOLS,
        pulse=Pulse(lambda: tidy.size(job.folder)),
    )
    _check("install the build tools", ended, job)


async def _download(job: Job, command: tuple[str, ...], environ: Mapping[str, str]) -> Path:
    """The source, its digest checked by pip."""
    target, wanted = job.folder / "source", job.folder / "source.txt"
    wanted.write_text(f"{job.native.requirement}\n", "ascii")
    before = await anyio.to_thread.run_sync(tidy.size, job.folder)

    def tell(count: int) -> None:
        share = min(1.0, max(0, count - before) / job.native.sdist_bytes)
        room = _SHARES["configure"] - _SHARES["download"]
        job.progress(_SHARES["download"] + room * share, "downloading the source")

    tell(before)
    ended = await run(
        [
            *command,
            *pip.arguments("download", "--require-hashes", "--no-deps"),
            *("--no-build-isolation", f"--no-binary={job.native.package}"),
            *("--dest", str(target), "--requirement", str(wanted)),
        ],
        cwd=job.folder / "tmp",
        environ=environ,
        limits=_DOWNLOAD,
        pulse=Pulse(lambda: tidy.size(job.folder), tell),
    )
    _check("download the source", ended, job)
    found = sorted(target.glob("*.tar.gz"))
    if len(found) != 1:
        raise BuildFailed(f"pip brought {len(found)} sources", reason="not_found", tail=[])
    return found[0]


async def _compile(
    job: Job, command: tuple[str, ...], environ: Mapping[str, str], source: Path
) -> Path:
    """What pip made of the source, in a folder of its own.

    Never out of pip's cache: that does not know for which processor a wheel was compiled.
    """
    target, phases = job.folder / "runtime", Phases()

    def see(line: str) -> None:
        log.debug("build_said", line=line[:300])
        step = phases.see(line)
        if step is not None:
            job.progress(*step)

    job.progress(_SHARES["configure"], "configuring")
    ended = await run(
        [
            *command,
            *pip.arguments("install", "--verbose", "--no-index", "--no-deps"),
            *("--no-build-isolation", "--no-cache-dir", f"--no-binary={job.native.package}"),
            *("--target", str(target), str(source)),
        ],
        cwd=job.folder / "tmp",
        environ={
            **environ,
            "CMAKE_ARGS": job.recipe.cmake_args,
            "CMAKE_BUILD_PARALLEL_LEVEL": str(job.jobs),
        },
        limits=_BUILD,
        on_line=see,
        gently=True,
    )
    _check("compile the runtime", ended, job)
    return target


async def _starts(job: Job, made: Path, environ: Mapping[str, str]) -> None:
    """Raises BuildFailed when the server is missing or does not even say its version."""
    server = made / "bin" / server_name()
    if not server.is_file():
        msg = f"the build made no {server.name}"
        raise BuildFailed(msg, reason="incomplete", tail=[])
    ended = await run(
        [str(server), "--version"],
        cwd=job.folder / "tmp",
        environ={**environ, **library_path(made)},
        limits=_TRY,
    )
    if ended.code != 0:
        said = ended.tail[-1] if ended.tail else ended.why or f"exit code {ended.code}"
        msg = f"the server that was built does not start: {said[:300]}"
        raise BuildFailed(msg, reason="incomplete", tail=list(ended.tail[-30:]))


def library_path(runtime: Path) -> dict[str, str]:
    """The variable by which programs of this runtime find its libraries."""
    if sys.platform == "win32":
        return {"PATH": os.pathsep.join((str(runtime / "bin"), os.environ.get("PATH", "")))}
    name = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    return {name: str(runtime / "lib")}


def _check(doing: str, ended: Ended, job: Job) -> None:
    """Raises what the end of a step means."""
    if ended.code == 0:
        return
    error = pip.failure(doing, ended, free_bytes=disk.free_bytes(job.folder))
    log.warning("build_failed", step=doing, code=ended.code, tail=pip.redacted(ended.tail[-10:]))
    raise error
