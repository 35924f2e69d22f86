from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import typer

from stoker import cli, errors
from stoker.cli import connection, progress, runtimes
from stoker.schemas import ErrorView, RuntimesView, RuntimeView

BUILTIN = RuntimeView(name="xllamacpp-1", kind="builtin", state="ready", version="1", current=True)
OFFER = RuntimeView(name="native", kind="native", state="offered", note="this CPU has AVX-512")
BUILT = RuntimeView(
    name="llama-cpp-python-1-avx512", kind="native", state="ready", bytes=50_000_000, speedup=1.31
)


def working(share: float, text: str = "compiling, 3 of 9 steps") -> RuntimeView:
    return RuntimeView(name="native", kind="native", state="installing", progress=share, note=text)


@dataclass
class Client:
    """Answers with one view after another; the last one stays."""

    views: list[tuple[RuntimeView, ...]]
    held: bool = False
    busy: bool = False
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def runtimes(self) -> RuntimesView:
        view = self.views.pop(0) if len(self.views) > 1 else self.views[0]
        return RuntimesView(held=self.held, runtimes=view)

    def runtime_install(self, kind: str, *, force: bool = False) -> RuntimeView:
        self.asked.append(("install", kind, force))
        if self.busy:
            msg = "a runtime is being installed already"
            raise errors.MachineBusy(msg)
        return working(0)

    def runtime_cancel(self) -> RuntimesView:
        self.asked.append(("cancel",))
        return self.runtimes()

    def runtime_use(self, name: str) -> RuntimesView:
        self.asked.append(("use", name))
        return self.runtimes()

    def runtime_rollback(self) -> RuntimesView:
        self.asked.append(("rollback",))
        return self.runtimes()

    def runtime_remove(self, name: str) -> RuntimesView:
        self.asked.append(("remove", name))
        return self.runtimes()

    def runtime_hold(self, *, held: bool) -> RuntimesView:
        self.asked.append(("hold", held))
        self.held = held
        return self.runtimes()


@dataclass
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    app = typer.Typer()
    app.callback()(lambda: None)
    runtimes.register(app)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(runtimes, "_POLL_S", 0)

    def call(client: Client, *words: str) -> Ran:
        monkeypatch.setattr(connection, "daemon", lambda: client)
        code = cli.main(["runtime", *words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


def test_the_list_says_what_serves_and_what_would_be_faster(run: Run) -> None:
    out = run(Client([(BUILTIN, OFFER)]), "list").out

    assert "xllamacpp-1" in out
    assert "in use" in out
    assert "could be installed" in out
    assert "this CPU has AVX-512" in out
    assert "stoker runtime install native" in out


def test_a_hold_is_seen_in_the_list(run: Run) -> None:
    assert "hold --off" in run(Client([(BUILTIN,)], held=True), "list").out


def test_the_list_as_json_is_the_daemon_s_answer(run: Run) -> None:
    document = json.loads(run(Client([(BUILTIN, OFFER)]), "list", "--json").out)

    assert document["held"] is False
    assert [one["state"] for one in document["runtimes"]] == ["ready", "offered"]


def test_an_install_is_watched_to_its_end(run: Run) -> None:
    testing = BUILT.model_copy(update={"state": "testing", "progress": 0.5, "note": "measuring"})
    taken = BUILT.model_copy(update={"current": True})
    client = Client([(BUILTIN,), (working(0.3),), (testing,), (BUILTIN, taken)])

    ran = run(client, "install", "native")

    assert ran.code == 0
    assert "serves from now on, 1.31 times as fast" in ran.out
    assert "native: compiling" in ran.err
    assert "measuring" in ran.err
    assert client.asked == [("install", "native", False)]


def test_one_that_ended_between_two_looks_is_found(run: Run) -> None:
    taken = BUILT.model_copy(update={"current": True})

    assert BUILT.name in run(Client([(BUILTIN,), (BUILTIN, taken)]), "install", "native").out


def test_one_that_is_not_faster_is_kept_and_said(run: Run) -> None:
    slower = BUILT.model_copy(update={"note": "0.98 times the speed", "speedup": 0.98})

    ran = run(Client([(BUILTIN,), (BUILTIN, slower)]), "install", "native")

    assert ran.code == 0
    assert "not used: 0.98 times the speed" in ran.out
    assert f"stoker runtime use {BUILT.name}" in ran.out


def test_what_failed_is_the_command_s_error(run: Run) -> None:
    error = ErrorView(code="compiler_missing", message="no compiler", hint="install gcc")
    failed = RuntimeView(name="native", kind="native", state="failed", error=error)

    ran = run(
        Client([(BUILTIN,), (working(0.1),), (BUILTIN, failed)]), "install", "native", "--json"
    )

    assert ran.code == 1
    assert ran.err.splitlines()[-2:] == ["error: no compiler", "hint:  install gcc"]
    assert json.loads(ran.out)["error"]["code"] == "compiler_missing"


def test_one_that_another_client_ended_is_an_error(run: Run) -> None:
    ran = run(Client([(BUILTIN,), (working(0.1),), (BUILTIN, OFFER)]), "install", "native")

    assert ran.code == 1
    assert "was ended" in ran.err


def test_asking_again_watches_the_one_that_runs(run: Run) -> None:
    taken = BUILT.model_copy(update={"current": True})
    client = Client([(working(0.1),), (working(0.2),), (working(0.3),), (taken,)], busy=True)

    assert "serves from now on" in run(client, "install", "native").out


def test_while_another_kind_is_installed_it_is_refused(run: Run) -> None:
    ran = run(Client([(working(0.1),)], busy=True), "install", "vulkan")

    assert ran.code == 1
    assert "being installed already" in ran.err


def test_ctrl_c_leaves_it_running_and_says_how_to_end_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_step: progress.Step) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "Lines", lambda: interrupt)
    client = Client([(BUILTIN,), (working(0.1),)])

    ran = run(client, "install", "native")

    assert ran.code == 130
    assert "goes on in the background" in ran.err
    assert "stoker runtime cancel" in ran.err
    assert client.asked == [("install", "native", False)]


