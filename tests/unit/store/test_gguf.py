"""The GGUF reader: sound files pass, everything else is a GgufError with the right reason."""

from __future__ import annotations

import io
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import GgufError
from stoker.store import gguf, gguf_checks
from stoker.store.gguf import GgufHeader, read_header
from tests.fakes.gguf_files import (
    ARRAY,
    BOOL,
    CHAT_TEMPLATE,
    F32,
    I32,
    STRING,
    U8,
    U16,
    U32,
    Tensor,
    array,
    hostile_ggufs,
    scalar,
    string,
    tiny,
    tiny_gguf,
    tiny_mmproj,
    tiny_shards,
)

HOSTILE = hostile_ggufs()
GOOD = tiny_gguf()


def read(data: bytes) -> GgufHeader:
    return read_header(io.BytesIO(data), len(data))


@pytest.mark.parametrize("version", [2, 3])
def test_sound_files_of_both_versions_pass(version: int) -> None:
    header = read(tiny_gguf(version=version))

    assert header.version == version
    assert header.architecture == "llama"
    assert header.warnings == ()
    assert header.templates == {"tokenizer.chat_template": CHAT_TEMPLATE}


def test_there_are_enough_hostile_files() -> None:
    assert len(HOSTILE) >= 45


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(GgufError) as caught:
        read(HOSTILE[name].data)

    assert HOSTILE[name].reason in caught.value.message


def test_refusing_hostile_files_takes_little_memory_and_time() -> None:
    """No declared count or length is ever allocated."""
    streams = [(io.BytesIO(hostile.data), len(hostile.data)) for hostile in HOSTILE.values()]

    tracemalloc.start()
    started = time.monotonic()
    for stream, size in streams:
        with pytest.raises(GgufError):
            read_header(stream, size)
    elapsed_s = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 16 << 20
    assert elapsed_s < 20


