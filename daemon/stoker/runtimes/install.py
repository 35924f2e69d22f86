"""Install a runtime: in a folder of its own, whole or not at all.

Everything is made below ``.partial-…`` beside the runtimes; the last step is one rename. What a
killed daemon left there is removed by `tidy.sweep` at the next start.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import anyio
import structlog

from stoker.engine.canary import cpu_digest
from stoker.errors import DiskFull, RuntimeUnsupported, SourceOffline
from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths
from stoker.runtimes import manifest, tidy, wheels
from stoker.runtimes.build import NEEDED_BYTES, Job, build, check_compiler, jobs_for
from stoker.runtimes.manifest import Kind, Runtime
from stoker.runtimes.pins import Pins, pins
from stoker.runtimes.recipe import recipe
from stoker.settings import Settings
from stoker.store import disk

log = structlog.get_logger(__name__)

_COMPILED: Final = frozenset({"native", "metal"})
_MOST_OF_A_NAME: Final = 99  # installs of the same thing side by side


async def install(  # all by name
    kind: str,
    *,
    places: Paths,
    hardware: HardwareFacts,
    settings: Settings,
    progress: Callable[[float, str], None],
    allow_amx: bool = False,
) -> Runtime:
    """Make the runtime and return it, described in its folder; nobody uses it yet.

    `progress` gets the share that is done and words for it, in the event loop. May be cancelled
    at any time; then, as after any error, nothing is left. Raises SourceOffline, CompilerMissing,
    RuntimeUnsupported, DiskFull or BuildFailed. `allow_amx` compiles for AMX too: such an engine
    dies on many machines, so only tests of the self-test want it.
    """
    if settings.offline:
        msg = "installing a runtime needs the network"
        raise SourceOffline(msg)
    sources = pins()
    compiled = kind in _COMPILED
    if compiled:
        _check_build(kind, hardware)
    _check_room(places.runtimes, NEEDED_BYTES if compiled else wheels.needed_bytes(sources.wheels))
    async with _workshop(places) as folder:
        if compiled:
            made, runtime = await _compiled(
                kind, folder, hardware, settings, sources, progress, allow_amx=allow_amx
            )
        else:
            made, runtime = await wheels.install(
                kind, folder, hardware=hardware, wheels=sources.wheels, progress=progress
            )
        progress(0.99, "putting it in place")
        return await anyio.to_thread.run_sync(_place, made, runtime, places.runtimes)


async def _compiled(
    kind: str,
    folder: Path,
    hardware: HardwareFacts,
    settings: Settings,
    sources: Pins,
    progress: Callable[[float, str], None],
    *,
    allow_amx: bool,
) -> tuple[Path, Runtime]:
    plan = recipe(hardware.cpu, hardware.system, compiler=hardware.compiler, allow_amx=allow_amx)
    native = sources.native
    job = Job(
        native=native,
        recipe=plan,
        folder=folder,
        jobs=jobs_for(hardware),
        index=settings.package_index,
        progress=progress,
    )
    log.info("build_started", variant=plan.variant, jobs=job.jobs, version=native.version)
    made = await build(job)
    return made, Runtime(
        name=f"{native.package}-{native.version}-{plan.variant}",
        kind=cast("Kind", kind),
        engine="llama-server",
        version=native.version,
        variant=plan.variant,
        folder=None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=cpu_digest(hardware.cpu),
        cmake=plan.definitions,
        digest=native.sdist_sha256,
    )


def _check_build(kind: str, hardware: HardwareFacts) -> None:
    """Raises RuntimeUnsupported or CompilerMissing."""
    if kind == "metal" and hardware.system != "darwin":
        msg = "Metal is a part of macOS; this machine has none"
        raise RuntimeUnsupported(msg)
    check_compiler(hardware)


def _check_room(folder: Path, needed: int) -> None:
    free = disk.free_bytes(folder)
    if free < needed:
        msg = (
            f"installing a runtime needs {needed / 1e9:.1f} GB of disk space for a while, "
            f"and {free / 1e9:.1f} GB are free"
        )
        hint = "Free some space (`stoker rm MODEL` helps) and try again."
        raise DiskFull(msg, hint=hint, needed_bytes=needed, free_bytes=free)


@asynccontextmanager
async def _workshop(places: Paths) -> AsyncIterator[Path]:
    """A folder that is gone afterwards, however the block ends."""
    folder = places.runtimes / f"{tidy.PARTIAL}{secrets.token_hex(6)}"
    with disk.wrapped("install a runtime", folder):
        try:
            disk.make_folder(folder)
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove, folder)


def _remove(folder: Path) -> None:
    if not tidy.discard(folder):  # the next start tries again
        log.warning("partial_runtime_stays", folder=folder.name)


def _place(made: Path, runtime: Runtime, runtimes: Path) -> Runtime:
    """On the medium, described, and under its final name. Never over another runtime."""
    name = _free_name(runtimes, runtime.name)
    total = tidy.sync(made)
    manifest.write(replace(runtime, name=name, bytes=total), made)
    target = runtimes / name
    disk.rename(made, target)
    disk.sync_folder(runtimes)
    return manifest.read(target)


def _free_name(runtimes: Path, name: str) -> str:
    """The one that serves may have this name already, and goes on serving."""
    names = [name, *(f"{name}-{number}" for number in range(2, _MOST_OF_A_NAME))]
    return next((each for each in names if not (runtimes / each).exists()), names[-1])
