"""The lab's process: opens one engine library and does what JSON lines on stdin say.

Started as ``python -I -m stoker.engine.lab_child [FOLDER…]``; the folders hold libraries that the
engine's needs. The first line says which library; the answer to it is the greeting. Every further
line is one order and gets one line back: ``{"id": 1, "ok": {…}}`` or ``{"id": 1, "error": "…",
"log": […]}``. stdin's end is this process's end, at once, also in the middle of a computation.
stderr has the engine's warnings, for whoever wants to know why it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

from stoker.engine import lifeline
from stoker.engine.lab_measure import Bench, Interrupted, Task
from stoker.engine.llama_api import Api, ApiError, Model, Setting
from stoker.engine.llama_log import copies, is_copy, model_buffers

_LONGEST_ORDER: Final = 1 << 20  # characters
_LAST_WORDS: Final = 20  # lines of the engine's log that go with an error
# Behind programs that the user waits for, and no further. Measured on two cores: on free ones nice
# 0, 10 and 19 are the same within the noise, but SCHED_BATCH and SCHED_IDLE lose up to three
# quarters of the decode speed as soon as anything else stirs, which would distort a trial. On
# crowded ones nice 19 gets next to nothing: a dry run of 0.3 s did not end within two minutes.
_NICE: Final = 10
_TILES: Final = 1.5  # copies for AMX are padded; measured 1.49 for Q4_1 with Q8_0 embeddings
_PROOF: Final = (  # two settings whose compute buffers must differ: the second reads longer steps
    Setting(cells=2048, parallel=1, ubatch=64, flash_attention=True),
    Setting(cells=2048, parallel=1, ubatch=512, flash_attention=True),
)


def main() -> None:
    """Do the orders until stdin ends."""
    _search_libraries(sys.argv[1:])
    first = lifeline.read_order()
    answers = lifeline.private_stdout()
    orders = _Orders()
    threading.Thread(target=orders.read, name="stdin", daemon=True).start()
    if first["gently"]:
        _be_nice()
    try:
        lab = _Lab(first)
    except Exception as error:  # noqa: BLE001  # whatever a strange library does: say so
        _answer(answers, {"id": 0, **_failure(error)})
        orders.wait_for_end()
        return
    _answer(answers, {"id": 0, "ok": {"pid": os.getpid()}})
    while True:
        order = orders.next()
        _answer(answers, {"id": order["id"], **_done(lab, order, orders)})


class _Orders:
    """Orders in their sequence, and the word that one of them is not wanted any more."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._given_up = 0

    def read(self) -> None:
        """Until stdin ends, which ends the process."""
        try:
            while line := sys.stdin.readline(_LONGEST_ORDER):
                order = json.loads(line)
                if order["op"] == "give up":
                    self._given_up = order["of"]
                else:
                    self._queue.put(order)
        finally:
            lifeline.end_group()

    def next(self) -> dict[str, Any]:
        return self._queue.get()

    def is_given_up(self, number: int) -> bool:
        return self._given_up >= number

    def wait_for_end(self) -> None:
        threading.Event().wait()


