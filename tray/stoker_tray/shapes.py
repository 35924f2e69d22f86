"""What the daemon says, as values: `stoker.schemas` by hand, and strict readers made from that.

By hand, because pydantic alone is larger than the tray (tests/contract/test_tray_shapes.py holds
the two together). Fields that are not known are ignored, a known field of a wrong type is a
`BadEvent`; what a string or a number says is not judged here. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from stoker.types import PullState

T = TypeVar("T")


class BadEvent(ValueError):
    """An event that cannot be what the daemon said: connect again and take a new snapshot."""


# --- shapes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Daemon:
    version: str
    pid: int
    uptime_s: float
    home: str
    api_version: int = 1
    update: str | None = None


@dataclass(frozen=True, slots=True)
class Server:
    enabled: bool
    base_url: str
    lan: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    predicted_bytes: int
    resident_bytes: int | None
    peak_bytes: int | None = None
    correction: float | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """``state`` is a `stoker.types.ModelState`, or the word of a newer daemon."""

    id: str
    state: str
    engine: str | None = None
    runtime: str | None = None
    pid: int | None = None
    context: int | None = None
    parallel: int | None = None
    memory: Memory | None = None
    tokens_per_s: float | None = None
    in_flight: int = 0
    queued: int = 0
    expires_in_s: float | None = None
    load_s: float | None = None
    expected_load_s: float | None = None
    loading_s: float | None = None
    default: bool = False
    pinned: bool = False
    priority: int = 0
    kv_used: float | None = None
    rung: int = 0
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    cpu_percent: float
    ram_used_bytes: int
    ram_total_bytes: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Pull:
    """``state`` is a `stoker.types.PullState`, or the word of a newer daemon."""

    id: str
    reference: str
    state: str
    model: str | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    note: str | None = None
    error: Failure | None = None

    @property
    def ended(self) -> bool:
        return self.state in {PullState.DONE, PullState.FAILED, PullState.CANCELLED}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Another server whose models are served; ``state`` is a word of the daemon's."""

    name: str
    base_url: str
    state: str
    models: tuple[str, ...] = ()
    in_flight: int = 0
    latency_s: float | None = None
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Status:
    daemon: Daemon
    server: Server
    models: tuple[Model, ...]
    resources: Resources
    pulls: tuple[Pull, ...] = ()
    problems: tuple[str, ...] = ()
    default: str | None = None
    upstreams: tuple[Upstream, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A model of the catalogue, judged for this machine."""

    name: str
    title: str
    summary: str
    licence: str
    bytes: int
    memory_bytes: int
    fits: bool
    quick: bool
    stored: bool


@dataclass(frozen=True, slots=True)
class StoreChange:
    id: str
    change: str


@dataclass(frozen=True, slots=True)
class DefaultChange:
    """Requests that name no model go to this one now."""

    model: str | None


# --- readers, made from the dataclasses ------------------------------------------------------


def read(shape: type[T], value: object) -> T:
    """From JSON. Raises BadEvent, which names the field."""
    return cast("T", reader(cast("Any", shape))(value))


@cache
def reader(shape: Any) -> Callable[[object], Any]:
    """What turns a JSON value into a value of this type, or raises BadEvent."""
    if is_dataclass(shape):
        return _record_reader(cast("type", shape))
    if get_origin(shape) is tuple:
        return _list_reader(reader(get_args(shape)[0]))
    inner = [one for one in get_args(shape) if one is not NoneType]
    if inner:
        one = reader(inner[0])
        return lambda value: None if value is None else one(value)
    if shape is float:
        return _read_number
    return lambda value: value if type(value) is shape else _wrong(value, shape.__name__)


def _record_reader(shape: type) -> Callable[[object], Any]:
    hints = get_type_hints(shape)
    readers = {one.name: reader(hints[one.name]) for one in fields(shape)}
    required = {
        one.name
        for one in fields(shape)
        if one.default is MISSING and one.default_factory is MISSING
    }

    def read_record(value: object) -> Any:
        if not isinstance(value, Mapping):
            return _wrong(value, shape.__name__)
        found = {}
        for name, one in readers.items():
            if name in value:
                try:
                    found[name] = one(value[name])
                except BadEvent as error:
                    msg = f"{name}: {error}"
                    raise BadEvent(msg) from None
            elif name in required:
                msg = f"{shape.__name__} without {name}"
                raise BadEvent(msg)
        return shape(**found)

    return read_record


def _list_reader(one: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def read_list(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            _wrong(value, "list")
        return tuple(one(item) for item in cast("list[object]", value))

    return read_list


def _read_number(value: object) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        return cast("float", _wrong(value, "number"))
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _wrong(value: object, wanted: str) -> Any:
    msg = f"{wanted} expected, not {type(value).__name__}"
    raise BadEvent(msg)
