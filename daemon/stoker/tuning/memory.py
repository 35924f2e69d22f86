"""What a worker needs in memory, from a model's facts and a few settings. Pure.

The engine's own dry run (`Survey`) is the best source for its caches and its scratch space;
`tuning.surveys` reads it. Where there is none, formulas follow what llama.cpp's server allocates.
KV is exact for plain, windowed and MLA attention. Where a file does not tell (the size of a
recurrent state, the width of a feed-forward layer) a formula leans upwards: an estimate that is
too high costs a shorter context, one that is too low costs the process. Everything is calibrated
against the peak memory of real workers whose whole context was in use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from stoker.store.facts import ModelFacts
from stoker.tuning.launch import KvType, MemoryNeed, Survey
from stoker.tuning.placement import NOWHERE, Placement
from stoker.tuning.surveys import dry_compute_bytes, dry_kv_bytes

MIB: Final = 1024 * 1024
CONTEXT_STEP: Final = 256  # the engine rounds contexts up to this many cells

# Bytes of one element of keys or values; the quantised types come in blocks of 32.
KV_ELEMENT_BYTES: Final[dict[KvType, float]] = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
KV_BLOCK: Final = 32  # elements; a head of another length cannot be quantised

_F16: Final = 2  # bytes; attention masks of flash attention are f16
_F32: Final = 4
_MLA_ROPE: Final = 64  # elements beside the compressed vector, in every MLA model so far
_NO_CACHE: Final = frozenset(  # encoders: they see a whole text at once and keep no KV
    (
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    )
)
# Engine code, threads and HTTP, with what is mapped of the libraries: measured.
_RUNTIME: Final = 37 * MIB
_PYTHON: Final = 14 * MIB  # the built-in runtime's server lives in a Python process; measured
_PER_VOCABULARY_ENTRY: Final = 172  # bytes of the loaded tokenizer per token, measured
# Activations of one token during a decode, in f32 per element of the embedding; measured 13.0
# (SmolLM2) and 14.6 (Gemma 3). A mixture of experts keeps those of several experts at once.
_ACTIVATIONS: Final = 16
_ACTIVATIONS_MOE: Final = 32
# The same while attention scores stand beside them, without flash attention; measured 5.7 and 7.8.
_ACTIVATIONS_BESIDE: Final = 9
# For each slot and vocabulary entry: the logits, and the sampler's candidates.
_PER_LOGIT: Final = 4
_PER_CANDIDATE: Final = 12
# Attention heads for each embedding element where a file does not tell how many it has.
_HEAD_LENGTH: Final = 64
# A recurrent layer's state per sequence, in f32 per element of the embedding: an inner width of
# 2x the embedding and 128 state entries each. Real ones: 0.85x (Qwen3.5) to 1x (Mamba 2).
_STATE: Final = 256
# A projector is not mapped but copied, and works on its own buffers.
_PROJECTOR_FACTOR: Final = 1.1
_PROJECTOR_WORK: Final = 256 * MIB

# Types whose matrices the engine copies into an interleaved layout at load.
_REPACKED_X86: Final = frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"))
_REPACKED_ARM: Final = frozenset((*_REPACKED_X86, "Q5_K", "Q6_K", "Q8_0"))


@dataclass(frozen=True, slots=True)
class Sizing:
    """The settings that decide how much memory a worker needs."""

    cells: int  # of the KV cache, of all slots together
    parallel: int
    ubatch: int
    checkpoints: int
    extra_buffers: bool
    x86: bool
    mmproj_bytes: int = 0
    flash_attention: bool = True
    kv_type: KvType = "f16"
    prompt_cache_bytes: int = 0  # the limit that the engine is given
    context: int = 0  # of one slot; bounds what is saved of it. 0: not known
    in_python: bool = True  # the built-in runtime
    placement: Placement = NOWHERE  # what is on a GPU instead of in memory
    unified: bool = True  # all slots in one cache; False: each in an equal part of its own

    @property
    def reachable(self) -> int:
        """Cells that one slot may attend to."""
        return self.cells if self.unified else self.cells // self.parallel


def memory_need(
    facts: ModelFacts, sizing: Sizing, survey: Survey | None = None, *, correction: float = 1.0
) -> MemoryNeed:
    """All parts of a worker's memory; `LaunchPlan.memory`.

    ``survey`` must be of this model and of the runtime that will load it; ``correction`` is what
    was learnt of both (`MemoryNeed`). Weights are mapped from a file of known size: not corrected.
    """
    away = sizing.placement
    kv = layer_kv_bytes(facts, sizing)
    held = sum(kv) if not away.layers else sum(kv[: len(kv) - min(away.blocks, len(kv))])
    state = state_bytes(facts) * sizing.parallel
    if survey is not None and not away.layers:
        held, state = _dry_kv_bytes(facts, sizing, survey), 0
    weights = facts.file_bytes if survey is None else survey.weights_bytes
    return MemoryNeed(
        weights_bytes=max(0, weights - away.weights_bytes),
        kv_bytes=held + state,
        compute_bytes=compute_bytes(facts, sizing, survey),
        runtime_bytes=runtime_bytes(facts, sizing),
        repack_bytes=_repacked(facts, sizing, survey),
        cache_bytes=_checkpoints(facts, sizing) + _prompt_cache(facts, sizing),
        gpu_bytes=away.gpu_bytes,
        surveyed=survey is not None,
        correction=correction,
    )


# --- what a conversation takes -----------------------------------------------------------------


def kv_bytes(facts: ModelFacts, sizing: Sizing) -> int:
    """Keys and values of all layers, of all slots together."""
    return sum(layer_kv_bytes(facts, sizing))


def layer_kv_bytes(facts: ModelFacts, sizing: Sizing) -> tuple[int, ...]:
    """The same for each layer, wherever it is computed; () for a model that keeps none."""
    if not keeps_cache(facts):
        return ()
    caches = 1 if sizing.unified else sizing.parallel
    full_cells = _padded(sizing.reachable)
    sliding_cells = min(full_cells, sliding_window_cells(facts, sizing))
    sliding = facts.sliding_layers or (False,) * len(facts.kv_heads)
    return tuple(
        _cell_bytes(facts, heads, sizing.kv_type)
        * (sliding_cells if slides else full_cells)
        * caches
        for heads, slides in zip(facts.kv_heads, sliding, strict=True)
    )


def _dry_kv_bytes(facts: ModelFacts, sizing: Sizing, survey: Survey) -> int:
    """By the dry runs, with the recurrent state.

    They are of one cache for all slots; what several take beyond it, the formula tells.
    """
    shared = replace(sizing, unified=True)
    together = kv_bytes(facts, shared)
    state = state_bytes(facts) * sizing.parallel
    found = dry_kv_bytes(survey, shared, formula=together + state, facts=facts)
    return found + kv_bytes(facts, sizing) - together


def keeps_cache(facts: ModelFacts) -> bool:
    """Whether the model remembers a text token by token; encoders do not."""
    return facts.architecture not in _NO_CACHE


def quantizes_cache(facts: ModelFacts) -> bool:
    """Whether its keys and values have a shape that the engine can store quantised."""
    lengths = (facts.key_length, facts.value_length)
    return keeps_cache(facts) and all(length % KV_BLOCK == 0 for length in lengths)


def sliding_window_cells(facts: ModelFacts, sizing: Sizing) -> int:
    """Cells of a windowed layer in one cache: a window per sequence, and what one batch adds."""
    sequences = sizing.parallel if sizing.unified else 1
    return _padded((facts.sliding_window or 0) * sequences + sizing.ubatch)


def _cell_bytes(facts: ModelFacts, heads: int, kv_type: KvType) -> int:
    """One token in one layer."""
    elements = heads * (facts.key_length + facts.value_length)
    if heads == 1 and facts.mla_kv_rank is not None:
        elements = max(facts.key_length, facts.mla_kv_rank + _MLA_ROPE)
    return int(elements * KV_ELEMENT_BYTES[kv_type])


def state_bytes(facts: ModelFacts) -> int:
    """The recurrent state of one sequence; it does not grow with the context."""
    if not facts.recurrent:
        return 0
    layers = sum(1 for heads in facts.kv_heads if heads == 0)
    return layers * facts.embedding_length * _STATE * _F32


def checkpoint_bytes(facts: ModelFacts, kv_type: KvType = "f16", context: int = 0) -> int:
    """One saved point to go back to: the windows and the state, but not the full layers.

    A ``context`` shorter than the window fills only a part of it; 0 fills it.
    """
    sliding = facts.sliding_layers or ()
    window = facts.sliding_window or 0
    cells = min(window, context) if context else window
    windows = sum(
        _cell_bytes(facts, heads, kv_type) * cells
        for heads, slides in zip(facts.kv_heads, sliding, strict=False)
        if slides
    )
    return windows + state_bytes(facts)


def _checkpoints(facts: ModelFacts, sizing: Sizing) -> int:
    one = checkpoint_bytes(facts, sizing.kv_type, sizing.context)
    return sizing.checkpoints * sizing.parallel * one


def _prompt_cache(facts: ModelFacts, sizing: Sizing) -> int:
    """Its limit, and one conversation more: the engine saves before it drops."""
    if not sizing.prompt_cache_bytes or not keeps_cache(facts):
        return 0
    one = Sizing(
        cells=sizing.context or sizing.cells,
        parallel=1,
        ubatch=0,
        checkpoints=0,
        extra_buffers=False,
        x86=True,
        kv_type=sizing.kv_type,
    )
    return sizing.prompt_cache_bytes + kv_bytes(facts, one) + state_bytes(facts)


# --- what computing takes ----------------------------------------------------------------------


def compute_bytes(facts: ModelFacts, sizing: Sizing, survey: Survey | None = None) -> int:
    """Scratch space for one decode of `ubatch` tokens, and the outputs of all slots.

    The engine needs logits for one token per slot only (`n_outputs_max`); without that limit
    this would be `ubatch x vocabulary`, half a gigabyte for a large vocabulary.
    """
    outputs = sizing.parallel * facts.vocab_size
    scratch = scratch_bytes(facts, sizing) + outputs * _PER_LOGIT
    if survey is not None:
        shared = replace(sizing, cells=sizing.reachable, unified=True)
        scratch = dry_compute_bytes(survey, shared, formula=scratch)
    projector = 0
    if sizing.mmproj_bytes:
        projector = int(sizing.mmproj_bytes * _PROJECTOR_FACTOR) + _PROJECTOR_WORK
    return scratch + work_bytes(facts, sizing) + outputs * _PER_CANDIDATE + projector


def scratch_bytes(facts: ModelFacts, sizing: Sizing) -> int:
    """What the engine calls its compute buffer, by formula. The outputs are not part of it."""
    width = _ACTIVATIONS_MOE if facts.expert_count else _ACTIVATIONS
    token = facts.embedding_length * _F32 * sizing.ubatch
    logits = sizing.parallel * facts.vocab_size * _PER_LOGIT  # with many slots they are the most
    steps = max(width * token, logits + width * token // 4)
    cells = _attended(facts, sizing)
    slides = any(facts.sliding_layers or ())
    masks = cells + (min(cells, sliding_window_cells(facts, sizing)) if slides else 0)
    if sizing.flash_attention:
        return steps + masks * sizing.ubatch * _F16
    # Without it the scores of every head against every cell stand in memory at once.
    scores = heads(facts) * cells * sizing.ubatch * _F32
    beside = _ACTIVATIONS_BESIDE * width // _ACTIVATIONS
    return max(steps, beside * token + scores) + masks * sizing.ubatch * _F32


def work_bytes(facts: ModelFacts, sizing: Sizing) -> int:
    """What no dry run tells: without flash attention the scores are copied once more, as f16."""
    if sizing.flash_attention:
        return 0
    return heads(facts) * _attended(facts, sizing) * sizing.ubatch * _F16


def _attended(facts: ModelFacts, sizing: Sizing) -> int:
    return _padded(sizing.reachable) if keeps_cache(facts) else sizing.ubatch


def heads(facts: ModelFacts) -> int:
    """Attention heads of a layer; guessed upwards where the file does not tell."""
    return facts.head_count or max(1, facts.embedding_length // _HEAD_LENGTH)


def runtime_bytes(facts: ModelFacts, sizing: Sizing) -> int:
    """The engine itself and its tokenizer."""
    python = _PYTHON if sizing.in_python else 0
    return _RUNTIME + python + _PER_VOCABULARY_ENTRY * facts.vocab_size


def repack_bytes(facts: ModelFacts, *, x86: bool) -> int:
    """Copies of the matrices that the engine lays out anew for this kind of CPU."""
    types = _REPACKED_X86 if x86 else _REPACKED_ARM
    return sum(size for name, size in facts.matrix_bytes if name in types)


def _repacked(facts: ModelFacts, sizing: Sizing, survey: Survey | None) -> int:
    if not sizing.extra_buffers:
        return 0
    whole = repack_bytes(facts, x86=sizing.x86) if survey is None else survey.repack_bytes
    away = sizing.placement.weights_bytes / max(1, facts.file_bytes)
    return int(whole * max(0.0, 1 - away))


def _padded(cells: int) -> int:
    return -(-cells // CONTEXT_STEP) * CONTEXT_STEP
