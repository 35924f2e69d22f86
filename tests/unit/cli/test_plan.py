"""`stoker plan` for people who have never heard of KV caches, and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import typer

from stoker.cli import connection
from stoker.cli import plan as command
from stoker.schemas_machine import (
    GainView,
    PlanMemoryView,
    PlanRequest,
    PlanSpeedView,
    PlanView,
    ReasonView,
)

from .conftest import StubClient

SETTINGS: dict[str, Any] = {
    "profile": "chat",
    "context": 8192,
    "parallel": 4,
    "cells": 32768,
    "kv_type": "f16",
    "threads": 2,
    "threads_batch": 1,
    "ubatch": 512,
    "batch": 2048,
    "flash_attention": True,
    "extra_buffers": True,
    "gpu_layers": 0,
    "cpu_experts": 0,
    "cache_ram_mib": 0,
    "embedding": False,
    "runtime": "xllamacpp-1",
}


def view(**changes: Any) -> PlanView:
    settings = {**SETTINGS, **changes.pop("settings", {})}
    facts: dict[str, Any] = {
        "model": "starter",
        "profile": "chat",
        "runtime": "xllamacpp-1",
        "settings": settings,
        "memory": PlanMemoryView(
            weights_bytes=98_000_000,
            kv_bytes=755_000_000,
            compute_bytes=50_000_000,
            runtime_bytes=60_000_000,
            repack_bytes=0,
            cache_bytes=0,
            total_bytes=963_000_000,
            usable_bytes=6_000_000_000,
            reserved_bytes=1_100_000_000,
            label="calibrated",
        ),
        "reasons": tuple(
            ReasonView(setting=name, value=value, source="rule", why=f"because of {name}")
            for name, value in settings.items()
        ),
    }
    return PlanView(**{**facts, **changes})


@dataclass
class Planning(StubClient):
    """Answers with one plan."""

    answer: PlanView = field(default_factory=view)

    def plan(self, request: PlanRequest) -> PlanView:
        self.asked.append(("plan", request))
        return self.answer


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Planning:
    stub = Planning()

    @contextmanager
    def daemon() -> Iterator[Planning]:
        yield stub

    monkeypatch.setattr(connection, "daemon", daemon)
    return stub


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    app = typer.Typer(rich_markup_mode=None)
    command.register(app)
    app(args=list(words), standalone_mode=False)
    return capsys.readouterr().out


def test_what_was_learnt_of_its_memory_is_said(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the settings with its reason, and as a part of the sum."""
    memory = client.answer.memory.model_copy(
        update={"learnt_bytes": 96_000_000, "total_bytes": 1_059_000_000}
    )
    client.answer = view(settings={"correction": 1.11}, memory=memory)
    more = shown(capsys, "starter")
    less = memory.model_copy(update={"learnt_bytes": -50_000_000})
    client.answer = view(settings={"correction": 0.95}, memory=less)

    assert "Counts 11% more memory than computed" in more
    assert "What it took more than that before" in more
    assert "Counts 5% less memory than computed" in shown(capsys, "starter")


def test_settings_are_said_in_plain_words(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "starter")

    assert "conversations of up to 8,192 tokens (about 6,100 words)" in text
    assert "Serves 4 requests at once" in text
    assert "Writes answers with 2 threads" in text
    assert "Reads prompts with 1 thread\n" in text
    assert "Computes on the processor" in text
    assert "Remembers conversations in full precision" in text
    assert "    because of threads [a rule]" in text
    assert client.asked == [("plan", PlanRequest(model="starter"))]


def test_jargon_stays_in_json(client: Planning, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "starter")

    for word in ("KV", "ubatch", "n_outputs", "cells", "prefill", "decode"):
        assert word not in text.replace("because of ubatch", "")
    assert client.asked


def test_memory_is_a_table_that_adds_up(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "starter")

    assert "Memory: 963 MB (tried out with the engine, without loading)" in text
    lines = {line.strip().rsplit("  ", 1)[0].strip(): line for line in text.splitlines()}
    assert lines["The model itself"].endswith("98 MB")
    assert lines["Memory for conversations"].endswith("755 MB")
    assert lines["Free for models now"].endswith("6.0 GB")
    assert "Copies laid out" not in text  # nothing is copied
    assert "graphics" not in text
    assert client.asked


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (
            PlanSpeedView(decode_tokens_per_s=8.0, label="estimated"),
            "writes about 8.0 tokens/s (6.0 words/s) (estimated)",
        ),
        (
            PlanSpeedView(
                decode_tokens_per_s=40.0,
                prefill_tokens_per_s=350.0,
                batch_tokens_per_s=90.0,
                label="measured",
            ),
            (
                "writes about 40 tokens/s (30 words/s), reads prompts at about 350 tokens/s, writes"
                " 90 tokens/s for four requests at once (measured on this computer)"
            ),
        ),
    ],
)
def test_speed_says_how_far_to_trust_it(
    client: Planning, capsys: pytest.CaptureFixture[str], speed: PlanSpeedView, words: str
) -> None:
    client.answer = view(speed=speed)

    assert words in " ".join(shown(capsys, "starter").split())


