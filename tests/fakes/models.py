"""Facts of models, as their files tell them; sizes are those of real files."""

from __future__ import annotations

import dataclasses

from stoker.store.facts import ModelFacts
from stoker.types import Capability

STARTER = ModelFacts(
    architecture="llama",
    name="SmolLM2 135M Instruct",
    parameters=134_515_008,
    quantization="Q4_1",
    file_bytes=98_362_432,
    context_length=8192,
    embedding_length=576,
    block_count=30,
    vocab_size=49_152,
    kv_heads=(3,) * 30,
    key_length=64,
    value_length=64,
    sliding_window=None,
    sliding_layers=None,
    pooling=None,
    chat_template="{{ messages }}",
    capabilities=(Capability.CHAT, Capability.COMPLETION),
    recurrent=False,
    mla_kv_rank=None,
    expert_count=None,
    head_count=9,
)

# Every sixth layer sees everything, the others 512 tokens back.
GEMMA = dataclasses.replace(
    STARTER,
    architecture="gemma3",
    name="Gemma 3 270M",
    parameters=268_098_176,
    quantization="Q4_K_M",
    file_bytes=253_113_024,
    context_length=32_768,
    embedding_length=640,
    block_count=18,
    vocab_size=262_144,
    head_count=4,
    kv_heads=(1,) * 18,
    key_length=256,
    value_length=256,
    sliding_window=512,
    sliding_layers=tuple(layer % 6 < 5 for layer in range(18)),
    chat_template=None,
)

# 8 billion parameters, 128 KiB of keys and values per token.
EIGHT_B = dataclasses.replace(
    STARTER,
    name="8B",
    parameters=8_030_000_000,
    quantization="Q4_K_M",
    file_bytes=4_920_000_000,
    context_length=131_072,
    embedding_length=4096,
    block_count=32,
    vocab_size=128_256,
    head_count=32,
    kv_heads=(8,) * 32,
    key_length=128,
    value_length=128,
)

# Three of four layers are recurrent.
HYBRID = dataclasses.replace(
    EIGHT_B,
    architecture="qwen35",
    name="Hybrid 4B",
    embedding_length=2560,
    kv_heads=tuple(4 if layer % 4 == 3 else 0 for layer in range(32)),
    key_length=256,
    value_length=256,
    recurrent=True,
)

# Of 48 layers' 18 GB, 16 GB are experts.
EXPERTS = dataclasses.replace(
    EIGHT_B,
    architecture="qwen3moe",
    name="30B with 3B active",
    parameters=30_500_000_000,
    file_bytes=18_500_000_000,
    embedding_length=2048,
    block_count=48,
    vocab_size=151_936,
    kv_heads=(4,) * 48,
    expert_count=128,
    experts_used=8,
    layer_bytes=(370_000_000,) * 48,
    expert_bytes=(340_000_000,) * 48,
)

# Compressed keys and values: one head of 512 + 64.
MLA = dataclasses.replace(
    EIGHT_B,
    architecture="deepseek2",
    name="MLA",
    block_count=27,
    kv_heads=(1,) * 27,
    key_length=576,
    value_length=512,
    mla_kv_rank=512,
    expert_count=64,
)

BERT = dataclasses.replace(
    STARTER,
    architecture="bert",
    name="BERT",
    file_bytes=45_000_000,
    context_length=512,
    embedding_length=384,
    block_count=12,
    vocab_size=30_522,
    kv_heads=(12,) * 12,
    key_length=32,
    value_length=32,
    pooling=1,
    chat_template=None,
    capabilities=(Capability.EMBEDDING,),
)
