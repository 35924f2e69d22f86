"""Last words of real engines, and what they mean."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.engine.classify import classify, describe, numbers
from stoker.types import FailureKind

_LOAD = "llama_model_load: error loading model:"
SAMPLES = [
    ("gguf_init_from_file_impl: invalid magic characters: 'XXXX', expected 'GGUF'", "bad_file"),
    (f"{_LOAD} tensor 'blk.1.ffn_up.weight' data is not within the file bounds", "bad_file"),
    (f"{_LOAD} unknown model architecture: 'zzz'", "unsupported_architecture"),
    (f"{_LOAD} unknown pre-tokenizer type: 'future'", "unsupported_architecture"),
    ("alloc_buffer: failed to allocate buffer of size 99999999", "out_of_memory"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "out_of_memory"),
    ("ggml_vulkan: Device memory allocation failed: ErrorOutOfDeviceMemory", "out_of_memory"),
    ("ggml_vulkan: Device memory allocation of size 1207959552 failed.", "out_of_memory"),
    ("ggml_aligned_malloc: insufficient memory (attempted to allocate 12.5 MB)", "out_of_memory"),
    ("error: kIOGPUCommandBufferCallbackErrorOutOfMemory (00000008:…)", "out_of_memory"),
    ("/src/ggml.c:123: GGML_ASSERT(n > 0) failed", "assert"),
    ("terminate called after throwing an instance of 'std::runtime_error'", "assert"),
    ("CUDA error: no kernel image is available for execution on the device", "backend"),
]


@pytest.mark.parametrize(("line", "kind"), SAMPLES)
def test_last_words_are_understood(line: str, kind: str) -> None:
    assert classify(1, ["loading model", line, "cleaning up"]) is FailureKind(kind)


def test_the_cause_wins_over_the_consequence() -> None:
    """A failed allocation is reported as a failed load afterwards."""
    tail = ["failed to allocate buffer", "failed to load model 'x.gguf'", "GGML_ASSERT(x) failed"]

    assert classify(-6, tail) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("returncode", "kind"),
    [
        (-signal.SIGKILL, FailureKind.KILLED),
        (-signal.SIGTERM, FailureKind.KILLED),
        (-signal.SIGABRT, FailureKind.ASSERT),
        (-signal.SIGSEGV, FailureKind.CRASH),
        (-signal.SIGILL, FailureKind.BACKEND),
        (1, FailureKind.UNKNOWN),
        (None, FailureKind.UNKNOWN),
    ],
)
def test_the_exit_status_tells_when_words_do_not(returncode: int | None, kind: FailureKind) -> None:
    assert classify(returncode, ["srv  update_slots: all slots are idle"]) is kind


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("ggml_gallocr_reserve_n: failed to allocate CPU buffer of size 99999999", 99_999_999),
        ("ggml_vulkan: Device memory allocation of size 1207959552 failed.", 1_207_959_552),
        ("allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory", 4 << 30),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 12.5 MB)", 13_107_200),
        ("failed to allocate buffer of size: 77", 77),
        ("failed to allocate compute buffers", None),
        ("failed to allocate buffer of size 99999999999999999999999", None),
        ("load_tensors: CPU_Mapped model buffer size = 500.00 MiB", None),  # it got that one
    ],
)
def test_what_an_engine_did_not_get(line: str, size: int | None) -> None:
    found = numbers(FailureKind.OUT_OF_MEMORY, ["model buffer of size 12345678901", line])

    assert found == ({} if size is None else {"missing_bytes": size})


def test_the_largest_piece_counts() -> None:
    tail = [f"failed to allocate buffer of size {size}" for size in (5, 700, 30)]

    assert numbers(FailureKind.OUT_OF_MEMORY, tail) == {"missing_bytes": 700}
    assert numbers(FailureKind.CRASH, tail) == {}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("unknown model architecture: 'qwen9'", "qwen9"),
        ("unknown model architecture: '\x1b[31m'", None),
        (f"unknown model architecture: '{'x' * 99}'", None),
    ],
)
def test_an_unknown_architecture_is_named(line: str, name: str | None) -> None:
    found = numbers(FailureKind.UNSUPPORTED_ARCHITECTURE, ["loading", line])

    assert found == ({} if name is None else {"architecture": name})


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_has_a_sentence_and_a_hint(kind: FailureKind) -> None:
    text, hint = describe(kind)

    assert text.endswith(".")
    assert hint.endswith(".")


@given(st.integers() | st.none(), st.lists(st.text()))
def test_no_words_make_it_fail(returncode: int | None, tail: list[str]) -> None:
    assert classify(returncode, tail) in FailureKind
    assert all(isinstance(numbers(kind, tail), dict) for kind in FailureKind)
