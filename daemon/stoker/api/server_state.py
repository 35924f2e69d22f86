"""The file that keeps the server's switch over restarts, replaced whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stoker.errors import BadReference
from stoker.store import disk
from stoker.types import ModelId

_MOST: Final = 100  # models; more are not in memory at once
_MOST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServerState:
    """Whether clients are served; while not, the models to load when they are again."""

    enabled: bool = True
    models: tuple[ModelId, ...] = ()


def read(path: Path) -> ServerState:
    """On when there is no file, or nothing usable in it: nothing else would tell the user why."""
    try:
        value = json.loads(disk.read_file(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return ServerState()
    if not isinstance(value, dict) or not isinstance(value.get("enabled"), bool):
        return ServerState()
    names = value.get("models")
    return ServerState(value["enabled"], _models(names if isinstance(names, list) else []))


def _models(names: list[object]) -> tuple[ModelId, ...]:
    found: list[ModelId] = []
    for name in names[:_MOST]:
        try:
            found.append(ModelId.parse(name))
        except BadReference:
            continue
    return tuple(found)


def write(path: Path, state: ServerState) -> None:
    """Raises StoreError; the old content is then still there."""
    names = [str(model) for model in state.models]
    text = json.dumps({"enabled": state.enabled, "models": names})
    with disk.wrapped("remember whether the server is on", path):
        disk.make_folder(path.parent)
        disk.write_file(path, text.encode(), ".tmp")
