"""What a worker needs in memory, by formula, from a model's facts and a few settings. Pure.

The formulas follow what llama.cpp's server allocates; tests/contract/test_engine.py compares them
with a real worker. KV is exact for plain, windowed and MLA attention. Where a file does not tell
(the size of a recurrent state, the width of a feed-forward layer) the formula leans upwards: an
estimate that is too high costs a shorter context, one that is too low costs the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stoker.store.facts import ModelFacts
from stoker.tuning.launch import MemoryNeed

MIB: Final = 1024 * 1024
CONTEXT_STEP: Final = 256  # the engine rounds contexts up to this many cells

_F16: Final = 2  # bytes; keys, values and attention masks are f16
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
# Engine code, its Python, threads and HTTP: 27 MiB anonymous + 15 MiB file-backed, measured.
_RUNTIME: Final = 44 * MIB
_PER_VOCABULARY_ENTRY: Final = 172  # bytes of the loaded tokenizer per token, measured
# Activations of one token during a decode, in f32 per element of the embedding; measured 13.0
# (SmolLM2) and 14.6 (Gemma 3). A mixture of experts keeps those of several experts at once.
_ACTIVATIONS: Final = 16
_ACTIVATIONS_MOE: Final = 32
# Logits and the sampler's candidates per slot and vocabulary entry: 4 + 12 bytes.
_PER_OUTPUT: Final = 16
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

    cells: int  # of the KV cache, shared by all slots
    parallel: int
    ubatch: int
    checkpoints: int
    extra_buffers: bool
    x86: bool
    mmproj_bytes: int = 0


def memory_need(facts: ModelFacts, sizing: Sizing) -> MemoryNeed:
    """All parts of a worker's memory; `LaunchPlan.memory`."""
    repack = repack_bytes(facts, x86=sizing.x86) if sizing.extra_buffers else 0
    return MemoryNeed(
        weights_bytes=facts.file_bytes,
        kv_bytes=kv_bytes(facts, sizing) + state_bytes(facts) * sizing.parallel,
        compute_bytes=compute_bytes(facts, sizing),
        runtime_bytes=_RUNTIME + _PER_VOCABULARY_ENTRY * facts.vocab_size,
        repack_bytes=repack,
        cache_bytes=sizing.checkpoints * sizing.parallel * checkpoint_bytes(facts),
    )


def kv_bytes(facts: ModelFacts, sizing: Sizing) -> int:
    """Keys and values of all layers, for the whole context shared by all slots."""
    if not keeps_cache(facts):
        return 0
    full_cells = _padded(sizing.cells)
    sliding_cells = min(full_cells, sliding_window_cells(facts, sizing))
    sliding = facts.sliding_layers or (False,) * len(facts.kv_heads)
    return sum(
        _cell_bytes(facts, heads) * (sliding_cells if slides else full_cells)
        for heads, slides in zip(facts.kv_heads, sliding, strict=True)
    )


def keeps_cache(facts: ModelFacts) -> bool:
    """Whether the model remembers a text token by token; encoders do not."""
    return facts.architecture not in _NO_CACHE


def sliding_window_cells(facts: ModelFacts, sizing: Sizing) -> int:
    """Cells of a windowed layer: one window per sequence, and what one batch adds."""
    return _padded((facts.sliding_window or 0) * sizing.parallel + sizing.ubatch)


def _cell_bytes(facts: ModelFacts, heads: int) -> int:
    """One token in one layer."""
    if heads == 1 and facts.mla_kv_rank is not None:
        return max(facts.key_length, facts.mla_kv_rank + _MLA_ROPE) * _F16
    return heads * (facts.key_length + facts.value_length) * _F16


def state_bytes(facts: ModelFacts) -> int:
    """The recurrent state of one sequence; it does not grow with the context."""
    if not facts.recurrent:
        return 0
    layers = sum(1 for heads in facts.kv_heads if heads == 0)
    return layers * facts.embedding_length * _STATE * _F32


def checkpoint_bytes(facts: ModelFacts) -> int:
    """One saved point to go back to: the windows and the state, but not the full layers."""
    sliding = facts.sliding_layers or ()
    windows = sum(
        _cell_bytes(facts, heads) * (facts.sliding_window or 0)
        for heads, slides in zip(facts.kv_heads, sliding, strict=False)
        if slides
    )
    return windows + state_bytes(facts)


def compute_bytes(facts: ModelFacts, sizing: Sizing) -> int:
    """Scratch space for one decode of `ubatch` tokens, and the outputs of all slots.

    The engine needs logits for one token per slot only (`n_outputs_max`); without that limit
    this would be `ubatch x vocabulary`, half a gigabyte for a large vocabulary.
    """
    width = _ACTIVATIONS_MOE if facts.expert_count else _ACTIVATIONS
    activations = width * facts.embedding_length * _F32 * sizing.ubatch
    cells = _padded(sizing.cells) if keeps_cache(facts) else sizing.ubatch
    mask = cells * sizing.ubatch * _F16
    if facts.sliding_layers and any(facts.sliding_layers):
        mask += min(cells, sliding_window_cells(facts, sizing)) * sizing.ubatch * _F16
    outputs = sizing.parallel * facts.vocab_size * _PER_OUTPUT
    projector = 0
    if sizing.mmproj_bytes:
        projector = int(sizing.mmproj_bytes * _PROJECTOR_FACTOR) + _PROJECTOR_WORK
    return activations + mask + outputs + projector


def repack_bytes(facts: ModelFacts, *, x86: bool) -> int:
    """Copies of the matrices that the engine lays out anew for this kind of CPU."""
    types = _REPACKED_X86 if x86 else _REPACKED_ARM
    return sum(size for name, size in facts.matrix_bytes if name in types)


def _padded(cells: int) -> int:
    return -(-cells // CONTEXT_STEP) * CONTEXT_STEP
