"""Look at a chat template without running it. Pure text rules, linear in time, no recursion.

Refuses only what no template needs: code execution, characters that cannot be seen, and nesting
that overflows an engine's parser. Not for: whether a template says what its model expects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from stoker.store.finding import Finding

MAX_CHARACTERS: Final = 256 * 1024  # the engine parses it at every load
MAX_DEPTH: Final = 64  # brackets, blocks; engines' recursive parsers die at some thousands
MAX_BRANCHES: Final = 512  # elif in one if, or else in one expression: these nest in parsers too
MAX_TAG_CODE: Final = 16 * 1024  # characters of one tag outside strings

# Bidirectional controls, zero-width and other invisible characters, tag characters and variation
# selectors; U+FE0F alone is left out because emoji carry it.
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb"
    "\U000e0000-\U000e0fff]|\ufe0f\ufe0f"
)
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Steps of every known escape from a Jinja sandbox. Searched everywhere, in strings and in text.
_ESCAPES: Final = re.compile(
    r"__(?:base|bases|builtins|call|class|closure|code|func|getattribute|globals|import|init_subclass"
    r"|loader|mro|reduce|reduce_ex|self|subclasses|wrapped)__"
    r"|(?<![a-z])(?:f_back|f_builtins|f_globals|func_globals|gi_code|gi_frame|im_func|tb_frame)(?![a-z])",
    re.IGNORECASE,
)
# Names that only an attack uses, as identifiers or as the whole of a string in code.
_NAMES: Final = frozenset(
    (
        "builtins",
        "catch_warnings",
        "eval",
        "exec",
        "getattr",
        "importlib",
        "lipsum",
        "mro",
        "popen",
        "setattr",
        "subprocess",
    )
)
_HIDDEN_UNDERSCORE: Final = re.compile(
    r"\\(?:x5f|u005f|U0000005f|137|N\{LOW LINE\})", re.IGNORECASE
)
_ATTR_FILTER: Final = re.compile(r"\|\s*attr\s*(?:\(|\||%|}|$)")
_DUNDER: Final = re.compile(r"(?<!\w)__\w")
_UNARY_CHAIN: Final = re.compile(rf"(?:[-+~]\s*){{{MAX_DEPTH}}}|(?:\bnot\s+){{{MAX_DEPTH}}}")
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_BLOCK_START: Final = re.compile(r"[-+]?\s*([a-z]+)")

_OPEN: Final = re.compile(r"\{\{|\{%|\{#")
_IN_CODE: Final = re.compile(r"['\"(){}\[\]]|%\}")
_IN_STRING: Final = {quote: re.compile(rf"[{quote}\\]") for quote in ("'", '"')}
_END_RAW: Final = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_LOADERS: Final = frozenset(("extends", "from", "import", "include"))
_OPENERS: Final = frozenset(("autoescape", "block", "call", "filter", "for", "if", "macro"))


@dataclass(frozen=True, slots=True)
class _Tag:
    """One ``{{ }}`` or ``{% %}``: its code with strings blanked out, and the strings."""

    kind: str
    code: str
    strings: tuple[str, ...]
    depth: int  # of brackets


def lint(template: str) -> tuple[Finding, ...]:
    """What makes this template unfit to run; empty for a harmless one. Raises nothing."""
    if len(template) > MAX_CHARACTERS:
        text = f"the template has {len(template)} characters; the limit is {MAX_CHARACTERS}"
        return (Finding("template_too_big", text),)
    findings = dict.fromkeys([*_check_characters(template), *_check_code(template)])
    return tuple(findings)


def _check_characters(template: str) -> Iterator[Finding]:
    hidden = _INVISIBLE.search(template) or _CONTROL.search(template)
    if hidden:
        name = f"U+{ord(hidden[0][0]):04X}"
        text = f"the template holds the invisible character {name} at {hidden.start()}"
        yield Finding("template_invisible", text)
    escape = _ESCAPES.search(template)
    if escape:
        yield _execution(escape[0])


def _check_code(template: str) -> Iterator[Finding]:
    blocks = _Blocks()
    for tag in _Scanner(template).tags():
        yield from _check_tag(tag)
        if tag.kind == "{%":
            yield from blocks.enter(tag)


def _check_tag(tag: _Tag) -> Iterator[Finding]:
    if tag.depth > MAX_DEPTH or _UNARY_CHAIN.search(tag.code):
        yield _too_deep("an expression")
    if len(tag.code) > MAX_TAG_CODE or tag.code.count(" else ") > MAX_BRANCHES:
        yield _too_deep("one tag")
    words = {*_WORD.findall(tag.code), *(string.strip() for string in tag.strings)}
    for name in sorted(words & _NAMES):
        yield _execution(name)
    if _ATTR_FILTER.search(tag.code):
        yield _execution("|attr")
    dunder = _DUNDER.search(tag.code)
    if dunder:
        yield _execution(dunder[0])
    if any(_HIDDEN_UNDERSCORE.search(string) for string in tag.strings):
        yield _execution("an escaped underscore")


def _execution(what: str) -> Finding:
    return Finding("template_code", f"the template reaches for code: {what}")


def _too_deep(where: str) -> Finding:
    text = f"{where} of the template is nested or chained beyond what engines can parse"
    return Finding("template_too_deep", text)


@dataclass
class _Blocks:
    """Follows the ``{% %}`` tags: how deep they nest, how long the branches run."""

    branches: list[int] = field(default_factory=list)

    def enter(self, tag: _Tag) -> Iterator[Finding]:
        match = _BLOCK_START.match(tag.code)
        word = match[1] if match else ""
        if word in _LOADERS:
            yield Finding("template_loads", f"the template loads another file: {word}")
        elif word in _OPENERS or (word == "set" and "=" not in tag.code):
            self.branches.append(0)
        elif word.startswith("end") and self.branches:
            self.branches.pop()
        elif word == "elif" and self.branches:
            self.branches[-1] += 1
        if len(self.branches) > MAX_DEPTH or sum(self.branches) > MAX_BRANCHES:
            self.branches.clear()
            yield _too_deep("a block")


class _Scanner:
    """Cuts a template into tags. Each character is looked at once."""

    def __init__(self, template: str) -> None:
        self._text = template
        self._at = 0

    def tags(self) -> Iterator[_Tag]:
        while (opening := _OPEN.search(self._text, self._at)) is not None:
            self._at = opening.end()
            if opening[0] == "{#":
                end = self._text.find("#}", self._at)
                self._at = len(self._text) if end < 0 else end + 2
            else:
                tag = self._tag(opening[0])
                yield tag
                if tag.kind == "{%" and tag.code.strip("-+ \t\r\n") == "raw":
                    end_of_raw = _END_RAW.search(self._text, self._at)
                    self._at = end_of_raw.end() if end_of_raw else len(self._text)

    def _tag(self, kind: str) -> _Tag:
        code: list[str] = []
        strings: list[str] = []
        stack = deepest = 0
        while (match := _IN_CODE.search(self._text, self._at)) is not None:
            mark = match[0]
            code.append(self._text[self._at : match.start()])
            if mark in _IN_STRING:
                strings.append(self._string(mark, match.end()))
                code.append("''")
                continue
            self._at = match.end()
            if mark == "%}" and kind == "{%":
                return _Tag(kind, "".join(code), tuple(strings), deepest)
            if kind == "{{" and mark == "}" and stack == 0 and self._text.startswith("}", self._at):
                self._at += 1
                return _Tag(kind, "".join(code), tuple(strings), deepest)
            code.append(mark)
            stack = stack + 1 if mark in "([{" else max(stack - 1, 0)
            deepest = max(deepest, stack)
        code.append(self._text[self._at :])
        self._at = len(self._text)
        return _Tag(kind, "".join(code), tuple(strings), deepest)

    def _string(self, quote: str, start: int) -> str:
        """The text of a string literal, escapes as written; moves behind its end."""
        find: Callable[[str, int], re.Match[str] | None] = _IN_STRING[quote].search
        at = start
        while (match := find(self._text, at)) is not None:
            if match[0] == quote:
                self._at = match.end()
                return self._text[start : match.start()]
            at = match.end() + 1
        self._at = len(self._text)
        return self._text[start:]
