from __future__ import annotations

import copy
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.errors import BadTuningFile
from stoker.profiles import Profiles
from stoker.tuning.keys import tuning_key
from stoker.tuning.launch import MemoryNeed, Speeds, Survey, SurveyPoint, Trial, Tuned
from stoker.types import Digest
from tests.fakes.hardware import machine

MODEL = Digest("ab" * 32)
OTHER = Digest("cd" * 32)
HERE = machine()
BEST = Trial("native-1", 4, 8, 256, flash_attention=False)
SURVEY = Survey("native-1", 1000, 50, (SurveyPoint(1024, 4, 128, True, "f16", 77, None),))  # noqa: FBT003


def tuned(**changes: Any) -> Tuned:
    facts: dict[str, Any] = {
        "key": tuning_key(HERE),
        "profile": "chat",
        "best": BEST,
        "speeds": Speeds(400.0, 50.0, 90.0),
        "baseline": Speeds(300.0, 40.0, 60.0),
        "trials": 20,
        "seconds": 61.5,
        "at": "2026-01-02T03:04:05+00:00",
    }
    return Tuned(**{**facts, **changes})


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "tuning")


def again(tmp_path: Path) -> Profiles:
    """What the next start of the daemon reads."""
    return Profiles(tmp_path / "tuning")


# --- keeping ---------------------------------------------------------------------------------


