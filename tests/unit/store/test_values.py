"""Layout, ranges, sidecars and verification: pure rules over plain values."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import StokerError
from stoker.store import layout, sidecar
from stoker.store.ranges import Ranges
from stoker.store.sidecar import PartialKey
from stoker.store.verify import Expected, Observed, check
from stoker.types import Digest, Filename, ModelId

A, B = Digest("a" * 64), Digest("b" * 64)
AT = datetime(2026, 11, 1, 12, 0, 0, 5, tzinfo=UTC)


def stays_inside(path: PurePosixPath) -> bool:
    return not path.is_absolute() and ".." not in path.parts and "\\" not in str(path)


# --- layout ----------------------------------------------------------------------------------


def test_a_blob_lies_under_its_digest() -> None:
    assert str(layout.blob(A)) == f"blobs/sha256/aa/{'a' * 64}"
    assert layout.blob_digest("a" * 64) == A


@pytest.mark.parametrize("name", ["", "a" * 63, "A" * 64, "a" * 64 + ".tmp", "../" + "a" * 61])
def test_only_a_digest_is_the_name_of_a_blob(name: str) -> None:
    assert layout.blob_digest(name) is None


def test_a_manifests_name_is_readable_and_tells_models_apart() -> None:
    first = layout.manifest(ModelId.parse("Owner/Model-GGUF:Q4_0"))
    second = layout.manifest(ModelId.parse("owner/model-gguf:Q4_0"))

    assert first.name.startswith("owner-model-gguf-q4_0-")
    assert first.name.casefold() != second.name.casefold()  # also where case does not count


@given(st.text(max_size=120))
def test_no_model_name_leads_out_of_the_store(text: str) -> None:
    try:
        model = ModelId.parse(text)
    except StokerError:
        return
    for path in (layout.manifest(model), layout.view(model)):
        assert stays_inside(path)
        assert len(path.parts) == 2
        assert len(path.name) < 120


@given(st.text(max_size=120))
def test_no_file_name_leads_out_of_its_view(text: str) -> None:
    try:
        name = Filename.parse(text)
    except StokerError:
        return
    path = layout.view_file(ModelId.parse("m"), name)
    assert stays_inside(path)
    assert path.parent == layout.view(ModelId.parse("m"))


@given(st.text(max_size=200))
def test_no_origin_leads_out_of_the_partials(origin: str) -> None:
    path = layout.partial(Expected(None, None), origin)

    assert path.parent == layout.PARTIALS
    assert stays_inside(path)
    assert "." not in path.name


def test_a_promised_digest_keys_the_partial_whatever_the_origin() -> None:
    assert layout.partial(Expected(1, A), "x") == layout.partial(Expected(2, A), "y")
    assert layout.partial(Expected(None, None), "x") != layout.partial(Expected(None, None), "y")


def test_quarantined_names_sort_by_time() -> None:
    names = [
        layout.quarantined(A, AT).name,
        layout.quarantined(None, AT.replace(microsecond=6)).name,
        layout.quarantined(B, AT.replace(year=2027)).name,
    ]

    assert names == sorted(names)


# --- ranges ----------------------------------------------------------------------------------

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12)


@given(PIECES, st.integers(1, 80), st.integers(1, 30))
def test_ranges_are_the_set_of_the_bytes_that_were_added(
    pieces: list[tuple[int, int]], size: int, chunk: int
) -> None:
    ranges = Ranges()
    there: set[int] = set()
    for start, length in pieces:
        overlapped = bool(there & set(range(start, start + length)))
        assert ranges.overlaps(start, start + length) == overlapped
        ranges.add(start, start + length)
        there |= set(range(start, start + length))

    gaps = ranges.missing(size, chunk)

    assert {at for start, end in ranges.pairs for at in range(start, end)} == there
    assert ranges.total == len(there)
    assert ranges.end == max(there, default=-1) + 1
    assert {at for start, end in gaps for at in range(start, end)} == set(range(size)) - there
    assert all(0 < end - start <= chunk for start, end in gaps)
    assert all(at in there for at in range(ranges.prefix))
    assert ranges.prefix not in there
    assert Ranges(ranges.pairs).pairs == ranges.pairs


# --- sidecars --------------------------------------------------------------------------------


def key(size: int | None = 100, digest: Digest | None = A, origin: str = "o") -> PartialKey:
    return PartialKey(Expected(size, digest), origin)


@pytest.mark.parametrize(
    ("written", "asked", "fits"),
    [
        (key(), key(), True),
        (key(), key(origin="another mirror"), True),
        (key(), key(digest=B), False),
        (key(), key(size=101), False),
        (key(), key(size=None), True),
        (key(digest=None), key(digest=None), True),
        (key(digest=None), key(digest=None, origin="p"), False),
        (key(digest=None), key(), False),
        (key(), key(digest=None), False),
    ],
)
def test_a_partial_goes_on_only_for_what_it_is_part_of(
    written: PartialKey, asked: PartialKey, *, fits: bool
) -> None:
    found = sidecar.loads(sidecar.dumps(written, written.expected.size, [(0, 10), (20, 30)]), 30)

    assert found is not None
    assert found.ranges == [(0, 10), (20, 30)]
    assert found.belongs_to(asked) == fits


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"version":2,"sha256":null,"size":9,"origin":"o","ranges":[]}',
        b'{"version":1,"sha256":null,"size":9,"origin":"o","ranges":[[0,10]]}',
        b'{"version":1,"sha256":null,"size":null,"origin":"o","ranges":[[0,31]]}',
        b'{"version":1,"sha256":null,"size":9,"origin":"o","ranges":[[5,5]]}',
        b'{"version":1,"sha256":null,"size":9,"origin":"o","ranges":[[-1,5]]}',
        b'{"version":1,"sha256":null,"size":9,"origin":"o","ranges":[["0","5"]]}',
        b'{"version":1,"sha256":null,"size":9,"origin":"o","ranges":[],"more":1}',
    ],
)
def test_a_sidecar_that_cannot_be_trusted_counts_as_none(raw: bytes) -> None:
    assert sidecar.loads(raw, actual_bytes=30) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_sidecar_or_none(raw: bytes) -> None:
    sidecar.loads(raw, 100)


# --- verify ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "observed", "codes"),
    [
        (Expected(5, A), Observed(5, A), []),
        (Expected(None, None), Observed(5, A), []),
        (Expected(None, A), Observed(5, A), []),
        (Expected(5, None), Observed(5, A), []),
        (Expected(5, A), Observed(4, A), ["size_mismatch"]),
        (Expected(5, A), Observed(5, B), ["digest_mismatch"]),
        (Expected(5, A), Observed(6, B), ["size_mismatch", "digest_mismatch"]),
        (Expected(None, None), Observed(0, A), ["size_mismatch"]),
    ],
)
def test_everything_that_differs_is_a_finding(
    expected: Expected, observed: Observed, codes: list[str]
) -> None:
    assert [finding.code for finding in check(expected, observed)] == codes


def test_a_finding_names_both_sides() -> None:
    (finding,) = check(Expected(5, A), Observed(4, A))

    assert "4" in finding.text
    assert "5" in finding.text