@given(st.binary(max_size=600))
def test_any_bytes_give_a_header_or_a_gguf_error(data: bytes) -> None:
    for candidate in (data, GOOD[:24] + data):
        with suppress(GgufError):
            assert read(candidate).version in {2, 3}


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(GOOD)),
)
def test_a_mangled_file_gives_a_header_or_a_gguf_error(
    changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value

    for candidate in (bytes(data), bytes(data[:length])):
        try:
            header = read(candidate)
        except GgufError:
            continue
        assert header.data_offset <= len(candidate)


def test_a_stream_shorter_than_its_size_is_refused() -> None:
    with pytest.raises(GgufError, match="ends"):
        read_header(io.BytesIO(GOOD[:500]), len(GOOD))


def test_a_stream_that_gives_little_at_a_time_is_read_whole() -> None:
    class Drip(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    assert read_header(Drip(GOOD), len(GOOD)).architecture == "llama"


def test_a_large_vocabulary_is_passed_over_in_little_time_and_memory() -> None:
    """152 000 tokens and their merges: below 0.3 s and without making the strings."""
    made = tiny(vocabulary=8)
    tokens: list[object] = [f"token{number}" for number in range(152_000)]
    made.kv["tokenizer.ggml.tokens"] = array(STRING, tokens)
    made.kv["tokenizer.ggml.merges"] = array(STRING, tokens)
    made.kv["tokenizer.ggml.scores"] = array(F32, [0.0] * len(tokens))
    made.kv["tokenizer.ggml.token_type"] = array(I32, [1] * len(tokens))
    data = made.build()
    stream = io.BytesIO(data)

    took_s = []
    for _ in range(3):  # the best: what a hypervisor steals counts as ours
        started = time.thread_time()
        header = read_header(stream, len(data))
        took_s.append(time.thread_time() - started)
    tracemalloc.start()
    read_header(stream, len(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert header.count("tokenizer.ggml.tokens") == 152_000
    assert min(took_s) < 0.3
    assert peak < 2 << 20


def test_strings_longer_than_the_buffer_are_passed_over() -> None:
    made = tiny()
    made.kv["x.long"] = array(STRING, ["a" * 900_000, "b", "c" * 900_000, ""])
    made.kv["x.after"] = scalar(U8, 7)

    assert read(made.build()).integer("x.after") == 7


def test_odd_but_harmless_things_are_warnings() -> None:
    made = tiny()
    made.trailing = b"PK\x03\x04" + bytes(100)
    made.kv["k" * 300] = scalar(U8, 1)
    made.kv["tokenizer.ggml.padding_token_id"] = scalar(U32, 2**32 - 1)

    warnings = " ".join(read(made.build()).warnings)

    assert "follow the last tensor" in warnings
    assert "300 characters" in warnings
    assert "padding_token_id" in warnings


def test_the_padding_behind_the_last_tensor_may_be_missing() -> None:
    made = tiny()
    made.tensors.append(Tensor("output_norm.weight", (3,)))
    data = made.build()

    assert read(data[:-20]).warnings == ()
    with pytest.raises(GgufError, match="past the end"):
        read(data[:-21])


def test_another_alignment_is_followed() -> None:
    made = tiny()
    made.alignment = 4096
    made.kv["general.alignment"] = scalar(U32, 4096)

    header = read(made.build())

    assert header.alignment == 4096
    assert header.data_offset % 4096 == 0


def test_short_lists_are_kept_and_long_ones_are_not() -> None:
    made = tiny()
    made.kv["x.short"] = array(U16, [1, 2, 3])
    made.kv["x.flags"] = array(BOOL, [True, False])
    made.kv["x.long"] = array(U8, [0] * 5000)

    header = read(made.build())

    assert header.numbers("x.short") == (1, 2, 3)
    assert header.numbers("x.flags") == (1, 0)
    assert header.numbers("x.long") is None
    assert header.count("x.long") == 5000


def test_values_that_stay_in_memory_are_bounded_together() -> None:
    made = tiny()
    for number in range(9):
        made.kv[f"x.text{number}"] = scalar(STRING, "x" * 1_000_000)

    with pytest.raises(GgufError, match="of values"):
        read(made.build())


def test_strings_in_lists_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_STRINGS", 100)
    made = tiny()
    made.kv["x.more"] = array(STRING, ["a"] * 37)

    with pytest.raises(GgufError, match="more than 100 strings"):
        read(made.build())


def test_the_metadata_is_bounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_METADATA_BYTES", 500)

    with pytest.raises(GgufError, match="longer than 500"):
        read(GOOD)


def test_an_empty_list_is_sound() -> None:
    made = tiny()
    made.kv["general.tags"] = array(STRING, [])

    assert read(made.build()).count("general.tags") == 0


def test_heads_of_zero_are_sound_where_layers_have_no_attention() -> None:
    made = tiny(architecture="mamba")
    made.kv["mamba.attention.head_count"] = scalar(U32, 0)
    made.kv["mamba.attention.head_count_kv"] = scalar(U32, 0)
    made.tensors = [made.tensors[0], Tensor("blk.0.ssm_a", (32,)), Tensor("blk.1.ssm_a", (32,))]

    assert read(made.build()).recurrent


def test_a_projector_needs_no_numbers_of_a_language_model() -> None:
    assert read(tiny_mmproj()).architecture == "clip"


def test_a_template_may_be_a_list_of_names_beside_named_ones() -> None:
    made = tiny()
    made.kv["tokenizer.chat_templates"] = array(STRING, ["tool_use"])
    made.kv["tokenizer.chat_template.tool_use"] = scalar(STRING, "x")

    assert read(made.build()).templates["tokenizer.chat_template.tool_use"] == "x"


def test_the_starter_passes_without_a_warning(starter_gguf: Path) -> None:
    with starter_gguf.open("rb") as stream:
        header = read_header(stream, starter_gguf.stat().st_size)

    assert header.warnings == ()
    assert len(header.tensors) == 272
    assert header.count("tokenizer.ggml.tokens") == 49_152


# --- split models ---------------------------------------------------------------------------


def read_all(shards: list[tuple[str, bytes]]) -> list[GgufHeader]:
    return [read(data) for _, data in shards]


def test_the_shards_of_a_split_model_belong_together() -> None:
    shards = tiny_shards(3)

    gguf_checks.check_shards([name for name, _ in shards], read_all(shards))


def test_a_further_shard_has_no_architecture() -> None:
    assert read_all(tiny_shards(2))[1].architecture is None


def test_a_first_shard_may_have_no_tensors() -> None:
    made = tiny()
    made.tensors = []
    made.kv["split.no"] = scalar(U16, 0)
    made.kv["split.count"] = scalar(U16, 2)

    assert read(made.build()).tensors == ()


@pytest.mark.parametrize(
    ("names", "order", "reason"),
    [
        (["a-00001-of-00002.gguf", "a.gguf"], [0, 1], "not the name of shard 2"),
        (["a-00001-of-00002.gguf", "a-00001-of-00002.gguf"], [0, 1], "not the name of shard 2"),
        (["a-00001-of-00003.gguf", "a-00002-of-00003.gguf"], [0, 1], "not the name of shard 1"),
        (["a-00001-of-00002.gguf", "b-00002-of-00002.gguf"], [0, 1], "another set"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], [1, 0], "another shard"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], [0, 0], "another shard"),
    ],
)
def test_shards_that_do_not_fit_are_refused(
    names: list[str], order: list[int], reason: str
) -> None:
    headers = read_all(tiny_shards(2))

    with pytest.raises(GgufError, match=reason):
        gguf_checks.check_shards(names, [headers[number] for number in order])


def test_shards_that_lack_tensors_are_refused() -> None:
    whole, other = tiny_shards(2), tiny_shards(2, blocks=1)
    names = [name for name, _ in whole]

    with pytest.raises(GgufError, match="declare"):
        gguf_checks.check_shards(names, [read(whole[0][1]), read(other[1][1])])


def test_a_tensor_in_two_shards_is_refused() -> None:
    shards = []
    for number in range(2):
        made = tiny(blocks=1)
        made.kv["split.no"] = scalar(U16, number)
        made.kv["split.count"] = scalar(U16, 2)
        made.kv["split.tensors.count"] = scalar(I32, 2 * len(made.tensors))
        shards.append(read(made.build()))

    with pytest.raises(GgufError, match="in two shards"):
        gguf_checks.check_shards(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], shards)


# --- the reference implementation as oracle --------------------------------------------------


def test_the_reference_reader_sees_the_same_in_our_files(tmp_path: Path) -> None:
    reference = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(GOOD)

    theirs = reference.GGUFReader(path)
    ours = read(GOOD)

    own_keys = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    assert set(theirs.fields) - own_keys == set(ours.metadata)
    assert [t.name for t in theirs.tensors] == [t.name for t in ours.tensors]
    assert [int(t.data_offset) for t in theirs.tensors] == [
        ours.data_offset + t.offset for t in ours.tensors
    ]
    assert [int(t.n_bytes) for t in theirs.tensors] == [t.size for t in ours.tensors]


def test_our_reader_takes_what_the_reference_writes(tmp_path: Path) -> None:
    reference = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "written.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv([2])
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_scores([0.0, 0.5, 1.0])
    writer.add_token_types([1, 1, 1])
    writer.add_chat_template(
        [{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}]
    )
    writer.add_tensor("token_embd.weight", numpy.zeros((3, 32), dtype=numpy.float32))
    writer.add_tensor("blk.0.attn_q.weight", numpy.zeros((32, 32), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size)

    assert header.integer("llama.context_length") == 4096
    assert header.numbers("llama.attention.head_count_kv") == (2,)
    assert set(header.templates.values()) == {"x", "y"}
    assert [tensor.dims for tensor in header.tensors] == [(32, 3), (32, 32)]


def test_the_type_tables_are_those_of_the_reference() -> None:
    reference = pytest.importorskip("gguf")
    from stoker.store.gguf_types import FILE_TYPES, TENSOR_TYPES, ValueType

    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in reference.GGML_QUANT_SIZES.items()}
    names = {
        int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in reference.LlamaFileType
        if kind.name != "GUESSED"
    }

    assert {number: tuple(kind) for number, kind in TENSOR_TYPES.items()} == theirs
    assert names == FILE_TYPES
    assert {kind.name: int(kind) for kind in reference.GGUFValueType} == {
        kind.name: int(kind) for kind in ValueType
    }


def test_constants_of_the_builder_are_those_of_the_format() -> None:
    """The builder and the reader were written apart; a slip in one must not hide in both."""
    assert (U8, U16, U32, I32, F32, BOOL, STRING, ARRAY) == (0, 2, 4, 5, 6, 7, 8, 9)
    assert string("ab") == b"\x02\0\0\0\0\0\0\0ab"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1.0])
@pytest.mark.parametrize("key", ["block_count", "attention.head_count_kv"])
def test_a_list_of_floats_where_whole_numbers_belong(key: str, number: float) -> None:
    """Refused with the reason, whatever the floats are."""
    made = tiny()
    made.kv[f"llama.{key}"] = array(F32, [number, number])

    with pytest.raises(GgufError, match="not a whole number"):
        read(made.build())
