"""How systemd and desktops read a command line: written from their manuals, for tests.

systemd.syntax(7), systemd.service(5) "COMMAND LINES", systemd.unit(5) "SPECIFIERS"; Desktop Entry
Specification 1.5, "The Exec key". Not the inverse of our own code: nothing of it is used here.
"""

from __future__ import annotations

_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}


def systemd_words(line: str) -> list[str]:
    """Split a value into words: quotes and C-style escapes."""
    words: list[str] = []
    word, quote, inside = "", "", False
    letters = iter(line)
    for letter in letters:
        if letter == "\\":
            word += _ESCAPES[next(letters)]
            inside = True
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word += letter
        elif letter in "\"'":
            assert not inside, "a quote may only begin a word"
            quote, inside = letter, True
        elif letter == " ":
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            word, inside = word + letter, True
    assert not quote, "an open quote"
    return [*words, word] if inside else words


def systemd_plain(word: str) -> str:
    """A word after its specifiers; a real one would be a mistake of ours."""
    return _undouble(word, "%")


def systemd_command(line: str) -> list[str]:
    """The arguments of ExecStart=; variables are put in everywhere but in the program."""
    program, *rest = (systemd_plain(word) for word in systemd_words(line))
    assert not set(program) & set("\"'\\$"), "systemd refuses or changes such a program"
    return [program, *(_undouble(word, "$") for word in rest)]


def _undouble(word: str, sign: str) -> str:
    parts = word.split(sign * 2)
    assert not any(sign in part for part in parts), f"a lone {sign} in {word!r}"
    return sign.join(parts)


def desktop_value(line: str) -> str:
    """A value of type string."""
    text, letters = "", iter(line)
    for letter in letters:
        text += {**_ESCAPES, "r": "\r"}[next(letters)] if letter == "\\" else letter
    return text


def desktop_command(line: str) -> list[str]:
    """The arguments of Exec=: arguments may be quoted as a whole, with double quotes."""
    words: list[str] = []
    letters = iter(desktop_value(line))
    for letter in letters:
        if letter == " ":
            continue
        word = ""
        if letter == '"':
            for inner in letters:
                if inner == '"':
                    break
                if inner == "\\":
                    escaped = next(letters)
                    assert escaped in '"`$\\'
                    word += escaped
                else:
                    assert inner not in "`$", "must be escaped"
                    word += inner
        else:
            while letter != " ":
                assert letter not in "\"'\\><~|&;$*?#()`\t\n", "a reserved character unquoted"
                word += letter
                letter = next(letters, " ")  # noqa: PLW2901  # the word's next letter
        words.append(_undouble(word, "%"))
    assert "=" not in words[0]
    return words
