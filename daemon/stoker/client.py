"""The typed client of the control plane, for the CLI, the tray and scripts.

Cheap to import and to use (the CLI starts fast, the tray stays small, so no HTTP library but the
standard one); every call has a deadline; every failure is a `StokerError`. Each call makes its
own connection, so a daemon that was restarted in between is no trouble. Not for: model answers,
which any OpenAI client fetches from the endpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote

import pydantic
from pydantic import BaseModel, TypeAdapter

from stoker import errors, transport
from stoker.client_machine import MachineCalls
from stoker.paths import Paths
from stoker.schemas import (
    DoneView,
    ErrorView,
    Event,
    FreedView,
    Goodbye,
    ModelView,
    OfferView,
    PullView,
    RemovedView,
    ServerView,
    StatusView,
    StoredModelView,
    VerifyProgress,
)

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

VERSION_HEADER: Final = "X-Stoker-Version"

# The kernel connects; only a daemon with a full backlog takes long. Windows, though, asks again
# for two seconds before it says that nobody listens.
CONNECT_S: Final = 5.0 if sys.platform == "win32" else 2.0
ANSWER_S: Final = 30.0  # a call that only looks or asks; a busy disk may make a list slow
EVENT_S: Final = 45.0  # the daemon sends something every 15 s
VERIFY_S: Final = 120.0  # between two lines; a dying disk retries for long
LOAD_MARGIN_S: Final = 30.0  # so that the daemon's own time-out is the one that is reported

M = TypeVar("M", bound=BaseModel)


class StokerClient(MachineCalls):
    """``with StokerClient(paths) as client:``; connects at the first call.

    Any call may raise DaemonNotRunning, DaemonNotReady (no answer in time) or what the daemon
    reports, as its own class. One client is used from one thread at a time.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.daemon_version: str | None = None  # of the last answer; None before the first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between calls; here for the habit of closing."""

    # --- the daemon --------------------------------------------------------------------------

    def status(self) -> StatusView:
        return self._call(StatusView, "GET", "/status")

    def stop(self) -> None:
        """Ask the daemon to stop; it goes on for as long as running requests may take."""
        self._call(DoneView, "POST", "/stop")

    def server(self, enabled: bool) -> ServerView:  # noqa: FBT001  # as the API has it
        """Switch the endpoint on or off; off takes as long as running requests may go on."""
        body = {"enabled": enabled}
        return self._call(ServerView, "POST", "/server", body, read_s=self._load_s())

    def events(self, *, resources: bool = True) -> Generator[Event, None, None]:
        """A snapshot, then every change. Ends after Goodbye; DaemonNotRunning when cut.

        Without ``resources`` the daemon takes no samples of this machine for this client.
        """
        path = "/events" if resources else "/events?resources=false"
        with self._answer("GET", path, None, EVENT_S) as answer:
            for line in _lines(answer):
                event = _event(line[6:]) if line.startswith(b"data: ") else None
                if event is None:
                    continue
                yield event
                if isinstance(event, Goodbye):
                    return
        msg = "the daemon went away"
        raise errors.DaemonNotRunning(msg)

    # --- models ------------------------------------------------------------------------------

    def models(self) -> list[StoredModelView]:
        return self._call_list(StoredModelView, "/models")

    def model(self, model: str) -> StoredModelView:
        return self._call(StoredModelView, "GET", f"/models/{quote(model)}")

    def remove(self, model: str) -> RemovedView:
        """Unload and remove; running requests may go on to their end first."""
        path = f"/models/{quote(model)}"
        return self._call(RemovedView, "DELETE", path, read_s=self._load_s())

    def load(
        self, model: str, *, keep_alive_s: float | None = None, pin: bool | None = None
    ) -> ModelView:
        """Return when the model is ready. None leaves as it is how long it stays."""
        body = {"model": model, "keep_alive_s": keep_alive_s, "pin": pin}
        return self._call(ModelView, "POST", "/load", body, read_s=self._load_s())

    def pin(self, model: str, *, pinned: bool = True) -> ModelView:
        """A pinned model is neither evicted nor unloaded for being idle; nothing is loaded."""
        return self._call(ModelView, "POST", "/pin", {"model": model, "pinned": pinned})

    def use(self, model: str) -> ModelView:
        """Make it the default: load it and let all others go; return when it is ready.

        When it cannot be loaded, the default stays what it was and is loaded again.
        """
        return self._call(ModelView, "POST", "/use", {"model": model}, read_s=self._load_s())

    def free(self) -> FreedView:
        """Unload every idle model that is not pinned; return when their memory is free."""
        return self._call(FreedView, "POST", "/free", read_s=self._load_s())

    def catalogue(self) -> list[OfferView]:
        """The models known by a short name, the best for this machine first."""
        return self._call_list(OfferView, "/catalogue")

    def unload(self, model: str) -> ModelView:
        """Return when its worker is gone."""
        return self._call(ModelView, "POST", "/unload", {"model": model}, read_s=self._load_s())

    def verify(
        self, models: tuple[str, ...] | list[str] = ()
    ) -> Generator[VerifyProgress, None, None]:
        """Hash these models, or all; closing the iterator stops the hashing."""
        body = {"models": list(models)}
        with self._answer("POST", "/verify", body, VERIFY_S) as answer:
            for line in _lines(answer):
                yield _parse(VerifyProgress, line)

    # --- pulls -------------------------------------------------------------------------------

    def pull(self, reference: str, *, name: str | None = None) -> PullView:
        """Start a pull, or find the one that runs for this reference; returns at once."""
        return self._call(PullView, "POST", "/pulls", {"reference": reference, "name": name})

    def pulls(self) -> list[PullView]:
        return self._call_list(PullView, "/pulls")

    def pull_view(self, pull: str) -> PullView:
        return self._call(PullView, "GET", f"/pulls/{quote(pull, safe='')}")

    def pause_pull(self, pull: str) -> PullView:
        return self._call(PullView, "POST", f"/pulls/{quote(pull, safe='')}/pause")

    def resume_pull(self, pull: str) -> PullView:
        return self._call(PullView, "POST", f"/pulls/{quote(pull, safe='')}/resume")

    def cancel_pull(self, pull: str) -> PullView:
        return self._call(PullView, "POST", f"/pulls/{quote(pull, safe='')}/cancel")

    # --- the wire ----------------------------------------------------------------------------

    def _call(
        self, kind: type[M], method: str, path: str, body: object = None, read_s: float = ANSWER_S
    ) -> M:
        with self._answer(method, path, body, read_s) as answer:
            return _parse(kind, answer.read())

    def _call_list(self, kind: type[M], path: str) -> list[M]:
        with self._answer("GET", path, None, ANSWER_S) as answer:
            return [_parse(kind, item) for item in _items(answer.read())]

    @contextmanager
    def _answer(
        self, method: str, path: str, body: object, read_s: float
    ) -> Iterator[HTTPResponse]:
        """A good answer, to be read in the block. Foreign exceptions leave it as ours."""
        from http.client import HTTPException

        route = transport.find(self._paths.control_socket)
        connection = _connect(route, read_s)
        try:
            connection.request(method, path, **_json(body, route.headers))
            with connection.getresponse() as answer:
                self._check(answer)
                yield answer
        except TimeoutError as error:
            msg = f"the daemon gave no answer within {read_s:g} s"
            raise errors.DaemonNotReady(msg) from error
        except (OSError, HTTPException) as error:
            msg = "the daemon went away in the middle of the call"
            raise errors.DaemonNotRunning(msg) from error
        finally:
            connection.close()

    def _check(self, answer: HTTPResponse) -> None:
        """Note the daemon's version. Raises the error that it reports."""
        self.daemon_version = answer.headers.get(VERSION_HEADER, self.daemon_version)
        if answer.status < HTTPStatus.BAD_REQUEST:
            return
        try:
            view = ErrorView.model_validate_json(answer.read())
        except pydantic.ValidationError as error:
            msg = f"the daemon failed without a reason (HTTP {answer.status})"
            raise errors.DaemonError(msg) from error
        raise errors.from_wire(view.code, view.message, view.hint, view.facts)

    def _load_s(self) -> float:
        """Longer than the daemon lets a load, a wait for one or a drain take."""
        from stoker import settings

        try:
            wishes = settings.load(self._paths.config_file)
        except errors.BadSetting:  # the daemon runs with what it read when it started
            wishes = settings.Settings()
        longest = wishes.wait_timeout_s + wishes.load_timeout_s + wishes.drain_timeout_s
        return longest + LOAD_MARGIN_S


