"""On, then off, leaves every byte, mode, link and folder as it was; also when it is cut short."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import Part, Record, Wish, files, record
from stoker_service.base import Autostart
from stoker_service.launchd import agent_entry
from stoker_service.systemd import SystemdAutostart, unit_entry
from stoker_service.xdg import Folders, daemon_entry, tray_entry
from tests.fakes.service_home import BOTH, PROGRAM, at_home, odd_program, tree, wish

ORDERS = [
    ((Part.DAEMON, Part.TRAY), (Part.DAEMON, Part.TRAY)),
    ((Part.DAEMON, Part.TRAY), (Part.TRAY, Part.DAEMON)),
    ((Part.TRAY, Part.DAEMON), (Part.DAEMON, Part.TRAY)),
    ((Part.TRAY, Part.DAEMON), (Part.TRAY, Part.DAEMON)),
]


def empty(_home: Path) -> None:
    """Nothing is there."""


def lived_in(home: Path) -> None:
    """Folders with a user's own things, of several modes, and some that are empty."""
    units = home / ".config" / "systemd" / "user"
    (units / "default.target.wants").mkdir(parents=True)
    (units / "backup.service").write_text("[Service]\n")
    (units / "default.target.wants" / "backup.service").symlink_to("../backup.service")
    (units / "sockets.target.wants").mkdir(mode=0o755)
    (home / ".config" / "autostart").mkdir(mode=0o750)
    (home / "Library" / "LaunchAgents").mkdir(parents=True)
    (home / "Library" / "LaunchAgents" / "other.plist").write_text("<plist/>")
    (home / ".config" / "stoker").mkdir()
    (home / ".config" / "stoker" / "config.toml").write_text("port = 4328\n")


def linked(home: Path) -> None:
    """The configuration is kept elsewhere and linked to."""
    (home / "dotfiles").mkdir()
    (home / ".config").symlink_to("dotfiles")


@pytest.mark.parametrize("furnish", [empty, lived_in, linked])
@pytest.mark.parametrize(("on", "off"), ORDERS)
def test_on_then_off_leaves_the_home_as_it_was(
    back_end: Autostart,
    home: Path,
    furnish: Callable[[Path], None],
    on: tuple[Part, ...],
    off: tuple[Part, ...],
) -> None:
    furnish(home)
    before = tree(home)

    for part in on:
        back_end.install([part], wish())
    assert all(state.enabled for state in back_end.status().values())
    for part in off:
        back_end.uninstall([part])

    assert tree(home) == before
    assert not any(state.enabled for state in back_end.status().values())


CHANGES: list[dict[str, Any]] = [
    {"port": 0},
    {"on_demand": True},
    {"port": 4400, "drain_s": 99.0},
    {"program": odd_program()},
    {"program": at_home("/home/me/AI models/é")},
    {},
]


def test_changing_the_wish_leaves_nothing_of_the_one_before(
    systemd: SystemdAutostart, home: Path, tmp_path: Path
) -> None:
    """Each wish after each other gives the same files as on a fresh home."""
    before = tree(home)
    for changes in CHANGES:
        systemd.install(BOTH, wish(**changes))
        seen = tree(home)

        systemd.uninstall(BOTH)
        assert tree(home) == before
        systemd.install(BOTH, wish(**changes))
        assert tree(home) == seen
    systemd.uninstall(BOTH)

    assert tree(home) == before


def test_on_twice_is_on_once(back_end: Autostart, home: Path) -> None:
    back_end.install(BOTH, wish())
    once = tree(home)

    back_end.install(BOTH, wish())

    assert tree(home) == once


def test_off_without_on_does_nothing(back_end: Autostart, home: Path) -> None:
    lived_in(home)
    before = tree(home)

    assert back_end.uninstall(BOTH) == ()
    assert tree(home) == before


