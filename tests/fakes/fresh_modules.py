"""Modules of another system: imported anew for one test, and forgotten after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fresh_modules(*names: str) -> Iterator[None]:
    """Within this, importing one of these modules of packages runs it again."""
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    _forget(names)
    try:
        yield
    finally:
        _forget(names)
        for name, module in before.items():
            sys.modules[name] = module
            package, _, child = name.rpartition(".")
            setattr(sys.modules[package], child, module)


def forget_icons(backend: str) -> None:
    """Let icons of this backend end in silence: the system that they would tell is gone by then."""
    sys.modules[backend].Icon.__del__ = lambda _icon: None


def _forget(names: tuple[str, ...]) -> None:
    for name in names:
        sys.modules.pop(name, None)
        package, _, child = name.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(child, None)
