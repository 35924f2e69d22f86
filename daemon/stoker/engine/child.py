"""The worker process of the built-in runtime: the only module that imports `xllamacpp`.

Started as ``python -I -m stoker.engine.child [FOLDER]``; FOLDER holds a wheel of its own. One JSON
line on stdin says what to do; stdin's end means stop. One JSON line on stdout answers; stderr is
the engine's log. It imports as little as it can, because its start is part of every load, and the
library before it is told anything, because that may take a while to come (`engine.spare`).
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Final

from stoker.engine import lifeline

# Each open request holds one of the server's threads; more requests wait in its queue.
_HTTP_THREADS: Final = 32
# The experts of one layer, as llama.cpp names them itself (common.h, LLM_FFN_EXPS_REGEX).
_EXPERTS: Final = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
# What the library's parameters must read before we set any: a changed layout would set others.
_KNOWN_DEFAULTS: Final = {"n_batch": 2048, "n_ubatch": 512, "cache_ram_mib": 8192}
_PORT: Final = "port"


def main() -> None:
    """Do what the order says until stdin ends."""
    stdout = lifeline.private_stdout()
    if sys.argv[1:]:
        # A wheel of its own, for a GPU: -I keeps every other folder of the user off the path.
        sys.path.insert(0, sys.argv[1])
    import xllamacpp  # noqa: F401  # takes longer than all that comes before the model

    order = lifeline.read_order()
    socket = order["socket"]
    lifeline.watch_stdin(lambda: _unlink(socket))
    server = _serve(order)
    lifeline.greet(stdout, pid=os.getpid(), **_address(server))
    threading.Event().wait()  # the engine runs in threads of its own; the watch ends us


def _serve(order: dict[str, Any]) -> Any:
    import xllamacpp

    try:
        return xllamacpp.Server(_parameters(order))
    except RuntimeError as error:
        # The reason stands in the log above; this line is for a log that holds none.
        sys.stderr.write(f"failed to start: {error}\n")
        sys.stderr.flush()
        os._exit(1)


def _parameters(order: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    for name, value in _KNOWN_DEFAULTS.items():
        if getattr(params, name) != value:
            sys.stderr.write(f"unexpected default: {name}={getattr(params, name)}\n")
            os._exit(1)
    _set_model(params, order)
    _set_memory(params, order)
    _set_server(params, order)
    return params


def _set_model(params: Any, order: dict[str, Any]) -> None:
    import xllamacpp

    params.model.path = order["model"]
    params.model_alias = {order["model_id"]}
    if order["mmproj"]:
        params.mmproj.path = order["mmproj"]
        params.mmproj_use_gpu = bool(order["gpu_layers"])
    params.embedding = order["embedding"]
    if order["pooling"] is not None:
        params.pooling_type = xllamacpp.llama_pooling_type(order["pooling"])
    params.offline = True


def _set_memory(params: Any, order: dict[str, Any]) -> None:
    """Every setting that costs memory, so that none of the engine's own defaults does."""
    import xllamacpp

    params.fit_params = False
    params.n_ctx = order["cells"]
    params.kv_unified = order["kv_unified"]
    params.kv_unified_per_slot = order["context"]
    params.n_parallel = order["parallel"]
    params.n_batch = order["batch"]
    params.n_ubatch = order["ubatch"]
    params.n_outputs_max = order["n_outputs_max"]
    params.cache_ram_mib = order["cache_ram_mib"]
    params.cache_idle_slots = order["cache_ram_mib"] > 0 and order["kv_unified"]
    params.n_ctx_checkpoints = order["checkpoints"]
    params.swa_full = False
    params.no_extra_bufts = not order["extra_buffers"]
    params.n_gpu_layers = order["gpu_layers"]
    if order["cpu_experts"]:
        params.tensor_buft_overrides = ",".join(
            _EXPERTS.format(layer) for layer in range(order["cpu_experts"])
        )
    kinds = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if order["flash_attention"]
        else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    kv_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{order['kv_type'].upper()}")
    params.cache_type_k = params.cache_type_v = kv_type
    params.cpuparams.n_threads = order["threads"]
    params.cpuparams_batch.n_threads = order["threads_batch"]


def _set_server(params: Any, order: dict[str, Any]) -> None:
    if order["socket"]:
        params.hostnames = [order["socket"]]
    else:
        params.hostnames = ["127.0.0.1"]
        params.port = 0
    params.api_keys = [order["key"]]
    params.n_threads_http = _HTTP_THREADS
    params.warmup = False  # readiness is a decode over the socket, which warms up the same parts
    params.ctx_shift = False  # never drop the beginning of a conversation in silence
    params.ui = False
    params.cors_origins = ""
    params.endpoint_slots = True  # how full each is; texts only with a variable that we do not set
    params.endpoint_metrics = True
    if order["conversations"]:
        params.slot_save_path = os.path.join(order["conversations"], "")  # noqa: PTH118  # as below


def _address(server: Any) -> dict[str, object]:
    address = str(server.listening_address)
    if address.startswith("unix:"):
        return {}
    return {_PORT: int(address.rpartition(":")[2].strip("/"))}


def _unlink(socket: str | None) -> None:
    if socket:
        os.unlink(socket)  # noqa: PTH108  # pathlib costs a slow import here


if __name__ == "__main__":
    main()