def test_gains_come_with_the_command_that_brings_them(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    gain = GainView(change="tune", text="A search would help.", command="stoker tune starter")
    client.answer = view(gains=(gain,))

    text = shown(capsys, "starter")

    assert "What you could gain\n  - A search would help.\n    stoker tune starter\n" in text


def test_a_gpu_is_named_with_its_memory(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = view().memory.model_copy(update={"gpu_bytes": 5_000_000_000})
    client.answer = view(settings={"gpu_layers": 33, "cpu_experts": 1}, memory=memory)

    text = shown(capsys, "starter")

    assert "Puts up to 33 layers on the graphics processor; the experts of 1 layer stay" in text
    assert "On the graphics processor" in text


def test_an_embedder_reads_and_does_not_write(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    client.answer = view(settings={"embedding": True, "context": 512})

    text = shown(capsys, "starter")

    assert "Reads texts of up to 512 tokens" in text
    assert "Writes answers" not in text


def test_a_loaded_model_is_said_to_run(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    client.answer = view(loaded=True)

    assert "starter runs with these settings now" in shown(capsys, "starter")


@pytest.mark.parametrize(
    ("evicts", "waits", "words"),
    [
        (("gemma",), False, "To make room, Stoker would first unload gemma."),
        (("a", "b", "c"), False, "To make room, Stoker would first unload a, b and c."),
        (
            ("gemma",),
            True,
            (
                "To make room, Stoker would first wait until gemma has answered its requests and"
                " unload it."
            ),
        ),
        (
            ("a", "b"),
            True,
            (
                "To make room, Stoker would first wait until a and b have answered their requests"
                " and unload them."
            ),
        ),
    ],
)
def test_what_becomes_of_other_models_is_said_in_plain_words(
    client: Planning,
    capsys: pytest.CaptureFixture[str],
    evicts: tuple[str, ...],
    waits: bool,  # noqa: FBT001  # a parameter of the test
    words: str,
) -> None:
    """Below the first line; the memory that counts as free is that of afterwards."""
    client.answer = view(evicts=evicts, waits=waits)

    text = shown(capsys, "starter")

    assert text.splitlines()[1] == words
    assert "Free for models then" in text
    assert "Free for models now" not in text


def test_with_room_enough_nothing_is_said_of_others(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "starter")

    assert text.splitlines()[1] == ""
    assert "unload" not in text
    assert client.asked


def test_a_loaded_model_needs_room_only_to_be_loaded_again(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    client.answer = view(loaded=True, evicts=("gemma",))

    assert "To load it again, Stoker would first unload gemma." in shown(capsys, "starter")


def test_options_are_tried_out(client: Planning, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--profile coding --context 4096 --parallel 2 --threads 3 --ubatch 128"

    shown(capsys, "starter", *options.split(), "--kv-type", "q8_0", "--gpu-layers", "5")

    request = PlanRequest(
        model="starter",
        profile="coding",
        context=4096,
        parallel=2,
        threads=3,
        ubatch=128,
        kv_type="q8_0",
        gpu_layers=5,
    )
    assert client.asked == [("plan", request)]


def test_json_is_the_whole_view(client: Planning, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(shown(capsys, "starter", "--json"))

    assert PlanView.model_validate(document) == client.answer


def test_foreign_text_does_not_steer_the_terminal(
    client: Planning, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = (ReasonView(setting="context", value=1, source="rule", why="\x1b[2Jgone\nnew"),)
    client.answer = view(model="evil\x1b[31m", reasons=reasons, evicts=("\x1b[2Jother",))

    assert "\x1b" not in shown(capsys, "starter")


@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_is_wider_than_the_terminal(
    client: Planning,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = GainView(change="runtime", text="a gain in many words " * 12)
    why = "because of much that takes a long time to say " * 4
    reasons = tuple(
        ReasonView(setting=name, value=1, source="dry-run", why=why) for name in SETTINGS
    )
    client.answer = view(gains=(long,), reasons=reasons, evicts=("gemma", "a-long-name") * 3)

    text = shown(capsys, "starter")

    assert max(map(len, text.splitlines())) <= columns
