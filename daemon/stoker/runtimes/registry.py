"""Which runtimes are on this machine, how each is run, and what is remembered of them.

A folder that is not exactly a runtime is told, and never used. Blocking; only the file of the
state is ever written. Not for: which runtime is used (`manager`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from stoker.engine.adapter import Adapter
from stoker.engine.lab import Library
from stoker.engine.llama_server import NEEDED_OPTIONS, LlamaServerEngine, Program
from stoker.engine.worker import environment
from stoker.engine.xllamacpp import XllamacppEngine, built_in_name, runtime_version
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.runtimes.manifest import DamagedRuntime, Runtime, read, server_name
from stoker.store import disk

log = structlog.get_logger(__name__)

_PROGRAM_TIMEOUT_S: Final = 5.0  # for the user's own program to say what it is; it takes 0.1
_VERSION: Final = re.compile(r"version:\s*v?([A-Za-z0-9._-]{1,32})(?:.*?build[: ]+(\d{1,9}))?")
_MOST_BYTES: Final = 256 * 1024
_LIBRARY: Final = {"darwin": "lib/libllama.dylib", "win32": "bin/llama.dll"}
_EXTENSION: Final = "xllamacpp.*"  # of the wheel; its ending differs from system to system
_BINARY: Final = frozenset({".so", ".pyd", ".dylib"})


# --- what is there ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Damaged:
    """A folder among the runtimes that is none."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    runtimes: tuple[Runtime, ...] = ()
    damaged: tuple[Damaged, ...] = ()


def built_in() -> Runtime:
    """The one that comes with Stoker. It is always listed, also when no wheel fits here."""
    version = runtime_version() or "missing"
    return Runtime(
        name=built_in_name(),
        kind="builtin",
        engine="xllamacpp",
        version=version,
        variant="",
        folder=None,
        created_at="",
        cpu="",
    )


def installed(folder: Path) -> Found:
    """The runtimes below this folder, the oldest first."""
    runtimes: list[Runtime] = []
    damaged: list[Damaged] = []
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return Found()  # nothing was ever installed
    for entry in entries:
        if not entry.name.isprintable():  # no JSON can carry it, and nobody could type it
            log.warning("runtime_skipped", name=ascii(entry.name), reason="a name of no runtime")
            continue
        try:
            runtimes.append(read(entry))
        except DamagedRuntime as error:
            log.warning("runtime_skipped", name=entry.name, reason=error.message)
            damaged.append(Damaged(entry.name, error.message))
    runtimes.sort(key=lambda runtime: runtime.created_at)
    return Found(tuple(runtimes), tuple(damaged))


def on_path(program: Path | None = None) -> Runtime | None:
    """The user's own server program; None when there is none, or it is not what we can run."""
    found = program or _which()
    if found is None:
        return None
    try:
        version = _words(found, "--version")
        options = _words(found, "--help")
        stat = found.stat()
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("llama_server_ignored", program=str(found), reason=type(error).__name__)
        return None
    match = _VERSION.search(version)
    missing = [name for name in NEEDED_OPTIONS if name not in options]
    if match is None or missing:
        log.warning("llama_server_too_old", program=str(found), missing=missing)
        return None
    named = "-".join(part for part in match.groups() if part).lower().lstrip("._-")
    return Runtime(
        name=f"llama-server-{named}",
        kind="path",
        engine="llama-server",
        version=match[1],
        variant="",
        folder=None,
        # The user may replace it at any time: another file is another build, tested anew.
        created_at=f"{stat.st_mtime_ns}-{stat.st_size}",
        cpu="",
        program=found,
    )


def _which() -> Path | None:
    name = shutil.which(server_name())
    return Path(name).resolve() if name else None


def _words(program: Path, option: str) -> str:
    done = subprocess.run(  # noqa: S603  # the user's own program, by its full path, no shell
        (str(program), option),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        timeout=_PROGRAM_TIMEOUT_S,
        check=False,
    )
    return done.stdout.decode("utf-8", errors="replace")


# --- how each is run -------------------------------------------------------------------------


def adapter(runtime: Runtime, paths: Paths, hardware: HardwareFacts) -> Adapter:
    """The engine that runs it."""
    build = runtime.created_at
    if runtime.engine == "xllamacpp":
        return XllamacppEngine(
            paths, hardware, runtime=runtime.name, folder=runtime.folder, build=build
        )
    return LlamaServerEngine(
        paths,
        hardware,
        runtime=runtime.name,
        program=Program(runtime.server or Path(server_name()), runtime.libraries),
        build=build,
    )


def library(runtime: Runtime) -> Library | None:
    """Where its functions are, for measurements; None when nobody knows."""
    if runtime.engine == "xllamacpp":
        extension = _extension(runtime.folder)
        return None if extension is None else Library(runtime.name, extension, None)
    if runtime.folder is None:
        return None
    path = runtime.folder / _LIBRARY.get(sys.platform, "lib/libllama.so")
    if not path.is_file():
        return None
    return Library(runtime.name, path, runtime.folder, (path.parent,))


def _extension(folder: Path | None) -> Path | None:
    """The wheel's compiled module, found without importing it."""
    if folder is not None:
        package = folder / "xllamacpp"
    else:
        spec = find_spec("xllamacpp")
        if spec is None or not spec.submodule_search_locations:
            return None
        package = Path(spec.submodule_search_locations[0])
    return next((file for file in package.glob(_EXTENSION) if file.suffix in _BINARY), None)


# --- what is remembered ----------------------------------------------------------------------


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Record(_Kept):
    """What came of testing a runtime, or of using it."""

    outcome: Literal["faster", "slower", "unmeasured", "unsound", "failed"]
    message: str = ""
    speedup: float | None = None  # against the one before
    build: str = ""  # of which build: one that is installed again is another


class State(_Kept):
    """The choice, over restarts."""

    current: str | None = None
    previous: str | None = None
    held: bool = False  # no change by itself
    chosen: bool = False  # the user named the current one
    changed_at: Annotated[AwareDatetime | None, Field(strict=False)] = None
    records: Mapping[str, Record] = Field(default_factory=dict)


def read_state(path: Path) -> State:
    """Nothing is chosen when there is no file, or nothing usable in it."""
    try:
        return State.model_validate_json(disk.read_file(path, _MOST_BYTES))
    except FileNotFoundError:
        return State()
    except (OSError, ValidationError) as error:
        log.warning("runtime_state_ignored", reason=type(error).__name__)
        return State()


def write_state(path: Path, state: State) -> None:
    """Raises StoreError; the old content is then still there."""
    with disk.wrapped("remember the runtime", path):
        disk.make_folder(path.parent)
        disk.write_file(path, state.model_dump_json(indent=1).encode(), ".tmp")
