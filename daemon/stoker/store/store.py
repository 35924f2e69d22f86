"""The verified model store: the only way in and out of the folder that holds the models.

Bytes get in through `admit`, after they were verified; a model exists from `commit` on. Blocking:
call it from threads. Not for: where bytes come from (`pull`), what runs them (`engine`).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Final

import structlog

from stoker.errors import (
    BlobDamaged,
    DiskFull,
    ManifestInvalid,
    SizeMismatch,
    UnknownModel,
)
from stoker.store import admission, disk, home, layout
from stoker.store.blobs import Blobs
from stoker.store.catalog import Catalog
from stoker.store.facts import ModelFacts, model_facts
from stoker.store.gguf import GgufHeader, read_header
from stoker.store.gguf_checks import check_shards
from stoker.store.manifest import FileRole, Manifest, ManifestFile, Verdict
from stoker.store.partial import Partial, PartialKey
from stoker.store.partials import Partials
from stoker.store.quarantine import Quarantine
from stoker.store.signatures import Signature, Signatures
from stoker.store.upkeep import Upkeep
from stoker.types import Digest, Filename, ModelId

__all__ = ["Admitted", "FileResult", "Store"]

log = structlog.get_logger(__name__)

_Manifests = list[Manifest]  # inside Store, `list` is its method
_Lines = list[str]
_MOST_FACTS: Final = 64  # of models, kept: to read a large vocabulary's header takes 30 ms
MARGIN_BYTES: Final = 256 << 20  # kept free for the system, logs and the store's own small files


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A blob that passed. ``facts`` are there for a model file only."""

    digest: Digest
    size: int
    facts: ModelFacts | None
    integrity: Verdict
    structure: Verdict
    template: Verdict
    reused: bool  # the store had these bytes already


@dataclass(frozen=True, slots=True)
class FileResult:
    """What `Store.verify` found for one file."""

    id: ModelId
    name: Filename
    digest: Digest
    ok: bool
    finding: str | None
    size: int


