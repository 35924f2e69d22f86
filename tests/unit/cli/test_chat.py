from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from stoker import errors
from stoker.cli import chat, completion
from stoker.types import PullState

from .conftest import Run, StubClient, loaded, pulling, recommended, stored


@dataclass
class Endpoint:
    """Answers every question with the same lines; remembers what was asked."""

    base_url: str = ""
    status: int = 200
    lines: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def says(self, *pieces: str, finish: str = "stop") -> None:
        events: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": piece}}]} for piece in pieces
        ]
        events.append({"choices": [{"delta": {}, "finish_reason": finish}]})
        events.append({"choices": [], "usage": {"completion_tokens": 7}})
        self.lines = [": waiting", *(f"data: {json.dumps(event)}" for event in events)]
        self.lines.append("data: [DONE]")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the base class's name
            body = self.rfile.read(int(self.headers["content-length"]))
            state.asked.append(json.loads(body))
            self.send_response(state.status)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write("\n\n".join(state.lines).encode() + b"\n\n")

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def model(client: StubClient, endpoint: Endpoint) -> StubClient:
    client.stored_models = [stored()]
    client.base_url = endpoint.base_url
    return client


def _typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A user at a terminal who types these lines, then Ctrl-D."""
    typed = iter(lines)

    def read(_prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)


def test_a_prompt_is_answered_once(run: Run, model: StubClient, endpoint: Endpoint) -> None:
    endpoint.says("Hel", "lo")

    ran = run("run", "starter", "Hi", "--system", "Be kind", "--max-tokens", "9")

    assert (ran.code, ran.out) == (0, "Hello\n")
    asked = endpoint.asked[0]
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi"},
    ]
    assert (asked["model"], asked["stream"], asked["max_tokens"]) == ("starter", True, 9)
    assert "temperature" not in asked


def test_stats_go_to_stderr(run: Run, model: StubClient, endpoint: Endpoint) -> None:
    endpoint.says("Hello")

    ran = run("run", "starter", "Hi", "--stats")

    assert ran.out == "Hello\n"
    assert ran.err.startswith("7 tokens, ")


def test_piped_text_and_files_make_the_prompt(
    run: Run,
    model: StubClient,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    endpoint.says("ok")
    (tmp_path / "a.txt").write_text("the file\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))

    run("run", "starter")
    run("run", "starter", "About this:", "--file", str(tmp_path / "a.txt"))

    contents = [asked["messages"][0]["content"] for asked in endpoint.asked]
    assert contents == ["piped", "About this:\n\nthe file"]


def test_a_prompt_leaves_the_pipe_alone(
    run: Run, model: StubClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that is itself read from a pipe must not be swallowed."""
    endpoint.says("ok")
    pipe = io.StringIO("the rest of a script")
    monkeypatch.setattr("sys.stdin", pipe)

    run("run", "starter", "Hi")

    assert pipe.read() == "the rest of a script"


def test_nothing_to_ask_is_wrong_usage(
    run: Run, model: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))

    assert run("run", "starter").code == 2


def test_the_endpoint_s_error_is_two_lines(run: Run, model: StubClient, endpoint: Endpoint) -> None:
    endpoint.status = 400
    error = {"message": "does not fit. Shorten it.", "code": "context_length_exceeded"}
    endpoint.lines = [json.dumps({"error": {**error, "hint": "Shorten it."}})]

    ran = run("run", "starter", "Hi")

    assert ran.code == 1
    assert ran.err.splitlines() == ["error: does not fit.", "hint:  Shorten it."]


@pytest.mark.parametrize("prefix", ['data: {"error": ', "error: "])
def test_an_error_in_the_middle_of_a_stream_is_told(
    run: Run, model: StubClient, endpoint: Endpoint, prefix: str
) -> None:
    endpoint.says("Hel")
    end = "}" if prefix.startswith("data") else ""
    body = '{"message": "the engine stopped", "code": "worker_lost"}'
    endpoint.lines = [*endpoint.lines[:2], f"{prefix}{body}{end}"]

    ran = run("run", "starter", "Hi")

    assert ran.code == 1
    assert ran.out.startswith("Hel")
    assert ran.err.startswith("error: the engine stopped\n")


def test_a_stream_that_breaks_off_is_an_error(endpoint: Endpoint) -> None:
    endpoint.says("Hel")
    del endpoint.lines[2:]

    with (
        pytest.raises(errors.WorkerLost),
        completion.ask(endpoint.base_url, "starter", []) as answer,
    ):
        list(answer.pieces)


def test_no_endpoint_is_an_error() -> None:
    with (
        pytest.raises(errors.WorkerLost),
        completion.ask("http://127.0.0.1:9/v1", "starter", []),
    ):
        pass


