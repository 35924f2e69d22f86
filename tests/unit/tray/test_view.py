"""From what is known to what is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types import ModelState, PullState
from stoker_tray.face import PROGRESS_STEPS, Badge, Command, Face, IconKey, IconState, Row, Verb
from stoker_tray.notices import Kind
from stoker_tray.rows import MODELS_FIRST, MOST_ROWS
from stoker_tray.shapes import Daemon, Gpu, Memory, Model, Resources, Server
from stoker_tray.state import State, damaged_text
from stoker_tray.view import LONGEST_TITLE, face, next_look_s
from tests.fakes import tray_states
from tests.fakes.tray_states import (
    SCRIPTS,
    URL,
    connected,
    drawn,
    failed,
    model,
    offer,
    pull,
    ready,
)

LONGEST_TEXT = 120
HARMLESS = "\u200c\u200d\u2068\u2069"


def everything(rows: tuple[Row, ...]) -> Iterator[Row]:
    for row in rows:
        yield row
        yield from everything(row.children)


def levels(rows: tuple[Row, ...]) -> Iterator[tuple[Row, ...]]:
    yield rows
    for row in rows:
        if row.children:
            yield from levels(row.children)


def row(shown: Face, key: str) -> Row:
    return next(one for one in everything(shown.rows) if one.key == key)


def keys(shown: Face) -> list[str]:
    return [one.key for one in shown.rows]


def looks(state: State, text: str, now_s: float = 0.0) -> bool:
    """Compared as text, so that a difference reads like a menu."""
    assert drawn(face(state, now_s)).splitlines() == dedent(text).strip().splitlines()
    return True


NOTICES = """\
Notifications
              x A model is ready after a long load [mute ready]
              x A download is finished [mute downloaded]
              x A load or a download failed [mute failed]
              x A new problem, such as a damaged model [mute damaged]
              x Open to the network [mute exposed]
              x A newer version [mute update]"""

FIRST = NOTICES.splitlines()[1]

# --- whole menus -----------------------------------------------------------------------------


def test_without_a_daemon_the_menu_starts_it() -> None:
    state = State(autostart=False, autostart_tray=True)

    assert looks(
        state,
        """
        <off> Stoker is not running
        Stoker is not running
        Start Stoker [start] *
        ----
        - Start at login [autostart on]
        x Show this icon at login [autostart-tray off]
        Open logs [open-logs]
        ----
        Quit icon [quit]
        """,
    )


def test_a_ready_model() -> None:
    state = connected(
        ready("starter", tokens_per_s=31.2, memory=Memory(1, 920_000_000)),
        model("qwen3-0.6b", load_s=6.4),
        model("gemma-270m"),
    )

    assert looks(
        state,
        f"""
        <ready> Stoker: starter ready, 920 MB
        starter — ready, 31 tokens/s
        Model 920 MB · Memory 5.1 of 24.0 GB
        CPU 34 %
        ----
        Models
          x starter — ready, 920 MB [use starter]
          - gemma-270m [use gemma-270m]
          - qwen3-0.6b — loads in about 6 s [use qwen3-0.6b]
          ----
          - None (unload) [unload-all]
        x Serve on 127.0.0.1:4328 [server off]
        Copy endpoint URL [copy-url {URL}]
        Free memory now [free]
        ----
        x Start at login [autostart off]
        x Show this icon at login [autostart-tray off]
        {indented(NOTICES)}
        Open logs [open-logs]
        ----
        Quit icon (Stoker keeps running) [quit]
        Stop Stoker [stop]
        """,
    )


def test_a_first_start_leads_to_a_first_model() -> None:
    state = connected(
        offers=(offer("starter", title="SmolLM2 135M", bytes=98_362_432), offer("huge", fits=False))
    )

    assert looks(
        state,
        f"""
        <idle> Stoker: no model loaded
        No model loaded
        Memory 5.1 of 24.0 GB
        CPU 34 %
        ----
        No model yet — choose one in “Add model”
        Add model
          SmolLM2 135M — 98 MB, runs well here [pull starter]
        x Serve on 127.0.0.1:4328 [server off]
        Copy endpoint URL [copy-url {URL}]
        ----
        x Start at login [autostart off]
        x Show this icon at login [autostart-tray off]
        {indented(NOTICES)}
        Open logs [open-logs]
        ----
        Quit icon (Stoker keeps running) [quit]
        Stop Stoker [stop]
        """,
    )


def test_everything_at_once() -> None:
    """Switching with a download under way, on a machine with a GPU, with an update and trouble."""
    state = connected(
        ready("starter", in_flight=1, tokens_per_s=4.24),
        model("qwen", ModelState.LOADING, load_s=8.0),
        failed("gemma"),
        loading_since={"qwen": 100.0},
        pulls=(
            pull("p1", model="big"),
            pull("p2", PullState.PAUSED, model="other", bytes_done=0),
            pull("p3", PullState.DONE, model="starter"),
        ),
        daemon=Daemon("0.1.0", 7, 1.0, "/home", update="0.2.0"),
        problems=("gemma is damaged",),
        muted=frozenset({Kind.READY.value}),
        resources=Resources(120.0, 1, 2, (Gpu("A", 2_100_000_000, 8_000_000_000),)),
        offers=(offer("big"), offer("small", quick=False)),
        busy="Switching",
        note="Could not load gemma: not enough memory",
    )

    muted = NOTICES.replace(FIRST, FIRST.replace("x ", "- ").replace("mute", "unmute"))
    assert looks(
        state,
        f"""
        <loading 4/8 +downloading> Stoker: loading qwen (about 4 s), 1 problem, downloading 36 %
        qwen — loading, about 4 s, and 1 more
        Switching …
        Could not load gemma: not enough memory
        Model 330 MB · Memory 1 of 2 bytes
        CPU 120 % · GPU 2.1 of 8.0 GB
        ----
        Models
          x qwen — loading [use qwen]
          x starter — in use, 330 MB [use starter]
          - gemma — failed: not enough memory [use gemma]
          ----
          - None (unload) [unload-all]
        Add model
          SMALL — 639 MB, slow here [pull small]
        big — 36 % of 639 MB, 3 min left
          Pause [pause p1]
          Cancel [cancel p1]
        other — paused, 0 % of 639 MB
          Resume [resume p2]
          Cancel [cancel p2]
        x Serve on 127.0.0.1:4328 [server off]
        Copy endpoint URL [copy-url {URL}]
        ----
        x Start at login [autostart off]
        x Show this icon at login [autostart-tray off]
        {indented(muted)}
        Open logs [open-logs]
        Version 0.2.0 is there … [open-update]
        1 problem
          gemma is damaged
        ----
        Quit icon (Stoker keeps running) [quit]
        Stop Stoker [stop]
        """,
        now_s=104.0,
    )


def test_with_the_server_off_downloads_go_on_and_models_rest() -> None:
    state = connected(
        model("starter"), server=Server(enabled=False, base_url=URL), pulls=(pull("p1"),)
    )

    assert looks(
        state,
        f"""
        <off 2/8 +downloading> Stoker: server off, downloading 36 %
        Server is off
        Memory 5.1 of 24.0 GB
        CPU 34 %
        ----
        qwen3-0.6b — 36 % of 639 MB, 3 min left
          Pause [pause p1]
          Cancel [cancel p1]
        - Serve on 127.0.0.1:4328 [server on]
        Copy endpoint URL [copy-url {URL}]
        ----
        x Start at login [autostart off]
        x Show this icon at login [autostart-tray off]
        {indented(NOTICES)}
        Open logs [open-logs]
        ----
        Quit icon (Stoker keeps running) [quit]
        Stop Stoker [stop]
        """,
    )


def indented(text: str) -> str:
    """As it stands in the texts above."""
    first, *rest = text.splitlines()
    return "\n".join([first, *(f"          {line.strip()}" for line in rest)])


# --- icon ------------------------------------------------------------------------------------

LOADING = model("a", ModelState.LOADING, load_s=8.0)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(), IconKey(IconState.OFF)),
        (connected(server=Server(enabled=False, base_url=URL)), IconKey(IconState.OFF)),
        (connected(), IconKey(IconState.IDLE)),
        (connected(model("a")), IconKey(IconState.IDLE)),
        (connected(ready("a")), IconKey(IconState.READY)),
        (connected(ready("a", in_flight=2)), IconKey(IconState.BUSY)),
        (connected(failed("a"), ready("b", in_flight=2)), IconKey(IconState.ATTENTION)),
        (connected(ready("b"), problems=("x",)), IconKey(IconState.ATTENTION)),
        (connected(failed("a"), LOADING), IconKey(IconState.LOADING)),
        (connected(model("a", ModelState.QUEUED)), IconKey(IconState.LOADING)),
        (connected(model("a", ModelState.DRAINING)), IconKey(IconState.READY)),
        (connected(LOADING, loading_since={"a": 0.0}), IconKey(IconState.LOADING, None, 5)),
        (connected(LOADING, loading_since={"a": -99.0}), IconKey(IconState.LOADING, None, 7)),
        (connected(LOADING, loading_since={"a": 99.0}), IconKey(IconState.LOADING, None, 0)),
        (
            connected(model("a", ModelState.LOADING), loading_since={"a": 0.0}),
            IconKey(IconState.LOADING),
        ),
        (connected(pulls=(pull(),)), IconKey(IconState.IDLE, Badge.DOWNLOADING, 2)),
        (
            connected(pulls=(pull(bytes_total=None),)),
            IconKey(IconState.IDLE, Badge.DOWNLOADING),
        ),
        (connected(pulls=(pull(state=PullState.PAUSED),)), IconKey(IconState.IDLE)),
        (
            connected(pulls=(pull(),), server=Server(enabled=True, base_url=URL, lan=True)),
            IconKey(IconState.IDLE, Badge.EXPOSED),
        ),
    ],
)
def test_the_icon_tells_the_state(state: State, expected: IconKey) -> None:
    assert face(state, 5.0).icon == expected


def test_the_badge_shows_all_downloads_together() -> None:
    pulls = (
        pull("a", bytes_done=100, bytes_total=100),
        pull("b", PullState.QUEUED, bytes_done=0, bytes_total=300),
    )

    assert face(connected(pulls=pulls), 0).icon.progress == 2


# --- tooltip ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (connected(ready("a", memory=None)), "Stoker: a ready"),
        (connected(ready("a", in_flight=1, tokens_per_s=30.6)), "Stoker: a answering, 31 tokens/s"),
        (connected(model("a", ModelState.QUEUED)), "Stoker: a waiting to load"),
        (connected(model("a", ModelState.DRAINING)), "Stoker: unloading a"),
        (connected(failed("a")), "Stoker: a failed"),
        (connected(LOADING), "Stoker: loading a (about 8 s)"),
        (connected(replace(LOADING, expected_load_s=30.0)), "Stoker: loading a (about 30 s)"),
        (connected(LOADING, loading_since={"a": -10.0}), "Stoker: loading a"),
        (
            connected(server=Server(enabled=True, base_url=URL, lan=True)),
            "Stoker: no model loaded, open to the network",
        ),
        (connected(pulls=(pull(bytes_total=None),)), "Stoker: no model loaded, downloading"),
    ],
)
def test_the_tooltip_is_one_sentence(state: State, expected: str) -> None:
    assert face(state, 0).title == expected


# --- rows ------------------------------------------------------------------------------------


def test_the_headline_is_about_the_model_used_last() -> None:
    state = connected(ready("a"), ready("b", tokens_per_s=12), ready("c"), latest="b")

    assert face(state, 0).rows[0].text == "b — ready, 12 tokens/s, and 2 more"


def test_several_requests_are_counted() -> None:
    state = connected(ready("a", in_flight=3, queued=2, tokens_per_s=99))

    assert face(state, 0).rows[0].text == "a — answering 3 requests, 99 tokens/s, 2 waiting"


def test_memory_is_what_the_workers_really_have() -> None:
    state = connected(
        ready("a", memory=Memory(9_000_000_000, 1_000_000_000)),
        ready("b", memory=Memory(500_000_000, None)),
    )

    assert row(face(state, 0), "memory").text == "Models 1.5 GB · Memory 5.1 of 24.0 GB"


def test_a_damaged_model_cannot_be_clicked() -> None:
    state = connected(model("a"), model("b"), problems=(damaged_text("a"),))

    shown = row(face(state, 0), "model:a")

    assert (shown.text, shown.enabled) == ("a — damaged", False)
    assert row(face(state, 0), "model:b").enabled


def test_an_open_endpoint_is_named_in_words() -> None:
    state = connected(server=Server(enabled=True, base_url=URL, lan=True))

    assert row(face(state, 0), "server").text == "Serve on 127.0.0.1:4328, open to the network"


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (ready("a", default=True), "a — default, ready, 330 MB"),
        (ready("a", default=True, pinned=True, in_flight=1), "a — default, pinned, in use, 330 MB"),
        (model("a", default=True), "a — default"),
        (model("a", expected_load_s=6.4), "a — loads in about 6 s"),
        (model("a", expected_load_s=6.4, load_s=99.0), "a — loads in about 6 s"),
        (model("a", expected_load_s=-1.0, load_s=3.0), "a — loads in about 3 s"),
        (model("a", pinned=True, load_s=3.0), "a — pinned, loads in about 3 s"),
    ],
)
def test_a_model_says_what_a_change_to_it_means(one: Model, text: str) -> None:
    """The default is where requests go that name none; the time is what the daemon expects."""
    assert row(face(connected(one), 0), "models").children[0].text == text


def test_gpus_are_added_up() -> None:
    gpus = (Gpu("A", 1_000_000_000, 8_000_000_000), Gpu("B", None, 8_000_000_000), Gpu("C"))
    state = connected(resources=Resources(0.4, 1, 2, gpus))

    assert row(face(state, 0), "usage").text == "CPU 0 % · 2 GPUs 1.0 of 16.0 GB"


def test_free_memory_is_offered_only_when_something_is_idle() -> None:
    busy = connected(ready("a", in_flight=1))
    idle = connected(ready("a", in_flight=1), ready("b"))

    assert "free" not in keys(face(busy, 0))
    assert "free" in keys(face(idle, 0))


def test_switches_whose_state_is_unknown_are_left_out() -> None:
    state = connected(autostart=None, autostart_tray=None)

    assert not {"autostart", "autostart-tray"} & set(keys(face(state, 0)))


def test_a_note_goes_after_its_time() -> None:
    state = connected(note="Could not load x", note_until_s=60.0)

    assert row(face(state, 59.9), "note").text == "Could not load x"
    assert "note" not in keys(face(state, 60.0))


def test_while_the_daemon_is_being_started_it_cannot_be_started_again() -> None:
    shown = face(State(busy="Starting Stoker"), 0)

    assert [one.text for one in shown.rows][:2] == ["Stoker is not running", "Starting Stoker …"]
    assert "start" not in keys(shown)


def test_what_is_stored_or_on_its_way_is_not_offered() -> None:
    state = connected(
        model("a"),
        pulls=(pull("1", model="b"), pull("2", PullState.FAILED, model="c", reference="c")),
        offers=(offer("a"), offer("b"), offer("c"), offer("d", stored=True), offer("e")),
    )

    asked = [one.command for one in row(face(state, 0), "add").children]

    assert asked == [Command(Verb.PULL, "c"), Command(Verb.PULL, "e")]


def test_only_the_best_of_the_catalogue_are_offered() -> None:
    """A menu is no place to read forty lines; the first ones are the best."""
    state = connected(model("a"), offers=tuple(offer(f"m{n}") for n in range(40)))

    asked = [one.command for one in row(face(state, 0), "add").children]

    assert asked == [Command(Verb.PULL, f"m{n}") for n in range(10)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": PullState.QUEUED}, "qwen3-0.6b — waiting"),
        ({"state": PullState.RESOLVING}, "qwen3-0.6b — looking it up"),
        ({"state": PullState.VERIFYING}, "qwen3-0.6b — verifying"),
        ({"bytes_total": None, "eta_s": None}, "qwen3-0.6b — 236 MB"),
        ({"bytes_total": None, "bytes_done": 0, "eta_s": None}, "qwen3-0.6b — starting"),
        ({"bytes_done": 639_446_688, "eta_s": 0.2}, "qwen3-0.6b — 100 % of 639 MB, 0 s left"),
        ({"model": None, "reference": "owner/repo"}, "owner/repo — 36 % of 639 MB, 3 min left"),
        (
            {"model": None, "reference": "https://x.example/m.gguf?sig=secret"},
            "m.gguf — 36 % of 639 MB, 3 min left",
        ),
    ],
)
def test_a_download_says_how_far_it_is(changes: dict[str, object], expected: str) -> None:
    state = connected(pulls=(replace(pull(), **changes),))  # type: ignore[arg-type]

    assert row(face(state, 0), "pull:p1").text == expected


def test_a_failed_download_can_be_tried_again_until_its_model_is_there() -> None:
    broken = pull("p1", PullState.FAILED, error=failed().error)

    shown = row(face(connected(pulls=(broken,)), 0), "pull:p1")

    assert shown.text == "qwen3-0.6b — failed: not enough memory"
    assert [one.command for one in shown.children] == [Command(Verb.RESUME, "p1")]
    assert "pull:p1" not in keys(face(connected(model("qwen3-0.6b"), pulls=(broken,)), 0))


def test_many_downloads_fold_up() -> None:
    state = connected(pulls=tuple(pull(f"p{i}", model=f"m{i}") for i in range(40)))

    shown = face(state, 0)

    assert sum(key.startswith("pull:") for key in keys(shown)) == 3
    assert row(shown, "pulls").text == "37 more downloads"
    assert {one.key for one in everything(shown.rows)} >= {f"pull:p{i}" for i in range(40)}


def test_many_problems_are_counted_and_the_first_ones_shown() -> None:
    shown = row(face(connected(problems=tuple(map(str, range(60)))), 0), "problems")

    assert shown.text == "60 problems"
    assert [one.text for one in shown.children] == [
        *map(str, range(MOST_ROWS - 1)),
        "and 36 more: see the logs",
    ]


def test_two_hundred_models_can_all_be_reached_in_three_steps() -> None:
    found = [model(f"model-{i:03}") for i in range(200)] + [ready("zebra")]

    menu = row(face(connected(*found), 0), "models").children

    assert [one.text for one in menu][:3] == ["zebra — ready, 330 MB", "model-000", "model-001"]
    assert [one.text for one in menu][MODELS_FIRST:] == ["More", "", "None (unload)"]
    groups = menu[MODELS_FIRST].children
    assert groups[0].text == "model-011 … model-035"
    reached = [one.command for group in groups for one in group.children]
    assert reached == [Command(Verb.USE, f"model-{i:03}") for i in range(11, 200)]


def test_ten_thousand_models_still_fit_the_screen() -> None:
    found = [model(f"model-{i:05}") for i in range(10_000)]

    shown = face(connected(*found), 0)

    assert max(len(level) for level in levels(shown.rows)) <= MOST_ROWS
    asked = {one.command for one in everything(shown.rows)}
    assert asked >= {Command(Verb.USE, one.id) for one in found}


@pytest.mark.parametrize("called", SCRIPTS)
def test_names_in_any_script_are_shown_whole(called: str) -> None:
    state = connected(ready(called))

    shown = face(state, 0)

    assert called in shown.title
    assert called in row(shown, f"model:{called}").text
    assert row(shown, f"model:{called}").command == Command(Verb.USE, called)


def test_a_name_from_right_to_left_does_not_turn_the_figures_around_it() -> None:
    called = SCRIPTS[3]

    text = row(face(connected(ready(called)), 0), f"model:{called}").text

    assert text == f"\u2068{called}\u2069 — ready, 330 MB"


def test_a_name_cannot_pretend_to_be_another() -> None:
    """Controls that reverse, hide or break a line are dropped; the click still means this model."""
    evil = "good\u202e\n\x00\u2066model"

    shown = row(face(connected(model(evil)), 0), f"model:{evil}")

    assert (shown.text, shown.command) == ("good model", Command(Verb.USE, evil))


def test_a_long_name_keeps_both_ends() -> None:
    called = f"unsloth/{'Very-' * 2000}Long-GGUF:UD-Q4_K_XL"

    text = row(face(connected(model(called)), 0), f"model:{called}").text

    assert text.startswith("unsloth/Very-")
    assert text.endswith(":UD-Q4_K_XL")
    assert len(text) < 50


@pytest.mark.parametrize(
    "url", ["", "javascript:alert(1)", "http://a b/", "http://x\n/v1", "x" * 999]
)
def test_what_is_no_address_is_not_copied(url: str) -> None:
    shown = face(connected(server=Server(enabled=True, base_url=url)), 0)

    assert "url" not in keys(shown)
    assert row(shown, "server").text == "Serve"


@pytest.mark.parametrize("version", ["", "https://evil.example", "1.0\n", "9" * 99])
def test_what_is_no_version_is_not_offered(version: str) -> None:
    state = connected(daemon=Daemon("0.1.0", 7, 1.0, "/home", update=version))

    assert "update" not in keys(face(state, 0))


# --- time ------------------------------------------------------------------------------------


def test_a_face_that_changes_by_itself_says_when() -> None:
    loading = connected(LOADING, loading_since={"a": 0.0})

    assert next_look_s(loading, 2.0) == 1.0
    assert next_look_s(loading, 9.0) is None
    assert next_look_s(connected(note="x", note_until_s=60.0), 59.5) == 0.5
    assert next_look_s(connected(note="x"), 1.0) is None
    assert next_look_s(connected(ready()), 1.0) is None
    assert next_look_s(State(), 1.0) is None


@given(tray_states.states(), tray_states.figures)
def test_between_two_looks_nothing_but_the_time_left_changes(state: State, now_s: float) -> None:
    """A face that needs no look at any time is the same at any later time."""
    if next_look_s(state, now_s) is None:
        later = face(state, now_s + 0.001)

        assert drawn(later) == drawn(face(state, now_s))


# --- any state -------------------------------------------------------------------------------


@given(tray_states.states(), tray_states.figures)
def test_any_state_gives_a_face_that_can_be_shown(state: State, now_s: float) -> None:
    shown = face(state, now_s)

    assert shown == face(state, now_s)
    assert 0 < len(shown.title) <= LONGEST_TITLE
    assert shown.icon.progress is None or 0 <= shown.icon.progress <= PROGRESS_STEPS
    assert sum(one.default for one in everything(shown.rows)) <= 1
    for level in levels(shown.rows):
        assert len({one.key for one in level}) == len(level) <= MOST_ROWS
    for text in [shown.title, *(one.text for one in everything(shown.rows) if not one.separator)]:
        assert 0 < len(text) <= LONGEST_TEXT
        assert is_harmless(text)


def is_harmless(text: str) -> bool:
    """Printable but for joiners and balanced isolates, and it can be encoded."""
    text.encode()
    stripped = "".join(char for char in text if char not in HARMLESS)
    balanced = text.count("\u2068") == text.count("\u2069")
    return balanced and stripped.isprintable() and not any(map(_is_control, stripped))


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(tray_states.states())
def test_every_click_means_something_that_exists(state: State) -> None:
    shown = face(state, 0)

    on_off, kinds = {"on", "off"}, {kind.value for kind in Kind}
    pulls = {one.id for one in state.pulls}
    known = {
        Verb.USE: {one.id for one in state.models},
        Verb.PULL: {one.name for one in state.offers},
        Verb.COPY_URL: {state.server.base_url} if state.server else set(),
        **dict.fromkeys((Verb.PAUSE, Verb.RESUME, Verb.CANCEL), pulls),
        **dict.fromkeys((Verb.SERVER, Verb.AUTOSTART, Verb.AUTOSTART_TRAY), on_off),
        **dict.fromkeys((Verb.MUTE, Verb.UNMUTE), kinds),
    }
    for one in everything(shown.rows):
        if one.command is not None:
            assert one.command.arg in known.get(one.command.verb, {""})
            assert not one.children
        assert not (one.separator and (one.command or one.children or one.text))


@given(st.lists(tray_states.words, max_size=8))
def test_texts_change_and_keys_stay(names: list[str]) -> None:
    """A host keeps its menu open while labels change: the same places keep the same keys."""
    ids = list(dict.fromkeys(names))
    before = connected(*(model(one) for one in ids), resources=Resources(1, 1, 1))
    after = replace(
        before,
        models=tuple(model(one, load_s=5.0) for one in ids),
        resources=Resources(99, 10**9, 10**10),
    )

    structures = [
        [(one.key, one.command, bool(one.children)) for one in everything(face(state, 0).rows)]
        for state in (before, after)
    ]

    assert structures[0] == structures[1]
