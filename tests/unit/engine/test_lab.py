"""The lab's side in the daemon, against a process that says what the test wants."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import anyio
import pytest

from stoker.engine import lab as lab_module
from stoker.engine.lab import Lab, LabFailed, LabInterrupted, Library, SurveyWanted, open_lab
from stoker.tuning.launch import Trial

pytestmark = pytest.mark.anyio

OPEN = """
import json, os, sys, time
order = json.loads(sys.stdin.readline())
def say(value):
    print(json.dumps(value), flush=True)
def orders():
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] != "give up":
            yield order
"""
GREET = OPEN + 'say({"id": 0, "ok": {"pid": os.getpid()}})\n'
DEVICE = '{"name": "CPU", "description": "a", "kind": "cpu", "free_bytes": 1, "total_bytes": 2}'
TRIAL = Trial("r", 1, 1, 512, flash_attention=True)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the lab's process runs; to be written by the test."""
    path = tmp_path / "child.py"
    monkeypatch.setattr(lab_module, "_COMMAND", (sys.executable, "-I", str(path)))
    return path


def library(tmp_path: Path) -> Library:
    return Library("r", tmp_path / "lib.so", None)


def write(script: Path, text: str) -> None:
    script.write_text(text, encoding="utf-8")


async def devices_of(script: Path, text: str) -> object:
    write(script, text)
    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        return await lab.devices()


async def loaded(lab: Lab, model: Path) -> None:
    await lab.load(model, extra_buffers=True)


async def test_answers_become_values(script: Path) -> None:
    text = GREET + f'for o in orders(): say({{"id": o["id"], "ok": {{"devices": [{DEVICE}]}}}})\n'

    found = await devices_of(script, text)

    assert found == (lab_module.Device("CPU", "a", "cpu", 1, 2),)


@pytest.mark.parametrize(
    "answer",
    [
        '{"devices": 3}',
        '{"devices": [{"name": "x"}]}',
        '{"devices": [{**DEVICE, "kind": "toaster"}]}',
        '{"devices": [{**DEVICE, "free_bytes": -1}]}',
        '{"devices": [{**DEVICE, "total_bytes": "2"}]}',
        '{"devices": [{**DEVICE, "total_bytes": 10**400}]}',
        '{"devices": [{**DEVICE, "free_bytes": True}]}',
        "{}",
        "[]",
    ],
)
async def test_an_answer_without_sense_is_a_failure(script: Path, answer: str) -> None:
    text = f'{GREET}DEVICE = {DEVICE}\nfor o in orders(): say({{"id": o["id"], "ok": {answer}}})\n'

    with pytest.raises(LabFailed, match="makes no sense"):
        await devices_of(script, text)


@pytest.mark.parametrize(
    "noise", ["nonsense", "[1]", "null", "{}", '{"id": []}', '{"id": 1e999}', "x" * 2_000_000]
)
async def test_noise_instead_of_an_answer_ends_the_lab(
    script: Path, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_module, "_DEATH_S", 120)
    text = GREET + f"for o in orders(): print({noise!r}, flush=True)\n"
    started = time.monotonic()

    with pytest.raises(LabFailed):
        await devices_of(script, text)

    assert time.monotonic() - started < 60, "its death was waited for"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
async def test_who_dies_over_an_answer_is_told_as_dead(script: Path) -> None:
    text = GREET + "for o in orders(): print('{\"id\": 1', end='', flush=True); os.abort()\n"

    with pytest.raises(LabFailed) as raised:
        await devices_of(script, text)

    assert raised.value.facts["returncode"] == -signal.SIGABRT


@pytest.mark.parametrize(
    "greeting", ['"ok"', "[]", "3", '{"pid": -1}', '{"pid": 10**30}', '{"pid": True}']
)
async def test_an_odd_greeting_does_no_harm(script: Path, greeting: str) -> None:
    text = OPEN + f'say({{"id": 0, "ok": {greeting}}})\n'
    write(script, text + 'for o in orders(): say({"id": o["id"], "ok": {"devices": []}})\n')

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        assert await lab.devices() == ()


@pytest.mark.parametrize("log", ["3", "None", '"text"', "[1, None]"])
async def test_a_refusal_in_strange_words_is_a_failure_all_the_same(script: Path, log: str) -> None:
    refusal = f'{{"id": o["id"], "error": "\\x1b[31mno", "log": {log}}}'
    text = GREET + f"for o in orders(): say({refusal})\n"

    with pytest.raises(LabFailed) as failed:
        await devices_of(script, text)

    assert "\x1b" not in failed.value.message + str(failed.value.facts["tail"])


async def test_a_speed_must_be_a_positive_number(script: Path) -> None:
    write(
        script,
        GREET
        + "for o in orders():\n"
        + '    load = {"weights": 1, "repack": 0}\n'
        + '    speeds = {"prefill": 1.0, "decode": float("nan"), "batch": 1.0}\n'
        + '    say({"id": o["id"], "ok": load if o["op"] == "load" else speeds})\n',
    )

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        await loaded(lab, script)
        with pytest.raises(LabFailed, match="makes no sense"):
            await lab.measure(TRIAL)


