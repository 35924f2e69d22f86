"""Which files of a repository are meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import BadReference, SourceInvalid, SourceNotFound, StokerError
from stoker.pull.choose import choose, quantization, shard_of
from stoker.store.manifest import FileRole

USUAL = ["x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-UD-Q4_K_XL.gguf", "x-F16.gguf", "README.md"]


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3.5-4B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("microsoft.Phi-4-reasoning-vision-15B.f16.gguf.Q4_K_M.gguf", "Q4_K_M"),
        ("m-iq4_xs.gguf", "IQ4_XS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("BF16/m-BF16-00001-of-00002.gguf", "BF16"),
        ("Q4_K_M/model-00001-of-00003.gguf", "Q4_K_M"),
        ("Bonsai-1.7B-Q1_0.gguf", "Q1_0"),
        ("tinyllama.gguf", None),
        ("q4u-model.gguf", None),
    ],
)
def test_the_quantisation_is_in_the_name(name: str, quant: str | None) -> None:
    """File names are all there is to tell quantisations apart."""
    assert quantization(name) == quant


@pytest.mark.parametrize(
    ("paths", "selector", "chosen"),
    [
        (USUAL, None, "x-Q4_K_M.gguf"),
        (USUAL, "q8_0", "x-Q8_0.gguf"),
        (USUAL, "Q4_K_XL", "x-UD-Q4_K_XL.gguf"),
        (USUAL, "x-f16.GGUF", "x-F16.gguf"),
        (["x-Q8_0.gguf", "x-Q2_K.gguf"], None, "x-Q8_0.gguf"),
        (["only.gguf"], None, "only.gguf"),
        (["a/x-Q4_0.gguf", "b/x-Q4_0.gguf"], "b/x-Q4_0.gguf", "b/x-Q4_0.gguf"),
        (["x-Q4_K_M.gguf", "x.imatrix.gguf", "imatrix-x.gguf"], None, "x-Q4_K_M.gguf"),
    ],
)
def test_one_file_is_chosen(paths: list[str], selector: str | None, chosen: str) -> None:
    """By quantisation or by name, whatever the case; else the usual one."""
    choice = choose(paths, selector)

    assert [file.path for file in choice.files] == [chosen]
    assert choose(paths, choice.selector) == choice


def test_shards_are_one_model() -> None:
    """All parts, the first one first; it is the file that an engine opens."""
    paths = [f"Q4_K_M/x-Q4_K_M-0000{number}-of-00003.gguf" for number in (2, 3, 1)]

    choice = choose([*paths, "x-Q8_0.gguf"], "q4_k_m")

    assert [file.path for file in choice.files] == sorted(paths)
    assert [file.role for file in choice.files] == [FileRole.MODEL, FileRole.SHARD, FileRole.SHARD]
    assert choice.label == "Q4_K_M"


def test_a_single_shard_of_one_is_a_model() -> None:
    """Some tools split into one."""
    assert len(choose(["x-00001-of-00001.gguf"], None).files) == 1


@pytest.mark.parametrize("numbers", [(1, 3), (2, 3), (1, 2), (1,)])
def test_a_missing_shard_is_an_error(numbers: tuple[int, ...]) -> None:
    """Half a model is none."""
    with pytest.raises(SourceInvalid, match="split in 3"):
        choose([f"x-0000{number}-of-00003.gguf" for number in numbers], None)


@pytest.mark.parametrize(
    ("projectors", "picked"),
    [
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "mmproj-F16.gguf"),
        (["x.mmproj-Q8_0.gguf"], "x.mmproj-Q8_0.gguf"),
        (["other/mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F32.gguf"),
    ],
)
def test_a_projector_comes_along(projectors: list[str], picked: str) -> None:
    """The one that lies beside the model, in the precision that engines like."""
    choice = choose(["x-Q4_K_M.gguf", *projectors], None)

    assert choice.files[-1].path == picked
    assert choice.files[-1].role is FileRole.MMPROJ


def test_an_absent_quantisation_lists_what_there_is() -> None:
    """The error is the menu."""
    with pytest.raises(SourceNotFound) as caught:
        choose(USUAL, "Q5_K_M")

    assert "Q4_K_M" in caught.value.hint
    assert caught.value.facts["available"] == ["F16", "Q4_K_M", "Q8_0", "UD-Q4_K_XL"]


def test_ambiguity_lists_the_files() -> None:
    """Two models in one repository: the user must say which."""
    with pytest.raises(BadReference) as caught:
        choose(["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None)

    assert "a-Q4_K_M.gguf" in caught.value.hint


def test_other_models_of_the_repository_do_not_share_an_id() -> None:
    """Without a quantisation in the name, the file's own name tells them apart."""
    assert choose(["a.gguf", "b.gguf"], "b.gguf").label == "b"
    assert choose(["a.gguf"], None).label is None


def test_a_shard_s_name() -> None:
    """Stem, place and count."""
    assert shard_of("a-00002-of-00010.gguf") == ("a", 2, 10)
    assert shard_of("a-2-of-10.gguf") is None


@given(st.lists(st.text(max_size=40).map(lambda text: f"{text}.gguf")), st.none() | st.text())
def test_any_list_gives_a_choice_or_a_reason(paths: list[str], selector: str | None) -> None:
    """A hub may list anything."""
    try:
        found = {file.path for file in choose(paths, selector).files}
    except StokerError:
        found = set()  # with a reason of ours; any other error fails this test

    assert found <= set(paths)
