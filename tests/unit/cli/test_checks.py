from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker import paths, settings, updates
from stoker.cli import checks
from tests.fakes.releases import Releases, release

from .conftest import StubClient


def test_a_wrong_setting_is_a_failure_with_its_fix(stoker_home: Path) -> None:
    (stoker_home / "config.toml").write_text("prot = 1\n")

    wishes, finding = checks.check_settings(paths.from_environment())

    assert wishes is None
    assert finding.level == "fail"
    assert "Did you mean port?" in finding.fix


def test_without_a_daemon_a_taken_port_is_a_failure(stoker_home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        wishes = settings.Settings(port=other.getsockname()[1])

        taken = checks.check_daemon(wishes)
    free = checks.check_daemon(wishes)

    assert [(one.topic, one.level) for one in taken] == [("daemon", "warn"), ("port", "fail")]
    assert [(one.topic, one.level) for one in free] == [("daemon", "warn")]
    assert "stoker config set port" in taken[1].fix


def test_a_daemon_that_answers_is_fine(client: StubClient) -> None:
    findings = checks.check_daemon(settings.Settings())

    assert [(one.topic, one.level) for one in findings] == [("daemon", "ok")]


def test_a_server_that_is_off_is_told(client: StubClient) -> None:
    """It has no endpoint then, and the fix is to switch it on."""
    client.enabled = False

    (finding,) = checks.check_daemon(settings.Settings())

    assert (finding.level, finding.fix) == ("warn", "Switch it on with `stoker server on`.")
    assert "the server is off" in finding.text
    assert client.base_url not in finding.text


def test_a_problem_is_told_as_the_daemon_tells_it(client: StubClient) -> None:
    """Each says itself what to do; no other advice is made up."""
    client.problems = ("systemd listens on ::1; `stoker autostart on` writes the unit anew",)

    findings = checks.check_daemon(settings.Settings())

    problem = ("problem", "fail", client.problems[0], "")
    assert [(one.topic, one.level, one.text, one.fix) for one in findings[1:]] == [problem]


def test_a_daemon_of_another_version_should_be_restarted(
    client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "__version__", "9.9.9")

    (finding,) = checks.check_daemon(settings.Settings())

    assert finding.level == "warn"
    assert "stoker restart" in finding.fix


def test_folders_that_cannot_be_written_are_a_failure(
    stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = paths.from_environment()
    assert checks.check_folders(places).level == "ok"

    monkeypatch.setattr("os.access", lambda *_words: False)
    finding = checks.check_folders(places)

    assert finding.level == "fail"
    assert str(stoker_home) in finding.fix


def test_no_desktop_means_no_word_about_a_tray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")

    assert checks.tray_host({}) is None


def test_a_desktop_without_a_session_bus_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")

    assert checks.tray_host({"DISPLAY": ":0"}) is None


def test_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert checks.existing(tmp_path / "a" / "b") == tmp_path


# --- the update check ------------------------------------------------------------------------


@pytest.fixture
def page(stoker_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    with Releases() as found:
        monkeypatch.setenv(updates.OVERRIDE, found.url)
        yield found


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (settings.Settings(), "stoker config set update_check true"),
        (settings.Settings(update_check=True, offline=True), "offline"),
    ],
)
def test_an_update_is_not_looked_for_unless_the_user_wants_it(
    page: Releases, wishes: settings.Settings, said: str
) -> None:
    (finding,) = checks.check_update(wishes)

    assert finding.level == "ok"
    assert said in finding.text
    assert page.asked == []


def test_a_newer_version_comes_with_where_to_get_it(page: Releases) -> None:
    (finding,) = checks.check_update(settings.Settings(update_check=True))

    assert (finding.level, finding.topic) == ("warn", "update")
    assert finding.text.startswith("version 99.0.0 is there; this is ")
    assert finding.fix == f"See {updates.PAGE}"


def test_the_newest_version_is_fine(page: Releases) -> None:
    page.body = release("v0.0.1")

    (finding,) = checks.check_update(settings.Settings(update_check=True))

    assert finding.level == "ok"


def test_a_page_that_does_not_answer_is_a_warning(
    page: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.silent = True
    monkeypatch.setattr(checks, "_UPDATE_S", 0.05)

    (finding,) = checks.check_update(settings.Settings(update_check=True))

    assert finding.level == "warn"
    assert updates.PAGE in finding.fix


def test_with_broken_settings_nobody_is_asked(page: Releases) -> None:
    assert checks.check_update(None) == []
    assert page.asked == []
