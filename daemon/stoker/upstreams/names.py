"""What a server says of its models, parsed; and where on it a request goes. Pure.

Its list is hostile: names may be anything, numbers nonsense, the list endless. What is not sound
is left out, never repaired. Not for: asking for the list (`forward`), or when to ask (`health`).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import urlsplit

from stoker.errors import UpstreamError
from stoker.types import Capability

VIA: Final = b"x-stoker-via"  # a request that has it came from a Stoker, and is not forwarded again
LONGEST_NAME: Final = 256  # with the server's own name it stays below what a request may name
MOST_MODELS: Final = 1000  # of one server; the largest routers list about five hundred
_MOST_ENTRIES: Final = 10_000  # looked at, sound or not
_LAST_SECOND: Final = 2**40  # of a date; later ones are nonsense
_LONGEST_CONTEXT: Final = 2**31
_CONTEXTS: Final = ("max_model_len", "context_length", "context_window")  # vLLM, OpenRouter, Groq
_V1: Final = "/v1"


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that another server runs."""

    id: str  # as it is listed here: NAME/MODEL
    upstream: str
    name: str  # what its server calls it
    created: int = 0  # POSIX seconds, as its server says; 0 when it does not
    context: int | None = None
    capabilities: tuple[Capability, ...] = ()  # known of another Stoker's models only


@dataclass(frozen=True, slots=True)
class Place:
    """A server's address, taken apart; `settings` has checked it."""

    base: str  # without a slash at the end
    secure: bool
    loopback: bool

    @classmethod
    def of(cls, base_url: str) -> Place:
        parts = urlsplit(base_url)
        return cls(base_url.rstrip("/"), parts.scheme == "https", _is_loopback(parts.hostname))

    def url(self, path: str) -> str:
        """Where one of our own paths is on it; those outside of /v1 stand beside its /v1."""
        if path.startswith(f"{_V1}/"):
            return self.base + path.removeprefix(_V1)
        return self.base.removesuffix(_V1) + path


def _is_loopback(host: str | None) -> bool:
    """Told from the address alone: what a name leads to may change."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


# --- its models ------------------------------------------------------------------------------


def is_name(value: object) -> bool:
    """Whether it may be listed, called, shown in a terminal and sent in a request."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and value.isprintable()
        and value == value.strip()
    )


def is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether the user's ``models`` admit it; none of them admit all."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def parse_models(
    document: bytes, upstream: str, patterns: Sequence[str] = ()
) -> tuple[RemoteModel, ...]:
    """The models of an answer to ``GET /v1/models``, each once. Raises UpstreamError."""
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise UpstreamError(
            f"{upstream} answers with something that is not JSON", upstream=upstream
        ) from error
    entries = value.get("data") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise UpstreamError(f"{upstream} answers without a list of models", upstream=upstream)
    found: dict[str, RemoteModel] = {}
    for entry in entries[:_MOST_ENTRIES]:
        model = _model(entry, upstream)
        if model is not None and is_wanted(model.name, patterns):
            found.setdefault(model.name, model)
            if len(found) == MOST_MODELS:
                break
    return tuple(found.values())


def _model(entry: Any, upstream: str) -> RemoteModel | None:
    if not isinstance(entry, dict) or not is_name(entry.get("id")):
        return None
    ours = entry.get("stoker")
    about = ours if isinstance(ours, dict) else {}
    if "upstream" in about:  # it runs elsewhere again; a Stoker forwards once
        return None
    name = entry["id"]
    contexts = [about.get("context"), *(entry.get(key) for key in _CONTEXTS)]
    return RemoteModel(
        id=f"{upstream}/{name}",
        upstream=upstream,
        name=name,
        created=_whole(entry.get("created"), _LAST_SECOND) or 0,
        context=next((n for one in contexts if (n := _whole(one, _LONGEST_CONTEXT))), None),
        capabilities=_capabilities(about.get("capabilities")),
    )


def _whole(value: object, limit: int) -> int | None:
    """A positive whole number below the limit; None for anything else."""
    return value if type(value) is int and 0 < value < limit else None


def _capabilities(value: object) -> tuple[Capability, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(one for one in Capability if one.value in value[: 4 * len(Capability)])
