"""The manifests on disk: the truth about what is in the store.

A manifest that cannot be read hides its model and is reported; it is never deleted, and while
there is one no blob is deleted either, because nobody knows what it named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stoker.errors import ManifestInvalid, StoreError
from stoker.store import disk, layout, manifest_file
from stoker.store.manifest import Manifest
from stoker.types import Digest, ModelId

_SUFFIX: Final = ".json"


class Catalog:
    """The folder ``manifests``, read whole at `load`, then kept in step.

    The store's lock guards changes; reading needs none, because what is held is only replaced.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / layout.MANIFESTS
        self._known: dict[ModelId, Manifest] = {}
        self._problems: list[str] = []

    def load(self) -> None:
        """Read every manifest. Raises StoreError only when the folder itself is unreadable."""
        known: dict[ModelId, Manifest] = {}
        problems = []
        with disk.wrapped("list the manifests", self._folder):
            paths = sorted(self._folder.iterdir())
        for path in paths:
            if path.suffix != _SUFFIX:
                continue
            try:
                manifest = self._read(path)
            except StoreError as error:
                problems.append(f"{path.name}: {error}. {error.hint}")
                continue
            known[manifest.id] = manifest
        self._known, self._problems = known, problems

    def all(self) -> list[Manifest]:
        return sorted(self._known.values(), key=lambda manifest: manifest.id)

    def get(self, model: ModelId) -> Manifest | None:
        return self._known.get(model)

    @property
    def problems(self) -> list[str]:
        return list(self._problems)

    def put(self, manifest: Manifest) -> None:
        """On the medium when this returns. Raises ManifestInvalid, StoreError, DiskFull."""
        path = self._root / layout.manifest(manifest.id)
        raw = manifest_file.dumps(manifest)
        with disk.wrapped("write a manifest", path):
            disk.write_file(path, raw, layout.TEMPORARY)
        self.hold(manifest)
        self._problems = [text for text in self._problems if not text.startswith(path.name)]

    def hold(self, manifest: Manifest) -> None:
        """In memory only: for a verdict that must count although the disk does not take it."""
        self._known = {**self._known, manifest.id: manifest}

    def drop(self, model: ModelId) -> None:
        """Gone from the medium when this returns."""
        path = self._root / layout.manifest(model)
        with disk.wrapped("delete a manifest", path):
            disk.unlink(path)
            disk.sync_folder(path.parent)
        self._known = {key: value for key, value in self._known.items() if key != model}

    def naming(self, digest: Digest) -> Iterator[Manifest]:
        return (manifest for manifest in self.all() if digest in manifest.digests)

    def _read(self, path: Path) -> Manifest:
        with disk.wrapped("read a manifest", path):
            raw = disk.read_file(path, manifest_file.MAX_BYTES)
        manifest = manifest_file.loads(raw)
        if layout.manifest(manifest.id).name != path.name:
            raise ManifestInvalid(f"the file's name is not that of its model {manifest.id}")
        return manifest
