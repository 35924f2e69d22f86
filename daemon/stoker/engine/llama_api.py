"""llama.h through ctypes: one library, its devices, models and contexts. No measuring, no orders.

Runs in the lab's process only (`lab_child`), because the library may end the process at any
call. What goes wrong without that is an `ApiError`. A context is only given out after the library
itself confirmed every setting, so that no number is ever of other settings than those asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stoker.engine.llama_log import ContextLog, context_log, fit_weights
from stoker.engine.llama_structs import Batch, Structs, bound_structs, mismatches, own_structs

_CACHE_TYPES: Final = {"f16": 1, "q8_0": 8, "q4_0": 2}  # GGML_TYPE_*
_LOAD_NONE: Final = 0
_LOAD_MMAP: Final = 1
_INFO: Final = 2  # levels of the log
_WARN: Final = 3
_CONTINUED: Final = 5
_PADDING: Final = 256  # cells; contexts are rounded up to these
_BATCH: Final = 2048  # tokens; as the plan of a server (tuning.plan)
_MOST_LOG: Final = 4 << 20  # characters; a load of a large vocabulary logs some 100,000
_KINDS: Final = ("cpu", "gpu", "igpu", "accel")
_FIT: Final = (  # void common_fit_print(const char *, llama_model_params *, llama_context_params *)
    "_Z16common_fit_printPKcP18llama_model_paramsP20llama_context_params",
    "?common_fit_print@@YAXPEBDPEAUllama_model_params@@PEAUllama_context_params@@@Z",
)

_Pointer: Final = ctypes.c_void_p
_LOG: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "llama_log_set": (None, (_LOG, _Pointer)),
    "llama_backend_init": (None, ()),
    "llama_model_free": (None, (_Pointer,)),
    "llama_model_size": (ctypes.c_uint64, (_Pointer,)),
    "llama_model_get_vocab": (_Pointer, (_Pointer,)),
    "llama_model_has_decoder": (ctypes.c_bool, (_Pointer,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (_Pointer,)),
    "llama_free": (None, (_Pointer,)),
    "llama_n_ctx": (ctypes.c_uint32, (_Pointer,)),
    "llama_n_batch": (ctypes.c_uint32, (_Pointer,)),
    "llama_n_ubatch": (ctypes.c_uint32, (_Pointer,)),
    "llama_n_seq_max": (ctypes.c_uint32, (_Pointer,)),
    "llama_n_threads": (ctypes.c_int32, (_Pointer,)),
    "llama_n_threads_batch": (ctypes.c_int32, (_Pointer,)),
    "llama_set_n_threads": (None, (_Pointer, ctypes.c_int32, ctypes.c_int32)),
    "llama_get_memory": (_Pointer, (_Pointer,)),
    "llama_memory_clear": (None, (_Pointer, ctypes.c_bool)),
    "llama_memory_seq_cp": (None, (_Pointer, *(ctypes.c_int32,) * 4)),
    "llama_batch_init": (Batch, (ctypes.c_int32,) * 3),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (ctypes.c_int32, (_Pointer, Batch)),
    "llama_synchronize": (None, (_Pointer,)),
    "ggml_backend_dev_count": (ctypes.c_size_t, ()),
    "ggml_backend_dev_get": (_Pointer, (ctypes.c_size_t,)),
    "ggml_backend_dev_name": (ctypes.c_char_p, (_Pointer,)),
    "ggml_backend_dev_description": (ctypes.c_char_p, (_Pointer,)),
    "ggml_backend_dev_type": (ctypes.c_int, (_Pointer,)),
    "ggml_backend_dev_memory": (None, (_Pointer, *(ctypes.POINTER(ctypes.c_size_t),) * 2)),
}


class ApiError(Exception):
    """The library refused something, or is not the one we know. `log` has its last words."""

    def __init__(self, text: str, log: str = "") -> None:
        super().__init__(text)
        self.log = log


@dataclass(frozen=True, slots=True)
class Setting:
    """What a context is made with; the rest is as a server's plan always has it."""

    cells: int
    parallel: int
    ubatch: int
    flash_attention: bool
    kv_type: str = "f16"
    threads: int = 1
    threads_batch: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """An open model and what the log said while it was opened."""

    handle: int
    path: Path
    log: str


@dataclass(frozen=True, slots=True)
class Context:
    """An open context and what the log said while it was made."""

    handle: int
    log: ContextLog


