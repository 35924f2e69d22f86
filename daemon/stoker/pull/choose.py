"""Which files of a repository make up the model that was asked for. Pure.

Not for: digests and sizes (`source`), nor whether the files may be kept (`policy`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from stoker.errors import BadReference, FileKindRefused, SourceInvalid, SourceNotFound
from stoker.store.manifest import FileRole
from stoker.types import Filename

# What most people want first: 4-bit K-quants keep nearly all quality at a quarter of the size;
# then the next sizes up, because too good is better than too coarse.
PREFERENCE: Final = (
    *("Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "Q4_K_L", "MXFP4", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1"),
    *("Q5_K_M", "UD-Q5_K_XL", "Q5_K_S", "Q6_K", "UD-Q6_K_XL", "Q8_0", "UD-Q8_K_XL"),
    *("Q3_K_M", "UD-Q3_K_XL", "BF16", "F16"),
)
PROJECTORS: Final = ("F16", "BF16", "Q8_0", "F32")  # small files: precision is cheap here
MOST_SHARDS: Final = 1000
_LISTED: Final = 20  # names in an error message

_QUANT: Final = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+){0,2}|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32))"
    r"(?=$|[-._])",
    re.IGNORECASE,
)
_SHARD: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A file of the repository and its part in the model."""

    path: str
    name: Filename
    role: FileRole


@dataclass(frozen=True, slots=True)
class Choice:
    """The model's files, the first shard first; ``label`` tells it from its neighbours."""

    files: tuple[Chosen, ...]
    label: str | None
    selector: str  # chooses exactly these files again


@dataclass(frozen=True, slots=True)
class _Group:
    """A model file, or all shards of one."""

    stem: str  # the path without shard number and extension
    paths: tuple[str, ...]
    declared: int | None = None  # shards the names announce

    @property
    def quant(self) -> str | None:
        return quantization(self.stem)


def quantization(path: str) -> str | None:
    """The quantisation that a file name states, in upper case."""
    stem = re.sub(r"\.gguf$", "", path, flags=re.IGNORECASE)
    for part in reversed(PurePosixPath(stem).parts):
        found = _QUANT.findall(part)
        if found:
            return str(found[-1]).upper()
    return None


def choose(paths: Iterable[str], selector: str | None) -> Choice:
    """The files for a selector: a quantisation, a file, or none for the usual one.

    Raises SourceNotFound or BadReference with a list of what there is, FileKindRefused for a
    file name that no file may have or a repository without GGUF files, SourceInvalid for an
    incomplete set of shards.
    """
    ggufs = sorted(path for path in paths if path.lower().endswith(".gguf"))
    groups = _groups(path for path in ggufs if not _is_extra(path))
    if not groups:
        raise FileKindRefused("the repository holds no GGUF model")
    group = _by_selector(groups, selector) if selector else _by_preference(groups)
    shards = _complete(group)
    role = FileRole.MODEL if len(shards) == 1 else FileRole.SHARD
    files = [_chosen(path, role if index else FileRole.MODEL) for index, path in enumerate(shards)]
    projector = _projector([path for path in ggufs if "mmproj" in path.lower()], group)
    if projector is not None:
        files.append(_chosen(projector, FileRole.MMPROJ))
    label = group.quant or (None if len(groups) == 1 else PurePosixPath(group.stem).name)
    return Choice(tuple(files), label, shards[0])


def shard_of(name: str) -> tuple[str, int, int] | None:
    """``(stem, index, count)`` when a file name is one of a split set."""
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    match = _SHARD.fullmatch(stem)
    return (match[1], int(match[2]), int(match[3])) if match else None


def _chosen(path: str, role: FileRole) -> Chosen:
    return Chosen(path, Filename.parse(path), role)


def _is_extra(path: str) -> bool:
    """Not a model by itself: a projector, or calibration data."""
    name = PurePosixPath(path).name.lower()
    return "mmproj" in name or "imatrix" in name


def _groups(paths: Iterable[str]) -> list[_Group]:
    whole: list[_Group] = []
    split: dict[tuple[str, int], list[str]] = {}
    for path in paths:
        shard = shard_of(path)
        if shard is None:
            whole.append(_Group(path[: -len(".gguf")], (path,)))
        else:
            split.setdefault((shard[0], shard[2]), []).append(path)
    sets = [_Group(stem, tuple(parts), count) for (stem, count), parts in split.items()]
    return sorted([*whole, *sets], key=lambda group: group.stem)


def _complete(group: _Group) -> tuple[str, ...]:
    if group.declared is None:
        return group.paths
    numbers = [shard[1] for path in group.paths if (shard := shard_of(path))]
    if not 0 < group.declared <= MOST_SHARDS or numbers != list(range(1, group.declared + 1)):
        msg = f"{group.stem} is split in {group.declared}, but parts {numbers[:8]} are there"
        raise SourceInvalid(msg, hint="Choose another quantisation of this repository.")
    return group.paths


def _by_selector(groups: Sequence[_Group], selector: str) -> _Group:
    wanted = selector.lower()
    for matches in (
        [g for g in groups if any(wanted == path.lower() for path in g.paths)],
        [g for g in groups if any(wanted == PurePosixPath(p).name.lower() for p in g.paths)],
        [g for g in groups if (g.quant or "").lower() == wanted],
        [g for g in groups if (g.quant or "").lower() == f"ud-{wanted}"],
        [g for g in groups if PurePosixPath(g.stem).name.lower() == wanted],
    ):
        if matches:
            return _only(matches, selector)
    msg = f"no {selector!r} in this repository"
    raise SourceNotFound(msg, hint=f"It has: {_names(groups)}.", available=_labels(groups))


def _by_preference(groups: Sequence[_Group]) -> _Group:
    for quant in PREFERENCE:
        matches = [group for group in groups if group.quant == quant]
        if matches:
            return _only(matches, quant)
    return _only(groups, "model")


def _only(matches: Sequence[_Group], wanted: str) -> _Group:
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(group.paths[0] for group in matches[:_LISTED])
    msg = f"{len(matches)} files of this repository fit {wanted!r}"
    hint = f"Add a file after a colon, one of: {names}."
    raise BadReference(msg, hint=hint, available=[group.paths[0] for group in matches])


def _labels(groups: Sequence[_Group]) -> list[str]:
    return sorted({group.quant or group.paths[0] for group in groups})


def _names(groups: Sequence[_Group]) -> str:
    labels = _labels(groups)
    more = f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
    return ", ".join(labels[:_LISTED]) + more


def _projector(paths: Sequence[str], group: _Group) -> str | None:
    """The vision or audio part that belongs to the model, the most precise of the usual ones."""

    def rank(path: str) -> tuple[bool, int, str]:
        quant = quantization(path)
        order = PROJECTORS.index(quant) if quant in PROJECTORS else len(PROJECTORS)
        near = PurePosixPath(path).parent == PurePosixPath(group.stem).parent
        return (not near, order, path)

    return min(paths, key=rank, default=None)
