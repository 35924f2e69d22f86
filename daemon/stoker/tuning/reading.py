"""What a stored model reads from memory for each token it writes, from its file's facts. Pure."""

from __future__ import annotations

from typing import Final

from stoker.store.facts import ModelFacts
from stoker.tuning.memory import Sizing, kv_bytes, state_bytes
from stoker.tuning.speed import Reading

# Bytes per entry of the token embedding: files keep it in Q6_K to Q8_0, or in 16 bits throughout.
_EMBEDDING: Final = 1.0625
_EMBEDDING_16: Final = 2.0
_WIDE: Final = frozenset(("F16", "BF16", "F32"))


def reading(facts: ModelFacts, depth: int = 0) -> Reading:
    """For the next token after `depth` tokens of conversation."""
    idle = _idle_share(facts)
    experts = sum(facts.expert_bytes)
    layers = sum(facts.layer_bytes) - experts * idle
    output = _output_bytes(facts)
    weights = layers + output if facts.layer_bytes else float(facts.file_bytes)
    return Reading(
        weights_bytes=weights,
        kv_bytes=_conversation_bytes(facts, depth),
        experts=bool(experts) and idle > 0,
        parameters=_working_parameters(facts, layers),
    )


def _idle_share(facts: ModelFacts) -> float:
    """The part of the experts that does not work on a token."""
    if not facts.expert_count or not facts.experts_used:
        return 0.0
    return max(0.0, 1 - facts.experts_used / facts.expert_count)


def _output_bytes(facts: ModelFacts) -> float:
    """Of the matrix that turns the last layer into words: its own, or the embedding again."""
    own = sum(size for _, size in facts.matrix_bytes) - sum(facts.layer_bytes)
    if own > 0:
        return own
    width = _EMBEDDING_16 if facts.quantization in _WIDE else _EMBEDDING
    rest = facts.file_bytes - sum(facts.layer_bytes)
    return max(0.0, min(rest, facts.vocab_size * facts.embedding_length * width))


def _working_parameters(facts: ModelFacts, layers: float) -> float:
    """Of the layers; a prompt's words are looked up, and only its last one is answered."""
    total = facts.parameters - facts.vocab_size * facts.embedding_length
    stored = sum(facts.layer_bytes)
    return max(0.0, total * layers / stored) if stored else float(facts.parameters)


def _conversation_bytes(facts: ModelFacts, depth: int) -> float:
    state = state_bytes(facts)  # is read whatever the depth
    if depth <= 0:
        return state
    sizing = Sizing(cells=depth, parallel=1, ubatch=0, checkpoints=0, extra_buffers=False, x86=True)
    return state + kv_bytes(facts, sizing)
