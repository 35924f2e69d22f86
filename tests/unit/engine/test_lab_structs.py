"""The proof that a library's parameters lie where we think: every default, or nothing."""

from __future__ import annotations

import ctypes

import pytest

from stoker.engine.llama_structs import ContextParams, ModelParams, mismatches

# What `llama_*_default_params` of the library in the pinned xllamacpp wheel write, byte by byte.
MODEL = bytes.fromhex(
    "0000000000000000"
    "0000000000000000"
    "ffffffff01000000ffffffff01000000"
    "00000000ffffffff"  # the second four are padding: anything
    "0000000000000000"
    "0000000000000000"
    "0000000000000000"
    "0000000000000000"
    "000001000000aaaa"
)
CONTEXT = bytes.fromhex(
    "00020000000800000002000001000000"
    "00000000000000000100000004000000"
    "0400000000000000"
    "ffffffffffffffffffffffffffffffff"
    "0000000000000000"
    "000080bf000080bf000080bf000080bf"
    "00000000000080bf"
    "00000000000000000000000000000000"
    "0100000001000000"
    "00000000000000000000000000000000"
    "0000000000000000"  # what the table does not name
    "000101010100aaaa"
    "0000000000000000"
    "0000000000000000"
    "0000000000000000"
)


def test_the_pinned_wheels_defaults_are_where_the_table_says() -> None:
    assert len(MODEL) == ctypes.sizeof(ModelParams)
    assert len(CONTEXT) == ctypes.sizeof(ContextParams)

    found = mismatches(ModelParams.from_buffer_copy(MODEL), ContextParams.from_buffer_copy(CONTEXT))

    assert found == []


@pytest.mark.parametrize(
    "offset",
    [getattr(ContextParams, field[0]).offset for field in ContextParams._fields_],
)
def test_any_other_value_anywhere_is_noticed(offset: int) -> None:
    changed = bytearray(CONTEXT)
    changed[offset] ^= 0x01

    found = mismatches(ModelParams.from_buffer_copy(MODEL), ContextParams.from_buffer_copy(changed))

    assert len(found) == 1


@pytest.mark.parametrize("lost", [0, 12, 24, 36, 56, 88, 104, 112, 128, 136])
def test_a_member_less_is_noticed(lost: int) -> None:
    """As if another version had dropped four bytes there."""
    shorter = CONTEXT[:lost] + CONTEXT[lost + 4 :] + b"\xaa" * 4

    assert mismatches(ModelParams.from_buffer_copy(MODEL), ContextParams.from_buffer_copy(shorter))


@pytest.mark.parametrize("added", [0, 12, 24, 36, 56, 88, 104, 112, 128, 136])
def test_a_member_more_is_noticed(added: int) -> None:
    longer = (CONTEXT[:added] + bytes(8) + CONTEXT[added:])[: len(CONTEXT)]

    assert mismatches(ModelParams.from_buffer_copy(MODEL), ContextParams.from_buffer_copy(longer))


def test_a_model_without_a_member_is_named() -> None:
    class Other(ctypes.Structure):
        _fields_ = (("n_gpu_layers", ctypes.c_int32),)

    found = mismatches(Other(-1), ContextParams.from_buffer_copy(CONTEXT))

    assert "llama_model_params.use_extra_bufts is 'missing', not 1" in found
