"""What a single field of a request may hold. Pure.

A check takes a field's name and value, and returns the value or raises BadRequest with the name as
``param``. Not for: which fields there are (`allowed`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from stoker.errors import BadRequest

Check = Callable[[str, Any], Any]

MAX_ITEMS: Final = 10_000  # messages, tools, documents, inputs
_MAX_STOPS: Final = 64
_LONGEST_STOP: Final = 1024  # characters
_MAX_BIASES: Final = 4096
_KWARG: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def wrong(name: str, what: str) -> NoReturn:
    raise BadRequest(f"{name} must be {what}", param=name)


def number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> Any:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or not low <= value <= high:
            wrong(name, f"a number from {low:g} to {high:g}")
        return value

    return check


def whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # some clients write 16.0
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            wrong(name, f"a whole number from {low} to {high}")
        return value

    return check


def flag(name: str, value: Any) -> Any:
    if not isinstance(value, bool):
        wrong(name, "true or false")
    return value


def text(longest: int) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or len(value) > longest:
            wrong(name, f"a text of at most {longest} characters")
        return value

    return check


def one_of(*words: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if value not in words:
            wrong(name, f"one of: {', '.join(words)}")
        return value

    return check


def items(longest: int) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, list) or not 0 < len(value) <= longest:
            wrong(name, f"a list of 1 to {longest} items")
        return value

    return check


def an_object(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        wrong(name, "an object")
    return value


def stops(name: str, value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
        wrong(name, f"a text or a list of at most {_MAX_STOPS} texts")
    for stop in stops:
        text(_LONGEST_STOP)(name, stop)
    return value


def biases(name: str, value: Any) -> Any:
    if not isinstance(value, dict | list) or len(value) > _MAX_BIASES:
        wrong(name, f"an object of at most {_MAX_BIASES} entries")
    return value


def prompt(name: str, value: Any) -> Any:
    """A text, tokens, or a list of these."""
    if isinstance(value, list):
        if not value:
            wrong(name, "a text or a list that is not empty")
        good = all(isinstance(item, str | list) or type(item) is int for item in value)
        if not good:
            wrong(name, "a text, a list of texts, or tokens")
    elif not isinstance(value, str):
        wrong(name, "a text, a list of texts, or tokens")
    return value


def text_or_items(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else items(MAX_ITEMS)(name, value)


def choice(name: str, value: Any) -> Any:
    if not isinstance(value, str | dict):
        wrong(name, "a word or an object")
    return value


def template_kwargs(name: str, value: Any) -> Any:
    """Switches of the model's own template, such as enable_thinking; plain values only."""
    an_object(name, value)
    for key, item in value.items():
        if not _KWARG.fullmatch(key) or not isinstance(item, bool | int | float | str):
            wrong(name, "an object of plain values")
    return value


def flag_or_count(name: str, value: Any) -> Any:
    return value if isinstance(value, bool) else whole(0, 20)(name, value)
