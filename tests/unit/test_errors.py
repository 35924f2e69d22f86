"""The error tree: drawn truthfully, with stable codes and useful hints."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker import errors
from stoker.errors import (
    DiskFull,
    InputError,
    StokerError,
    StoreError,
    UnknownModel,
    all_errors,
    from_wire,
)

LEAF = re.compile(r"^(?P<indent>[│ ]*)[├└]── (?P<name>\w+)")


def _ours() -> list[type[StokerError]]:
    return [cls for cls in all_errors().values() if cls.__module__ == errors.__name__]


def _drawn() -> dict[str, str]:
    """Each class in the module's drawing, with its parent."""
    parents: dict[str, str] = {}
    family = ""
    for line in (errors.__doc__ or "").splitlines():
        if match := LEAF.match(line):
            if match["indent"]:
                parents[match["name"]] = family
            else:
                family = match["name"]
                parents[family] = "StokerError"
    return parents


def test_the_drawing_is_the_tree() -> None:
    """The tree drawn at the top of the module names every class under its real parent."""
    real = {cls.__name__: cls.__base__.__name__ for cls in _ours() if cls.__base__ is not Exception}  # type: ignore[union-attr]

    assert _drawn() == real


def test_every_class_has_its_own_code() -> None:
    """No two classes share a code, so that a code names one kind of failure."""
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, StokerError)
    ]

    assert len({cls.code for cls in classes}) == len(classes)


@pytest.mark.parametrize("cls", _ours(), ids=lambda cls: cls.code)
def test_every_error_says_what_to_do_next(cls: type[StokerError]) -> None:
    """A code is snake case, and a hint is one or two sentences."""
    error = cls("what happened")

    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.hint.endswith((".", ")"))
    assert len(error.hint) < 120


def test_an_error_carries_message_hint_and_facts() -> None:
    """The raiser's own hint and facts win over the class's."""
    error = DiskFull("12 GB are needed, 3 GB are free", hint="Buy a disk.", needed_bytes=12)

    assert str(error) == "12 GB are needed, 3 GB are free"
    assert error.hint == "Buy a disk."
    assert error.facts == {"needed_bytes": 12}
    assert DiskFull("full").hint == DiskFull.hint


def test_an_empty_hint_is_kept() -> None:
    """A raiser may say that there is nothing to do."""
    assert DiskFull("full", hint="").hint == ""


def test_families_can_be_caught() -> None:
    """A caller may act on the blame alone."""
    assert issubclass(UnknownModel, InputError)
    assert issubclass(DiskFull, StoreError)


@pytest.mark.parametrize("cls", _ours(), ids=lambda cls: cls.code)
def test_an_error_survives_the_wire(cls: type[StokerError]) -> None:
    """A client raises the very class that the daemon raised."""
    error = from_wire(cls.code, "message", "hint", {"n": 1})

    assert type(error) is cls
    assert (error.message, error.hint, error.facts) == ("message", "hint", {"n": 1})


@given(code=st.text(max_size=30).filter(lambda code: code not in all_errors()))
def test_an_unknown_code_is_not_lost(code: str) -> None:
    """What a newer daemon reports arrives as the base class with that code."""
    error = from_wire(code, "message", "hint", {})

    assert type(error) is StokerError
    assert error.code == code
