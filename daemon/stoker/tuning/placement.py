"""Which layers of a model go on a GPU, and which experts stay beside the CPU. Pure.

The engine puts the last layers on the GPU first, the output among them. A mixture of experts is
placed the other way about: the dense part of every layer first, because it is read for every
token, then the experts of as many layers as still fit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts

GIB: Final = 1024 * 1024 * 1024
_MARGIN_SHARE: Final = 10  # of the free memory, one part in so many stays free; or a GiB
_FEWEST: Final = 2  # layers: the first one is the output, which alone is not worth a GPU

_GPU_WORDS: Final = ("cuda", "hip", "metal", "rocm", "sycl", "vulkan")
_UNIFIED_WORDS: Final = ("metal",)


@dataclass(frozen=True, slots=True)
class Placement:
    """What is on the GPU. `layers` is the engine's `n_gpu_layers`; the output counts as one."""

    layers: int = 0
    cpu_experts: int = 0  # so many first layers keep their experts in memory
    blocks: int = 0  # blocks on the GPU: the last ones
    weights_bytes: int = 0  # of them, that need not be in memory
    gpu_bytes: int = 0  # all that is needed on the GPU; 0 where it shares the system's memory


NOWHERE: Final = Placement()


@dataclass(frozen=True, slots=True)
class Room:
    """What a runtime may use of the GPUs."""

    usable: bool  # the runtime computes on a GPU, and there is one
    free_bytes: int | None = None  # None: not known
    shared: bool = False  # it is the system's own memory


NO_GPU: Final = Room(usable=False)


def gpu_runtime(runtime: str) -> bool:
    """Whether a runtime of this name computes on a GPU."""
    return any(word in runtime.lower() for word in _GPU_WORDS)


def room(hardware: HardwareFacts, runtime: str) -> Room:
    """Free GPU memory for this runtime: of all GPUs together, less a margin for each."""
    if not gpu_runtime(runtime):
        return NO_GPU
    shared = any(word in runtime.lower() for word in _UNIFIED_WORDS)
    if shared:
        return Room(usable=True, shared=True)
    if not hardware.gpus:  # Windows does not tell of all
        return Room(usable=True) if hardware.system == "windows" else NO_GPU
    if all(gpu.unified for gpu in hardware.gpus):
        return Room(usable=True, shared=True)
    free = [
        gpu.vram_free_bytes
        for gpu in hardware.gpus
        if gpu.vram_free_bytes is not None and not gpu.unified
    ]
    if not free:
        return Room(usable=True)
    return Room(usable=True, free_bytes=sum(max(0, one - _margin(one)) for one in free))


def is_blind(hardware: HardwareFacts, runtime: str) -> bool:
    """Whether this runtime is for GPUs, and the system tells nothing to place layers by."""
    found = room(hardware, runtime)
    return gpu_runtime(runtime) and not found.shared and found.free_bytes is None


def _margin(free: int) -> int:
    """Left for the screen and for what no plan foresees."""
    return max(GIB, free // _MARGIN_SHARE)


@dataclass(frozen=True, slots=True)
class Load:
    """What a placement has to find room for."""

    facts: ModelFacts
    layer_kv: Sequence[int]  # of each block, at the wanted context; () for an encoder
    compute_bytes: int

    @property
    def blocks(self) -> int:
        return max(1, self.facts.block_count)

    def layer(self, block: int) -> int:
        """Bytes of a block's weights; evenly shared out where the file was not read that far."""
        sizes = self.facts.layer_bytes
        return sizes[block] if block < len(sizes) else self.facts.file_bytes // self.blocks

    def experts(self, block: int) -> int:
        sizes = self.facts.expert_bytes
        return sizes[block] if block < len(sizes) else 0

    @property
    def rest_bytes(self) -> int:
        """The output and the embeddings: counted on both sides, because a model may tie them."""
        return max(0, self.facts.file_bytes - sum(map(self.layer, range(self.blocks))))

    @property
    def has_experts(self) -> bool:
        return any(self.facts.expert_bytes)


def every_layer(load: Load) -> int:
    """The engine's number for "all of it"."""
    return load.blocks + 1


def placed(load: Load, layers: int, cpu_experts: int = 0, *, shared: bool = False) -> Placement:
    """The placement of so many layers, with what it costs on the GPU."""
    blocks = max(0, min(layers - 1, load.blocks))
    if layers <= 0 or shared:
        return Placement(layers=max(0, layers), cpu_experts=cpu_experts)
    on_gpu = range(load.blocks - blocks, load.blocks)
    weights = sum(
        load.layer(block) - (load.experts(block) if block < cpu_experts else 0) for block in on_gpu
    )
    kv = sum(load.layer_kv[block] for block in on_gpu if block < len(load.layer_kv))
    needed = weights + load.rest_bytes + kv + load.compute_bytes
    return Placement(layers, cpu_experts, blocks, weights, needed)


def place(load: Load, free_bytes: int) -> Placement:
    """As much on the GPU as fits there; `NOWHERE` when no layer does."""
    whole = every_layer(load)
    if placed(load, whole).gpu_bytes <= free_bytes:
        return placed(load, whole)
    if load.has_experts:
        kept = bisect_left(  # the fewest layers without their experts
            range(load.blocks + 1),
            -free_bytes,
            key=lambda count: -placed(load, whole, count).gpu_bytes,
        )
        if kept <= load.blocks:
            return placed(load, whole, kept)
    kept = load.blocks if load.has_experts else 0
    layers = bisect_right(  # the most layers; it counts from 0, which costs nothing
        range(whole + 1), free_bytes, key=lambda count: placed(load, count, kept).gpu_bytes
    )
    return placed(load, layers - 1, kept) if layers - 1 >= _FEWEST else NOWHERE