def test_what_others_put_into_our_folders_stays(back_end: Autostart, home: Path) -> None:
    back_end.install(BOTH, wish())
    ours = {name for name, (kind, _, _) in tree(home).items() if kind == "folder"}
    for folder in ours:
        (home / folder / "mine").write_text("keep me")

    back_end.uninstall(BOTH)

    left = tree(home)
    assert {name for name, (kind, _, _) in left.items() if kind == "folder"} == ours
    assert {Path(name).name for name, (kind, _, _) in left.items() if kind != "folder"} == {"mine"}


# --- what is not ours ------------------------------------------------------------------------


def our_files(back_end: Autostart, home: Path) -> list[Path]:
    """Every file that the back end writes for this wish, and every link."""
    back_end.install(BOTH, wish())
    found = [home / name for name, (kind, _, _) in tree(home).items() if kind != "folder"]
    back_end.uninstall(BOTH)
    return found


def a_file(path: Path) -> None:
    path.write_text("[Unit]\nDescription=My own\n")


def a_link(path: Path) -> None:
    path.symlink_to(path.with_name("kept-elsewhere"))


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [a_file, a_link, a_folder])
def test_a_file_that_is_not_ours_is_left_alone(
    back_end: Autostart, home: Path, make: Callable[[Path], None]
) -> None:
    for path in our_files(back_end, home):
        if make is a_link and path.parent.name.endswith(".wants"):
            continue  # such a link is about our unit, whoever made it
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        before = tree(home)

        with pytest.raises(AutostartFailed, match="not written by Stoker") as raised:
            back_end.install(BOTH, wish())
        back_end.uninstall(BOTH)

        now = tree(home)
        assert {name: now[name] for name in before} == before
        assert str(path) in raised.value.message
        path.rmdir() if make is a_folder else path.unlink()
        back_end.uninstall(BOTH)


def test_a_mask_is_respected_and_the_way_out_is_told(systemd: SystemdAutostart, home: Path) -> None:
    units = home / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    for name in ("stoker.service", "stoker.socket"):
        (units / name).symlink_to("/dev/null")
        before = tree(home)

        with pytest.raises(AutostartBlocked) as raised:
            systemd.install(BOTH, wish())
        systemd.uninstall(BOTH)

        assert "systemctl --user unmask" in raised.value.hint
        assert not systemd.status()[Part.DAEMON].enabled
        assert tree(home) == before
        (units / name).unlink()


def test_a_disk_that_refuses_is_told_in_two_lines(home: Path) -> None:
    (home / ".config").write_text("not a folder")
    entry = tray_entry(Folders(home, home / ".config"))

    with pytest.raises(AutostartFailed) as raised:
        files.install(entry, wish(), others=())

    assert ".config" in raised.value.message


@pytest.mark.parametrize("word", ["/a\nb", "/a\x7f", "/a\udce9"])
def test_a_path_that_no_file_can_hold_is_refused(
    back_end: Autostart, home: Path, word: str
) -> None:
    program = replace(PROGRAM, daemon=(word, "serve"), cli=(word,))

    with pytest.raises(AutostartFailed, match="a path of Stoker"):
        back_end.install(BOTH, wish(program))

    assert tree(home) == {}


# --- interruptions ---------------------------------------------------------------------------


class Cut(BaseException):
    """The machine loses its power here."""


@contextmanager
def cut_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[None]:
    """Let so many changes of the disk happen, then end the call as a power cut would."""
    left = steps

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            return real(*words, **options)

        return step

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "symlink", "fsync"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


def interrupted(monkeypatch: pytest.MonkeyPatch, steps: int, call: Callable[[], object]) -> bool:
    """Whether the call was cut short after so many steps."""
    try:
        with cut_after(monkeypatch, steps):
            call()
    except Cut:
        return True
    return False


@pytest.mark.parametrize("furnish", [empty, lived_in])
@pytest.mark.parametrize("heal", ["off", "on"])
def test_an_interrupted_on_is_healed_by_the_next_call(
    back_end: Autostart,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    furnish: Callable[[Path], None],
    heal: str,
) -> None:
    furnish(home)
    before = tree(home)
    back_end.install(BOTH, wish())
    whole = tree(home)
    back_end.uninstall(BOTH)
    steps = 0
    while interrupted(monkeypatch, steps, lambda: back_end.install(BOTH, wish())):
        if heal == "on":
            back_end.install(BOTH, wish())
            assert tree(home) == whole, steps
        back_end.uninstall(BOTH)
        assert tree(home) == before, steps
        steps += 1
    assert steps > 1


