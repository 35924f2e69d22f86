"""Facts of a model, from its header."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from stoker.errors import GgufError
from stoker.store.facts import ModelFacts, model_facts
from stoker.store.gguf import read_header
from stoker.types import Capability
from tests.fakes.gguf_files import (
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    Gguf,
    Tensor,
    array,
    scalar,
    tiny,
    tiny_mmproj,
    tiny_shards,
)


def facts_of(made: Gguf) -> ModelFacts:
    data = made.build()
    return model_facts(read_header(io.BytesIO(data), len(data)), len(data))


def layers(made: Gguf, *names: str) -> None:
    """Give layer i the tensor ``names[i]`` and nothing else."""
    made.tensors = [
        made.tensors[0],
        *(Tensor(f"blk.{number}.{name}", (32,)) for number, name in enumerate(names)),
    ]


def test_the_starter(starter_gguf: Path) -> None:
    with starter_gguf.open("rb") as stream:
        header = read_header(stream, starter_gguf.stat().st_size)

    facts = model_facts(header, starter_gguf.stat().st_size)

    assert (facts.architecture, facts.quantization) == ("llama", "Q4_1")
    assert facts.parameters == 134_515_008
    assert (facts.context_length, facts.embedding_length, facts.vocab_size) == (8192, 576, 49_152)
    assert facts.kv_heads == (3,) * 30
    assert (facts.key_length, facts.value_length) == (64, 64)
    assert facts.capabilities == (Capability.CHAT, Capability.COMPLETION)
    assert facts.sliding_window is None
    assert not facts.recurrent


@pytest.mark.parametrize(
    ("architecture", "pooling", "template", "expected"),
    [
        ("llama", None, "x", (Capability.CHAT, Capability.COMPLETION)),
        ("llama", 0, "x", (Capability.CHAT, Capability.COMPLETION)),
        ("llama", None, None, (Capability.COMPLETION,)),
        ("qwen3", 3, "x", (Capability.EMBEDDING,)),
        ("qwen3", 4, "x", (Capability.RERANK,)),
        ("bert", None, None, (Capability.EMBEDDING,)),
    ],
)
def test_what_a_model_can_do(
    architecture: str,
    pooling: int | None,
    template: str | None,
    expected: tuple[Capability, ...],
) -> None:
    made = tiny(architecture=architecture, pooling=pooling, template=template)

    assert facts_of(made).capabilities == expected


def test_key_and_value_lengths_may_differ_from_the_embedding() -> None:
    made = tiny()
    made.kv["llama.attention.key_length"] = scalar(U32, 256)
    made.kv["llama.attention.value_length"] = scalar(U32, 128)

    facts = facts_of(made)

    assert (facts.key_length, facts.value_length) == (256, 128)


def test_heads_per_layer_are_kept_as_they_are() -> None:
    made = tiny(blocks=3)
    made.kv["llama.attention.head_count_kv"] = array(I32, [4, 0, 2])

    assert facts_of(made).kv_heads == (4, 0, 2)


def test_without_key_value_heads_every_head_has_its_own() -> None:
    made = tiny()
    del made.kv["llama.attention.head_count_kv"]

    assert facts_of(made).kv_heads == (4, 4)


def test_layers_that_share_keys_and_values_keep_none() -> None:
    made = tiny(architecture="gemma3n", blocks=4)
    made.kv["gemma3n.attention.shared_kv_layers"] = scalar(U32, 3)

    assert facts_of(made).kv_heads == (2, 0, 0, 0)


def test_a_hybrid_keeps_keys_and_values_in_its_attention_layers_only() -> None:
    made = tiny(architecture="qwen3next", blocks=4)
    layers(made, "ssm_a", "attn_k.weight", "shortconv.conv.weight", "attn_qkv.weight")

    facts = facts_of(made)

    assert facts.recurrent
    assert facts.kv_heads == (0, 2, 0, 2)


def test_a_linear_layer_with_a_fused_tensor_is_not_attention() -> None:
    made = tiny(architecture="qwen35", blocks=1)
    layers(made, "ssm_a")
    made.tensors.append(Tensor("blk.0.attn_qkv.weight", (32,)))

    assert facts_of(made).kv_heads == (0,)


def test_a_purely_recurrent_model_keeps_none() -> None:
    made = tiny(architecture="rwkv7")
    layers(made, "time_mix_w1.weight", "time_mix_w1.weight")

    facts = facts_of(made)

    assert facts.recurrent
    assert facts.kv_heads == (0, 0)


def test_a_latent_cache_is_told_by_its_rank() -> None:
    made = tiny(architecture="deepseek2")
    made.kv["deepseek2.attention.kv_lora_rank"] = scalar(U32, 512)
    made.kv["deepseek2.expert_count"] = scalar(U32, 64)

    facts = facts_of(made)

    assert facts.mla_kv_rank == 512
    assert facts.expert_count == 64


@pytest.mark.parametrize(
    ("architecture", "pattern", "expected"),
    [
        ("gemma3", None, (True, True, True, True, True, False, True)),
        ("gemma2", None, (True, False, True, False, True, False, True)),
        ("other", None, None),
        ("other", scalar(U32, 3), (True, True, False, True, True, False, True)),
        ("other", scalar(U32, 0), None),
        ("other", array(BOOL, [True] * 6 + [False]), (True,) * 6 + (False,)),
        ("other", array(BOOL, [True, False]), None),
    ],
)
def test_which_layers_slide(
    architecture: str, pattern: bytes | None, expected: tuple[bool, ...] | None
) -> None:
    made = tiny(architecture=architecture, blocks=7)
    made.kv[f"{architecture}.attention.sliding_window"] = scalar(U32, 512)
    if pattern is not None:
        made.kv[f"{architecture}.attention.sliding_window_pattern"] = pattern

    facts = facts_of(made)

    assert facts.sliding_window == 512
    assert facts.sliding_layers == expected


def test_without_a_window_no_layer_slides() -> None:
    facts = facts_of(tiny(architecture="gemma3"))

    assert facts.sliding_window is None
    assert facts.sliding_layers is None


def test_an_unknown_file_type_falls_back_to_the_most_of_the_bytes() -> None:
    made = tiny()
    made.kv["general.file_type"] = scalar(U32, 999)

    assert facts_of(made).quantization == "Q4_0"


def test_a_guessed_file_type_counts() -> None:
    made = tiny()
    made.kv["general.file_type"] = scalar(U32, 1024 + 15)

    assert facts_of(made).quantization == "Q4_K_M"


def test_without_tokens_the_declared_vocabulary_counts() -> None:
    made = tiny()
    for key in ("tokens", "scores", "token_type"):
        del made.kv[f"tokenizer.ggml.{key}"]
    made.kv["llama.vocab_size"] = scalar(U32, 77)

    assert facts_of(made).vocab_size == 77


def test_the_size_of_each_layer_and_its_experts_are_counted_apart() -> None:
    made = tiny(architecture="qwen3moe", blocks=3)
    made.kv["qwen3moe.expert_count"] = scalar(U32, 8)
    made.kv["qwen3moe.expert_used_count"] = scalar(U32, 2)
    names = ("attn_k.weight", "ffn_up_exps.weight", "ffn_down_chexps.weight")
    layers(made, *names)
    made.tensors += [
        Tensor("blk.1.ffn_gate_inp.weight", (64,)),  # chooses the experts, and is none
        Tensor("blk.2.ffn_up_shexp.weight", (64,)),  # works on every token
    ]

    facts = facts_of(made)

    assert facts.layer_bytes == (32 * 4, 96 * 4, 96 * 4)
    assert facts.expert_bytes == (0, 32 * 4, 32 * 4)
    assert (facts.expert_count, facts.experts_used) == (8, 2)
    assert facts.head_count > 0


def test_shards_count_together() -> None:
    headers = [read_header(io.BytesIO(data), len(data)) for _, data in tiny_shards(3)]

    facts = model_facts(headers[0], 1000, headers[1:])

    assert facts.parameters == facts_of(tiny()).parameters
    assert facts.file_bytes == 1000


def test_what_is_not_a_model_has_no_facts() -> None:
    projector = tiny_mmproj()
    shard = tiny_shards(2)[1][1]
    adapter = tiny()
    adapter.kv["general.type"] = scalar(STRING, "adapter")

    for data in (projector, shard, adapter.build()):
        header = read_header(io.BytesIO(data), len(data))
        with pytest.raises(GgufError, match="not a model"):
            model_facts(header, len(data))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_list_of_floats_is_no_list_of_layers(number: float) -> None:
    """What is no number at all in a file of a stranger is passed over, not tripped over."""
    made = tiny()
    made.kv["llama.attention.sliding_window"] = scalar(U32, 4)
    made.kv["llama.attention.sliding_window_pattern"] = array(F32, [number, number])

    assert facts_of(made).sliding_layers is None
