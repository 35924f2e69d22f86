"""Which requests go to the default model. Not for: which model that is (`lifecycle.default`)."""

from __future__ import annotations

from typing import Final

from stoker.errors import UnknownModel
from stoker.store.store import Store

_WORD: Final = "default"


def means_default(store: Store, name: str) -> bool:
    """Whether the name is none, or the word for it; a stored model that is called so is itself."""
    if name.casefold() != _WORD:
        return not name
    try:
        store.find(name)
    except UnknownModel:
        return True
    return False
