"""The text of XDG autostart entries. Pure; by the Desktop Entry Specification."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from stoker_service import record
from stoker_service.base import Record

_PLAIN_WORD: Final = re.compile(r"[\w./:@+,-]+", re.ASCII)
_QUOTED: Final = re.compile(r'(["`$\\])')
_TRY_EXEC: Final = re.compile(r"^TryExec=(.*)$", re.MULTILINE)
_ENV: Final = "/usr/bin/env"
_AS_IT_IS: Final = ("nice", "-n", "0")  # runs a program whatever its name; env(1) reads a = in it
# systemd's reader of these entries, which GNOME and KDE use, cannot take them back out of quotes
# (systemd issue 36044); there is no way to write them for it.
_UNREADABLE: Final = frozenset("$`\\")

_ENTRY: Final = """\
# Written by `stoker autostart on`, removed by `stoker autostart off`, replaced when it is renewed.
[Desktop Entry]
Type=Application
Name={name}
Comment={comment}
Icon=stoker
Exec={command}
TryExec={program}
Terminal=false
StartupNotify=false
X-GNOME-Autostart-enabled=true
{record}
"""


def entry(name: str, comment: str, words: tuple[str, ...], noted: Record) -> str:
    """`words` is the command line; the variables to set for it are in the record."""
    return _ENTRY.format(
        name=name,
        comment=comment,
        command=exec_line(words, noted.environment),
        program=_escape(words[0]),
        record=record.line(noted),
    )


def exec_line(words: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> str:
    """A command line as Exec= takes it: each word as it is, no field code in it.

    An odd program is never the first word: the specification forbids some there, and systemd
    before 252 loses the quotes.
    """
    if "=" in words[0]:
        words = (*_AS_IT_IS, *words)
    if environment or words[0] == _AS_IT_IS[0] or not _PLAIN_WORD.fullmatch(words[0]):
        words = (_ENV, *(f"{name}={value}" for name, value in environment), *words)
    return _escape(" ".join(map(_quote, words)))


def is_unreadable(words: Iterable[str]) -> bool:
    """Whether some desktops cannot start this, although it is written as it must be."""
    return any(_UNREADABLE & set(word) for word in words)


def is_off(content: str) -> bool:
    """Whether the user's desktop has switched the entry off, as its settings do."""
    lines = {line.strip().replace(" ", "").lower() for line in content.splitlines()}
    return bool(lines & {"hidden=true", "x-gnome-autostart-enabled=false"})


def _quote(word: str) -> str:
    if _PLAIN_WORD.fullmatch(word):
        return word
    return '"' + _QUOTED.sub(r"\\\1", word).replace("%", "%%") + '"'


def _escape(text: str) -> str:
    """Every value of type string has its backslashes doubled, whatever it means."""
    return text.replace("\\", "\\\\")
