"""Where things live, and that the runtime folder is private and short enough for a socket."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import StoreUnsafe
from stoker.paths import Paths, from_environment


def _everything(places: Paths) -> list[Path]:
    names = [name for name in dir(Paths) if not name.startswith("_")]
    return [value for name in names if isinstance(value := getattr(places, name), Path)]


def test_with_a_home_everything_is_below_it(stoker_home: Path) -> None:
    """One folder holds all, so that removing it removes all."""
    places = from_environment()

    found = _everything(places)

    assert len(found) > 10
    assert [path for path in found if not path.is_relative_to(stoker_home)] == []


def test_a_home_may_be_relative_or_start_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths are absolute in any case: a daemon changes its working folder."""
    monkeypatch.setenv("HOME", "/home/someone")

    assert from_environment({"STOKER_HOME": "~/s"}).data == Path("/home/someone/s")
    assert from_environment({"STOKER_HOME": "s"}).data == Path.cwd() / "s"


@pytest.mark.skipif(os.name != "posix", reason="the XDG variables are a POSIX matter")
def test_without_a_home_the_platform_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Data, config and state are separate folders of the user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)

    places = from_environment({})

    for folder in (places.data, places.config, places.state):
        assert folder.is_relative_to(tmp_path)
        assert folder.name in {"stoker", "Stoker"}
    assert places.run == places.state / "run" or places.run.parent == Path("/tmp")


def test_an_empty_home_is_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable that is set to nothing counts as unset."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert from_environment({"STOKER_HOME": ""}) == from_environment({})


@given(depth=st.integers(0, 20))
def test_a_worker_socket_always_fits(depth: int) -> None:
    """However long the home is, the longest socket name fits into a socket's address."""
    home = Path("/h", *["folder-é"] * depth)

    run = from_environment({"STOKER_HOME": str(home)}).run

    assert len(os.fsencode(run / "w-0123456789abcdef.sock")) <= 103


@pytest.mark.parametrize("home", [None, "/" + "x" * 120], ids=["default", "long"])
def test_every_session_finds_the_same_daemon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    """A login, cron, ssh and su differ in these variables; the control socket is the same."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = set()
    for runtime, temporary in (("/run/user/1", "/tmp/a"), (None, None)):
        for name, value in (("XDG_RUNTIME_DIR", runtime), ("TMPDIR", temporary)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        environ = {"STOKER_HOME": home} if home else {}
        found.add(from_environment({**os.environ, **environ}).control_socket)

    assert len(found) == 1


def test_two_long_homes_do_not_share_a_runtime_folder() -> None:
    """The short name is made from the whole path."""
    first, second = (from_environment({"STOKER_HOME": "/" + "x" * 120 + n}).run for n in "ab")

    assert first != second
    assert first == from_environment({"STOKER_HOME": "/" + "x" * 120 + "a"}).run


def test_the_folders_are_made_private(stoker_home: Path) -> None:
    """Nobody else may look into data, state or sockets; making them twice is fine."""
    places = from_environment()

    places.create()
    places.create()

    for folder in (places.state, places.logs, places.run, places.worker_cwd):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert list(places.worker_cwd.iterdir()) == []
    assert places.run.parent == stoker_home


def test_an_open_runtime_folder_is_closed(stoker_home: Path) -> None:
    """A folder of ours that others could enter is closed before a socket is made in it."""
    run = stoker_home / "run"
    run.mkdir()
    run.chmod(0o777)

    from_environment().create()

    assert stat.S_IMODE(run.stat().st_mode) == 0o700


def test_a_runtime_folder_that_is_a_link_is_refused(stoker_home: Path, tmp_path: Path) -> None:
    """Somebody else could have placed the link."""
    (stoker_home / "run").symlink_to(tmp_path)

    with pytest.raises(StoreUnsafe, match="run"):
        from_environment().create()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no uid")
def test_a_runtime_folder_of_another_user_is_refused(
    stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in a shared place may have been made by someone else beforehand."""
    places = from_environment()
    places.run.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: stoker_home.stat().st_uid + 1)

    with pytest.raises(StoreUnsafe, match="not a folder of this user"):
        places.create()


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """Read-only places and files in the way are the user's to mend, not faults of ours."""
    (tmp_path / "home").write_text("a file")
    places = from_environment({"STOKER_HOME": str(tmp_path / "home")})

    with pytest.raises(StoreUnsafe) as caught:
        places.create()

    assert str(tmp_path / "home") in caught.value.message
    assert "STOKER_HOME" in caught.value.hint
