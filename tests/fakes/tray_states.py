"""States of the tray for tests: plain ones, and any that a hostile daemon could bring about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from stoker.types import ModelState, PullState
from stoker_tray.face import Face, Row
from stoker_tray.notices import Kind
from stoker_tray.shapes import Daemon, Failure, Gpu, Memory, Model, Offer, Pull, Resources, Server
from stoker_tray.state import State

URL = "http://127.0.0.1:4328/v1"
SCRIPTS = (
    "日本語モデル",
    "नमस्ते-3b",
    "مدل-فارسی",
    "מודל",
    "Ελληνικά",
    "model-한국어",
    "👩‍👩‍👧‍👦-7b",
    "ไทย",
)

# --- plain ones ------------------------------------------------------------------------------


def model(name: str = "starter", state: str = ModelState.UNLOADED, **changes: Any) -> Model:
    return replace(Model(name, str(state)), **changes)


def ready(name: str = "starter", **changes: Any) -> Model:
    held: dict[str, Any] = {"memory": Memory(400_000_000, 330_000_000), "load_s": 3.2}
    return model(name, ModelState.READY, **{**held, **changes})


def failed(name: str = "starter", message: str = "not enough memory") -> Model:
    return model(name, ModelState.FAILED, error=Failure("memory_short", message, "Close some."))


def pull(pull_id: str = "p1", state: str = PullState.FETCHING, **changes: Any) -> Pull:
    facts: dict[str, Any] = {
        "model": "qwen3-0.6b",
        "bytes_done": 236_000_000,
        "bytes_total": 639_446_688,
        "eta_s": 190.0,
    }
    return replace(Pull(pull_id, "qwen3-0.6b", str(state)), **{**facts, **changes})


def offer(name: str, **changes: Any) -> Offer:
    facts = Offer(
        name=name,
        title=name.upper(),
        summary="A model.",
        licence="MIT",
        bytes=639_446_688,
        memory_bytes=2_200_000_000,
        fits=True,
        quick=True,
        stored=False,
    )
    return replace(facts, **changes)


def connected(*models: Model, **changes: Any) -> State:
    """The daemon answers, and all is well."""
    return replace(
        State(
            connected=True,
            daemon=Daemon("0.1.0", 7, 60.0, "/home/me/.stoker"),
            server=Server(enabled=True, base_url=URL),
            models=models,
            resources=Resources(34.4, 5_100_000_000, 24_000_000_000),
            autostart=True,
            autostart_tray=True,
        ),
        **changes,
    )


# --- how they look as text -------------------------------------------------------------------


def drawn(face: Face) -> str:
    """Icon, tooltip and menu, one line each."""
    icon = face.icon
    ring = "" if icon.progress is None else f" {icon.progress}/8"
    badge = f" +{icon.badge}" if icon.badge else ""
    return "\n".join([f"<{icon.state}{ring}{badge}> {face.title}", *_lines(face.rows, "")])


def _lines(rows: tuple[Row, ...], indent: str) -> list[str]:
    lines = []
    for row in rows:
        mark = {None: "", True: "x ", False: "- "}[row.checked]
        if row.separator:
            lines.append(f"{indent}----")
            continue
        asked = f" [{row.command.verb} {row.command.arg}".rstrip() + "]" if row.command else ""
        default = " *" if row.default else ""
        lines.append(f"{indent}{mark}{row.text}{asked}{default}")
        lines += _lines(row.children, f"{indent}  ")
    return lines


# --- any -------------------------------------------------------------------------------------

words = st.one_of(
    st.text(st.characters(), max_size=30),
    st.sampled_from(
        [
            *SCRIPTS,
            "",
            "starter",
            "owner/repo-GGUF:Q4_K_M",
            "\u202egnp.exe",
            "a\nb\tc\r\x85d",
            "\x00\x1b[31m",
            "\ud800",
            "\u200d",
            "\u0301",
        ]
    ),
    st.sampled_from("x\u0301\u200dﷺ").map(lambda char: char * 10_000),
)
counts = st.one_of(st.integers(), st.sampled_from([0, 1, 10**9, 10**18, 10**400, -(10**400)]))
figures = st.one_of(st.floats(), st.floats(0, 1000))


def any_model_state() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from([state.value for state in ModelState]), words)


def any_pull_state() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from([state.value for state in PullState]), words)


failures = st.builds(Failure, words, words, words)
models = st.builds(
    Model,
    id=words,
    state=any_model_state(),
    memory=st.none() | st.builds(Memory, counts, st.none() | counts),
    tokens_per_s=st.none() | figures,
    in_flight=counts,
    queued=counts,
    expires_in_s=st.none() | figures,
    load_s=st.none() | figures,
    expected_load_s=st.none() | figures,
    loading_s=st.none() | figures,
    default=st.booleans(),
    pinned=st.booleans(),
    error=st.none() | failures,
)
pulls = st.builds(
    Pull,
    id=words,
    reference=words,
    state=any_pull_state(),
    model=st.none() | words,
    bytes_done=counts,
    bytes_total=st.none() | counts,
    eta_s=st.none() | figures,
    error=st.none() | failures,
)
offers = st.builds(
    Offer,
    name=words,
    title=words,
    summary=words,
    licence=words,
    bytes=counts,
    memory_bytes=counts,
    fits=st.booleans(),
    quick=st.booleans(),
    stored=st.booleans(),
)
resources = st.builds(
    Resources,
    figures,
    counts,
    counts,
    st.lists(st.builds(Gpu, words, st.none() | counts, st.none() | counts), max_size=3).map(tuple),
)
addresses = (
    st.sampled_from([URL, "", "http://[::1]:4328/v1", "javascript:x", "http://a b/"]) | words
)


@st.composite
def states(draw: st.DrawFn) -> State:
    """Any state that parsing can bring about, with anything that the tray itself may know."""
    found = tuple(draw(st.lists(models, max_size=16, unique_by=lambda one: one.id)))
    ids = [one.id for one in found]
    return State(
        connected=draw(st.booleans()),
        daemon=draw(
            st.builds(Daemon, words, counts, figures, words, st.just(1), st.none() | words)
        ),
        server=draw(st.builds(Server, st.booleans(), addresses, st.booleans())),
        models=found,
        resources=draw(st.none() | resources),
        pulls=tuple(draw(st.lists(pulls, max_size=7, unique_by=lambda one: one.id))),
        problems=tuple(draw(st.lists(words, max_size=4))),
        loading_since={name: draw(figures) for name in ids[::2]},
        latest=draw(st.none() | words),
        autostart=draw(st.none() | st.booleans()),
        autostart_tray=draw(st.none() | st.booleans()),
        offers=tuple(draw(st.lists(offers, max_size=4, unique_by=lambda one: one.name))),
        muted=draw(st.frozensets(st.sampled_from([kind.value for kind in Kind]))),
        busy=draw(st.none() | words),
        note=draw(st.none() | words),
        note_until_s=draw(st.none() | figures),
    )
