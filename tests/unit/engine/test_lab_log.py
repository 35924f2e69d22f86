"""What is read from llama.cpp's log: lines as both pinned libraries write them."""

from __future__ import annotations

from stoker.engine.llama_log import context_log, copies, fit_weights, model_buffers

MIB = 1024 * 1024

PLAIN = """\
llama_context: n_seq_max             = 4
llama_context: n_ctx                 = 8192
llama_context: causal_attn           = 1
llama_context: flash_attn            = enabled
llama_context: n_outputs_max_per_seq = 1
llama_context:        CPU  output buffer size =     0.75 MiB
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =  180.00 MiB (  8192 cells,  30 layers,  4/1 seqs), K (f16):   90.00 MiB, V (f16):   90.00 MiB
llama_kv_cache: n_rot_k = 0, n_embd_head_k_all = 64
sched_reserve: reserving ...
sched_reserve:        CPU compute buffer size =    21.50 MiB
sched_reserve: graph: nodes = 936, splits = 1, input objects = 4, input tensors = 6
"""  # noqa: E501  # as the engine writes it
WINDOWED = """\
llama_kv_cache_iswa: creating non-SWA KV cache, size = 8192 cells
llama_kv_cache: size =   24.00 MiB (  8192 cells,   3 layers,  4/1 seqs), K (f16):   12.00 MiB, V (f16):   12.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 2560 cells
llama_kv_cache: size =   37.50 MiB (  2560 cells,  15 layers,  4/1 seqs), K (f16):   18.75 MiB, V (f16):   18.75 MiB
"""  # noqa: E501  # as the engine writes it
HYBRID = """\
llama_kv_cache: size =   24.00 MiB (  8192 cells,   6 layers,  4/1 seqs), K (q8_0):   12.00 MiB, V (q8_0):   12.00 MiB
llama_memory_recurrent:        CPU RS buffer size =    50.25 MiB
llama_memory_recurrent: size =   50.25 MiB (     4 cells,  24 layers,  4 seqs  0 rs_seq), R (f32):    2.25 MiB, S (f32):   48.00 MiB, P (f32):    0.00 MiB
"""  # noqa: E501  # as the engine writes it


def test_compute_is_scratch_and_outputs_and_the_cache_has_its_own_line() -> None:
    found = context_log(PLAIN)

    assert found.compute_bytes == int(22.25 * MIB)
    assert found.kv_bytes == 180 * MIB
    assert found.kv_types == {"f16"}
    assert found.echo["n_ctx"] == "8192"
    assert found.echo["flash_attn"] == "enabled"
    assert not found.full_windows


def test_windows_and_full_layers_add_up() -> None:
    assert context_log(WINDOWED).kv_bytes == int(61.5 * MIB)


def test_a_recurrent_state_counts_once_with_the_cache() -> None:
    found = context_log(HYBRID)

    assert found.kv_bytes == int(74.25 * MIB)
    assert found.kv_types == {"q8_0"}


def test_a_log_that_says_nothing_of_a_cache_is_not_a_cache_of_nothing() -> None:
    assert context_log("sched_reserve: CPU compute buffer size = 1.00 MiB\n").kv_bytes is None


def test_buffers_of_a_card_with_its_own_memory_do_not_count() -> None:
    text = (
        "sched_reserve:      CUDA0 compute buffer size =   100.00 MiB\n"
        "sched_reserve:  CUDA_Host compute buffer size =    10.00 MiB\n"
    )

    assert context_log(text, frozenset({"CUDA0"})).compute_bytes == 10 * MIB
    assert context_log(text).compute_bytes == 110 * MIB


def test_fractions_round_up() -> None:
    found = context_log("sched_reserve: CPU compute buffer size = 0.01 MiB\n")

    assert found.compute_bytes == 10486


def test_a_full_window_is_noticed() -> None:
    assert context_log("llama_kv_cache_iswa: using full-size SWA cache (ref: …)\n").full_windows


def test_copies_are_what_is_not_in_the_files_own_layout() -> None:
    found = model_buffers(
        "load_tensors:   CPU_Mapped model buffer size =   200.00 MiB\n"
        "load_tensors:   CPU_Mapped model buffer size =    35.00 MiB\n"
        "load_tensors:   CPU_REPACK model buffer size =    12.00 MiB\n"
        "load_tensors:          AMX model buffer size =     4.00 MiB\n"
        "load_tensors:          CPU model buffer size =     1.00 MiB\n"
    )

    assert found["CPU_Mapped"] == 235 * MIB
    assert copies(found) == 16 * MIB


def test_the_engines_helper_must_answer_in_one_line() -> None:
    assert fit_weights("Host 222 61 28 \n") == 222 * MIB
    assert fit_weights("CUDA0 1 2 3 \nHost 222 61 28 \n") == 222 * MIB
    assert fit_weights("") is None
    assert fit_weights("Host 1 2 3\nHost 1 2 3\n") is None
    assert fit_weights("Host 1 2\n") is None
