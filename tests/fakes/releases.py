"""The release page's API on loopback: answers one document, or misbehaves on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


def release(tag: object, **changes: object) -> bytes:
    """What the real API answers, as far as it matters, with much beside it."""
    return json.dumps(
        {
            "url": "https://api.github.com/repos/stoker-ai/stoker/releases/1",
            "html_url": "https://evil.example/download-me",
            "tag_name": tag,
            "name": "A release",
            "draft": False,
            "prerelease": False,
            "body": "Notes.\n" * 1000,
            **changes,
        }
    ).encode()


@dataclass
class Releases:
    """``with Releases() as page:`` answers at ``page.url``; notes every request's headers."""

    body: bytes = field(default_factory=lambda: release("v99.0.0"))
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)  # path: location
    silent: bool = False  # take the request and say nothing
    endless: bool = False  # a body without an end
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/repos/stoker-ai/stoker/releases/latest"

    def until_over(self) -> None:
        self._over.wait(30)


def _handler(page: Releases) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            page.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            self.close_connection = True
            if page.silent:
                page.until_over()
                return
            location = page.redirects.get(self.path)
            self.send_response(302 if location else page.status)
            if location:
                self.send_header("Location", location)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if not page.endless:
                self.send_header("Content-Length", str(len(page.body)))
            self.end_headers()
            self._send()

        def _send(self) -> None:
            try:
                self.wfile.write(page.body)
                while page.endless:
                    self.wfile.write(b" " * 65536)
            except OSError:
                pass  # the client has heard enough

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    return Handler