async def test_death_is_told_with_its_kind_and_last_words(script: Path) -> None:
    text = (
        GREET + "for o in orders():\n"
        '    sys.stderr.write("alloc: unable to allocate 9 GiB\\n"); sys.stderr.flush()\n'
        "    os.abort()\n"
    )

    with pytest.raises(LabFailed) as failed:
        await devices_of(script, text)

    assert failed.value.facts["kind"] == "out_of_memory"
    assert failed.value.facts["tail"] == ["alloc: unable to allocate 9 GiB"]


async def test_a_dead_lab_answers_nothing_more(script: Path) -> None:
    write(script, GREET + "for o in orders(): os._exit(3)\n")

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        for _ in range(2):
            with pytest.raises(LabFailed) as failed:
                await lab.devices()

    assert failed.value.facts["returncode"] == 3


async def test_a_refusal_is_classified_and_the_lab_lives_on(script: Path) -> None:
    refusal = '{"id": o["id"], "error": "no", "log": ["gguf: invalid magic characters"]}'
    write(
        script,
        GREET + "for o in orders():\n"
        '    devices = {"id": o["id"], "ok": {"devices": []}}\n'
        f'    say({refusal} if o["op"] == "survey" else devices)\n',
    )

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        with pytest.raises(LabFailed) as failed:
            await lab.survey(script, [SurveyWanted(512, 1, 128)])
        found = await lab.devices()

    assert failed.value.facts["kind"] == "bad_file"
    assert found == ()


async def test_a_library_that_is_not_the_known_one_does_not_open(script: Path) -> None:
    text = OPEN + 'say({"id": 0, "error": "settings lie elsewhere", "log": []})\ntime.sleep(60)\n'

    with pytest.raises(LabFailed, match="lie elsewhere"):
        await devices_of(script, text)


async def test_a_missed_deadline_ends_the_process(script: Path) -> None:
    write(script, GREET + "for o in orders(): time.sleep(60)\n")

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        with pytest.raises(LabFailed, match="did not answer"):
            await lab.survey(script, [], deadline_s=0.2)
        with pytest.raises(LabFailed):
            await lab.devices()


async def test_a_closed_stdout_is_not_waited_for(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_module, "_DEATH_S", 0.2)
    text = GREET + "for o in orders(): os.close(1); time.sleep(60)\n"
    started = time.monotonic()

    with pytest.raises(LabFailed):
        await devices_of(script, text)

    assert time.monotonic() - started < 20


@pytest.mark.skipif(sys.platform == "win32", reason="other means there")
async def test_a_pause_stops_the_clock_and_spoils_the_measurement(script: Path) -> None:
    write(
        script,
        GREET + "for o in orders():\n"
        '    load = {"weights": 1, "repack": 0}\n'
        '    speeds = {"prefill": 1.0, "decode": 1.0, "batch": 1.0}\n'
        '    if o["op"] == "measure": time.sleep(0.3)\n'
        '    say({"id": o["id"], "ok": load if o["op"] == "load" else speeds})\n',
    )

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        await loaded(lab, script)

        async def pause() -> None:
            await anyio.sleep(0.1)
            lab.pause()
            await anyio.sleep(6)  # beyond the deadline
            lab.resume()

        async with anyio.create_task_group() as group:
            group.start_soon(pause)
            with pytest.raises(LabInterrupted):
                await lab.measure(TRIAL, deadline_s=5)
        again = await lab.measure(TRIAL)

    assert again.decode_tokens_per_s == 1.0


@pytest.mark.skipif(sys.platform == "win32", reason="other means there")
async def test_a_paused_lab_closes(script: Path) -> None:
    write(script, GREET + "for o in orders(): pass\n")

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        lab.pause()


async def test_a_trial_needs_the_model_loaded_its_way(script: Path) -> None:
    answer = '{"id": o["id"], "ok": {"weights": 1, "repack": 0}}'
    write(script, GREET + f"for o in orders(): say({answer})\n")

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        with pytest.raises(ValueError, match="load the model"):
            await lab.measure(TRIAL)
        await lab.load(script, extra_buffers=False)
        with pytest.raises(ValueError, match="load the model"):
            await lab.measure(TRIAL)


async def test_a_cancelled_order_does_not_spoil_the_next(script: Path) -> None:
    write(
        script,
        GREET + "for o in orders():\n"
        '    if o["op"] == "survey": time.sleep(0.5)\n'
        '    say({"id": o["id"], "ok": {"devices": []}})\n',
    )

    async with open_lab(library(script.parent), cwd=script.parent) as lab:
        with anyio.move_on_after(0.1):
            await lab.survey(script, [])
        found = await lab.devices()

    assert found == ()