def test_what_is_kept_is_there_after_a_restart(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_tuned(MODEL, tuned())
    profiles.keep_survey(MODEL, SURVEY)

    for one in (profiles, again(tmp_path)):
        assert one.tuned(MODEL, HERE, "chat") == tuned()
        assert one.survey(MODEL, "native-1") == SURVEY


def test_a_file_that_names_no_gpu_layers_was_measured_without_any(
    profiles: Profiles, tmp_path: Path
) -> None:
    profiles.keep_tuned(MODEL, tuned(best=replace(BEST, gpu_layers=33)))
    (file,) = (tmp_path / "tuning").glob("*.json")
    content = json.loads(file.read_text())
    assert content["tuned"][0]["best"].pop("gpu_layers") == 33
    file.write_text(json.dumps(content))

    assert again(tmp_path).tuned(MODEL, HERE, "chat") == tuned()


def test_nothing_is_known_at_first(profiles: Profiles) -> None:
    assert profiles.tuned(MODEL, HERE, "chat") is None
    assert profiles.survey(MODEL, "native-1") is None
    assert profiles.export() == {"kind": "stoker-tuning", "version": 1, "models": []}


def test_settings_hold_for_their_machine_and_profile_only(profiles: Profiles) -> None:
    profiles.keep_tuned(MODEL, tuned())

    assert profiles.tuned(MODEL, machine(cores=4), "chat") is None
    assert profiles.tuned(MODEL, HERE, "batch") is None
    assert profiles.tuned(OTHER, HERE, "chat") is None


def test_each_power_mode_and_profile_keeps_its_own(profiles: Profiles, tmp_path: Path) -> None:
    slow = machine(quota=2.0)
    profiles.keep_tuned(MODEL, tuned())
    profiles.keep_tuned(
        MODEL, tuned(key=tuning_key(slow), best=replace(BEST, threads=2, threads_batch=2))
    )
    profiles.keep_tuned(MODEL, tuned(profile="batch", trials=7))
    profiles.keep_tuned(MODEL, tuned(trials=30))  # anew

    found = again(tmp_path)
    first, limited = found.tuned(MODEL, HERE, "chat"), found.tuned(MODEL, slow, "chat")
    batch = found.tuned(MODEL, HERE, "batch")
    assert first is not None and first.trials == 30  # noqa: PT018
    assert limited is not None and limited.best.threads == 2  # noqa: PT018
    assert batch is not None and batch.trials == 7  # noqa: PT018


def test_a_file_does_not_grow_without_end(profiles: Profiles, tmp_path: Path) -> None:
    """The oldest circumstances go."""
    for number in range(40):
        profiles.keep_tuned(MODEL, tuned(key=f"{number:024x}"))
        profiles.keep_survey(MODEL, replace(SURVEY, runtime=f"r{number}"))

    (file,) = (tmp_path / "tuning").iterdir()
    content = json.loads(file.read_text())
    assert len(content["tuned"]) == len(content["surveys"]) == 16
    assert content["tuned"][-1]["key"] == f"{39:024x}"


def test_a_forgotten_model_leaves_nothing(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_tuned(MODEL, tuned())

    profiles.forget(MODEL)
    profiles.forget(OTHER)

    assert profiles.tuned(MODEL, HERE, "chat") is None
    assert list((tmp_path / "tuning").iterdir()) == []


def test_a_full_disk_costs_the_file_but_not_the_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    profiles = Profiles(tmp_path / "file" / "tuning")  # a folder that cannot be made

    profiles.keep_tuned(MODEL, tuned())

    assert profiles.tuned(MODEL, HERE, "chat") == tuned()


# --- peaks -----------------------------------------------------------------------------------


def need(*, surveyed: bool = False, correction: float = 1.0) -> MemoryNeed:
    """A thousand bytes of its own, a tenth of them caches."""
    return MemoryNeed(5000, 700, 100, 50, 50, 100, surveyed=surveyed, correction=correction)


def test_nothing_is_corrected_before_anything_was_learnt(profiles: Profiles) -> None:
    assert profiles.correction(MODEL, "native-1") == 1.0


def test_what_a_worker_took_is_expected_of_the_next(profiles: Profiles, tmp_path: Path) -> None:
    """Also after a restart; of this model under this runtime only."""
    profiles.keep_peak(MODEL, "native-1", need(), 1230)

    for one in (profiles, again(tmp_path)):
        assert one.correction(MODEL, "native-1") == 1.23
        assert one.correction(MODEL, "native-2") == 1.0
        assert one.correction(OTHER, "native-1") == 1.0


def test_a_corrected_prediction_is_compared_as_it_was_computed(profiles: Profiles) -> None:
    """Else each peak would correct what was corrected before."""
    profiles.keep_peak(MODEL, "native-1", need(), 1230)

    profiles.keep_peak(MODEL, "native-1", need(correction=1.23), 1230)

    assert profiles.correction(MODEL, "native-1") == 1.23


def test_a_dry_run_begins_with_a_correction_of_its_own(profiles: Profiles) -> None:
    """Formulas and dry runs are off by different factors."""
    profiles.keep_peak(MODEL, "native-1", need(), 1500)
    profiles.keep_survey(MODEL, SURVEY)

    before = profiles.correction(MODEL, "native-1")
    profiles.keep_peak(MODEL, "native-1", need(surveyed=True), 1040)
    profiles.keep_peak(MODEL, "native-1", need(), 1600)  # a worker from before the dry run

    assert before == 1.0
    assert profiles.correction(MODEL, "native-1") == 1.04


def test_a_peak_that_teaches_nothing_writes_nothing(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_peak(MODEL, "native-1", need(), 990)
    profiles.keep_peak(MODEL, "native-1", need(), 990, filled=0.4)

    assert not (tmp_path / "tuning").exists()


def test_only_a_filled_worker_lowers_the_correction(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_peak(MODEL, "native-1", need(), 1200)

    profiles.keep_peak(MODEL, "native-1", need(), 880, filled=0.5)
    idle = profiles.correction(MODEL, "native-1")
    profiles.keep_peak(MODEL, "native-1", need(), 880, filled=0.95)

    assert idle == 1.2
    assert 1.0 < again(tmp_path).correction(MODEL, "native-1") < 1.2


def test_peaks_stay_at_home(profiles: Profiles, tmp_path: Path) -> None:
    """Memory is planned on one's own measurements only, whatever a document brings."""
    profiles.keep_tuned(MODEL, tuned())
    profiles.keep_peak(MODEL, "native-1", need(), 1500)
    content = document(profiles)
    peak = {
        "runtime": "native-1",
        "surveyed": False,
        "correction": 2.0,
        "computed_bytes": 1,
        "peak_bytes": 2,
    }

    there = Profiles(tmp_path / "there")
    there.take({**content, "models": [{**content["models"][0], "peaks": [peak]}]})

    assert "peaks" not in content["models"][0]
    assert there.tuned(MODEL, HERE, "chat") == tuned()
    assert there.correction(MODEL, "native-1") == 1.0


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.5, 2.5, 1e308, "1.5", None, True])
def test_a_factor_that_cannot_be_is_not_read(
    profiles: Profiles, tmp_path: Path, factor: object
) -> None:
    profiles.keep_peak(MODEL, "native-1", need(), 1500)
    content = json.loads(file_of(tmp_path).read_text())
    content["peaks"][0]["correction"] = factor
    file_of(tmp_path).write_text(json.dumps(content))

    assert again(tmp_path).correction(MODEL, "native-1") == 1.0


# --- damage ----------------------------------------------------------------------------------


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "tuning" / f"{MODEL.hex}.json"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'{"version": 2}', b"\xff\xfe", b"[" * 100_000, b"0" * (2 << 20)],
)
def test_a_damaged_file_is_as_good_as_none(
    profiles: Profiles, tmp_path: Path, content: bytes
) -> None:
    """And is written anew by the next result."""
    profiles.keep_tuned(MODEL, tuned())
    file_of(tmp_path).write_bytes(content)

    found = again(tmp_path)

    assert found.tuned(MODEL, HERE, "chat") is None
    found.keep_tuned(MODEL, tuned())
    assert again(tmp_path).tuned(MODEL, HERE, "chat") == tuned()


