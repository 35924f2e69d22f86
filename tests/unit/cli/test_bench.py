"""`stoker bench` against an endpoint that answers as the engine does, at a speed of our choice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from stoker.cli import bench_endpoint
from stoker.cli.bench_endpoint import Endpoint, Stopped, random_prompt
from stoker.cli.bench_runs import PAGE, QUESTION, QUICK, Bench, Task
from stoker.errors import WorkerLost
from stoker.types import Capability

from .conftest import Run, StubClient, loaded, stored

READS = 1000.0  # tokens/s, as this engine counts
WRITES = 50.0
VOCABULARY = 200


@dataclass
class Engine:
    """Streams as many tokens as it is asked for; remembers every request."""

    base_url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    token_s: float = 0.0
    fail_after: int = 1_000_000  # requests
    timings: dict[str, Any] = field(default_factory=dict)  # instead of sound ones
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self.lock:
            self.asked.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        count, length = body["max_tokens"], len(body["prompt"])
        for _ in range(count):
            time.sleep(self.token_s)
            yield {"choices": [{"text": "x", "finish_reason": None}]}
        timings = {
            "prompt_n": length,
            "prompt_per_second": READS,
            "predicted_n": count,
            "predicted_ms": (count - 1) / WRITES * 1000 or 0.001,
            **self.timings,
        }
        yield {"choices": [{"text": "", "finish_reason": "length"}], "timings": timings}
        with self.lock:
            self.at_once -= 1


def _handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the base class's name
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/tokenize":
                words = len(body["content"].split())
                self._send(200, json.dumps({"tokens": [7 + n % VOCABULARY for n in range(words)]}))
            elif len(engine.asked) >= engine.fail_after:
                error = {"message": "no memory", "code": "worker_lost"}
                self._send(503, json.dumps({"error": error}))
            else:
                self._stream(body)

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def _stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            for event in engine.answer(body):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_words: object) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Broken pipes are part of the game."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    with _Server(("127.0.0.1", 0), _handler(engine)) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        engine.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        yield engine
        server.shutdown()
        thread.join()


@pytest.fixture
def model(client: StubClient, engine: Engine) -> StubClient:
    client.stored_models = [stored(capabilities=(Capability.CHAT, Capability.COMPLETION))]
    client.base_url = engine.base_url
    return client


def _bench(engine: Engine, **changes: Any) -> Bench:
    facts: dict[str, Any] = {
        "context": 8192,
        "parallel": 4,
        "effort": QUICK,
        "depths": (0,),
        "streams": (1,),
    }
    endpoint = Endpoint(engine.base_url, "starter")
    return Bench(endpoint, Task(**{**facts, **changes}), lambda _text: None)


# --- what is asked ---------------------------------------------------------------------------


def test_prompts_are_valid_random_and_the_same_each_time(engine: Engine) -> None:
    _bench(engine).run()
    first, engine.asked = engine.asked, []
    _bench(engine).run()

    assert engine.asked == first
    assert all(7 <= token < 7 + VOCABULARY for body in first for token in body["prompt"])
    page = next(body["prompt"] for body in first if len(body["prompt"]) == PAGE)
    assert len(set(page)) > VOCABULARY / 2
    assert random_prompt((1, 2, 3), 5, 1) == random_prompt((1, 2, 3), 5, 1)


def test_nothing_is_remembered_where_reading_is_measured(engine: Engine) -> None:
    """A second prompt that began like the first would be read in no time."""
    _bench(engine, depths=(100,)).run()

    reading = [body for body in engine.asked if body["max_tokens"] == 1]
    assert reading
    assert not any(body["cache_prompt"] for body in reading)
    starts = {tuple(body["prompt"][:8]) for body in reading}
    assert len(starts) == len(reading)
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in engine.asked)


def test_a_depth_is_read_once_and_written_from_several_times(engine: Engine) -> None:
    from stoker.cli.bench_runs import FULL

    _bench(engine, depths=(700,), effort=FULL, streams=(1,)).run()

    deep = [body for body in engine.asked if len(body["prompt"]) == 700]
    assert [body["cache_prompt"] for body in deep] == [False, True, True]
    assert len({tuple(body["prompt"]) for body in deep}) == 1


def test_streams_really_run_at_the_same_time(engine: Engine) -> None:
    engine.token_s = 0.05  # a thread may have to wait for a processor

    results = _bench(engine, depths=(), streams=(1, 4)).run()

    assert engine.most_at_once == 4
    one, four = results.streams
    assert (one.streams, four.streams) == (1, 4)
    assert four.tokens_per_s > one.tokens_per_s * 2


# --- what comes out --------------------------------------------------------------------------


class Stepping:
    """A clock that goes on by the same time at each look."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += self._step_s
        return self._now_s


def test_the_engine_s_own_figures_are_reported(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_endpoint, "time", Stepping(0.004))

    results = _bench(engine, depths=(0, 64)).run()

    assert results.complete
    assert [one.tokens_per_s for one in results.prefill] == [READS]
    assert [one.tokens_per_s for one in results.decode] == pytest.approx([WRITES, WRITES])
    assert [one.depth for one in results.decode] == [0, 64]
    seen = [one.seen_tokens_per_s for one in results.decode]
    # One look more than pieces: the last one has no text.
    pieces = QUICK.tokens
    assert seen == pytest.approx([(pieces - 1) / (pieces * 0.004)] * 2)
    assert [one.prompt_tokens for one in results.first_token] == [QUESTION, PAGE]
    assert [one.p50_s for one in results.first_token] == pytest.approx([0.004, 0.004])