def _connect(route: transport.Route, read_s: float) -> HTTPConnection:
    """A connection to the daemon. Raises DaemonNotRunning, DaemonNotReady."""
    from http.client import HTTPConnection

    try:
        channel = route.connect(CONNECT_S)
    except (TimeoutError, BlockingIOError) as error:  # its backlog is full
        msg = "the daemon is too busy to answer"
        raise errors.DaemonNotReady(msg) from error
    except OSError as error:
        msg = "Stoker is not running"
        raise errors.DaemonNotRunning(msg) from error
    channel.settimeout(read_s)
    connection = HTTPConnection(route.host)
    connection.sock = channel
    return connection


def _lines(answer: HTTPResponse) -> Iterator[bytes]:
    """Line by line, as they arrive. Raises IncompleteRead when the answer is cut."""
    rest = b""
    while piece := answer.read1(65536):  # its own line reader takes a cut for the end
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _json(body: object, headers: dict[str, str]) -> dict[str, Any]:
    if body is None:
        return {"headers": headers}
    kind = {"Content-Type": "application/json"}
    return {"body": json.dumps(body), "headers": headers | kind}


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except pydantic.ValidationError as error:
        msg = "the daemon's answer makes no sense to this client"
        hint = "The two may be of different versions: run `stoker restart`."
        raise errors.DaemonError(msg, hint=hint) from error


def _parse(kind: type[M], value: object) -> M:
    with _understood():
        if isinstance(value, bytes):
            return kind.model_validate_json(value)
        return kind.model_validate(value)


def _items(text: bytes) -> list[object]:
    with _understood():
        return TypeAdapter(list[object]).validate_json(text)


@cache
def _event_types() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def _event(text: bytes) -> Event | None:
    """None for a kind of event that only a newer daemon knows."""
    with _understood():
        try:
            return _event_types().validate_json(text)
        except pydantic.ValidationError as error:
            if error.errors()[0]["type"] == "union_tag_invalid":
                return None
            raise