@pytest.mark.parametrize("furnish", [empty, lived_in])
@pytest.mark.parametrize("heal", ["off", "on"])
def test_an_interrupted_off_is_healed_by_the_next_call(
    back_end: Autostart,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    furnish: Callable[[Path], None],
    heal: str,
) -> None:
    furnish(home)
    before = tree(home)
    back_end.install(BOTH, wish())
    whole = tree(home)
    steps = 0
    while interrupted(monkeypatch, steps, lambda: back_end.uninstall(BOTH)):
        if heal == "on":
            back_end.install(BOTH, wish())
            assert tree(home) == whole, steps
        back_end.uninstall(BOTH)
        assert tree(home) == before, steps
        back_end.install(BOTH, wish())
        steps += 1
    assert steps > 1


def test_an_interrupted_change_of_the_wish_is_healed(
    systemd: SystemdAutostart, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(home)
    systemd.install(BOTH, wish())
    whole = tree(home)
    steps = 0
    other = wish(on_demand=True, port=4400)
    while interrupted(monkeypatch, steps, lambda: systemd.install(BOTH, other)):
        systemd.install(BOTH, wish())
        assert tree(home) == whole, steps
        steps += 1
    systemd.uninstall(BOTH)

    assert steps > 1
    assert tree(home) == before


def test_two_calls_at_once_take_turns(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCK_S", 0.2)
    with (
        files.working_on((), home),
        pytest.raises(AutostartFailed, match="another call"),
        files.working_on((), home),
    ):
        pytest.fail("two at once")

    with files.working_on((), home):
        pass


# --- the record ------------------------------------------------------------------------------


def all_texts(chosen: Wish, home: Path) -> list[str]:
    """Every file of every back end that writes files."""
    folders = Folders(home, home / ".config")
    agents = [agent_entry(home, part) for part in Part]
    entries = [unit_entry(folders), daemon_entry(folders), tray_entry(folders), *agents]
    noted = Record((1, 2), ("/a--b/é \"'\\<&>-->",), (("STOKER_HOME", "/x-y"),), linger=True)
    items = [item for entry in entries for item in entry.render(chosen, noted)]
    return [item.content for item in items if isinstance(item, files.File)]


def test_the_record_survives_in_every_kind_of_file(home: Path) -> None:
    noted = Record((1, 2), ("/a--b/é \"'\\<&>-->",), (("STOKER_HOME", "/x-y"),), linger=True)

    found = [record.parse(text.encode()) for text in all_texts(wish(), home)]

    assert found.count(noted) == 5
    assert found.count(Record()) == 1  # the socket unit: a mark, and no more


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"{]}",
        b'{"made":[-1,"2",null,true,1.5],"program":[1],"environment":[]}',
        b'{"made":{},"program":"x","environment":{"a":1}}',
        b"{" + b"[" * 50_000 + b"}",
    ],
)
def test_a_broken_record_is_an_empty_one(line: bytes) -> None:
    assert record.parse(b"X-Stoker-Record=" + line + b"\n") == Record()


def test_a_file_without_a_record_is_not_ours(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("# like X-Stoker-Record=\n")
    link = tmp_path / "link"
    link.symlink_to(mine)

    assert [record.read(path) for path in (mine, link, tmp_path, tmp_path / "none")] == [None] * 4


def test_a_forged_count_removes_no_more_than_empty_folders(home: Path) -> None:
    """Whoever can write the record could remove them anyway; a mistake must not cost anything."""
    tray = tray_entry(Folders(home, home / ".config"))
    files.install(tray, wish(), others=())
    text = tray.anchor.read_text().replace('"made":[2]', '"made":[99]')
    tray.anchor.write_text(text)
    (home / "mine").write_text("keep me")

    files.uninstall(tray)

    assert tree(home) == {"mine": ("file", 0o644, b"keep me")}
