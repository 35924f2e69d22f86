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

MAX_ITEMS: Final = 10_000  # messages, documents, inputs
MAX_TOKENS: Final = 2_000_000  # given as numbers
_MAX_STOPS: Final = 64
_LONGEST_STOP: Final = 1024  # characters
_MAX_BIASES: Final = 4096
_KWARG: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LARGEST_TOKEN: Final = 2**31 - 1  # the engine cuts larger ones to 32 bits without a word

# The engine reads grammars by recursion and follows every branch of them at every token, in the
# one thread that serves all requests, and nothing stops it once it has begun. Measured: with
# 100,000 open groups it crashes; with 10,000 values in one `enum`, 3,000 optional properties or
# 45,000 `?` it answers nobody for minutes; with 1,000 of them a token takes about a second.
_LONGEST_GRAMMAR: Final = 262_144  # characters
_GRAMMAR_DEPTH: Final = 200  # groups inside groups
_BRANCHES: Final = 1000  # of one grammar; items of one list or object in a schema
_SCHEMA_NODES: Final = 10_000
_SCHEMA_CHARACTERS: Final = 262_144  # of all names and texts
_LONGEST_PATTERN: Final = 1000  # characters; each may be a branch
_LONGEST_KEEP_S: Final = 10 * 365 * 86400.0  # ten years; more is a mistake, not a wish
_DURATION: Final = re.compile(
    r"([+-]?)((?:[0-9]{1,12}(?:\.[0-9]{1,12})?(?:ns|us|µs|ms|s|m|h|d)){1,8}|[0-9]{1,12}(?:\.[0-9]{1,12})?)"
)
_DURATION_PART: Final = re.compile(r"([0-9.]+)([a-zµ]*)")
_UNIT_S: Final = {
    "": 1.0,
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_GRAMMAR_TEXT: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)


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


def tokens(name: str, value: Any) -> Any:
    """A list of token numbers."""
    items(MAX_TOKENS)(name, value)
    if not all(map(_is_token, value)):
        wrong(name, "a list of tokens")
    return value


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_TOKEN


def grammar(name: str, value: Any) -> Any:
    """A GBNF text that the engine can read without harm; whether it is right, the engine says."""
    text(_LONGEST_GRAMMAR)(name, value)
    symbols = _GRAMMAR_TEXT.sub("", value)
    depth = deepest = 0
    for symbol in re.findall(r"[()]", symbols):
        depth += 1 if symbol == "(" else -1
        deepest = max(deepest, depth)
    if deepest > _GRAMMAR_DEPTH or len(re.findall(r"[|?*+{]", symbols)) > _BRANCHES:
        wrong(name, f"of at most {_GRAMMAR_DEPTH} nested groups and {_BRANCHES} branches")
    return value


def schema(name: str, value: Any) -> Any:
    """An object that holds a JSON schema of a size that the engine can follow."""
    an_object(name, value)
    nodes = characters = 0
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, list | dict):
            nodes += len(item)
            if len(item) > _BRANCHES:
                wrong(name, f"a schema whose lists and objects have at most {_BRANCHES} items")
            if isinstance(item, dict):
                pattern = item.get("pattern")
                if isinstance(pattern, str) and len(pattern) > _LONGEST_PATTERN:
                    wrong(name, f"a schema with patterns of at most {_LONGEST_PATTERN} characters")
                characters += sum(map(len, item))
            left += item.values() if isinstance(item, dict) else item
    if nodes > _SCHEMA_NODES or characters > _SCHEMA_CHARACTERS:
        wrong(name, f"of at most {_SCHEMA_NODES} values and {_SCHEMA_CHARACTERS} characters")
    return value


def tools(name: str, value: Any) -> Any:
    """Functions that the model may call; their parameters are schemas."""
    if value == []:
        return value
    items(_BRANCHES)(name, value)
    for tool in value:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            wrong(name, "a list of objects")
        for key in ("parameters", "input_schema"):
            if isinstance(function.get(key), dict):
                schema(name, function[key])
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
        for item in value:
            if isinstance(item, list):
                tokens(name, item)
            elif not isinstance(item, str) and not _is_token(item):
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


def keep_alive(name: str, value: Any) -> float:
    """Seconds, from a number or a text such as ``5m``, ``1h30m`` or ``-1``; -1 means for ever.

    As Ollama's clients write it: every negative one means for ever.
    """
    seconds = _seconds(value)
    if seconds is None or not seconds <= _LONGEST_KEEP_S:
        wrong(name, "a number of seconds or a time such as 90s, 5m or 1h30m; -1 is for ever")
    return -1.0 if seconds < 0 else float(seconds)


def _seconds(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    parts = _DURATION_PART.findall(match[2])
    total = sum(float(figure) * _UNIT_S[unit] for figure, unit in parts)
    return -total if match[1] == "-" else total


def flag_or_count(name: str, value: Any) -> Any:
    return value if isinstance(value, bool) else whole(0, 20)(name, value)