def test_a_file_of_another_model_is_not_used(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_tuned(OTHER, tuned())
    (tmp_path / "tuning" / f"{OTHER.hex}.json").rename(file_of(tmp_path))

    assert again(tmp_path).tuned(MODEL, HERE, "chat") is None


def test_a_link_is_not_followed(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_tuned(MODEL, tuned())
    elsewhere = tmp_path / "elsewhere.json"
    file_of(tmp_path).rename(elsewhere)
    file_of(tmp_path).symlink_to(elsewhere)

    assert again(tmp_path).tuned(MODEL, HERE, "chat") is None


def test_more_threads_than_the_machine_runs_are_never_used(profiles: Profiles) -> None:
    """Whatever a file says."""
    profiles.keep_tuned(MODEL, tuned(best=replace(BEST, threads_batch=9)))

    assert profiles.tuned(MODEL, HERE, "chat") is None


# --- export and import -----------------------------------------------------------------------


def document(profiles: Profiles) -> dict[str, Any]:
    """As it comes back over the wire."""
    value: dict[str, Any] = json.loads(json.dumps(profiles.export()))
    return value


def test_an_export_is_taken_by_another_home(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_tuned(MODEL, tuned())
    profiles.keep_survey(MODEL, SURVEY)
    profiles.keep_survey(OTHER, SURVEY)

    there = Profiles(tmp_path / "there")
    taken = there.take(document(again(tmp_path)), key=tuning_key(HERE))

    assert taken == 1
    assert there.tuned(MODEL, HERE, "chat") == tuned()
    assert there.survey(MODEL, "native-1") is None  # memory is planned on one's own dry runs only


def test_what_another_machine_measured_is_refused(profiles: Profiles) -> None:
    profiles.keep_tuned(MODEL, tuned())

    with pytest.raises(BadTuningFile, match="like this one"):
        profiles.take(document(profiles), key=tuning_key(machine(cores=4)))


def test_what_was_measured_here_later_stays(profiles: Profiles, tmp_path: Path) -> None:
    profiles.keep_tuned(MODEL, tuned())
    old = document(profiles)
    newer = tuned(trials=99, at="2026-03-01T00:00:00+00:00")
    profiles.keep_tuned(MODEL, newer)

    profiles.take(old)

    assert again(tmp_path).tuned(MODEL, HERE, "chat") == newer


def put(content: Any, path: str, value: object) -> None:
    *folders, last = path.split(".")
    for name in folders:
        content = content[int(name)] if isinstance(content, list) else content[name]
    content[last] = value


TUNED = "models.0.tuned.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "other"),
        ("version", 2),
        ("version", "1"),
        ("models", {}),
        ("extra", 1),
        ("models.0.model", "../../etc/passwd"),
        ("models.0.model", "AB" * 32),
        ("models.0.extra", 1),
        (f"{TUNED}.key", "x" * 24),
        (f"{TUNED}.profile", "fastest"),
        (f"{TUNED}.best.threads", 0),
        (f"{TUNED}.best.threads", 1e9),
        (f"{TUNED}.best.threads", "4"),
        (f"{TUNED}.best.threads", True),
        (f"{TUNED}.best.ubatch", 1 << 30),
        (f"{TUNED}.best.runtime", "../evil"),
        (f"{TUNED}.best.runtime", "a;rm -rf"),
        (f"{TUNED}.best.flash_attention", "yes"),
        (f"{TUNED}.best.environment", {"LD_PRELOAD": "x"}),
        (f"{TUNED}.speeds.decode_tokens_per_s", -1),
        (f"{TUNED}.speeds.decode_tokens_per_s", 0),
        (f"{TUNED}.speeds.decode_tokens_per_s", float("inf")),
        (f"{TUNED}.speeds.decode_tokens_per_s", float("nan")),
        (f"{TUNED}.at", "yesterday"),
        (f"{TUNED}.at", "2026-01-02T03:04:05"),
        (f"{TUNED}.at", "9999-01-01T00:00:00+00:00"),  # not measured yet
        (f"{TUNED}.complete", None),
        ("models.0.tuned", [{}] * 17),
    ],
)
def test_a_document_with_anything_odd_is_refused_whole(
    profiles: Profiles, tmp_path: Path, path: str, value: object
) -> None:
    profiles.keep_tuned(MODEL, tuned())
    content = copy.deepcopy(document(profiles))
    put(content, path, value)
    there = Profiles(tmp_path / "there")

    with pytest.raises(BadTuningFile):
        there.take(content)

    assert not (tmp_path / "there").exists()


def test_a_newer_format_says_what_to_do(profiles: Profiles) -> None:
    with pytest.raises(BadTuningFile) as caught:
        profiles.take({"kind": "stoker-tuning", "version": 9})

    assert "Update Stoker" in caught.value.hint


def _nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(SIMPLE, _nested, max_leaves=20)
NEARLY = st.fixed_dictionaries(
    {"kind": st.just("stoker-tuning"), "version": st.just(1) | SIMPLE, "models": JSON}
)


@given(value=JSON | st.binary() | NEARLY)
@settings(max_examples=150, deadline=None)
def test_nothing_but_a_refusal_comes_of_nonsense(
    value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "nonsense"

    try:
        taken = Profiles(folder).take(value)
    except BadTuningFile:
        taken = 0

    assert taken == 0
    assert not folder.exists()


def test_threads_may_use_it_at_once(profiles: Profiles, tmp_path: Path) -> None:
    def work(number: int) -> None:
        for _ in range(10):
            profiles.keep_tuned(MODEL, tuned(key=f"{number:024x}"))
            profiles.tuned(MODEL, HERE, "chat")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(json.loads(file_of(tmp_path).read_text())["tuned"]) == 4