class Store:
    """Safe to use from several threads; meant for one process at a time per root.

    A second process may read. Two that write do no harm to blobs and partials, but may not see
    each other's manifests until they open the store again.
    """

    def __init__(self, root: Path, *, now: Callable[[], datetime] = utc_now) -> None:
        self._root = root
        self._now = now
        self._lock = RLock()  # manifests, signatures, names of blobs; never held while hashing
        self._blobs = Blobs(root)
        # By the files as they are: one that was touched is read again.
        self._facts: dict[tuple[tuple[Digest, Signature | None], ...], ModelFacts] = {}
        self._catalog = Catalog(root)
        self._signatures = Signatures(root / layout.INDEX_FILE)
        self._partials = Partials(root)
        self._quarantine = Quarantine(root)
        self._upkeep = Upkeep(
            self._blobs, self._catalog, self._signatures, self._quarantine, now, self._lock
        )

    def open(self) -> None:
        """Make the tree and read the manifests. Raises StoreUnsafe, StoreTooNew, StoreError."""
        home.prepare(self._root, self._now())
        with self._lock:
            self._signatures.load()
            self._catalog.load()
        for problem in self._catalog.problems:
            log.warning("manifest_skipped", problem=problem)

    # --- what is there ---

    def list(self) -> _Manifests:
        """Every readable model, by id; damaged ones too."""
        return self._catalog.all()

    def problems(self) -> _Lines:
        """One line for each manifest that could not be read."""
        return self._catalog.problems

    def find(self, name: str) -> Manifest:
        """By id or alias, exact or but for case. Raises UnknownModel, with near names as hint."""
        manifests = self._catalog.all()
        for same in (str, str.casefold):
            wanted = same(name)
            for manifest in manifests:
                if same(manifest.id.text) == wanted:
                    return manifest
            for manifest in sorted(manifests, key=lambda found: found.created_at, reverse=True):
                if any(same(alias.text) == wanted for alias in manifest.aliases):
                    return manifest
        raise _unknown(name, manifests)

    def knows(self, model: ModelId) -> bool:
        """Whether there is a model of exactly this id. Cheap."""
        return self._catalog.get(model) is not None

    def facts(self, manifest: Manifest) -> ModelFacts:
        """Read from the model's own header. Raises BlobDamaged, GgufError, StoreError."""
        parts = _parts(manifest)
        key = tuple((file.digest, self._blobs.signature(file.digest)) for file in parts)
        known = self._facts.get(key)
        if known is None:
            headers = self._headers(parts)
            known = model_facts(headers[0], sum(file.size for file in parts), headers[1:])
            if len(self._facts) >= _MOST_FACTS:
                self._facts.clear()
            self._facts[key] = known
        return known

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._blobs.path(digest)

    def model_path(self, manifest: Manifest) -> Path:
        """What an engine is told to open. Raises StoreError.

        An engine finds the further shards of a split model by the name of the first, so such a
        model gets a folder of links that carry those names.
        """
        parts = _parts(manifest)
        if len(parts) == 1:
            return self.path(parts[0].digest)
        with self._lock, disk.wrapped("link the shards", self._root):
            disk.make_folder(self._root / layout.view(manifest.id))
            links = [self._root / layout.view_file(manifest.id, file.name) for file in parts]
            for link, file in zip(links, parts, strict=True):
                disk.unlink(link)
                _point(link, self.path(file.digest))
        return links[0]

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob was verified and its file has not changed since."""
        return self._upkeep.has(digest, size)

    def check(self, manifest: Manifest) -> None:
        """Before a load: every blob is there and unchanged, else it is hashed again.

        Raises BlobDamaged; the bad blob is then in quarantine and its models are marked.
        """
        current = self._catalog.get(manifest.id) or manifest
        if current.damaged:
            raise BlobDamaged(f"{current.id} is damaged: {current.trust.integrity.detail}")
        for file in current.files:
            seen = self._blobs.signature(file.digest)
            finding = self._upkeep.finding(file)
            if finding is not None and self._upkeep.condemn(file, finding, seen):
                raise BlobDamaged(f"{current.id} is damaged: {finding}")

    # --- bytes come in ---

    def reserve(self, bytes_needed: int) -> None:
        """Raises DiskFull, with both numbers, when there is no room for so much."""
        free = disk.free_bytes(self._root)
        if bytes_needed + MARGIN_BYTES > free:
            msg = (
                f"{bytes_needed} bytes are needed and {MARGIN_BYTES} must stay free, "
                f"but only {free} bytes are free"
            )
            raise DiskFull(msg, needed_bytes=bytes_needed, free_bytes=free)

    def partial(self, key: PartialKey) -> AbstractContextManager[Partial]:
        """Open, or go on with, the unverified bytes for this key; nobody else has them then.

        Raises ModelInUse when somebody has, StoreError, DiskFull. What was written is recorded
        when the context ends.
        """
        return self._partials.open(key)

    def admit(self, partial: Partial, role: FileRole) -> Admitted:
        """Verify the bytes and make them a blob; on return they are on the medium for good.

        Raises SizeMismatch for a partial that is not complete, and keeps it. Bytes that fail go to
        quarantine with the reason: DigestMismatch, SizeMismatch, GgufError, TemplateRefused. A
        blob that was damaged is replaced, and models that only lacked this blob are sound again.
        """
        if not partial.complete:
            raise SizeMismatch(f"only {partial.bytes_done} of {partial.size} bytes are there")
        at = self._now()
        observed = partial.observed()
        outcome = admission.compare(partial, observed) or admission.inspect(
            partial, role, observed.size, at
        )
        if isinstance(outcome, admission.Refusal):
            self._refuse(partial, outcome, observed.digest, at)
            raise outcome.error
        reused = self._publish(partial, observed.digest, observed.size)
        self._upkeep.heal(observed.digest)
        return Admitted(
            digest=observed.digest,
            size=observed.size,
            facts=outcome.facts,
            integrity=admission.integrity(partial, observed, at),
            structure=outcome.structure,
            template=outcome.template,
            reused=reused,
        )

    def commit(self, manifest: Manifest) -> None:
        """The model exists when this returns; one of the same id is replaced.

        Raises ManifestInvalid when a blob is missing or bad, GgufError when the shards do not
        belong together, StoreError, DiskFull.
        """
        if manifest.with_role(FileRole.SHARD):
            parts = _parts(manifest)
            check_shards([file.name.text for file in parts], self._headers(parts))
        for file in manifest.files:
            finding = self._upkeep.finding(file)
            if finding is not None:
                raise ManifestInvalid(f"{manifest.id} cannot be stored: {finding}")
        with self._lock:
            replaced = self._catalog.get(manifest.id)
            pinned = manifest.pinned or (replaced is not None and replaced.pinned)
            if any(self._blobs.signature(digest) is None for digest in manifest.digests):
                raise ManifestInvalid(f"{manifest.id} cannot be stored: a blob was removed")
            self._catalog.put(replace(manifest, pinned=pinned))
            self._upkeep.uncommitted.difference_update(manifest.digests)
            if replaced is not None:
                self._upkeep.release(replaced.digests - manifest.digests)

    def pin(self, model: ModelId, *, pinned: bool) -> None:
        """Whether it may be evicted; kept in its manifest. Raises UnknownModel, StoreError."""
        with self._lock:
            manifest = self._catalog.get(model)
            if manifest is None:
                raise _unknown(model.text, self._catalog.all())
            if manifest.pinned is not pinned:
                self._catalog.put(replace(manifest, pinned=pinned))

    # --- models and bytes go ---

    def remove(self, model: ModelId) -> int:
        """Forget the model and delete the blobs that no other one needs; the bytes freed.

        Raises UnknownModel, StoreError.
        """
        with self._lock:
            manifest = self._catalog.get(model)
            if manifest is None:
                raise _unknown(model.text, self._catalog.all())
            self._catalog.drop(model)
            self._drop_view(manifest)
            return self._upkeep.release(manifest.digests)

    def prune(self, older_than: datetime) -> int:
        """Delete blobs that no model names and that were stored before then; the bytes freed.

        Nothing is deleted while a manifest cannot be read.
        """
        limit = older_than.timestamp()
        with self._lock:
            old = [digest for digest, info in self._blobs.all() if info.st_ctime < limit]
            return self.drop_unnamed(old)

    def drop_unnamed(self, digests: Iterable[Digest]) -> int:
        """Delete those of the blobs that no model names, for a pull that was given up.

        The bytes freed. Nothing is deleted while a manifest cannot be read.
        """
        with self._lock:
            unnamed = set(digests)
            self._upkeep.uncommitted.difference_update(unnamed)
            return self._upkeep.release(unnamed)

    def drop_stale_partials(self, older_than: datetime) -> int:
        """How many partials that nobody touched since then were deleted."""
        return self._partials.drop_stale(older_than)

    def prune_quarantine(self, older_than: datetime) -> int:
        """How many files that were put aside before then were deleted."""
        with self._lock:
            return self._quarantine.prune(older_than)

    # --- verification at rest ---

    def verify(
        self,
        manifest: Manifest,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> Iterator[FileResult]:
        """Hash every blob of the model again and yield what was found, file by file.

        ``progress`` gets the bytes hashed since its last call. A bad blob goes to quarantine and
        its models are marked; when all are sound, the model counts as verified now. Ends early,
        without a result for the file at hand, once ``cancelled`` says so or the model is removed.
        """
        sound = 0
        for file in manifest.files:
            seen = self._blobs.signature(file.digest)
            hashed = self._upkeep.hash(file, progress, cancelled)
            if hashed is None or (hashed and self._catalog.get(manifest.id) is None):
                return
            finding = hashed or None
            if finding is not None and not self._upkeep.condemn(file, finding, seen):
                finding = None  # repaired meanwhile, with bytes that `admit` has verified
            sound += finding is None
            if sound == len(manifest.files):
                self._upkeep.mark_verified(manifest)
            yield FileResult(
                id=manifest.id,
                name=file.name,
                digest=file.digest,
                ok=finding is None,
                finding=finding,
                size=file.size,
            )

    def scrub_candidates(self, older_than: datetime) -> _Manifests:
        """Models not verified since then, the longest ago first; damaged ones are left out."""
        due = [
            (manifest.verified_at or manifest.created_at, manifest)
            for manifest in self._catalog.all()
            if not manifest.damaged
        ]
        return [
            manifest for at, manifest in sorted(due, key=lambda pair: pair[0]) if at < older_than
        ]

    # --- inside ---

    def _headers(self, parts: Iterable[ManifestFile]) -> tuple[GgufHeader, ...]:
        headers = []
        for file in parts:
            try:
                with self._blobs.reader(file.digest) as stream:
                    headers.append(read_header(stream, file.size))
            except FileNotFoundError as error:
                raise BlobDamaged(f"the stored file {file.name} is missing") from error
        return tuple(headers)

    def _publish(self, partial: Partial, digest: Digest, size: int) -> bool:
        """Whether the store had the bytes already."""
        partial.harden()  # writes back what the system still buffers: long, so without the lock
        with self._lock:
            self._upkeep.uncommitted.add(digest)
            if self.has(digest, size):
                partial.discard()
                return True
            self._signatures.put(digest, self._blobs.publish(partial, digest))
            return False

    def _refuse(
        self, partial: Partial, refusal: admission.Refusal, digest: Digest, at: datetime
    ) -> None:
        log.warning("bytes_refused", code=refusal.error.code, sha256=digest.hex)
        evidence = {"sha256": digest.hex, "origin": partial.key.origin}
        with self._lock:
            partial.close()
            self._quarantine.put(partial.path, refusal.findings, at, digest, evidence)
            with disk.wrapped("delete a partial", partial.path):
                partial.forget_sidecar()

    def _drop_view(self, manifest: Manifest) -> None:
        folder = self._root / layout.view(manifest.id)
        with suppress(OSError):  # most models have none
            for link in folder.iterdir():
                disk.unlink(link)
            folder.rmdir()


def _point(link: Path, blob: Path) -> None:
    if sys.platform == "win32":  # only an administrator makes symbolic links there
        link.hardlink_to(blob)
    else:
        link.symlink_to(blob)


def _parts(manifest: Manifest) -> list[ManifestFile]:
    """The model file and its further shards, in order."""
    shards = sorted(manifest.with_role(FileRole.SHARD), key=lambda file: file.name.text)
    return [manifest.model_file, *shards]


def _unknown(name: str, manifests: Iterable[Manifest]) -> UnknownModel:
    names = [known.text for manifest in manifests for known in (manifest.id, *manifest.aliases)]
    near = difflib.get_close_matches(name[:300], names, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else None
    available = sorted({manifest.id.text for manifest in manifests})
    return UnknownModel(f"there is no model {name[:120]!r} here", hint=hint, available=available)
