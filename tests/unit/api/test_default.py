from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from stoker.api.default import means_default
from stoker.errors import UnknownModel


def _store(*names: str) -> MagicMock:
    def find(name: str) -> str:
        if name not in names:
            raise UnknownModel(f"no {name}")
        return name

    return MagicMock(find=find)


@pytest.mark.parametrize("name", ["", "default", "Default"])
def test_no_name_and_the_word_mean_the_default(name: str) -> None:
    assert means_default(_store("starter"), name)


@pytest.mark.parametrize("name", ["starter", "defaults", "my/default", "nope"])
def test_every_other_name_is_a_name(name: str) -> None:
    assert not means_default(_store("starter"), name)


def test_a_model_that_is_called_default_is_itself() -> None:
    """A user may have named one so."""
    assert not means_default(_store("default"), "default")
