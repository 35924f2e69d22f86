"""Engines for graphics processors: prebuilt wheels from the project's own index.

The index is the only source that pip may use: the public one has a wheel of the same name and
version without any graphics processor in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

import structlog

from stoker.errors import BuildFailed, RuntimeUnsupported
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.runtimes import pip, tidy
from stoker.runtimes.manifest import Runtime
from stoker.runtimes.pins import Wheels
from stoker.runtimes.running import Limits, Pulse, run
from stoker.store import disk

log = structlog.get_logger(__name__)

GpuKind = Literal["cuda", "rocm", "vulkan"]
_KINDS: Final = ("cuda", "rocm", "vulkan")
_LIMITS: Final = Limits(total_s=4 * 3600, silence_s=300)  # 0.5 GB; pip's own retries take 90 s
# NVIDIA's drivers: the first that runs programs of CUDA 12, by their minor-version compatibility,
# and the first that no longer serves the old cards which CUDA 13 has dropped. Between the two,
# CUDA 12 is the one that runs on every card.
FIRST_CUDA_12: Final = 525
FIRST_WITHOUT_OLD_CARDS: Final = 590
_ROCM_VERSION: Final = Path("/opt/rocm/.info/version")
_EXTRA: Final = ("bin", "__pycache__")


def needed_bytes(wheels: Wheels) -> int:
    """On the disk while it is installed: the wheel, and what is in it."""
    return 2 * wheels.most_bytes


def choose(
    kind: str, hardware: HardwareFacts, offered: Sequence[str], *, rocm: str | None = None
) -> str:
    """Which of the index's variants fits this machine. Raises RuntimeUnsupported. Pure.

    `offered` has the newest first; `rocm` is the version of the installed toolkit.
    """
    if kind not in _KINDS:
        msg = f"there is no runtime of the kind {kind}"
        raise RuntimeUnsupported(msg)
    if hardware.system not in {"linux", "windows"}:
        msg = f"there is no {kind} runtime for this system"
        raise RuntimeUnsupported(msg, hint="The built-in runtime uses the graphics processor.")
    if kind == "cuda":
        return _cuda(hardware.gpus, offered)
    if kind == "rocm":
        return _rocm(hardware.gpus, offered, rocm)
    return offered[0]


def driver_of(gpus: Sequence[GpuFacts]) -> int | None:
    """The major version of NVIDIA's driver; None when there is none or it does not say."""
    for gpu in gpus:
        match = re.match(r"\d+", gpu.driver or "") if gpu.vendor == "nvidia" else None
        if match:
            return int(match[0])
    return None


async def install(
    kind: str,
    folder: Path,
    *,
    hardware: HardwareFacts,
    wheels: Wheels,
    progress: Callable[[float, str], None],
) -> tuple[Path, Runtime]:
    """The wheel's content below `folder`, and what it is. Raises BuildFailed, DiskFull."""
    offered = wheels.variants.get(cast("GpuKind", kind), ())
    variant = choose(kind, hardware, offered, rocm=_installed_rocm())
    made = folder / "runtime"
    report = await _fetch(folder, made, wheels, variant, progress)
    digest = digest_of(report, wheels)
    for name in _EXTRA:
        tidy.remove(made / name)
    return made, Runtime(
        name=f"{wheels.package}-{wheels.version}-{variant}",
        kind=cast("GpuKind", kind),
        engine="xllamacpp",
        version=wheels.version,
        variant=variant,
        folder=None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu="",
        digest=digest,
    )


