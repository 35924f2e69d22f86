"""A Hub in memory: a real HTTP/1.1 server on loopback, with its CDN on another origin.

``with Hub() as hub:`` serves at ``hub.endpoint``. Publish repositories, then make it misbehave:
each entry of the queues ``hub.on_…`` is used up by one request of that kind.
tests/contract/test_source.py holds it to what huggingface_hub expects of a Hub.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

SAFE: dict[str, Any] = {
    "status": "safe",
    "avScan": {"status": "safe", "version": "1.4"},
    "pickleImportScan": {"status": "unscanned"},
    "virusTotalScan": {"status": "safe"},
}
CHUNK = 64 * 1024


@dataclass
class Blob:
    """One file of a repository; any fact about it may be set to a lie."""

    content: bytes
    lfs: bool = True
    security: dict[str, Any] | None = field(default_factory=lambda: dict(SAFE))
    listed_size: object = None  # None: the truth
    listed_oid: object = None
    etag: str | None = None  # X-Linked-Etag; None: the truth

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        head = b"blob %d\0" % len(self.content)
        return hashlib.sha1(head + self.content, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    id: str
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool | str = False
    private: bool = False
    licence: str = "apache-2.0"
    moved_to: str | None = None

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


# --- misbehaviours ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Close the connection after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Flip:
    """Turn one bit of the byte at this offset of the file."""

    offset: int


@dataclass(frozen=True)
class Stall:
    """Send so many bytes, then nothing until the client gives up."""

    after: int


@dataclass(frozen=True)
class Drip:
    """Send so many bytes, then one at a time, 50 in a second."""

    after: int


@dataclass(frozen=True)
class Answer:
    """Something else altogether."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lie:
    """Headers that do not fit the body."""

    content_range: str | None = None  # "" leaves it out
    content_length: int | None = None  # the body is cut or stretched to it


IGNORE_RANGE = "ignore-range"
GZIP = "gzip"
POINTER = "pointer"
TWO_RANGES = "multipart"
CAPTIVE_PORTAL = Answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
EXPIRED = Answer(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "text/xml"})
TOO_MANY = Answer(429, b"", {"RateLimit": '"resolvers";r=0;t=0'})


def redirect(location: str) -> Answer:
    return Answer(302, b"", {"Location": location})


Fault = Cut | Flip | Stall | Drip | Answer | Lie | str


@dataclass(frozen=True)
class Request:
    """What a client sent; header names in lower case."""

    server: str  # "hub" or "cdn"
    method: str
    path: str
    headers: Mapping[str, str]


