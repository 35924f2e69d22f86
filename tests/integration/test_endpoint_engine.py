"""The endpoint over the real engine with the real starter model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from stoker import paths
from stoker.engine.xllamacpp import XllamacppEngine
from stoker.hardware.probe import probe
from tests.fakes.serving import add_model, serving

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def test_real_engine_behind_the_endpoint(starter_gguf: Path, stoker_home: Path) -> None:
    """An answer, a stream, a context that is too long, a crash in the middle, an answer again."""
    places = paths.from_environment({"STOKER_HOME": str(stoker_home)})
    places.create()
    content = await anyio.Path(starter_gguf).read_bytes()
    engine = XllamacppEngine(places, probe())
    ask = [{"role": "user", "content": "What is the capital of France? One word."}]
    async with serving(models=(), engine=engine, context=1024) as served:
        await run_sync(add_model, served.store, "starter", content)

        plain = await served.chat("starter", messages=ask, max_tokens=12, temperature=0)
        assert plain.status_code == 200
        assert plain.json()["model"] == "starter"
        assert "Paris" in plain.json()["choices"][0]["message"]["content"]

        stream = await served.chat("starter", messages=ask, max_tokens=5, stream=True)
        assert stream.text.endswith("data: [DONE]\n\n")
        assert "server" not in stream.headers

        long = await served.chat("starter", messages=[{"role": "user", "content": "word " * 3000}])
        error = long.json()["error"]
        assert (long.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["n_prompt_tokens"] > 3000
        assert error["n_ctx"] >= 1024

        body = {"model": "starter", "messages": ask, "stream": True, "ignore_eos": True}
        received = ""
        async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for text in answer.aiter_text():
                if not received:
                    pid = served.lifecycle.views()[0].pid
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                received += text
        last = received.strip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "worker_lost"

        tokens = await served.client.post("/tokenize", json={"model": "starter", "content": "a b"})
        assert len(tokens.json()["tokens"]) == 2
        metrics = (await served.client.get("/metrics")).text
        assert 'stoker_tokens_total{kind="completion",model="starter"}' in metrics
