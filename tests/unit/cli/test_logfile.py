from __future__ import annotations

import itertools
from pathlib import Path

from stoker.cli import logfile

from .conftest import Run


def test_last_lines_reach_into_the_rotated_file(tmp_path: Path) -> None:
    log = tmp_path / "stoker.log"
    log.with_name("stoker.log.1").write_text("one\ntwo\n")
    log.write_text("three\n")

    assert logfile.last_lines(log, 2) == (["two", "three"], 6)
    assert logfile.last_lines(log, 9)[0] == ["one", "two", "three"]


def test_follow_loses_no_line_over_a_rotation(tmp_path: Path) -> None:
    """Lines written just before and just after the rotation both come, once, in order."""
    log = tmp_path / "stoker.log"
    log.write_text("old\n")

    def rotate(_seconds: float) -> None:
        with log.open("a") as stream:
            stream.write("before\n")
        log.rename(log.with_name("stoker.log.1"))
        log.write_text("after\n")

    lines = logfile.follow(log, log.stat().st_size, wait=rotate)

    assert list(itertools.islice(lines, 2)) == ["before", "after"]
    lines.close()


def test_follow_waits_for_a_whole_line_and_for_the_file(tmp_path: Path) -> None:
    log = tmp_path / "stoker.log"
    writes = iter(["half", " line\n"])

    def write(_seconds: float) -> None:
        with log.open("a") as stream:
            stream.write(next(writes))

    lines = logfile.follow(log, 0, wait=write)

    assert next(lines) == "half line"
    lines.close()


def test_logs_work_while_the_daemon_is_stopped(run: Run, stoker_home: Path) -> None:
    folder = stoker_home / "state" / "logs"
    folder.mkdir(parents=True)
    (folder / "stoker.log").write_text("event='one'\nevent='two'\n")

    assert run("logs", "-n", "1").out == "event='two'\n"


def test_logs_without_a_log_say_what_to_do(run: Run) -> None:
    ran = run("logs")

    assert ran.code == 1
    assert "stoker start" in ran.err
