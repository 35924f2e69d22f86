"""The parameter structs of llama.h as ctypes, and the proof that a library really has them.

llama.h has no stable layout. A struct that is read wrongly gives wrong numbers in silence, so
nothing may be set in one before `mismatches` found every default where it belongs. Two sources:
our table, for the library inside the xllamacpp wheel, and the module that ships beside a library
built with llama-cpp-python. Runs in the lab's process only; standard library only.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# One member: its name, its type, and the value that `llama_*_default_params` gives it. For
# pointers, None.
_Member = tuple[str, Any, float | None]

_POINTER: Final = ctypes.c_void_p
_INT: Final = ctypes.c_int32  # also every C enum here
_UNSIGNED: Final = ctypes.c_uint32
_BOOL: Final = ctypes.c_bool
_FLOAT: Final = ctypes.c_float

_AUTO: Final = -1
_F16: Final = 1  # GGML_TYPE_F16

_MODEL: Final[tuple[_Member, ...]] = (
    ("devices", _POINTER, None),
    ("tensor_buft_overrides", _POINTER, None),
    ("n_gpu_layers", _INT, -1),
    ("split_mode", _INT, 1),
    ("load_mode", _INT, _AUTO),
    ("lazy_mode", _INT, 1),
    ("main_gpu", _INT, 0),
    ("tensor_split", _POINTER, None),
    ("progress_callback", _POINTER, None),
    ("progress_callback_user_data", _POINTER, None),
    ("kv_overrides", _POINTER, None),
    ("vocab_only", _BOOL, 0),
    ("check_tensors", _BOOL, 0),
    ("use_extra_bufts", _BOOL, 1),
    ("no_host", _BOOL, 0),
    ("no_alloc", _BOOL, 0),
    ("load_mtp", _BOOL, 0),
)

_UNNAMED: Final = "unnamed"  # eight bytes that our table's library has and we never set

_CONTEXT: Final[tuple[_Member, ...]] = (
    ("n_ctx", _UNSIGNED, 512),
    ("n_batch", _UNSIGNED, 2048),
    ("n_ubatch", _UNSIGNED, 512),
    ("n_seq_max", _UNSIGNED, 1),
    ("n_rs_seq", _UNSIGNED, 0),
    ("n_outputs_max", _UNSIGNED, 0),
    ("n_outputs_max_per_seq", _UNSIGNED, 1),
    ("n_threads", _INT, 4),
    ("n_threads_batch", _INT, 4),
    ("ctx_type", _INT, 0),
    ("rope_scaling_type", _INT, _AUTO),
    ("pooling_type", _INT, _AUTO),
    ("attention_type", _INT, _AUTO),
    ("flash_attn_type", _INT, _AUTO),
    ("rope_freq_base", _FLOAT, 0.0),
    ("rope_freq_scale", _FLOAT, 0.0),
    ("yarn_ext_factor", _FLOAT, -1.0),
    ("yarn_attn_factor", _FLOAT, -1.0),
    ("yarn_beta_fast", _FLOAT, -1.0),
    ("yarn_beta_slow", _FLOAT, -1.0),
    ("yarn_orig_ctx", _UNSIGNED, 0),
    ("defrag_thold", _FLOAT, -1.0),
    ("cb_eval", _POINTER, None),
    ("cb_eval_user_data", _POINTER, None),
    ("type_k", _INT, _F16),
    ("type_v", _INT, _F16),
    ("abort_callback", _POINTER, None),
    ("abort_callback_data", _POINTER, None),
    (_UNNAMED, _POINTER, None),
    ("embeddings", _BOOL, 0),
    ("offload_kqv", _BOOL, 1),
    ("no_perf", _BOOL, 1),
    ("op_offload", _BOOL, 1),
    ("swa_full", _BOOL, 1),
    ("kv_unified", _BOOL, 0),
    ("samplers", _POINTER, None),
    ("n_samplers", ctypes.c_size_t, 0),
    ("ctx_other", _POINTER, None),
)


class ModelParams(ctypes.Structure):
    """`llama_model_params` of the xllamacpp wheel."""

    _fields_ = [(name, kind) for name, kind, _ in _MODEL]


class ContextParams(ctypes.Structure):
    """`llama_context_params` of the xllamacpp wheel."""

    _fields_ = [(name, kind) for name, kind, _ in _CONTEXT]


class Batch(ctypes.Structure):
    """`llama_batch`; the same in every version so far."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


@dataclass(frozen=True, slots=True)
class Structs:
    """The types to read and write one library's parameters with."""

    model: Any
    context: Any


def own_structs() -> Structs:
    """For the library inside the xllamacpp wheel that this version of Stoker is pinned to."""
    return Structs(ModelParams, ContextParams)


def bound_structs(bindings: Path, library: Path) -> Structs:
    """From the `llama_cpp` package in `bindings`, which was built with `library`.

    Only the one module with the structs is run: the package itself would import numpy, which is
    not installed beside a runtime.
    """
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library.parent)
    sys.dont_write_bytecode = True  # a runtime's folder is not ours to write to
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(bindings / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    module = importlib.import_module("llama_cpp.llama_cpp")
    return Structs(module.llama_model_params, module.llama_context_params)


def mismatches(model: Any, context: Any) -> list[str]:
    """What is not as it must be in freshly made default parameters; empty when all is."""
    return [
        *_wrong("llama_model_params", model, _MODEL),
        *_wrong("llama_context_params", context, _CONTEXT),
    ]


def _wrong(struct: str, params: Any, members: tuple[_Member, ...]) -> list[str]:
    found = []
    for name, _, default in members:
        if name == _UNNAMED and not hasattr(params, name):
            continue
        value = getattr(params, name, "missing")
        # A null pointer reads as None, a null function pointer as something false.
        right = not value if default is None else value == default
        if not right:
            found.append(f"{struct}.{name} is {value!r}, not {default!r}")
    return found
