"""What is wrong with stored blobs, and what follows: marking, quarantine, repair, deletion.

The second half of `store`, which is the only one to use it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import RLock

import structlog

from stoker.errors import BlobDamaged, StokerError, StoreError
from stoker.store.blobs import Blobs
from stoker.store.catalog import Catalog
from stoker.store.finding import Finding
from stoker.store.manifest import Manifest, ManifestFile, Verdict
from stoker.store.quarantine import Quarantine
from stoker.store.signatures import Signature, Signatures
from stoker.store.verify import Expected, check
from stoker.types import Digest

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Upkeep:
    """Keeps blobs, signatures, manifests and quarantine in step with each other."""

    blobs: Blobs
    catalog: Catalog
    signatures: Signatures
    quarantine: Quarantine
    now: Callable[[], datetime]
    lock: RLock  # the store's; held to change any of these, never while hashing
    uncommitted: set[Digest] = field(default_factory=set)  # admitted, not yet named by a manifest

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob was verified and its file has not changed since."""
        signature = self.blobs.signature(digest)
        return (
            signature is not None
            and signature.size == size
            and signature == self.signatures.get(digest)
        )

    def finding(self, file: ManifestFile) -> str | None:
        """What is wrong with a blob; hashes it only when its file is not as it was."""
        if self.has(file.digest, file.size):
            return None
        return self.hash(file, _no_progress, _never) or None

    def hash(
        self, file: ManifestFile, progress: Callable[[int], None], cancelled: Callable[[], bool]
    ) -> str | None:
        """What is wrong with a blob, "" when nothing is; None when cancelled."""
        try:
            found = self.blobs.hash(file.digest, progress, cancelled)
        except FileNotFoundError:
            return f"{file.name} is missing"
        except StoreError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EIO:
                raise
            return f"{file.name} cannot be read from the disk any more"
        if found is None:
            return None
        observed, signature = found
        findings = check(Expected(file.size, file.digest), observed)
        if findings:
            return f"{file.name}: " + "; ".join(map(str, findings))
        with self.lock:
            self.signatures.put(file.digest, signature)
        return ""

    def condemn(self, file: ManifestFile, finding: str, seen: Signature | None) -> bool:
        """Mark every model that names the blob, then put the blob aside.

        ``seen`` is the file that was found bad. Changes nothing, and returns False, when there is
        another one now that was verified: a repair may put good bytes there while the bad ones
        are being hashed.
        """
        at = self.now()
        verdict = Verdict("failed", finding, {"sha256": file.digest.hex}, at)
        with self.lock:
            if self.blobs.signature(file.digest) != seen and self.has(file.digest, file.size):
                return False
            log.error("blob_damaged", sha256=file.digest.hex, finding=finding)
            self.signatures.drop(file.digest)
            for manifest in self.catalog.naming(file.digest):
                self._keep(manifest.with_integrity(verdict))
            with suppress(StoreError):  # gone already, or the disk refuses: it stays marked
                findings = (Finding(BlobDamaged.code, finding),)
                evidence = {"expected_sha256": file.digest.hex, "name": file.name.text}
                path = self.blobs.path(file.digest)
                self.quarantine.put(path, findings, at, file.digest, evidence)
        return True

    def heal(self, digest: Digest) -> None:
        """Models that were marked for this blob are sound again when their others are."""
        for manifest in self.catalog.naming(digest):
            if manifest.damaged and all(self.finding(file) is None for file in manifest.files):
                verdict = Verdict("ok", "repaired: every file matches its SHA-256", {}, self.now())
                with self.lock:
                    current = self._still_sound(manifest)
                    if current is not None:
                        self._keep(current.with_integrity(verdict))

    def mark_verified(self, manifest: Manifest) -> None:
        at = self.now()
        with self.lock:
            current = self._still_sound(manifest)
            if current is None:
                return
            verdict = replace(current.trust.integrity, at=at)
            if verdict.verdict not in {"ok", "warn"}:
                verdict = Verdict("ok", "every file matches its SHA-256", {}, at)
            self._keep(replace(current.with_integrity(verdict), verified_at=at))

    def _still_sound(self, manifest: Manifest) -> Manifest | None:
        """As it is now; None when it was removed, replaced or damaged since its files were hashed.

        For the holder of the lock.
        """
        current = self.catalog.get(manifest.id)
        if current is None or current.files != manifest.files:
            return None
        return current if all(self.has(f.digest, f.size) for f in current.files) else None

    def _keep(self, manifest: Manifest) -> None:
        """Record a verdict; it counts even when the disk does not take it."""
        try:
            self.catalog.put(manifest)
        except StokerError as error:
            log.warning("verdict_not_saved", model=manifest.id.text, reason=error.message)
            self.catalog.hold(manifest)

    def release(self, digests: Iterable[Digest]) -> int:
        """Delete those blobs that nothing needs; nothing at all while a manifest is unreadable."""
        if self.catalog.problems:
            log.warning("blobs_kept", reason="a manifest cannot be read")
            return 0
        needed = {digest for manifest in self.catalog.all() for digest in manifest.digests}
        freed = 0
        for digest in set(digests) - needed - self.uncommitted:
            freed += self.blobs.remove(digest)
            self.signatures.drop(digest)
        return freed


def _no_progress(_count: int) -> None:
    return None


def _never() -> bool:
    return False
