"""The strict parsers: what they accept, and that nothing dangerous gets through them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker.errors import BadReference, FileKindRefused, SourceInvalid, StokerError
from stoker.types import (
    Commit,
    Digest,
    Filename,
    HubRef,
    ModelId,
    NameRef,
    PathRef,
    PullState,
    RepoId,
    UrlRef,
    parse_model_ref,
)

HEX64 = "0123456789abcdef" * 4
HEX40 = "0123456789" * 4
PART = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9_])?", fullmatch=True).filter(
    lambda text: ".." not in text and "--" not in text
)
NOT_TEXT = st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.text(), max_size=2))
# Text that is near what parsers accept finds more than text from all of Unicode.
NEAR = st.text(st.sampled_from("aZ09._-/:@#\\~ %?&=+()\n\0\r\té\u202e"), max_size=60)
ANYTHING = st.one_of(st.text(max_size=300), NEAR, NOT_TEXT)

PARSERS = [
    pytest.param(Digest.parse, SourceInvalid, id="digest"),
    pytest.param(Commit.parse, SourceInvalid, id="commit"),
    pytest.param(RepoId.parse, BadReference, id="repository"),
    pytest.param(Filename.parse, FileKindRefused, id="file-name"),
    pytest.param(ModelId.parse, BadReference, id="model-name"),
    pytest.param(parse_model_ref, BadReference, id="reference"),
]


@pytest.mark.parametrize(("parse", "refusal"), PARSERS)
@given(value=ANYTHING)
@example(value="")
@example(value="../../etc/passwd")
@example(value="http://[")
@example(value="https://user:secret@host.example/x.gguf")
def test_a_parser_returns_a_value_or_its_own_error(
    parse: Callable[[object], object], refusal: type[StokerError], value: object
) -> None:
    """Whatever comes in, out comes a typed value or the one documented error."""
    outcome: object
    try:
        outcome = parse(value)
    except refusal as error:
        outcome = error

    if isinstance(outcome, StokerError):
        assert outcome.message.isprintable()
        assert len(outcome.message) < 300
    else:
        assert type(outcome).__module__ == "stoker.types"


# --- digests and commits ---------------------------------------------------------------------


def test_a_digest_is_read_with_and_without_its_prefix() -> None:
    """Both spellings give the same value, and it prints with the prefix."""
    assert Digest.parse(HEX64) == Digest.parse(f"sha256:{HEX64}")
    assert str(Digest.parse(HEX64)) == f"sha256:{HEX64}"


@pytest.mark.parametrize(
    "text",
    [
        HEX64.upper(),
        HEX64[:-1],
        HEX64 + "0",
        f"{HEX64}\n",
        f"md5:{HEX64}",
        f"sha256:sha256:{HEX64}",
    ],
)
def test_what_is_not_a_digest_is_refused(text: str) -> None:
    """Upper case, another length, a line break and another algorithm are all refused."""
    with pytest.raises(SourceInvalid):
        Digest.parse(text)


@pytest.mark.parametrize("text", ["main", HEX40[:-1], HEX40.replace("1", "A"), f"{HEX40}\n"])
def test_a_branch_is_not_a_commit(text: str) -> None:
    """Only 40 lower-case hex digits pin a revision."""
    assert str(Commit.parse(HEX40)) == HEX40
    with pytest.raises(SourceInvalid):
        Commit.parse(text)


# --- names -----------------------------------------------------------------------------------


@given(owner=PART, name=PART)
def test_a_repository_name_is_kept_as_typed(owner: str, name: str) -> None:
    """Owner and name come back unchanged."""
    assert str(RepoId.parse(f"{owner}/{name}")) == f"{owner}/{name}"


@pytest.mark.parametrize(
    "text", ["owner", "a/b/c", "../b", "a/..", ".a/b", "a/b.", "a--b/c", "a/b c", "a/b?x", "a/b#x"]
)
def test_a_repository_name_cannot_alter_a_url(text: str) -> None:
    """Nothing with another meaning in a URL, or refused by the Hub, is a repository name."""
    with pytest.raises(BadReference):
        RepoId.parse(text)


@given(remote=st.one_of(NEAR, st.text(max_size=80)))
@example(remote="model-Q4_0.gguf")
@example(remote="a/b/model.gguf")
def test_a_file_name_never_leaves_its_folder(remote: str) -> None:
    """Joined to a folder, an accepted name stays in that folder on POSIX and on Windows."""
    try:
        name = str(Filename.parse(remote))
    except FileKindRefused:
        return

    assert Path("/folder", name).resolve().parent == Path("/folder").resolve()
    assert PureWindowsPath(name).name == name
    assert not PureWindowsPath(name).drive
    assert name.isascii()
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize(
    ("remote", "name"),
    [
        ("model.gguf", "model.gguf"),
        ("Q4_K_M/model-00001-of-00002.gguf", "model-00001-of-00002.gguf"),
        ("a b/c (1).gguf", "c (1).gguf"),
    ],
)
def test_the_folder_part_of_a_remote_path_is_dropped(remote: str, name: str) -> None:
    """Only the last part of a remote path is used on disk."""
    assert str(Filename.parse(remote)) == name


@pytest.mark.parametrize(
    "remote",
    [
        "../model.gguf",
        "a/../model.gguf",
        "/etc/model.gguf",
        "a\\model.gguf",
        "nul.gguf",
        "COM1.gguf",
        "lpt9",
        ".hidden.gguf",
        "model.gguf.",
        "model.gguf ",
        "mo\0del.gguf",
        "model.gguf\n",
        "m" * 201,
        "..",
        "",
        "/",
    ],
)
def test_a_hostile_file_name_is_refused(remote: str) -> None:
    """Traversal, device names, hidden files, control characters and long names are refused."""
    with pytest.raises(FileKindRefused):
        Filename.parse(remote)


@pytest.mark.parametrize("text", ["starter", "owner/repo", "owner/repo:Q4_K_M", "a", "gpt-oss:20b"])
def test_a_model_name_is_kept_as_typed(text: str) -> None:
    """Short names, repository names and quantisations are model names."""
    assert str(ModelId.parse(text)) == text


@pytest.mark.parametrize("text", ["", "a/b/c", "a..b", "a:", ":a", "-a", "a b", "a/b:c/d", "a\n"])
def test_what_is_not_a_model_name_is_refused(text: str) -> None:
    """A model name is one or two parts and at most one quantisation."""
    with pytest.raises(BadReference):
        ModelId.parse(text)


# --- model references ------------------------------------------------------------------------


def test_a_short_name_is_a_name() -> None:
    """Without a slash it is a catalogue name or an alias."""
    assert parse_model_ref("starter") == NameRef("starter")


def test_a_hub_reference_has_four_parts() -> None:
    """Owner, repository, quantisation or file, and revision are told apart."""
    ref = parse_model_ref("owner/repo:sub/model.gguf@refs-1")

    assert ref == HubRef(RepoId("owner", "repo"), "sub/model.gguf", "refs-1")


@given(
    owner=PART,
    name=PART,
    selector=st.none() | PART,
    revision=st.none() | PART,
)
def test_a_hub_reference_survives_printing(
    owner: str, name: str, selector: str | None, revision: str | None
) -> None:
    """Parsing what was printed gives the same reference."""
    ref = HubRef(RepoId(owner, name), selector, revision)

    assert parse_model_ref(str(ref)) == ref


def test_an_absolute_path_is_a_path(tmp_path: Path) -> None:
    """A path is recognised before anything else."""
    assert parse_model_ref(str(tmp_path / "m.gguf")) == PathRef(tmp_path / "m.gguf")


@pytest.mark.parametrize("text", ["./m.gguf", "../m.gguf", "~/m.gguf", "dir/../m.gguf"])
def test_a_relative_path_is_the_callers_business(text: str) -> None:
    """Only the caller knows the working folder, so a relative path is not a reference."""
    with pytest.raises(BadReference):
        parse_model_ref(text)


def test_a_url_may_carry_its_digest() -> None:
    """The digest after # is parsed and does not stay in the URL."""
    ref = parse_model_ref(f"https://host.example/m.gguf?x=1#sha256={HEX64}")

    assert ref == UrlRef("https://host.example/m.gguf?x=1", Digest(HEX64))


