"""What a client may ask of the engine: an allow-list of fields with ranges, per route. Pure.

The engine reads many more fields, some of which steer its insides (context shifting, slots,
parsers, templates). A field that is not listed here never reaches it: unknown ones are dropped
and named, dangerous ones refused. Not for: routing, or the engine's answers (`relay`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from stoker.api.allowed import ALLOWED, CONTROL, LONGEST_NAME, MAX_NODES, REFUSED
from stoker.api.checks import keep_alive, wrong
from stoker.errors import BadRequest, NotCapable, StokerError
from stoker.types import Capability

KEEP_ALIVE: Final = "keep_alive"  # is for the lifecycle, and never reaches the engine
MAX_DEPTH: Final = 64  # levels; tool schemas of real clients reach 20
_MAX_IMAGES: Final = 32
_MAX_IMAGE_CHARS: Final = 28 * 1024 * 1024  # 20 MB of picture in base64
_DATA_URL: Final = re.compile(
    r"data:(?:image|audio|video)/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may go to the engine."""

    model: str  # "" when none was named
    stream: bool
    payload: bytes  # the checked fields as JSON; never empty
    ignored: tuple[str, ...]
    media: frozenset[Capability]  # what its attachments ask of the model
    keep_alive_s: float | None = None  # how long the model stays afterwards; -1: for ever

    def body(self, model: str) -> bytes:
        """The JSON for the engine, with the model's own id."""
        return b'{"model":' + json.dumps(model).encode() + b"," + self.payload[1:]


# --- parsing ---------------------------------------------------------------------------------


def parse(path: str, body: bytes) -> Request:
    """The request for a route of `ALLOWED`. Raises BadRequest or NotCapable."""
    values = _load(body)
    allowed, required = ALLOWED[path]
    model, keep = values.pop("model", None), values.pop(KEEP_ALIVE, None)
    fields: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in values.items():
        if _refused(name) and value is not None and value is not False:
            reason = REFUSED.get(name, CONTROL)
            raise BadRequest(f"{name[:64]} is not accepted: {reason}", param=name[:64])
        if name not in allowed:  # a refused one that is switched off included
            ignored.append(name)
        elif value is not None:  # null means: as if it were not there
            fields[name] = allowed[name](name, value)
    for name in required:
        if name not in fields:
            raise BadRequest(f"{name} is missing", param=name)
    media = _Media()
    media.scan(fields)
    return Request(
        model=_model_name(model),
        stream=fields.get("stream", False),
        payload=_encode(fields),
        ignored=tuple(sorted(ignored)),
        media=frozenset(media.kinds),
        keep_alive_s=None if keep is None else keep_alive(KEEP_ALIVE, keep),
    )


def ignored_header(names: tuple[str, ...]) -> bytes:
    """The names for ``X-Stoker-Ignored``; a client's text, so only what a header may carry."""
    return ", ".join(re.sub(r"[^A-Za-z0-9_.-]", "?", name[:40]) for name in names[:20]).encode()


def missing_model(known: list[str]) -> StokerError:
    """The error for a request that names no model while none is the default; it lists them."""
    names = ", ".join(known[:10]) or "none yet"
    return BadRequest(
        f"model is missing, and no model is the default; there is: {names}",
        hint="Name one of them, or make one the default with `stoker use MODEL`.",
        param="model",
        available=known,
    )


def _load(body: bytes) -> dict[str, Any]:
    if not body:
        raise BadRequest("the body is empty")
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON") from error
    if not isinstance(values, dict):
        raise BadRequest("the body must be a JSON object")
    _bound(values)
    return values


def _encode(values: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except (ValueError, RecursionError) as error:  # 1e400; lone surrogates
        raise BadRequest("the body holds values that JSON cannot carry") from error


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)  # NaN and Infinity are not JSON


def _bound(root: dict[str, Any]) -> None:
    """Refuse depth and number of values that would cost the engine more than they say."""
    level: list[Any] = [root]
    nodes = 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            nodes += len(container)
            inner = container.values() if type(container) is dict else container
            below += [item for item in inner if type(item) is dict or type(item) is list]
        if nodes > MAX_NODES:
            raise BadRequest(f"the body holds more than {MAX_NODES} values")
        if not below:
            return
        level = below
    raise BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def _refused(name: str) -> bool:
    return name in REFUSED or name.startswith(("speculative.", "lora."))


def _model_name(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        wrong("model", "the name of a model")
    return value


class _Media:
    """Finds pictures and sounds in messages; only those inside the request are accepted."""

    def __init__(self) -> None:
        self.count = 0
        self.kinds: set[Capability] = set()

    def scan(self, fields: dict[str, Any]) -> None:
        for name in ("messages", "input", "system"):
            self._walk(fields.get(name))

    def _walk(self, value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                self._walk(item)
        elif isinstance(value, dict) and value.get("type") != "tool_use":  # its input is anything
            for key, item in value.items():
                if key in {"image_url", "video_url", "input_video", "audio_url", "file_url"}:
                    self._check(item.get("url") if isinstance(item, dict) else item)
                elif key == "source" and value.get("type") in {"image", "document"}:
                    self._source(item)
                elif key == "input_audio":
                    self._add(Capability.AUDIO)
                elif key == "file_id":
                    raise NotCapable("Stoker stores no files", param=key)
                else:
                    self._walk(item)

    def _source(self, source: Any) -> None:
        if not isinstance(source, dict):
            wrong("source", "an object")
        if source.get("type") == "base64":
            self._add()
        else:
            self._check(source.get("url"))

    def _check(self, url: Any) -> None:
        if not isinstance(url, str) or not _DATA_URL.match(url):
            message = "only data: URLs are accepted; Stoker fetches nothing for a request"
            raise BadRequest(message, param="image_url")
        if len(url) > _MAX_IMAGE_CHARS:
            raise BadRequest("a picture is larger than 20 MB", param="image_url")
        self._add()

    def _add(self, kind: Capability = Capability.VISION) -> None:
        self.kinds.add(kind)
        self.count += 1
        if self.count > _MAX_IMAGES:
            raise BadRequest(f"more than {_MAX_IMAGES} pictures or sounds", param="messages")
