"""The real daemon, except that it writes down each worker's address, key and settings.

So that a benchmark can ask the very worker that serves the endpoint. Only for benchmarks.
"""

from __future__ import annotations

import json
import os

import anyio

from stoker import serve
from stoker.engine.adapter import Adapter
from stoker.engine.base import Worker
from stoker.tuning.launch import LaunchPlan

_launch = Adapter.launch


async def _recorded(adapter: Adapter, plan: LaunchPlan, *, timeout_s: float) -> Worker:
    worker = await _launch(adapter, plan, timeout_s=timeout_s)
    record = {
        "socket": str(worker.address.socket),
        "key": worker.key,
        "model": str(plan.model_path),
        "settings": {
            "n_ctx": plan.cells or plan.context,
            "n_parallel": plan.parallel,
            "n_batch": plan.batch,
            "n_ubatch": plan.ubatch,
            "n_outputs_max": plan.n_outputs_max,
            "cache_ram_mib": plan.cache_ram_mib,
            "n_ctx_checkpoints": plan.checkpoints,
            "kv_unified": plan.kv_unified,
        },
        "threads": plan.threads,
    }
    file = anyio.Path(os.environ["STOKER_TEST_WORKER_FILE"])
    await file.write_text(json.dumps(record))
    return worker


if __name__ == "__main__":
    Adapter.launch = _recorded  # type: ignore[method-assign, assignment]
    serve.main()
