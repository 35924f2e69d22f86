"""The fake worker process: enough of llama-server's HTTP on a UNIX socket, with misbehaviour.

Stand-alone: started as a script with one JSON line on stdin (see `engine.FakeEngine`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from stoker.engine import lifeline

_LAST_WORDS = {
    "oom": "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99999",
    "bad-file": "gguf_init_from_file_impl: invalid magic characters: 'XXXX', expected 'GGUF'",
    "architecture": "llama_model_load: error loading model: unknown model architecture: 'zzz'",
    "assert": "ggml.c:123: GGML_ASSERT(n > 0) failed",
    "silent": "",
}


class Slot:
    """What one request at a time runs in, and what it holds afterwards."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens = 0
        self.task: int | None = None  # the last request that it served
        self.busy = False

    def view(self, context: int) -> dict[str, Any]:
        view: dict[str, Any] = {"id": self.number, "n_ctx": context, "is_processing": self.busy}
        if self.task is not None:
            view |= {"id_task": self.task, "n_prompt_tokens": self.tokens}
        return view


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Shared state of all connections."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.slots = [Slot(number) for number in range(order["parallel"])]
        self.places = threading.BoundedSemaphore(order["parallel"])
        self.lock = threading.Lock()
        names = ("requests", "processing", "tokens", "cancelled", "decodes", "prompt", "tasks")
        self.counts = dict.fromkeys(names, 0)
        self.decoded = False  # the readiness probe was answered
        super().__init__(order["socket"], Handler)

    def count(self, name: str, step: int = 1) -> None:
        with self.lock:
            self.counts[name] += step

    @contextlib.contextmanager
    def slot(self) -> Any:
        """A slot for one request; waits until one is free, and takes the one unused longest."""
        with self.places:
            with self.lock:
                self.counts["tasks"] += 1
                free = [slot for slot in self.slots if not slot.busy]
                mine = min(free, key=lambda slot: slot.task or 0)
                mine.busy, mine.tokens, mine.task = True, 0, self.counts["tasks"]
            try:
                yield mine
            finally:
                mine.busy = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken pipes are part of the game."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 5  # seconds; llama-server drops idle connections as early
    server: Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        sys.stderr.write(f"srv  log_server_r: {format % args}\n")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in {"/health", "/v1/health"}:
            self.answer(200, {"status": "ok"})
        elif not self.allowed():
            self.refuse(401, "Invalid API Key", "authentication_error")
        elif path in {"/v1/models", "/models"}:
            self.answer(200, {"object": "list", "data": [{"id": self.server.order["model"]}]})
        elif path == "/props":
            self.answer(200, {"total_slots": self.server.order["parallel"]})
        elif path in {"/metrics", "/slots"}:
            self.figures(path)
        else:
            self.refuse(404, "File Not Found", "not_found_error")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.allowed():
            self.refuse(401, "Invalid API Key", "authentication_error")
            return
        try:
            body = json.loads(raw)
        except ValueError as error:
            self.refuse(500, f"[json.exception.parse_error.101] {error}", "server_error")
            return
        path = self.path.partition("?")[0].removeprefix("/v1")
        if path.startswith("/slots/"):
            self.keep_slot(path, body)
            return
        self.server.count("requests")
        self.misbehave()
        if path == "/embeddings":
            self.embeddings(body)
        elif path == "/completion":
            self.native_completion(body)
        elif path in {"/chat/completions", "/completions", "/responses", "/messages"}:
            self.completion(body, chat=path == "/chat/completions")
        elif path == "/tokenize":
            self.answer(200, {"tokens": list(range(len(str(body.get("content", "")).split())))})
        else:
            self.refuse(404, "File Not Found", "not_found_error")

    def misbehave(self) -> None:
        order = self.server.order
        if order["never_ready"]:
            time.sleep(3600)
        if (order["wedge"] or order["stuck"]) and self.server.decoded:
            self.server.count("processing")
            while order["spin"]:
                pass
            time.sleep(3600)
        if order["no_first_byte"] and self.server.decoded:
            self.connection.close()
            raise BrokenPipeError

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.order['key']}"

    def figures(self, path: str) -> None:
        order, counts = self.server.order, self.server.counts
        if order["no_figures"]:
            message = "This server does not support this endpoint."
            self.refuse(501, message, "not_supported_error")
            return
        if order["wedge"] and counts["processing"]:
            time.sleep(3600)  # the loop that would tell them stands still
        if path == "/slots":
            self.answer(200, [slot.view(order["context"]) for slot in self.server.slots])
            return
        text = "".join(
            f"# HELP llamacpp:{name} As the real one.\n"
            f"# TYPE llamacpp:{name} {kind}\n"
            f"llamacpp:{name} {value:g}\n"  # six digits, as the real one
            for name, kind, value in (
                ("prompt_tokens_total", "counter", counts["prompt"]),
                ("tokens_predicted_total", "counter", counts["tokens"]),
                ("n_decode_total", "counter", counts["decodes"]),
                ("requests_processing", "gauge", counts["processing"]),
                ("requests_deferred", "gauge", 0),
            )
        )
        self.reply(200, text.encode(), "text/plain; version=0.0.4")

    def keep_slot(self, path: str, body: dict[str, Any]) -> None:
        """Save what a slot holds to a file, or read it back."""
        folder = self.server.order["conversations"]
        if folder is None:
            message = "This server does not support slots action. Start it with `--slot-save-path`"
            self.refuse(501, message, "not_supported_error")
            return
        number, name = int(path.rpartition("/")[2]), str(body["filename"])
        slot, file = self.server.slots[number], Path(folder) / name
        answer: dict[str, Any] = {"id_slot": number, "filename": name}
        if self.path.endswith("action=save"):
            written = file.write_text(json.dumps({"tokens": slot.tokens}), encoding="utf-8")
            self.answer(200, {**answer, "n_saved": slot.tokens, "n_written": written})
            return
        try:
            text = file.read_text(encoding="utf-8")
            slot.tokens = int(json.loads(text)["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            self.refuse(400, "Unable to restore slot", "invalid_request_error")
            return
        self.answer(200, {**answer, "n_restored": slot.tokens, "n_read": len(text)})

    def answer(self, status: int, body: object) -> None:
        self.reply(status, json.dumps(body).encode(), "application/json; charset=utf-8")

    def reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.end_of_answer()

    def end_of_answer(self) -> None:
        if self.server.order["drop_idle"]:
            self.close_connection = True  # without a Connection header: the client cannot know

    def refuse(self, status: int, message: str, kind: str, **more: object) -> None:
        self.answer(status, {"error": {"code": status, "message": message, "type": kind, **more}})

    def embeddings(self, body: dict[str, Any]) -> None:
        if not self.server.order["embedding"]:
            message = "This server does not support embeddings. Start it with `--embeddings`"
            self.refuse(501, message, "not_supported_error")
            return
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [
            {"object": "embedding", "index": n, "embedding": [0.5, 0.5, 0.5, 0.5]}
            for n in range(len(texts))
        ]
        self.server.decoded = True
        self.answer(200, {"object": "list", "model": self.server.order["model"], "data": data})

    def native_completion(self, body: dict[str, Any]) -> None:
        first = self.server.order["first_token"]
        with self.server.slot() as slot:
            words = list(self.generate(int(body["n_predict"]), slot))
        tokens = [first + number for number in range(len(words))]
        self.answer(200, {"content": " ".join(words), "tokens": tokens})

    def completion(self, body: dict[str, Any], *, chat: bool) -> None:
        server = self.server
        asked = json.dumps(body["messages"]) if chat else str(body.get("prompt", body.get("input")))
        prompt, context = len(asked.split()), server.order["context"]
        if prompt > context:
            message = (
                f"request ({prompt} tokens) exceeds the available context size"
                f" ({context} tokens), try increasing it"
            )
            more = {"n_prompt_tokens": prompt, "n_ctx": context}
            self.refuse(400, message, "exceed_context_size_error", **more)
            return
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        count = server.order["tokens"] if limit is None else int(limit)
        streamed = bool(body.get("stream"))
        with server.slot() as slot, self.processing():
            self.read_prompt(prompt, slot)
            words = self.generate(count, slot)
            if streamed:
                self.stream(words, chat=chat)
            else:
                text = " ".join(words)
        # Before anybody can know that it ended and ask again: the engine, too, has freed the slot.
        server.decoded = True
        if streamed:
            self.end_stream(body, usage(prompt, count), chat=chat)
        else:
            answer = self.frame(chat=chat, text=text, final=True, whole=True)
            self.answer(200, {**answer, "usage": usage(prompt, count)})

    @contextlib.contextmanager
    def processing(self) -> Any:
        self.server.count("processing")
        try:
            yield
        except OSError:
            self.server.count("cancelled")
            raise
        finally:
            self.server.count("processing", -1)

    def read_prompt(self, prompt: int, slot: Slot) -> None:
        """Step by step, so that the counters move."""
        ends_at = time.monotonic() + self.server.order["prompt_ms"] / 1000
        while time.monotonic() < ends_at:
            self.server.count("decodes")
            time.sleep(0.005)
        self.server.count("decodes")
        self.server.count("prompt", prompt)
        slot.tokens = prompt

    def generate(self, count: int, slot: Slot) -> Any:
        order = self.server.order
        for number in range(count):
            if self.server.decoded and number == order["crash_after"]:
                die(order["last_words"])
            if order["delay_ms"]:
                time.sleep(order["delay_ms"] / 1000)
            self.server.count("tokens")
            self.server.count("decodes")
            slot.tokens += 1
            yield f"tok{number}"

    def stream(self, words: Any, *, chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, word in enumerate(words):
            text = word if number == 0 else f" {word}"
            self.event(self.frame(chat=chat, text=text, final=False, whole=False))

    def end_stream(self, body: dict[str, Any], used: dict[str, int], *, chat: bool) -> None:
        last = self.frame(chat=chat, text="", final=True, whole=False)
        self.event(last)
        if body.get("stream_options", {}).get("include_usage"):
            self.event({**last, "choices": [], "usage": used})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")
        self.end_of_answer()

    def frame(self, *, chat: bool, text: str, final: bool, whole: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if final else None}
        if not chat:
            choice["text"] = text
        elif whole:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["delta"] = {"content": text} if text else {}
        kind = "chat.completion" if chat else "text_completion"
        return {
            "id": "cmpl-fake",
            "object": kind if whole or not chat else f"{kind}.chunk",
            "created": 0,
            "model": self.server.order["model"],
            "choices": [choice],
        }

    def event(self, body: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def usage(prompt: int, count: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": count,
        "total_tokens": prompt + count,
    }


def die(kind: str) -> None:
    sys.stderr.write(_LAST_WORDS[kind] + "\n")
    sys.stderr.flush()
    if kind == "assert":
        os.abort()
    os._exit(1)


def prepare(order: dict[str, Any]) -> None:
    """Everything that happens before the socket listens."""
    try:
        with Path(order["path"]).open("rb") as stream:
            sound = stream.read(4) == b"GGUF"
    except OSError:
        sound = False
    if not sound:
        die("bad-file")
    if order["fill_stderr"]:
        sys.stderr.write("noise " * 10 + "\n" * 1)
        for _ in range(16 * 1024):
            sys.stderr.write("0.00.000.000 I srv          init: " + "." * 30 + "\n")
    time.sleep(order["start_ms"] / 1000)
    if order["crash_at_start"] is not None:
        die(order["crash_at_start"])
    if order["ignore_stop"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        lifeline.watch_stdin(Path(order["socket"]).unlink)


def main() -> None:
    order = lifeline.read_order()
    stdout = lifeline.private_stdout()
    prepare(order)
    held = bytearray(b"x") * (order["resident_mib"] * 1024 * 1024)
    if order["grandchild"]:
        child = subprocess.Popen(["/bin/sleep", "600"], stdin=subprocess.DEVNULL)
        sys.stderr.write(f"grandchild {child.pid}\n")
        sys.stderr.flush()
    with Server(order) as server:
        lifeline.greet(stdout, socket=order["socket"], held=len(held))
        server.serve_forever()


if __name__ == "__main__":
    main()