def test_thoughts_stay_out_of_a_pipe(run: Run, model: StubClient, endpoint: Endpoint) -> None:
    endpoint.says("Hello")
    thought = {"choices": [{"delta": {"reasoning_content": "hmm"}}]}
    endpoint.lines.insert(0, f"data: {json.dumps(thought)}")

    assert run("run", "starter", "Hi").out == "Hello\n"


def test_answers_cannot_steer_the_terminal(run: Run, model: StubClient, endpoint: Endpoint) -> None:
    endpoint.says("a\x1b[2Jb")

    assert run("run", "starter", "Hi").out == "a[2Jb\n"


def test_a_conversation_remembers_until_it_is_cleared(
    run: Run, model: StubClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.says("Hello")
    _typed(monkeypatch, "one", "", "two", "/clear", "three", "/help", "/bogus")

    ran = run("run", "starter")

    contents = [[m["content"] for m in asked["messages"]] for asked in endpoint.asked]
    assert contents == [["one"], ["one", "Hello", "two"], ["three"]]
    assert ran.code == 0
    assert "/bye" in ran.out
    assert "There is no command /bogus." in ran.err


def test_an_error_ends_the_question_not_the_conversation(
    run: Run, model: StubClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.status = 503
    endpoint.lines = ["no json"]
    _typed(monkeypatch, "one", "two", "/bye", "never read")

    ran = run("run", "starter")

    assert [len(asked["messages"]) for asked in endpoint.asked] == [1, 1]
    assert ran.code == 0


def test_ctrl_c_keeps_the_part_that_was_written(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.says("Hello", " world")
    talk = chat.Conversation(endpoint.base_url, "starter")
    monkeypatch.setattr(chat, "clean", _interrupt_at(" world"))

    assert talk.say("Hi") is False

    assert capsys.readouterr().out == "Hello\n"
    assert talk.messages[0] == {"role": "user", "content": "Hi"}
    assert talk.messages[1]["role"] == "assistant"


def _interrupt_at(wanted: str) -> Callable[[str], str]:
    def clean(piece: str) -> str:
        if piece == wanted:
            raise KeyboardInterrupt
        return piece

    return clean


def test_a_model_that_is_not_stored_is_not_pulled_unasked(run: Run, client: StubClient) -> None:
    ran = run("run", "starter", "Hi")

    assert ran.code == 1
    assert "stoker pull starter" in ran.err
    assert client.asked == []


def test_on_a_terminal_a_missing_model_is_offered(
    run: Run, model: StubClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.says("Hello")
    model.stored_models = []
    model.pull_views = [pulling(PullState.DONE)]
    questions = []

    def yes(question: str, **_options: object) -> bool:
        questions.append(question)
        return True

    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", yes)

    ran = run("run", "starter", "Hi")

    assert "98 MB" in questions[0]
    assert ran.out == "Hello\n"
    assert ("pull", "starter", None) in model.asked


def test_the_only_model_need_not_be_named(
    run: Run, model: StubClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.says("ok")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))

    assert run("run").out == "ok\n"
    assert ("load", "starter", None) in model.asked


def test_of_several_models_the_loaded_one_is_meant(
    run: Run, model: StubClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none or two of them loaded, nobody can know."""
    endpoint.says("ok")
    model.stored_models = [stored("one"), stored("two")]

    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    unclear = run("run")
    model.loaded_models = [loaded("two")]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))

    assert (unclear.code, "one, two" in unclear.err) == (2, True)
    assert run("run").out == "ok\n"
    assert ("load", "two", None) in model.asked


def test_without_any_model_a_script_is_told_what_to_pull(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.recommendations = [recommended("good")]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))

    ran = run("run")

    assert ran.code == 2
    assert "stoker pull good" in ran.err
    assert client.asked == []


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_without_any_model_a_person_is_offered_the_best_fit(
    run: Run,
    model: StubClient,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    """And nothing is downloaded without a yes."""
    endpoint.says("Hello")
    model.stored_models = []
    model.recommendations = [recommended("good", title="Good 4B")]
    model.pull_views = [pulling(PullState.DONE, model="good")]
    _typed(monkeypatch, "Hi")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    def confirm(_question: str, **_options: object) -> bool:
        if answer == "no":
            raise typer.Abort
        return True

    monkeypatch.setattr("typer.confirm", confirm)

    ran = run("run")

    assert "Good 4B suits this machine best" in ran.err
    assert (("pull", "good", None) in model.asked) == (answer == "yes")
    assert ("Hello" in ran.out) == (answer == "yes")


def test_a_name_that_cannot_be_pulled_is_just_unknown(run: Run, client: StubClient) -> None:
    assert run("run", "nonsense", "Hi").err.startswith("error: no model named 'nonsense'")