class Hub:
    """See the module. ``token`` is what gated and private repositories ask for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.on_bytes: deque[Fault] = deque()
        self.on_resolve: deque[Answer] = deque()
        self.on_api: deque[Answer] = deque()
        self.on_paths_info: deque[Answer] = deque()
        self.always: Fault | None = None  # for bytes, when the queue is empty
        self.pages: dict[str, object] = {}  # more JSON documents, by path
        self.token = "hf_simulated"
        self.page_size = 1000
        self.loop_pages = False
        self.link_uses: int | None = None  # how often a signed address may be used
        self._links: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._hub = _Server(self, "hub")
        self._cdn = _Server(self, "cdn")
        self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn = f"http://localhost:{self._cdn.server_port}"

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in (self._hub, self._cdn)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.close_connections()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def publish(
        self,
        repo: str,
        files: Mapping[str, bytes | Blob],
        *,
        branch: str = "main",
        gated: bool | str = False,
        private: bool = False,
        licence: str = "apache-2.0",
    ) -> str:
        """A new commit with exactly these files; returns its id."""
        repository = self.repositories.setdefault(repo, Repository(repo))
        repository.gated, repository.private = gated, private
        repository.licence = licence
        blobs = {p: f if isinstance(f, Blob) else Blob(f) for p, f in files.items()}
        text = f"{repo} {len(repository.commits)} {sorted(blobs)}"
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        repository.commits[commit] = blobs
        repository.branches[branch] = commit
        return commit

    def sent(self, server: str, part: str = "") -> list[Request]:
        """The requests a server got, oldest first."""
        return [r for r in self.requests if r.server == server and part in r.path]

    def link(self, repo: str, commit: str, path: str) -> str:
        """A signed address on the CDN."""
        with self._lock:
            signature = f"s{len(self._links)}"
            self._links[signature] = self.link_uses if self.link_uses is not None else -1
        return f"{self.cdn}/{repo}/{commit}/{quote(path)}?Signature={signature}"

    def use_link(self, signature: str) -> bool:
        with self._lock:
            left = self._links.get(signature, 0)
            if left > 0:
                self._links[signature] = left - 1
            return left != 0

    def next_fault(self, queue: deque[Any], otherwise: Fault | None = None) -> Any:
        with self._lock:
            return queue.popleft() if queue else otherwise

    def stopped(self, timeout_s: float) -> bool:
        """Wait so long, or until the simulation ends; whether it has."""
        return self._stop.wait(timeout_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True
    request_queue_size = 64

    def __init__(self, hub: Hub, role: str) -> None:
        self.hub = hub
        self.role = role
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _HubHandler if role == "hub" else _CdnHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.role, self.command, self.path, headers)
        self.server.hub.requests.append(request)
        return True

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_file(self, blob: Blob, fault: Fault | None, extra: Mapping[str, str]) -> None:
        """The file, or the part of it that was asked for, as the fault wants it."""
        if isinstance(fault, Answer):
            self.reply(fault)
            return
        content = blob.content
        if fault == POINTER:
            content = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1\n" % (
                blob.sha256.encode()
            )
        if isinstance(fault, Flip):
            changed = bytearray(content)
            changed[fault.offset] ^= 1
            content = bytes(changed)
        start, end = self._range(len(content)) or (0, len(content))
        ranged = "Range" in self.headers and fault not in {IGNORE_RANGE, POINTER}
        if not ranged:
            start, end = 0, len(content)
        if start >= len(content):
            self.reply(Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"}))
            return
        body = content[start:end]
        # Looks like a digest, changes with the content, and is not its SHA-256: as a CDN's may be.
        headers = {"ETag": f'"{hashlib.sha256(b"etag" + content).hexdigest()}"', **extra}
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send_body(206 if ranged else 200, headers, body, fault)

    def _send_body(
        self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None
    ) -> None:
        if fault == GZIP:
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        if fault == TWO_RANGES:
            headers.pop("Content-Range", None)
            headers["Content-Type"] = "multipart/byteranges; boundary=x"
        length = len(body)
        if isinstance(fault, Lie):
            length = length if fault.content_length is None else fault.content_length
            body = body[:length].ljust(length, b"\0")
            if fault.content_range is not None:
                headers["Content-Range"] = fault.content_range
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self._write_body(body, fault)

    def _write_body(self, body: bytes, fault: Fault | None) -> None:
        broken = fault if isinstance(fault, Cut | Stall | Drip) else None
        end = len(body) if broken is None else min(len(body), broken.after)
        for offset in range(0, end, CHUNK):
            self.wfile.write(body[offset : min(offset + CHUNK, end)])
        if broken is None:
            return
        self.wfile.flush()
        self.close_connection = True  # what the client sees of it is an early end
        if isinstance(fault, Stall):
            self.server.hub.stopped(30)
        if isinstance(fault, Drip):
            for offset in range(end, len(body)):
                self.wfile.write(body[offset : offset + 1])
                if self.server.hub.stopped(0.02):
                    return

    def _range(self, size: int) -> tuple[int, int] | None:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes=") or "," in asked:
            return None
        first, _, last = asked.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else size, size)


class _CdnHandler(_Handler):
    def do_GET(self) -> None:
        hub = self.server.hub
        parts = urlsplit(self.path)
        owner, name, commit, path = unquote(parts.path).lstrip("/").split("/", 3)
        signature = parse_qs(parts.query).get("Signature", [""])[0]
        if not hub.use_link(signature):
            self.reply(EXPIRED)
            return
        blob = hub.repositories[f"{owner}/{name}"].commits[commit][path]
        self.send_file(blob, hub.next_fault(hub.on_bytes, hub.always), {})


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._resolve(path)
        elif path in self.server.hub.pages:
            self._json(self.server.hub.pages[path])
        else:
            self._refuse(404, "RepoNotFound")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        repo, _, revision = path.removeprefix("/api/models/").partition("/paths-info/")
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(raw)
        else:
            form = parse_qs(raw.decode())
            asked = {"paths": form.get("paths", []), "expand": form.get("expand") == ["true"]}
        found = self._commit(repo, revision)
        hub = self.server.hub
        if found is None or self._faulty(hub.on_paths_info) or self._faulty(hub.on_api):
            return
        blobs = found[1]
        self._json([_entry(p, blobs[p], asked["expand"]) for p in asked["paths"] if p in blobs])

    def _api(self, path: str) -> None:
        repo, kind, revision = path, "revision", "main"
        for word in ("revision", "tree"):
            if f"/{word}/" in path:
                repo, _, revision = path.partition(f"/{word}/")
                kind = word
        found = self._commit(repo, revision)
        if found is None or self._faulty(self.server.hub.on_api):
            return
        if kind == "tree":
            self._tree(found[1])
        else:
            self._json(self._info(repo, *found))

    def _info(self, repo: str, commit: str, blobs: Mapping[str, Blob]) -> dict[str, Any]:
        query = parse_qs(urlsplit(self.path).query)
        repository = self.server.hub.repositories[repo]
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in blobs]
        if query.get("blobs") == ["true"]:
            for sibling, blob in zip(siblings, blobs.values(), strict=True):
                sibling.update(size=len(blob.content), blobId=blob.git_oid)
                if blob.lfs:
                    size = len(blob.content)
                    sibling["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": 135}
        info: dict[str, Any] = {
            "id": repo,
            "sha": commit,
            "gated": repository.gated,
            "private": repository.private,
            "disabled": False,
            "likes": 0,
            "downloads": 0,
            "tags": ["gguf", f"license:{repository.licence}"],
            "cardData": {"license": repository.licence},
            "siblings": siblings,
        }
        if query.get("securityStatus") == ["true"]:
            info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
        return info

    def _tree(self, blobs: Mapping[str, Blob]) -> None:
        hub = self.server.hub
        query = parse_qs(urlsplit(self.path).query)
        expand = query.get("expand", ["false"])[0].lower() == "true"
        first = int(query.get("cursor", ["0"])[0])
        entries = [_entry(path, blob, expand) for path, blob in sorted(blobs.items())]
        headers = {}
        following = 0 if hub.loop_pages else first + hub.page_size
        if following < len(entries):
            base = urlsplit(self.path)._replace(query=f"expand={expand}&cursor={following}")
            headers["Link"] = f'<{hub.endpoint}{base.geturl()}>; rel="next"'
        self._json(entries[first : first + hub.page_size], headers)

    def _resolve(self, path: str) -> None:
        hub = self.server.hub
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        found = self._commit(repo, revision, gate=True)
        if found is None:
            return
        commit, blobs = found
        if name not in blobs:
            self._refuse(404, "EntryNotFound")
            return
        fault = hub.next_fault(hub.on_resolve)
        if fault is not None:
            self.reply(fault)
            return
        blob = blobs[name]
        headers = {"X-Repo-Commit": commit}
        if not blob.lfs:
            headers["ETag"] = f'"{blob.git_oid}"'
            self.send_file(blob, hub.next_fault(hub.on_bytes, hub.always), headers)
            return
        headers["X-Linked-Etag"] = f'"{blob.sha256}"' if blob.etag is None else blob.etag
        headers["X-Linked-Size"] = str(len(blob.content))
        headers["Location"] = hub.link(repo, commit, name)
        self.reply(Answer(302, b"", headers))

    def _commit(
        self, repo: str, revision: str, *, gate: bool = False
    ) -> tuple[str, Mapping[str, Blob]] | None:
        """The commit and its files; None when the request has been answered already."""
        hub = self.server.hub
        repository = hub.repositories.get(repo)
        allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if repository is None or (repository.private and not allowed):
            self._refuse(401 if not allowed else 404, "RepoNotFound")
            return None
        if repository.moved_to is not None:
            moved = self.path.replace(repo, repository.moved_to, 1)
            self.reply(Answer(307, b"", {"Location": moved}))
            return None
        if gate and repository.gated and not allowed:
            self._refuse(401, "GatedRepo")
            return None
        commit = repository.commit_of(unquote(revision))
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _faulty(self, queue: deque[Answer]) -> bool:
        fault = self.server.hub.next_fault(queue)
        if fault is not None:
            self.reply(fault)
        return fault is not None

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json", **(headers or {})}
        self.reply(Answer(200, json.dumps(value).encode(), kind))

    def _refuse(self, status: int, code: str) -> None:
        self.reply(Answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code}))


def _entry(path: str, blob: Blob, expand: object) -> dict[str, Any]:
    """An entry of a tree or of paths-info."""
    size = len(blob.content) if blob.listed_size is None else blob.listed_size
    entry: dict[str, Any] = {"type": "file", "oid": blob.git_oid, "size": size, "path": path}
    if blob.lfs:
        oid = blob.sha256 if blob.listed_oid is None else blob.listed_oid
        entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 135}
    if expand:
        date = "2026-01-01T00:00:00.000Z"
        entry["lastCommit"] = {"id": blob.git_oid, "title": "add", "date": date}
        if blob.security is not None:
            entry["securityFileStatus"] = blob.security
    return entry
