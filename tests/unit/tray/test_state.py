"""The daemon's word, event by event."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types import ModelState, PullState
from stoker_tray.shapes import Model, Pull, Server
from stoker_tray.state import BadEvent, State, apply, damaged_text, parse_offers, parse_snapshot
from tests.fakes import tray_states
from tests.fakes.tray_states import URL, connected, model, offer, pull, ready

JSON = dict[str, Any]


def status(*models: Model, **changes: Any) -> JSON:
    found: JSON = {
        "daemon": {"version": "0.1.0", "pid": 7, "uptime_s": 1, "home": "/h"},
        "server": {"enabled": True, "base_url": URL},
        "models": [asdict(one) for one in models],
        "resources": {"cpu_percent": 1, "ram_used_bytes": 2, "ram_total_bytes": 3},
    }
    return {**found, **changes}


def snapshot(*models: Model, **changes: Any) -> JSON:
    return {"type": "snapshot", "status": status(*models, **changes)}


def of(one: Model) -> JSON:
    return {"type": "model", "model": asdict(one)}


def of_pull(one: Pull) -> JSON:
    return {"type": "pull", "pull": asdict(one)}


def of_store(model_id: str, change: str) -> JSON:
    return {"type": "store", "id": model_id, "change": change}


OWN: JSON = {
    "autostart": True,
    "autostart_tray": False,
    "offers": (offer("a"),),
    "muted": frozenset({"ready"}),
    "busy": "Starting Stoker",
    "note": "Could not load x",
    "note_until_s": 9.0,
}


def own(state: State) -> JSON:
    return {name: getattr(state, name) for name in OWN}


# --- snapshots -------------------------------------------------------------------------------


def test_a_snapshot_says_it_all() -> None:
    state = apply(State(), snapshot(ready("a"), pulls=[asdict(pull())], problems=["x"]))

    assert state.connected
    assert state.daemon is not None
    assert (state.daemon.version, state.daemon.uptime_s) == ("0.1.0", 1.0)
    assert state.server == Server(enabled=True, base_url=URL)
    assert state.models == (ready("a"),)
    assert state.pulls == (pull(),)
    assert state.problems == ("x",)


def test_a_new_snapshot_forgets_what_was_there() -> None:
    before = connected(ready("a"), pulls=(pull(),), problems=("x",))

    state = apply(before, snapshot(model("b")))

    assert (state.models, state.pulls, state.problems) == ((model("b"),), (), ())


def test_the_trays_own_knowledge_survives_snapshots_and_losses() -> None:
    before = State(**OWN)

    for state in (
        apply(before, snapshot()),
        apply(apply(before, snapshot()), {"type": "goodbye"}),
        State.disconnected(apply(before, snapshot(ready("a")))),
    ):
        assert own(state) == OWN


def test_a_lost_daemon_leaves_nothing_behind() -> None:
    state = apply(connected(ready("a"), pulls=(pull(),), latest="a"), {"type": "goodbye"})

    assert state == State(autostart=True, autostart_tray=True)
    assert state == State.disconnected(state)
    assert State.disconnected() == State()


def test_an_id_that_is_listed_twice_counts_once() -> None:
    twice = snapshot(model("a"), ready("a"), pulls=[asdict(pull("p")), asdict(pull("p"))])

    state = apply(State(), twice)

    assert (state.models, state.pulls) == ((ready("a"),), (pull("p"),))


def test_the_answer_of_status_refreshes_what_is_known() -> None:
    before = connected(ready("a"), ready("b"), latest="b", busy="x")

    state = parse_snapshot(status(ready("a", tokens_per_s=5.0), ready("b")), before)

    assert state.models[0].tokens_per_s == 5.0
    assert (state.latest, state.busy) == ("b", "x")


def test_the_latest_model_of_a_snapshot_is_the_one_that_works() -> None:
    found = [ready("a", expires_in_s=9.0), ready("b"), ready("c", in_flight=1)]

    assert apply(State(), snapshot(*found)).latest == "c"
    assert apply(State(), snapshot(*found[:2])).latest == "a"
    assert apply(State(), snapshot(model("d"))).latest is None


# --- events ----------------------------------------------------------------------------------


def test_a_model_event_replaces_that_model_only() -> None:
    before = connected(model("a"), model("b"), model("c"))

    state = apply(before, of(ready("b")))

    assert state.models == (model("a"), ready("b"), model("c"))
    assert state.models[0] is before.models[0]
    assert state.resources is before.resources


def test_the_same_news_is_no_news() -> None:
    before = connected(ready("a"))

    assert apply(before, of(ready("a"))) is before


def test_a_model_that_was_removed_does_not_come_back_by_its_last_event() -> None:
    before = connected(ready("a"))

    state = apply(apply(before, of_store("a", "removed")), of(model("a")))

    assert state.models == ()


def test_a_model_that_appears_while_it_works_is_added() -> None:
    assert apply(connected(), of(ready("a"))).models == (ready("a"),)


def test_the_time_of_a_load_is_kept_until_it_ends() -> None:
    loading = model("a", ModelState.LOADING)

    state = apply(connected(model("a")), of(loading), 10.0)
    same = apply(state, of(replace(loading, queued=1)), 12.0)
    again = apply(same, snapshot(loading), 14.0)
    done = apply(again, of(ready("a")), 15.0)

    assert [dict(one.loading_since) for one in (state, same, again, done)] == [
        {"a": 10.0},
        {"a": 10.0},
        {"a": 10.0},
        {},
    ]
    assert apply(State(), snapshot(loading), 20.0).loading_since == {"a": 20.0}
    assert apply(connected(), of(loading)).loading_since == {}


def test_a_load_that_was_under_way_before_is_counted_from_its_begin() -> None:
    """The daemon says for how long; a time that cannot be true counts as none."""
    loading = model("a", ModelState.LOADING, loading_s=4.0)
    absurd = replace(loading, loading_s=-1e300)

    assert apply(State(), snapshot(loading), 20.0).loading_since == {"a": 16.0}
    assert apply(connected(), of(loading), 20.0).loading_since == {"a": 16.0}
    assert apply(connected(), of(absurd), 20.0).loading_since == {"a": 20.0}


def test_another_default_is_marked() -> None:
    state = connected(ready("a", default=True), ready("b"))

    changed = apply(state, {"type": "default", "model": "b"})
    none = apply(changed, {"type": "default", "model": None})

    assert [one.default for one in changed.models] == [False, True]
    assert [one.default for one in none.models] == [False, False]


def test_the_latest_is_who_began_to_load_or_to_answer() -> None:
    state = connected(ready("a"), ready("b"), latest="a")

    state = apply(state, of(ready("b", in_flight=1)))
    assert state.latest == "b"
    state = apply(state, of(ready("a", tokens_per_s=1.0)))
    assert state.latest == "b"
    state = apply(state, of(model("c", ModelState.LOADING)))
    assert state.latest == "c"
    state = apply(state, of(model("c", ModelState.FAILED)))
    assert state.latest == "c"


def test_pulls_come_and_go_on() -> None:
    state = apply(connected(), of_pull(pull("p", bytes_done=1)))
    state = apply(state, of_pull(pull("p", bytes_done=2)))
    state = apply(state, of_pull(pull("q", model="z", reference="z")))

    assert [(one.id, one.bytes_done) for one in state.pulls] == [("p", 2), ("q", 236_000_000)]


def test_a_new_pull_takes_the_place_of_the_one_that_failed() -> None:
    before = connected(pulls=(pull("p", PullState.FAILED), pull("q", reference="other")))

    assert [one.id for one in apply(before, of_pull(pull("r"))).pulls] == ["q", "r"]


def test_ended_pulls_do_not_pile_up() -> None:
    state = connected(pulls=(pull("running", reference="big"),))
    for number in range(120):
        state = apply(state, of_pull(pull(f"p{number}", PullState.DONE, reference=f"r{number}")))

    assert [one.id for one in state.pulls] == ["running", *(f"p{n}" for n in range(70, 120))]


def test_store_events_keep_the_list_of_models() -> None:
    state = connected(model("a"), offers=(offer("a", stored=True), offer("b")))

    added = apply(state, of_store("b", "added"))
    removed = apply(added, of_store("a", "removed"))

    assert added.models == (model("a"), model("b"))
    assert removed.models == (model("b"),)
    assert [(one.name, one.stored) for one in removed.offers] == [("a", False), ("b", True)]


def test_damage_is_a_problem_until_it_is_mended() -> None:
    damaged = apply(connected(model("a"), problems=("x",)), of_store("a", "damaged"))

    assert damaged.problems == ("x", damaged_text("a"))
    assert apply(damaged, of_store("a", "damaged")).problems == damaged.problems
    assert apply(damaged, of_store("a", "added")).problems == ("x",)
    assert apply(damaged, of_store("a", "removed")).problems == ("x",)


def test_server_daemon_and_resources_are_replaced() -> None:
    server = {"type": "server", "server": {"enabled": False, "base_url": URL, "lan": True}}
    daemon = {"type": "daemon", "daemon": {**status()["daemon"], "update": "9.9.9"}}
    resources = {"type": "resources", "resources": {**status()["resources"], "cpu_percent": 50}}
    state = connected()

    for event in (server, daemon, resources):
        state = apply(state, event)

    assert state.server == Server(enabled=False, base_url=URL, lan=True)
    assert state.daemon is not None
    assert state.daemon.update == "9.9.9"
    assert state.resources is not None
    assert state.resources.cpu_percent == 50.0


# --- a newer daemon, a broken one -------------------------------------------------------------


def test_what_a_newer_daemon_says_more_is_ignored() -> None:
    """Unknown events, fields and words change nothing that is known."""
    state = connected()

    assert apply(state, {"type": "weather", "rain": True}) is state
    assert apply(state, of_store("a", "polished")) == state
    event = of(model("a", "sleeping"))
    event["model"]["dreams"] = ["sheep"]
    assert apply(state, event).models == (model("a", "sleeping"),)


def test_before_a_snapshot_nothing_counts() -> None:
    assert apply(State(), of(ready("a"))) == State()


BROKEN: list[Any] = [
    None,
    [],
    {},
    {"type": 1},
    {"type": "snapshot"},
    {"type": "snapshot", "status": []},
    snapshot(models={}),
    snapshot(models=[1]),
    snapshot(problems=[1]),
    snapshot(server={"enabled": "yes", "base_url": URL}),
    snapshot(server={"enabled": True}),
    snapshot(resources={"cpu_percent": "1", "ram_used_bytes": 1, "ram_total_bytes": 1}),
    snapshot(resources={"cpu_percent": 1, "ram_used_bytes": 1.5, "ram_total_bytes": 1}),
    {"type": "model"},
    {"type": "model", "model": {"id": "a"}},
    {"type": "model", "model": {"id": None, "state": "ready"}},
    {"type": "model", "model": {"id": "a", "state": "ready", "in_flight": True}},
    {"type": "model", "model": {"id": "a", "state": "ready", "memory": 5}},
    {"type": "model", "model": {"id": "a", "state": "ready", "error": {"code": 1}}},
    {"type": "pull", "pull": {"id": "p", "reference": "r", "state": "done", "bytes_done": None}},
    {"type": "store", "id": "a"},
    {"type": "store", "change": "added"},
    {"type": "server", "server": None},
    {"type": "daemon", "daemon": {"version": 1}},
    {"type": "resources", "resources": None},
]


@pytest.mark.parametrize("event", BROKEN)
def test_a_broken_event_is_an_error_and_nothing_else(event: object) -> None:
    with pytest.raises(BadEvent):
        apply(connected(), event)


def test_an_error_names_the_field() -> None:
    event = of(ready("a"))
    event["model"]["memory"]["resident_bytes"] = "much"

    with pytest.raises(BadEvent, match=r"memory: resident_bytes: int expected, not str"):
        apply(connected(), event)


def test_absurd_numbers_are_numbers() -> None:
    event = of(ready("a", tokens_per_s=10**400, in_flight=-(10**400)))

    found = apply(connected(), event).models[0]

    assert found.tokens_per_s == float("inf")
    assert found.in_flight == -(10**400)


def test_offers_are_read_whole() -> None:
    listed = json.loads(json.dumps([asdict(offer("a")), asdict(offer("b", fits=False))]))

    assert parse_offers(listed) == (offer("a"), offer("b", fits=False))
    assert parse_offers([asdict(offer("a")), asdict(offer("a"))]) == (offer("a"),)
    with pytest.raises(BadEvent):
        parse_offers([{"name": "a"}])
    with pytest.raises(BadEvent):
        parse_offers({"offers": []})


# --- anything --------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
events = st.one_of(
    st.builds(of, st.builds(replace, tray_states.models, id=names)),
    st.builds(of_pull, st.builds(replace, tray_states.pulls, id=names)),
    st.builds(of_store, names, st.sampled_from(["added", "removed", "damaged", "verified", ""])),
    st.builds(lambda found: snapshot(*found), st.lists(tray_states.models, max_size=3)),
    st.just({"type": "goodbye"}),
    st.sampled_from(BROKEN),
    st.dictionaries(st.sampled_from(["type", "model", "pull", "status"]), tray_states.words),
)


@given(st.lists(events, max_size=15))
def test_any_events_keep_a_sound_state(found: list[object]) -> None:
    state = connected(**{name: value for name, value in OWN.items() if name != "offers"})
    kept = {name: value for name, value in own(state).items() if name != "offers"}

    for event in found:
        try:
            state = apply(state, event, 1.0)
        except BadEvent:
            continue
        ids = [one.id for one in state.models]
        assert len(set(ids)) == len(ids)
        assert set(state.loading_since) == {
            one.id for one in state.models if one.state == ModelState.LOADING
        }
        assert {name: getattr(state, name) for name in kept} == kept


json_values = st.recursive(
    st.none() | st.booleans() | tray_states.counts | tray_states.figures | tray_states.words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(tray_states.words, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(["snapshot", "model", "pull", "store", "server", "daemon", "resources"]),
    st.sampled_from(["status", "model", "pull", "server", "daemon", "resources", "id"]),
    json_values,
)
def test_any_json_is_an_event_or_a_bad_one(kind: str, name: str, value: object) -> None:
    state = connected()
    try:
        outcome: object = apply(state, {"type": kind, name: value})
    except BadEvent as error:
        outcome = error

    assert isinstance(outcome, State | BadEvent)
