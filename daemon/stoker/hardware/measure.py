"""What must be measured of this machine, once: how fast memory and the models' disk are read.

`measure_once` blocks for about a second the first time and reads a small file after that; it may
be called again at any time and fills in what could not be measured before (no model was stored, or
other programs were in the way). Never raises; what is implausible is unknown.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from stoker.hardware.facts import HardwareFacts
from stoker.paths import Paths

log = structlog.get_logger(__name__)

MIB: Final = 1024 * 1024
_FORMAT: Final = 1
_KEPT: Final = 4  # results, the newest
_ROUNDS: Final = 3  # the median counts
_ROUND_S: Final = 0.15
_SCAN_TIMEOUT_S: Final = 10.0  # a busy machine; 1 s otherwise
_BUFFER: Final = 128 * MIB  # per thread: far beyond what a core has of the caches
_LEAST_BUFFER: Final = 16 * MIB
_MOST_BUFFERS: Final = 2048 * MIB  # all threads together
_FREE_SHARE: Final = 8  # they may take one part in so many of the free memory
# One core: the slowest board with 1 GiB reads 1.5 GB/s, the fastest core 120 GB/s.
_PLAUSIBLE_PER_CPU: Final = (0.3e9, 300e9)  # bytes/s
# Of the time in which threads wanted to run, at least this share must be theirs.
_UNDISTURBED: Final = 0.8

_DISK_S: Final = 0.5
_DISK_BYTES: Final = 256 * MIB
_DISK_PIECE: Final = 8 * MIB
_DISK_LEAST: Final = 32 * MIB  # a smaller file says more about the seek than about the disk
_PLAUSIBLE_DISK: Final = (1e6, 40e9)  # bytes/s: a bad card to several fast drives at once


@dataclass(frozen=True, slots=True)
class Measured:
    """Results for one processor with one number of effective CPUs; None is unknown."""

    key: str
    bandwidth_bytes_per_s: int | None = None
    disk_read_bytes_per_s: int | None = None
    undisturbed: bool = False  # nothing else wanted the processor meanwhile
    at: str = ""  # RFC 3339


def measure_once(places: Paths, facts: HardwareFacts) -> Measured:
    """The kept results, or new ones where they are missing or of another machine."""
    kept = known(places, facts)
    found = kept or Measured(_key(facts))
    if found.bandwidth_bytes_per_s is None or not found.undisturbed:
        found = _better(found, _bandwidth(facts))
    if found.disk_read_bytes_per_s is None:
        found = replace(found, disk_read_bytes_per_s=_disk(places.store))
    if found != kept:
        found = replace(found, at=datetime.now(UTC).isoformat(timespec="seconds"))
        _keep(places.measured_hardware, found)
        log.info("hardware_measured", **asdict(found))
    return found


def known(places: Paths, facts: HardwareFacts) -> Measured | None:
    """The kept results for this machine as it is; None when there are none. Measures nothing."""
    return _read(places.measured_hardware).get(_key(facts))


def _read(file: Path) -> dict[str, Measured]:
    """All kept results; none when the file is absent or damaged."""
    try:
        content = json.loads(file.read_bytes())
        results = content["results"] if content["format"] == _FORMAT else {}
        return {str(key): _measured(str(key), value) for key, value in results.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("measured_hardware_ignored", reason=type(error).__name__)
        return {}


def _measured(key: str, value: Mapping[str, object]) -> Measured:
    return Measured(
        key=key,
        bandwidth_bytes_per_s=_count(value["bandwidth_bytes_per_s"]),
        disk_read_bytes_per_s=_count(value["disk_read_bytes_per_s"]),
        undisturbed=value["undisturbed"] is True,
        at=str(value["at"]),
    )


def with_measured(facts: HardwareFacts, measured: Measured | None) -> HardwareFacts:
    """The facts with what was measured; as they are when that was on another machine."""
    if measured is None or measured.key != _key(facts):
        return facts
    return replace(
        facts,
        bandwidth_bytes_per_s=measured.bandwidth_bytes_per_s,
        disk_read_bytes_per_s=measured.disk_read_bytes_per_s,
    )


def _key(facts: HardwareFacts) -> str:
    """Changes with the processor and with what this process may use of it."""
    cpu, quota = facts.cpu, facts.limits.quota_cpus
    part = None if quota is None or quota >= 1 else quota
    text = "\n".join(
        (cpu.arch, cpu.model, *sorted(cpu.flags), str(facts.effective_cpus), str(part))
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError


def _keep(file: Path, found: Measured) -> None:
    """Beside the daemon's other state; where there is no such folder yet, nothing is kept.

    A few results are: a command in a shell may have other limits than the daemon's service.
    """
    if not file.parent.is_dir():
        return
    others = [kept for kept in _read(file).values() if kept.key != found.key]
    newest = sorted(others, key=lambda kept: kept.at)[-(_KEPT - 1) :]
    results = {kept.key: asdict(kept) for kept in (*newest, found)}
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        fresh.write_text(json.dumps({"format": _FORMAT, "results": results}, indent=1), "utf-8")
        fresh.replace(file)
    except OSError as error:
        log.warning("measured_hardware_not_kept", reason=str(error))
        fresh.unlink(missing_ok=True)


# --- memory ----------------------------------------------------------------------------------


def _better(old: Measured, new: tuple[int, bool] | None) -> Measured:
    if new is None:
        return old
    value, undisturbed = new
    if old.bandwidth_bytes_per_s is not None and not undisturbed:
        return old  # both were disturbed: no reason to change what others calculated with
    return replace(old, bandwidth_bytes_per_s=value, undisturbed=undisturbed)


def _bandwidth(facts: HardwareFacts) -> tuple[int, bool] | None:
    """Bytes per second of all effective CPUs, and whether they had the machine to themselves."""
    threads = facts.effective_cpus
    size = min(_BUFFER, _MOST_BUFFERS // threads, facts.headroom_bytes // _FREE_SHARE // threads)
    if size < _LEAST_BUFFER:
        return None
    words = (str(size), str(threads), str(_ROUND_S), str(_ROUNDS))
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter, no shell
            (sys.executable, "-I", "-m", "stoker.hardware.scan", *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SCAN_TIMEOUT_S,
            check=True,
        )
        rounds = json.loads(done.stdout)
        return summary(rounds, facts.limits.quota_cpus)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        log.warning("bandwidth_unknown", reason=type(error).__name__)
        return None


def summary(
    rounds: Sequence[Sequence[tuple[int, float, float]]], quota_cpus: float | None
) -> tuple[int, bool] | None:
    """From each thread's (bytes, seconds, seconds on the processor) in each round. Pure.

    A thread counts with its pace while it ran: what it lost to other programs is not the
    memory's fault. Where a quota gives less than one CPU, no engine gets more either.
    """
    paces: list[float] = []
    shares: list[float] = []
    for threads in rounds:
        # A coarse clock may show a little more than there was.
        ran = [min(cpu, seconds) for _, seconds, cpu in threads]
        if not threads or min(ran) <= 0:
            return None
        paces.append(sum(read / cpu for (read, _, _), cpu in zip(threads, ran, strict=True)))
        shares.append(sum(ran) / sum(seconds for _, seconds, _ in threads))
    if not paces:
        return None
    per_cpu = statistics.median(paces) / len(rounds[0])
    if not _PLAUSIBLE_PER_CPU[0] <= per_cpu <= _PLAUSIBLE_PER_CPU[1]:
        return None
    quota = min(1.0, quota_cpus) if quota_cpus else 1.0
    least = _UNDISTURBED * quota
    return int(statistics.median(paces) * quota), statistics.median(shares) >= least


# --- disk ------------------------------------------------------------------------------------


def _disk(store: Path) -> int | None:
    """Read a piece of the largest stored file past the system's cache; None where that fails."""
    try:
        size, file = max(_files(store), default=(0, store))
        pace = _read_uncached(file, size) if size >= _DISK_LEAST else None
    except OSError as error:
        log.debug("disk_speed_unknown", reason=str(error))
        return None
    low, high = _PLAUSIBLE_DISK
    return int(pace) if pace is not None and low <= pace <= high else None


def _files(store: Path) -> Iterator[tuple[int, Path]]:
    """Sizes and places of the stored models' files."""
    for folder, _, names in os.walk(store / "blobs"):
        for name in names:
            file = Path(folder, name)
            yield file.lstat().st_size, file


def _read_uncached(file: Path, size: int) -> float | None:
    """Bytes per second, from the disk itself: what others have cached stays cached.

    None on systems that cannot read past the cache, and on disks that are memory.
    """
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        return None
    handle = os.open(file, os.O_RDONLY | direct | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _DISK_PIECE) as buffer:  # aligned, as direct reads must be
            start = size // 2 // _DISK_PIECE * _DISK_PIECE if size > _DISK_BYTES else 0
            read, began = 0, time.monotonic()
            while read < _DISK_BYTES and time.monotonic() - began < _DISK_S:
                got = os.preadv(handle, [buffer], start + read)
                read += got
                if got < _DISK_PIECE:
                    break
            return read / max(time.monotonic() - began, 1e-6) if read else None
    finally:
        os.close(handle)
