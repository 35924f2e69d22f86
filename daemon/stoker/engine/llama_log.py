"""What llama.cpp's log says about memory. Pure.

The C API does not tell the sizes of buffers, but every build logs them. In a dry run (``no_alloc``)
the lines of weights and KV buffers say 0, because nothing is allocated; the size of the cache then
stands in a line of its own, and compute and output buffers are as in a real run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

_MIB: Final = 1024 * 1024

# sched_reserve:        CPU compute buffer size =    28.78 MiB
_BUFFER: Final = re.compile(
    r"^\w+: +(\S+) +(model|compute|output) buffer size = +([\d.]+) MiB *$", re.MULTILINE
)
# llama_kv_cache: size =   24.00 MiB (  8192 cells,   3 layers,  4/1 seqs), K (f16):   12.00 MiB, …
_CACHE: Final = re.compile(r"^\w+: size = +([\d.]+) MiB \( *\d+ cells, ", re.MULTILINE)
_CACHE_TYPE: Final = re.compile(r"^\w+: size = .{1,80}\), K \((\w+)\)", re.MULTILINE)
# …: CPU DSV4 <name> state buffer size = 12.00 MiB
_STATE: Final = re.compile(r" DSV4 .{1,60} state buffer size = +([\d.]+) MiB *$", re.MULTILINE)
# As in this line:  llama_context: n_ubatch              = 512
_ECHO: Final = re.compile(r"^llama_context: (\w+) += (\S+) *$", re.MULTILINE)
# Host 222 61 28: MiB of weights, cache and compute, rounded down
_FIT: Final = re.compile(r"^Host (\d+) (\d+) (\d+) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ContextLog:
    """What the log of one new context said."""

    compute_bytes: int  # compute and output buffers
    kv_bytes: int | None  # with recurrent states; None when the log has no such line
    kv_types: frozenset[str]
    echo: dict[str, str]  # the settings as the library understood them
    full_windows: bool  # sliding windows were given the whole context


def context_log(text: str, without: frozenset[str] = frozenset()) -> ContextLog:
    """`without` are names of devices with memory of their own; their buffers do not count."""
    buffers = [
        _bytes(size)
        for name, kind, size in _BUFFER.findall(text)
        if kind != "model" and name not in without
    ]
    caches = [_bytes(size) for size in (*_CACHE.findall(text), *_STATE.findall(text))]
    return ContextLog(
        compute_bytes=sum(buffers),
        kv_bytes=sum(caches) if caches else None,
        kv_types=frozenset(_CACHE_TYPE.findall(text)),
        echo=dict(_ECHO.findall(text)),
        full_windows="using full-size SWA cache" in text,
    )


def model_buffers(text: str) -> dict[str, int]:
    """Bytes of weights by kind of buffer, such as CPU_Mapped and CPU_REPACK."""
    found: dict[str, int] = {}
    for name, kind, size in _BUFFER.findall(text):
        if kind == "model":
            found[name] = found.get(name, 0) + _bytes(size)
    return found


def copies(buffers: dict[str, int]) -> int:
    """Bytes of weights that the CPU keeps in another layout than the file's."""
    return sum(size for name, size in buffers.items() if is_copy(name))


def is_copy(buffer: str) -> bool:
    """Whether a buffer of this name holds weights in a layout for this CPU."""
    return buffer.startswith(("CPU_", "AMX")) and buffer != "CPU_Mapped"


def fit_weights(text: str) -> int | None:
    """Bytes of weights in the file's own layout, from what `common_fit_print` prints."""
    found = _FIT.findall(text)
    return int(found[0][0]) * _MIB if len(found) == 1 else None


def _bytes(mebibytes: str) -> int:
    return math.ceil(float(mebibytes) * _MIB)