async def _fetch(
    folder: Path,
    made: Path,
    wheels: Wheels,
    variant: str,
    progress: Callable[[float, str], None],
) -> object:
    """Pip's report of what it installed into `made`."""
    work, nothing = folder / "tmp", folder / "nothing"
    for each in (work, nothing):
        disk.make_folder(each)
    index = f"{wheels.index.rstrip('/')}/{variant}"
    only = {"PIP_EXTRA_INDEX_URL": index, "PIP_FIND_LINKS": str(nothing), "PIP_NO_INDEX": "0"}
    environ = {**pip.environment(work, index=index), **only}
    progress(0.0, "preparing")
    command, _ = await pip.private(folder, environ)
    before = tidy.size(folder)

    def tell(count: int) -> None:
        # How much will come is not known beforehand: the bar nears the end and never reaches it.
        came = max(0, count - before)
        progress(0.95 * came / (came + wheels.most_bytes / 4), f"downloading, {came / 1e6:.0f} MB")

    tell(before)
    ended = await run(
        [
            *command,
            *pip.arguments("install", "--no-deps", "--no-cache-dir"),
            *("--no-binary=:none:", "--only-binary=:all:", "--no-compile"),
            *("--report", str(folder / "report.json"), "--target", str(made)),
            f"{wheels.package}=={wheels.version}",
        ],
        cwd=work,
        environ=environ,
        limits=_LIMITS,
        pulse=Pulse(lambda: tidy.size(folder), tell),
    )
    if ended.code != 0:
        log.warning("wheel_failed", variant=variant, tail=pip.redacted(ended.tail[-10:]))
        doing = f"install {wheels.package} {wheels.version} for {variant}"
        error = pip.failure(doing, ended, free_bytes=disk.free_bytes(folder))
        if error.facts.get("reason") == "not_found":  # no setting changes which index this is
            error.hint = f"Check that this machine reaches {index}, and try again."
        raise error
    try:
        return json.loads(disk.read_file(folder / "report.json", 1 << 20))
    except (OSError, ValueError) as error:
        msg = "pip did not say what it installed"
        raise BuildFailed(msg, reason="unknown", tail=pip.redacted(ended.tail)) from error


def digest_of(report: Any, wheels: Wheels) -> str:
    """SHA-256 of the wheel that was installed. Raises BuildFailed for any other. Pure."""
    try:
        (item,) = report["install"]
        found = str(item["metadata"]["name"]), str(item["metadata"]["version"])
        digest = str(item["download_info"]["archive_info"]["hashes"]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        msg = "pip's report does not name exactly one wheel with its digest"
        raise BuildFailed(msg, reason="unknown", tail=[]) from error
    wanted = wheels.package, wheels.version
    if (found[0].replace("_", "-").lower(), found[1]) != wanted or not re.fullmatch(
        r"[0-9a-f]{64}", digest
    ):
        msg = f"the package index sent {' '.join(found)} instead of {' '.join(wanted)}"
        raise BuildFailed(msg, reason="hash", tail=[])
    return digest


def _cuda(gpus: Sequence[GpuFacts], offered: Sequence[str]) -> str:
    driver = driver_of(gpus)
    if driver is None:
        msg = "there is no NVIDIA graphics processor, or its driver does not answer"
        raise RuntimeUnsupported(msg, hint="Check `nvidia-smi`, or install the kind vulkan.")
    if driver < FIRST_CUDA_12:
        msg = f"NVIDIA's driver {driver} is too old"
        hint = f"Install version {FIRST_CUDA_12} or newer, or install the kind vulkan."
        raise RuntimeUnsupported(msg, hint=hint, driver=driver)
    wanted = "cu13" if driver >= FIRST_WITHOUT_OLD_CARDS else "cu12"
    return next((name for name in offered if name.startswith(wanted)), offered[-1])


def _rocm(gpus: Sequence[GpuFacts], offered: Sequence[str], rocm: str | None) -> str:
    if all(gpu.vendor != "amd" for gpu in gpus):
        msg = "there is no AMD graphics processor"
        raise RuntimeUnsupported(msg)
    major = (rocm or "").split(".")[0]
    for name in offered:
        if major and name.split("-")[-1].split(".")[0] == major:
            return name
    msg = "AMD's ROCm is not installed" if not major else f"ROCm {rocm} is not one of those served"
    wanted = " or ".join(name.removeprefix("rocm-") for name in offered)
    raise RuntimeUnsupported(msg, hint=f"Install ROCm {wanted}, or install the kind vulkan.")


def _installed_rocm() -> str | None:
    try:
        return _ROCM_VERSION.read_text("ascii")[:40].strip() or None
    except (OSError, UnicodeDecodeError):
        return None