def test_what_does_not_fit_is_left_out_with_a_remark(engine: Engine) -> None:
    results = _bench(engine, context=600, depths=(0, 580, 4096), streams=(1, 8)).run()

    assert [one.depth for one in results.decode] == [0]
    assert [remark.split(" left out")[0] for remark in results.remarks][:2] == [
        "depth 580",
        "depth 4096",
    ]
    assert all(len(body["prompt"]) + body["max_tokens"] <= 600 for body in engine.asked)


def test_a_depth_that_takes_minutes_is_left_out_unless_asked_for(engine: Engine) -> None:
    """At 1,000 tokens/s, 200,000 tokens are read in more than three minutes."""
    huge = {"context": 1_000_000, "depths": (200_000,)}

    assert "3 minutes" in _bench(engine, **huge).run().remarks[0]
    assert _bench(engine, **huge, patient=True).run().decode[0].depth == 200_000


def test_a_slow_model_is_asked_for_less(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 token/s nobody waits for 32."""
    monkeypatch.setattr("tests.unit.cli.test_bench.WRITES", 1.0)

    results = _bench(engine).run()

    assert results.decode[0].tokens == 20


def test_the_table_can_be_read_by_anybody(run: Run, model: StubClient, engine: Engine) -> None:
    ran = run("bench", "starter", "--quick", "--depths", "0,128", "--streams", "1,2,6")

    assert ran.code == 0
    assert "reading 512 tokens" in ran.out
    assert "1000.0 tokens/s" in ran.out
    assert "writing, at the start" in ran.out
    assert "writing, after 128 tokens" in ran.out
    assert "6 at the same time" in ran.out
    assert "A token is about three quarters of a word" in ran.out
    assert "KV" not in ran.out
    assert ("load", "starter", None) in model.asked


def test_json_has_every_run(run: Run, model: StubClient, engine: Engine) -> None:
    ran = run("bench", "starter", "--quick", "--json", "--depths", "0", "--streams", "1")

    report = json.loads(ran.out)
    assert (report["model"], report["complete"], report["quick"]) == ("starter", True, True)
    assert report["prefill"][0]["runs"] == [READS]
    assert set(report["decode"][0]) == {
        "depth",
        "tokens",
        "tokens_per_s",
        "seen_tokens_per_s",
        "runs",
    }
    assert set(report["streams"][0]) == {"streams", "tokens_each", "tokens_per_s", "first_p50_s"}


# --- when it ends early ----------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_measured(
    run: Run, model: StubClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: Bench, _depth: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "_decode", interrupt)

    ran = run("bench", "starter", "--quick", "--json")

    report = json.loads(ran.out)
    assert ran.code == 130
    assert report["complete"] is False
    assert report["prefill"]
    assert report["decode"] == []
    assert "Ctrl-C" in report["remarks"][-1]


def test_an_error_in_the_middle_keeps_what_was_measured(
    run: Run, model: StubClient, engine: Engine
) -> None:
    engine.fail_after = 4

    ran = run("bench", "starter", "--quick")

    assert ran.code != 0
    assert "reading 512 tokens" in ran.out
    assert "ended early: no memory" in ran.out


def test_an_error_at_the_start_is_an_error(run: Run, model: StubClient, engine: Engine) -> None:
    engine.fail_after = 0

    ran = run("bench", "starter", "--quick")

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-2].startswith("error: no memory")


def test_no_thread_waits_for_an_answer_that_nobody_wants(engine: Engine) -> None:
    """A stop reaches a stream at its next token, not at its last."""
    engine.token_s = 0.01
    endpoint = Endpoint(engine.base_url, "starter")
    threading.Timer(0.2, endpoint.stop.set).start()
    began = time.monotonic()

    with endpoint, pytest.raises(Stopped):
        endpoint.complete([7, 8], 1000)

    assert time.monotonic() - began < 9  # of ten


def test_a_model_that_writes_nothing_is_refused(run: Run, client: StubClient) -> None:
    client.stored_models = [stored(capabilities=(Capability.EMBEDDING,))]

    ran = run("bench", "starter")

    assert ran.code != 0
    assert "models that write" in ran.err
    assert client.asked == []


@pytest.mark.parametrize(
    "words", [("--depths", "x"), ("--depths", "-1"), ("--streams", "0"), ("--streams", "1,,2")]
)
def test_nonsense_is_wrong_usage(
    run: Run, model: StubClient, engine: Engine, words: tuple[str, str]
) -> None:
    assert run("bench", "starter", *words).code == 2
    assert engine.asked == []


def test_other_work_is_remarked(run: Run, model: StubClient, engine: Engine) -> None:
    """Figures from a busy machine are lower than they could be, and say so."""
    model.loaded_models = [loaded("other", in_flight=1)]

    out = run("bench", "starter", "--quick", "--depths", "0", "--streams", "1").out

    assert "answering other programs" in out


@pytest.mark.parametrize("name", ["prompt_n", "prompt_per_second", "predicted_n", "predicted_ms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e300, None, "1", True, [1]])
def test_figures_that_make_no_sense_are_an_error(engine: Engine, name: str, value: object) -> None:
    engine.timings = {name: value}

    with pytest.raises(WorkerLost, match="make no sense"):
        _bench(engine).run()


def test_a_speed_of_zero_is_an_error(engine: Engine) -> None:
    engine.timings = {"prompt_per_second": 0}

    with pytest.raises(WorkerLost, match="prompt_per_second is 0"):
        _bench(engine).run()