def test_detach_returns_at_once(run: Run) -> None:
    client = Client([(BUILTIN,), (working(0.1),)])

    assert "in the background" in run(client, "install", "native", "--detach", "--force").out
    assert client.asked == [("install", "native", True)]


def test_an_unknown_kind_is_wrong_usage(run: Run) -> None:
    client = Client([()])

    assert run(client, "install", "quantum").code == 2
    assert client.asked == []


@pytest.mark.parametrize(
    ("words", "asked", "said"),
    [
        (("use", "a"), ("use", "a"), "xllamacpp-1 serves from now on"),
        (("rollback",), ("rollback",), "xllamacpp-1 serves from now on"),
        (("remove", "a"), ("remove", "a"), "a is removed"),
        (("hold",), ("hold", True), "Nothing changes by itself now"),
        (("hold", "--off"), ("hold", False), "by itself again"),
        (("cancel",), ("cancel",), "No install is running"),
    ],
)
def test_orders_reach_the_daemon(
    run: Run, words: tuple[str, ...], asked: tuple[object, ...], said: str
) -> None:
    client = Client([(BUILTIN,)])

    assert said in run(client, *words).out
    assert client.asked == [asked]
    assert json.loads(run(client, *words, "--json").out)["runtimes"][0]["name"] == "xllamacpp-1"


def test_a_step_shows_its_share() -> None:
    step = runtimes._step(working(0.4567))

    assert step.label == "native: compiling"
    assert step.detail == "45 %"


def test_a_long_note_stays_in_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    offer = OFFER.model_copy(update={"note": "a note in many words " * 12})

    out = run(Client([(BUILTIN, offer)]), "list").out

    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(out.split()).count("a note in many words") == 12


def test_an_install_that_failed_says_why_in_the_list(run: Run) -> None:
    error = ErrorView(code="build_failed", message="the compiler ran out", hint="", facts={})
    failed = RuntimeView(
        name="native", kind="native", state="failed", note="downloading, 0 MB", error=error
    )

    out = run(Client([(BUILTIN, failed)]), "list").out

    assert "not installed" in out
    assert "the compiler ran out" in out
    assert "downloading" not in out


@pytest.mark.parametrize("name", ["../x", "a/../../models/starter", "x\ny"])
def test_a_name_that_is_a_path_never_reaches_the_daemon(run: Run, name: str) -> None:
    client = Client([(BUILTIN,)])

    ran = run(client, "remove", name)

    assert ran.code == 1
    assert "there is no runtime" in ran.err
    assert client.asked == []