@pytest.mark.parametrize(
    "text",
    [
        "https://",
        "https://user@host.example/m.gguf",
        "http://host.example:99999/m",
        "http://host.example:0/m",
        "http://[::1/m",
        f"https://host.example/m#sha256={HEX64[:-1]}",
        "https://host.example/m#section",
    ],
)
def test_a_url_that_is_unsafe_or_broken_is_refused(text: str) -> None:
    """No host, credentials inside, a port that is none, and a fragment that is no digest."""
    with pytest.raises(BadReference):
        parse_model_ref(text)


@pytest.mark.parametrize("text", ["starter:q4", "starter@main", "owner/repo@", "owner/repo:"])
def test_a_half_written_reference_is_refused_or_harmless(text: str) -> None:
    """A part that is missing or out of place never changes which model is meant."""
    try:
        ref = parse_model_ref(text)
    except BadReference:
        return
    assert ref == HubRef(RepoId("owner", "repo"))


@pytest.mark.parametrize("text", ["a" * 1025, "a\tb/c", "own\u200ber/repo"])
def test_a_reference_is_short_and_printable(text: str) -> None:
    """Length and invisible characters are checked before anything else."""
    with pytest.raises(BadReference):
        parse_model_ref(text)


def test_three_pull_states_are_final() -> None:
    """A pull ends by being done, failed or cancelled."""
    assert {state for state in PullState if state.ended} == {
        PullState.DONE,
        PullState.FAILED,
        PullState.CANCELLED,
    }
