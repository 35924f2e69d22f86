"""A load client as light as Python allows: one blocking socket per stream, bytes counted.

The client shares the machine with the engine, so it must cost little, and the same on both sides
of a comparison.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 120
_PIECE = b'"content":"'


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: a TCP endpoint, or a worker's UNIX socket with its key."""

    address: tuple[str, int] | Path
    model: str
    key: str = ""

    def connect(self) -> socket.socket:
        if isinstance(self.address, Path):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(_TIMEOUT_S)
            peer.connect(str(self.address))
            return peer
        return socket.create_connection(self.address, _TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Result:
    """One streamed answer: seconds to its first token and to its end, tokens received."""

    first_s: float
    total_s: float
    tokens: int


def ask(target: Target, prompt: str, max_tokens: int) -> Result:
    """Stream one chat and count its tokens (one event each)."""
    body = json.dumps(
        {
            "model": target.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{_port(target)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: Bearer {target.key}\r\nConnection: close\r\n\r\n"
    ).encode()
    start = time.perf_counter()
    first = 0.0
    received = bytearray()
    with target.connect() as peer:
        peer.sendall(head + body)
        while data := peer.recv(65536):
            received += data
            if not first and _PIECE in received:
                first = time.perf_counter() - start
    total = time.perf_counter() - start
    if not received.startswith(b"HTTP/1.1 200") or b"[DONE]" not in received:
        raise AssertionError(bytes(received[:600]))
    return Result(first, total, received.count(_PIECE))


def _port(target: Target) -> int:
    return target.address[1] if isinstance(target.address, tuple) else 80


def together(target: Target, prompts: list[str], max_tokens: int) -> float:
    """Tokens per second of all streams at once."""
    results: list[Result] = []

    def one(prompt: str) -> None:
        results.append(ask(target, prompt, max_tokens))

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    if len(results) != len(prompts):
        raise AssertionError("a stream failed")
    return sum(result.tokens for result in results) / elapsed