class Api:
    """One library. Raises ApiError when it is not exactly as expected."""

    def __init__(self, path: Path, bindings: Path | None) -> None:
        self._text: list[str] = []
        self._length = 0
        self._level = 0
        self._handles = _open(path)
        self._structs = own_structs() if bindings is None else bound_structs(bindings, path)
        self._functions = {name: self._typed(name, *types) for name, types in _FUNCTIONS.items()}
        self._add_struct_functions(self._structs)
        wrong = mismatches(self.call_default("model"), self.call_default("context"))
        if wrong:
            raise ApiError(f"This engine's settings lie elsewhere than expected: {wrong[0]}.")
        self._callback = _LOG(self._take_log)
        self.call("llama_log_set", self._callback, None)
        self.call("llama_backend_init")
        self._own_memory = frozenset(
            str(device["name"]) for device in self.devices() if device["kind"] == "gpu"
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Call one function of the library by its name in llama.h."""
        return self._functions[name](*arguments)

    def call_default(self, which: str) -> Any:
        """Fresh default parameters of a ``model`` or a ``context``."""
        return self.call(f"llama_{which}_default_params")

    def devices(self) -> list[dict[str, object]]:
        """What the library could compute on. A CPU's free memory is only its total."""
        found: list[dict[str, object]] = []
        for index in range(self.call("ggml_backend_dev_count")):
            device = self.call("ggml_backend_dev_get", index)
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self.call("ggml_backend_dev_memory", device, ctypes.byref(free), ctypes.byref(total))
            kind = self.call("ggml_backend_dev_type", device)
            if not 0 <= kind < len(_KINDS):
                continue  # one that only stands for several others
            found.append(
                {
                    "name": _text(self.call("ggml_backend_dev_name", device)),
                    "description": _text(self.call("ggml_backend_dev_description", device)),
                    "kind": _KINDS[kind],
                    "free_bytes": free.value,
                    "total_bytes": total.value,
                }
            )
        return found

    # --- models ------------------------------------------------------------------------------

    def load(self, path: Path, *, extra_buffers: bool, gpu_layers: int) -> Model:
        """With its weights, mapped from the file."""
        params = self.call_default("model")
        params.load_mode = _LOAD_MMAP
        params.use_extra_bufts = extra_buffers
        params.n_gpu_layers = gpu_layers
        return self._load(path, params)

    def load_dry(self, path: Path) -> Model:
        """Without any weights: enough to ask what contexts would need."""
        model = self._load(path, self._dry_params())
        if not _said(model.log, "no_alloc", "1"):
            self.free_model(model)
            raise ApiError("The engine loaded the model although only a dry run was asked for.")
        return model

    def free_model(self, model: Model) -> None:
        self.call("llama_model_free", model.handle)

    def _dry_params(self) -> Any:
        params = self.call_default("model")
        params.no_alloc = True
        params.load_mode = _LOAD_NONE
        params.use_extra_bufts = True
        params.n_gpu_layers = 0
        return params

    def _load(self, path: Path, params: Any) -> Model:
        self._forget_log()
        handle = self.call("llama_model_load_from_file", os.fsencode(path), params)
        if not handle:
            raise ApiError("The engine could not load the model.", self._log())
        return Model(handle, path, self._log())

    def plain_weight_bytes(self, model: Model) -> int:
        """Bytes of weights that a load leaves in the file's own layout, to a MiB downwards.

        Only the engine's own helper tells this in a dry run; it opens the file once more.
        """
        function = next((f for name in _FIT if (f := self._symbol(name)) is not None), None)
        if function is None:
            raise ApiError("This engine does not tell how much it copies into other layouts.")
        function.restype = None
        params, context = self._dry_params(), self._context_params(Setting(512, 1, 512, True))  # noqa: FBT003
        printed = _printed(
            lambda: function(os.fsencode(model.path), ctypes.byref(params), ctypes.byref(context))
        )
        found = fit_weights(printed)
        if found is None:
            raise ApiError("The engine's answer about its memory was not understood.", printed)
        return found

    # --- contexts ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def context(self, model: Model, setting: Setting) -> Iterator[Context]:
        """A context that has exactly this setting, by the library's own words."""
        made = self.make_context(model, setting)
        try:
            yield made
        finally:
            self.free_context(made)

    def make_context(self, model: Model, setting: Setting) -> Context:
        """Like `context`, to be freed with `free_context`."""
        self._forget_log()
        handle = self.call("llama_init_from_model", model.handle, self._context_params(setting))
        text = self._log()
        if not handle:
            raise ApiError("The engine could not work with these settings.", text)
        made = Context(handle, context_log(text, self._own_memory))
        wrong = self._misunderstood(made, setting, text)
        if wrong:
            self.free_context(made)
            raise ApiError(f"The engine understood other settings than it was given: {wrong}.")
        return made

    def free_context(self, context: Context) -> None:
        self.call("llama_free", context.handle)

    def _context_params(self, setting: Setting) -> Any:
        params = self.call_default("context")
        params.n_ctx = setting.cells
        params.n_batch = max(setting.ubatch, min(_BATCH, setting.cells))
        params.n_ubatch = setting.ubatch
        params.n_seq_max = setting.parallel
        params.n_outputs_max = setting.parallel
        params.n_threads = setting.threads
        params.n_threads_batch = setting.threads_batch
        params.flash_attn_type = int(setting.flash_attention)
        params.type_k = params.type_v = _CACHE_TYPES[setting.kv_type]
        params.swa_full = False
        params.kv_unified = True
        return params

    def _misunderstood(self, made: Context, setting: Setting, text: str) -> str | None:
        """The first setting that the library does not confirm."""
        cells = -(-setting.cells // _PADDING) * _PADDING
        batch = max(setting.ubatch, min(_BATCH, setting.cells))
        if made.log.echo.get("causal_attn") == "1":
            batch = min(batch, setting.cells)
        asked = {
            "n_ctx": cells,
            "n_batch": batch,
            "n_ubatch": min(batch, setting.ubatch),
            "n_seq_max": setting.parallel,
            "n_threads": setting.threads,
            "n_threads_batch": setting.threads_batch,
        }
        for name, value in asked.items():
            if (found := self.call(f"llama_{name}", made.handle)) != value:
                return f"{name} is {found}, not {value}"
        return _unconfirmed(made.log, setting, text)

    # --- the library -------------------------------------------------------------------------

    def _symbol(self, name: str) -> Any:
        for handle in self._handles:
            with contextlib.suppress(AttributeError):
                return handle[name]  # a new object each time: nobody else's types are changed
        return None

    def _typed(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        function = self._symbol(name)
        if function is None:
            raise ApiError(f"This engine has no function {name}.")
        function.restype, function.argtypes = result, arguments
        return function

    def _add_struct_functions(self, structs: Structs) -> None:
        for name, result, arguments in (
            ("llama_model_default_params", structs.model, ()),
            ("llama_context_default_params", structs.context, ()),
            ("llama_model_load_from_file", _Pointer, (ctypes.c_char_p, structs.model)),
            ("llama_init_from_model", _Pointer, (_Pointer, structs.context)),
        ):
            self._functions[name] = self._typed(name, result, arguments)

    def _take_log(self, level: int, text: bytes | None, _: Any) -> None:
        self._level = self._level if level == _CONTINUED else level
        if text is None or self._level < _INFO:
            return
        if self._level >= _WARN:
            os.write(2, text)  # also the last words before an abort
        if self._length < _MOST_LOG:
            self._text.append(text.decode("utf-8", "replace"))
            self._length += len(text)

    def _forget_log(self) -> None:
        self._text.clear()
        self._length = 0

    def _log(self) -> str:
        return "".join(self._text)


def _unconfirmed(log: ContextLog, setting: Setting, text: str) -> str | None:
    flash = "enabled" if setting.flash_attention else "disabled"
    for name, value in (
        ("flash_attn", flash),
        ("kv_unified", "true"),
        ("n_outputs_max", str(setting.parallel)),
    ):
        found = log.echo.get(name)
        # An architecture may not allow what was asked; a server would be told the same.
        excused = name == "flash_attn" and "flash_attn is not compatible" in text
        if found != value and not excused:
            return f"{name} is {found}, not {value}"
    if log.kv_types - {setting.kv_type}:
        return f"the cache is {', '.join(sorted(log.kv_types))}, not {setting.kv_type}"
    return "swa_full is true, not false" if log.full_windows else None


def _open(path: Path) -> list[Any]:
    """The library, and those beside it that a build splits off."""
    names = ("llama-common", "ggml", "ggml-base")
    beside = (path.with_name(f"{prefix}{name}{path.suffix}") for name in names for prefix in _LIB)
    return [ctypes.CDLL(str(file)) for file in (path, *(file for file in beside if file.is_file()))]


_LIB: Final = ("lib", "")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _said(log: str, name: str, value: str) -> bool:
    return any(
        line.split("=")[-1].strip() == value
        for line in log.splitlines()
        if f" {name} " in line and "=" in line
    )


def _printed(action: Any) -> str:
    """What C code prints on stdout meanwhile."""
    libc = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                action()
                libc.fflush(None)
            finally:
                os.dup2(kept, 1)
            file.seek(0)
            return file.read().decode("utf-8", "replace")
    finally:
        os.close(kept)