class _Lab:
    """The library and at most one model with its weights."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._api = Api(Path(order["library"]), _path(order["bindings"]))
        self._model: Model | None = None
        self._bench: Bench | None = None

    def do(self, order: dict[str, Any], given_up: Callable[[], bool]) -> dict[str, object]:
        match order["op"]:
            case "devices":
                return {"devices": self._api.devices()}
            case "survey":
                return self._survey(order)
            case "load":
                return self._load(order)
            case "allocated":
                return {"point": self._point(self._with_weights(), order["wanted"])}
            case "measure":
                return self._measure(order, given_up)
        raise ApiError(f"unknown order {order['op']!r}")

    def _survey(self, order: dict[str, Any]) -> dict[str, object]:
        model = self._api.load_dry(Path(order["model"]))
        try:
            if not self._api.call("llama_model_has_decoder", model.handle):
                raise ApiError("Dry runs are for models that write text.")
            self._prove(model)
            weights = self._api.call("llama_model_size", model.handle)
            return {
                "weights": weights,
                "repack": self._repacked(model, weights),
                "points": [self._point(model, wanted) for wanted in order["wanted"]],
            }
        finally:
            self._api.free_model(model)

    def _point(self, model: Model, wanted: list[Any]) -> list[int | None]:
        cells, parallel, ubatch, flash_attention, kv_type = wanted
        setting = Setting(cells, parallel, ubatch, flash_attention, kv_type)
        with self._api.context(model, setting) as context:
            kv = context.log.kv_bytes
            if kv is None and not self._api.call("llama_get_memory", context.handle):
                kv = 0
            return [context.log.compute_bytes, kv]

    def _prove(self, model: Model) -> None:
        """Settings have the effect that they must have, so the sizes are really theirs."""
        small, large = (self._point(model, _wanted(setting))[0] or 0 for setting in _PROOF)
        if not 0 < small < large:
            raise ApiError(
                f"A larger batch needs {large} bytes, a smaller one {small}: not understood."
            )

    def _repacked(self, model: Model, weights: int) -> int:
        """Zero when the log names no such buffer; else what the file's own layout leaves over."""
        names = [name for name in model_buffers(model.log) if is_copy(name)]
        if not names:
            return 0
        size = max(0, weights - self._api.plain_weight_bytes(model))
        return int(size * _TILES) if "AMX" in names else size

    def _load(self, order: dict[str, Any]) -> dict[str, object]:
        self._unload()
        self._model = self._api.load(
            Path(order["model"]),
            extra_buffers=order["extra_buffers"],
            gpu_layers=order["gpu_layers"],
        )
        buffers = model_buffers(self._model.log)
        return {"weights": sum(buffers.values()), "repack": copies(buffers)}

    def _with_weights(self) -> Model:
        if self._model is None:
            raise ApiError("No model is loaded.")
        return self._model

    def _unload(self) -> None:
        if self._bench is not None:
            self._bench.close()
        if self._model is not None:
            self._api.free_model(self._model)
        self._bench = self._model = None

    def _measure(self, order: dict[str, Any], given_up: Callable[[], bool]) -> dict[str, object]:
        if self._bench is None:
            self._bench = Bench(self._api, self._with_weights())
        setting = Setting(
            cells=0,
            parallel=0,
            ubatch=order["ubatch"],
            flash_attention=order["flash_attention"],
            threads=order["threads"],
            threads_batch=order["threads_batch"],
        )
        sizes = (order["prompt"], order["generate"], order["streams"], order["repeats"])
        return {**self._bench.measure(Task(setting, *sizes), given_up)}


def _done(lab: _Lab, order: dict[str, Any], orders: _Orders) -> dict[str, object]:
    try:
        return {"ok": lab.do(order, lambda: orders.is_given_up(order["id"]))}
    except Interrupted:
        return {"error": "interrupted", "log": []}
    except Exception as error:  # noqa: BLE001  # one order's failure is an answer
        return _failure(error)


def _failure(error: Exception) -> dict[str, object]:
    log = error.log if isinstance(error, ApiError) else ""
    text = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
    return {"error": text, "log": log.splitlines()[-_LAST_WORDS:]}


def _answer(stream: TextIO, answer: dict[str, object]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _wanted(setting: Setting) -> list[Any]:
    return [
        setting.cells,
        setting.parallel,
        setting.ubatch,
        setting.flash_attention,
        setting.kv_type,
    ]


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _be_nice() -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            kernel = ctypes.WinDLL("kernel32")
            kernel.SetPriorityClass(ctypes.c_void_p(-1), 0x4000)  # this process, below normal
            return
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        # Where desktops group processes by session, only the group's priority counts.
        group = Path("/proc/self/autogroup")
        if group.exists():
            group.write_text(str(_NICE), encoding="ascii")


def _search_libraries(folders: list[str]) -> None:
    """Let the system's loader look in `folders`. It reads its variable once: we start anew."""
    if not folders:
        return
    if sys.platform == "win32":
        for folder in folders:
            os.add_dll_directory(folder)
        return
    name = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    wanted = os.pathsep.join(folders)
    if not os.environ.get(name, "").startswith(wanted):
        old = os.environ.get(name)
        os.environ[name] = wanted + (os.pathsep + old if old else "")
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # ourselves, same process


if __name__ == "__main__":
    main()
