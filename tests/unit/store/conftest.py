from __future__ import annotations

from pathlib import Path

import pytest

from stoker.store.store import Store
from tests.unit.store.steps import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    """An open, empty store below ``tmp_path / "store"``."""
    made = Store(tmp_path / "store", now=clock)
    made.open()
    return made
