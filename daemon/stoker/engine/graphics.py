"""The GPUs that a runtime's own library sees, where the system does not tell what is free there.

Windows tells it of NVIDIA's GPUs only, and Linux's newer driver for Intel's cards not at all. The
library asks the driver, in a throw-away process: a driver may end it, or never answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import structlog

from stoker.engine.lab import Device, Library, open_lab
from stoker.errors import StokerError
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.tuning.placement import is_blind

log = structlog.get_logger(__name__)

# Opening a library and its driver takes about a second. Somebody waits for the model, and a worker
# would hang at that driver as well.
_DEADLINE_S: Final = 15.0


async def with_gpus(hardware: HardwareFacts, library: Library, *, cwd: Path) -> HardwareFacts:
    """`hardware` with the GPUs that the library sees, when their free memory is not known yet.

    Costs nothing otherwise. Never raises StokerError: what cannot be asked stays unknown. The
    names differ from those that the system gives, so tuned settings are looked up without them.
    """
    if not is_blind(hardware, library.runtime):
        return hardware
    try:
        with anyio.fail_after(_DEADLINE_S):
            async with open_lab(library, cwd=cwd, gently=False) as lab:
                found = gpus_of(await lab.devices())
    except (StokerError, TimeoutError) as error:
        log.info("gpus_not_seen", runtime=library.runtime, reason=str(error))
        return hardware
    return replace(hardware, gpus=found) if found else hardware


def gpus_of(devices: Sequence[Device]) -> tuple[GpuFacts, ...]:
    """Those of a library's devices that are graphics processors. Pure."""
    return tuple(_gpu(one) for one in devices if one.kind in {"gpu", "igpu"})


def _gpu(device: Device) -> GpuFacts:
    known = device.total_bytes > 0  # a driver that does not tell says 0 of 0
    return GpuFacts(
        name=device.description or device.name,
        vendor="other",
        vram_total_bytes=device.total_bytes if known else None,
        vram_free_bytes=min(device.free_bytes, device.total_bytes) if known else None,
        unified=device.kind == "igpu",
    )
