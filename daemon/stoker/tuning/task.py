"""All inputs of one plan, and what a choice of settings costs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from stoker.hardware.assess import reserve_bytes
from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning import placement, profiles_rules
from stoker.tuning.launch import KvType, MemoryNeed, Survey, Tuned, Wishes
from stoker.tuning.memory import (
    MIB,
    Sizing,
    compute_bytes,
    keeps_cache,
    layer_kv_bytes,
    memory_need,
    quantizes_cache,
)
from stoker.tuning.placement import NO_GPU, Placement, Room
from stoker.tuning.profiles_rules import Rules

EMBEDDING_MOST: Final = 8192  # tokens; an embedder's scratch space grows with the square
_UNKNOWN_TRAINING: Final = 4096  # tokens; for a file that does not say what it was trained for
_ENCODERS: Final = ("bert", "t5encoder", "embedding")
_PYTHON_RUNTIME: Final = "xllamacpp"  # its server lives inside a Python process


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings that cost memory."""

    context: int
    ubatch: int
    parallel: int
    kv_type: KvType = "f16"
    cells: int = 0  # of the pool; 0: one context
    prompt_cache_mib: int = 0
    gpu_layers: int = 0
    cpu_experts: int = 0


@dataclass(frozen=True)
class Task:
    """What a plan is made from."""

    facts: ModelFacts
    hardware: HardwareFacts
    wishes: Wishes
    mmproj_bytes: int = 0
    runtime: str = ""
    tuned: Tuned | None = None
    survey: Survey | None = None
    correction: float = 1.0  # of predictions of memory; learnt (`MemoryNeed`)
    most_bytes: int | None = None  # what the user's limit for all models leaves; None: no limit

    @cached_property
    def rules(self) -> Rules:
        return profiles_rules.rules(self.wishes.profile)

    @cached_property
    def embedding(self) -> bool:
        return is_embedder(self.facts)

    @property
    def trained(self) -> int:
        trained = self.facts.context_length or _UNKNOWN_TRAINING
        return min(trained, EMBEDDING_MOST) if self.embedding else trained

    @cached_property
    def reserve_bytes(self) -> int:
        return reserve_bytes(self.hardware, self.wishes.reserve_bytes)

    @cached_property
    def budget_bytes(self) -> int:
        free = max(0, self.hardware.headroom_bytes - self.reserve_bytes)
        return free if self.most_bytes is None else min(free, max(0, self.most_bytes))

    @property
    def limited(self) -> bool:
        """Whether the user's limit is tighter than the memory itself."""
        most = self.most_bytes
        return most is not None and most < self.hardware.headroom_bytes - self.reserve_bytes

    @cached_property
    def room(self) -> Room:
        return NO_GPU if self.wishes.no_gpu else placement.room(self.hardware, self.runtime)

    @cached_property
    def checkpoints(self) -> int:
        needed = self.facts.recurrent or any(self.facts.sliding_layers or ())
        return self.rules.checkpoints if needed and not self.embedding else 0

    @cached_property
    def extra_buffers(self) -> bool:
        if self.wishes.safe_mode:
            return False
        return self.tuned is None or self.tuned.best.extra_buffers

    @cached_property
    def kv_type(self) -> KvType:
        """The one to begin with; memory may ask for a smaller one."""
        return (self.wishes.kv_type or "f16") if keeps_cache(self.facts) else "f16"

    @property
    def may_quantize(self) -> bool:
        """Whether the plan itself may store conversations in less precision."""
        free = self.wishes.kv_type is None and self.wishes.flash_attention is not False
        return free and quantizes_cache(self.facts)

    def flash(self, kv_type: KvType) -> bool:
        """Whether attention is fused. A quantised cache needs it."""
        if self.wishes.flash_attention is not None:
            return self.wishes.flash_attention
        return kv_type != "f16" or self.tuned is None or self.tuned.best.flash_attention

    def unified(self, shape: Shape) -> bool:
        """Whether the slots are in one cache, because there is no whole context for each."""
        alone = shape.parallel == 1 or self.embedding or not keeps_cache(self.facts)
        return alone or shape.cells < shape.context * shape.parallel

    # --- cost --------------------------------------------------------------------------------

    def sizing(self, shape: Shape) -> Sizing:
        return Sizing(
            cells=max(shape.context, shape.cells),
            parallel=shape.parallel,
            ubatch=shape.context if self.embedding else shape.ubatch,
            checkpoints=self.checkpoints,
            extra_buffers=self.extra_buffers,
            x86=self.hardware.cpu.is_x86,
            mmproj_bytes=self.mmproj_bytes,
            flash_attention=self.flash(shape.kv_type),
            kv_type=shape.kv_type,
            prompt_cache_bytes=shape.prompt_cache_mib * MIB,
            context=shape.context,
            in_python=not self.runtime or self.runtime.startswith(_PYTHON_RUNTIME),
            unified=self.unified(shape),
        )

    def need(self, shape: Shape) -> MemoryNeed:
        sizing = self.sizing(shape)
        if shape.gpu_layers and self.room.usable:
            sizing = replace(sizing, placement=self.placed(shape, sizing))
        return memory_need(self.facts, sizing, self.survey, correction=self.correction)

    def load(self, sizing: Sizing) -> placement.Load:
        """What a GPU would have to hold."""
        return placement.Load(
            self.facts,
            layer_kv_bytes(self.facts, sizing),
            compute_bytes(self.facts, sizing, self.survey),
        )

    def placed(self, shape: Shape, sizing: Sizing) -> Placement:
        return placement.placed(
            self.load(sizing), shape.gpu_layers, shape.cpu_experts, shared=self.room.shared
        )

    def fits_gpu(self, need: MemoryNeed) -> bool:
        """Not known how much is free: then only what the user asked for is placed there."""
        free = self.room.free_bytes
        return free is None or need.gpu_bytes <= free

    def fits(self, shape: Shape) -> bool:
        """Within what is free. Beyond a roomy context only half of the rest may be taken."""
        need = self.need(shape)
        if not self.fits_gpu(need):
            return False
        total, roomy = need.total_bytes, self.rules.roomy
        if shape.context <= roomy or self.wishes.context is not None:
            return total <= self.budget_bytes
        enough = self.need(replace(shape, context=roomy)).total_bytes
        return total <= enough + (self.budget_bytes - enough) // 2


def is_embedder(facts: ModelFacts) -> bool:
    """Whether the model turns texts into vectors or ranks, instead of writing."""
    return bool(facts.pooling) or any(word in facts.architecture for word in _ENCODERS)
