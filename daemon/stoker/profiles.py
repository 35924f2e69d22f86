"""What was measured of each model, in files: tuned settings, dry runs, peaks. Safe to delete.

One file per model, named by its digest, replaced whole or not at all. What does not read back
exactly as it was written is not used: a damaged file costs a measurement, never a load. The same
strict reading holds for documents that a user imports, which may come from anybody: they only
ever choose among settings that are sound, and only for the machine they were measured on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from stoker.errors import BadTuningFile, StoreError
from stoker.hardware.facts import HardwareFacts
from stoker.store import disk
from stoker.tuning import corrections, keys
from stoker.tuning.launch import MemoryNeed, Profile, Speeds, Survey, SurveyPoint, Trial, Tuned
from stoker.types import Digest

log = structlog.get_logger(__name__)

VERSION: Final = 1  # of the files and of exported documents
KIND: Final = "stoker-tuning"
_MOST_BYTES: Final = 1 << 20  # a file with everything that may be in it has 200 kB
_MOST_EACH: Final = 16  # tuned settings, dry runs, and peaks, per model; the oldest go
_MOST_MODELS: Final = 2000  # in a document
_MOST_POINTS: Final = 1000
_CLOCKS: Final = timedelta(days=1)  # by which two machines' clocks may differ
_MOST: Final = 1 << 53  # what JSON can carry exactly

_Count = Annotated[int, Field(ge=1, le=1 << 31)]  # some models were trained for ten million
_Bytes = Annotated[int, Field(ge=0, le=_MOST)]
_Speed = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_RuntimeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,95}$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Trial(_Document):
    runtime: _RuntimeName
    threads: Annotated[int, Field(ge=1, le=4096)]
    threads_batch: Annotated[int, Field(ge=1, le=4096)]
    ubatch: Annotated[int, Field(ge=32, le=4096)]
    flash_attention: bool
    extra_buffers: bool
    gpu_layers: Annotated[int, Field(ge=0, le=4096)] = 0  # files of older versions are without it


class _Speeds(_Document):
    prefill_tokens_per_s: _Speed
    decode_tokens_per_s: _Speed
    batch_tokens_per_s: _Speed


class _Tuned(_Document):
    key: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{keys.LENGTH}}}$")]
    profile: Literal["chat", "coding", "batch", "quiet", "battery"]
    best: _Trial
    speeds: _Speeds
    baseline: _Speeds
    trials: Annotated[int, Field(ge=0, le=100_000)]
    seconds: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    at: Annotated[AwareDatetime, Field(strict=False)]
    complete: bool

    def value(self) -> Tuned:
        return Tuned(
            key=self.key,
            profile=self.profile,
            best=Trial(**self.best.model_dump()),
            speeds=Speeds(**self.speeds.model_dump()),
            baseline=Speeds(**self.baseline.model_dump()),
            trials=self.trials,
            seconds=self.seconds,
            at=self.at.isoformat(),
            complete=self.complete,
        )


class _Point(_Document):
    cells: _Count
    parallel: Annotated[int, Field(ge=1, le=1024)]
    ubatch: _Count
    flash_attention: bool
    kv_type: Literal["f16", "q8_0", "q4_0"]
    compute_bytes: _Bytes
    kv_bytes: _Bytes | None


class _Survey(_Document):
    runtime: _RuntimeName
    weights_bytes: _Bytes
    repack_bytes: _Bytes
    points: Annotated[list[_Point], Field(max_length=_MOST_POINTS)]

    def value(self) -> Survey:
        points = tuple(SurveyPoint(**point.model_dump()) for point in self.points)
        return Survey(self.runtime, self.weights_bytes, self.repack_bytes, points)


class _Peak(_Document):
    """What workers of one runtime took, against what was computed for them."""

    runtime: _RuntimeName
    surveyed: bool  # the computation rested on a dry run; another one errs by another factor
    correction: Annotated[
        float, Field(ge=corrections.LEAST, le=corrections.MOST, allow_inf_nan=False)
    ]
    computed_bytes: _Bytes  # of the worker that was learnt from
    peak_bytes: _Bytes


class _Model(_Document):
    """A file; also one model of a document."""

    version: Literal[1] = VERSION
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tuned: Annotated[list[_Tuned], Field(max_length=_MOST_EACH)] = Field(default_factory=list)
    surveys: Annotated[list[_Survey], Field(max_length=_MOST_EACH)] = Field(default_factory=list)
    peaks: Annotated[list[_Peak], Field(max_length=_MOST_EACH)] = Field(default_factory=list)


class _Export(_Document):
    kind: Literal["stoker-tuning"]
    version: Literal[1]
    models: Annotated[list[_Model], Field(max_length=_MOST_MODELS)]


_E = TypeVar("_E", _Tuned, _Survey, _Peak)


class Profiles:
    """All measurements of this home. Blocking but cheap: files are read once. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Digest, _Model] = {}
        self._lock = threading.Lock()

    def tuned(self, model: Digest, hardware: HardwareFacts, profile: Profile) -> Tuned | None:
        """The newest for this machine as it is now; None when it was never tuned like that."""
        key = keys.tuning_key(hardware)
        with self._lock:
            entries = self._read(model).tuned
        fitting = (one for one in reversed(entries) if one.key == key and one.profile == profile)
        found = next(fitting, None)
        return found.value() if found is not None and _is_sound(found, hardware) else None

    def survey(self, model: Digest, runtime: str) -> Survey | None:
        with self._lock:
            surveys = self._read(model).surveys
        return next((one.value() for one in reversed(surveys) if one.runtime == runtime), None)

    def correction(self, model: Digest, runtime: str) -> float:
        """By what a prediction of this model's memory is multiplied; 1.0 when nothing is known.

        Of the better kind of prediction that there is: by a dry run, else by formulas.
        """
        with self._lock:
            content = self._read(model)
        surveyed = any(one.runtime == runtime for one in content.surveys)
        found = _peak(content, runtime, surveyed=surveyed)
        return 1.0 if found is None else found.correction

    def keep_tuned(self, model: Digest, tuned: Tuned) -> None:
        """In place of the one for the same machine and profile. A full disk is only logged."""
        self._keep(model, tuned=(_Tuned.model_validate(asdict(tuned)),))

    def keep_survey(self, model: Digest, survey: Survey) -> None:
        self._keep(model, surveys=(_survey(survey),))

    def keep_peak(
        self,
        model: Digest,
        runtime: str,
        need: MemoryNeed,
        peak_bytes: int,
        *,
        filled: float | None = None,
    ) -> None:
        """Learn from the most that a worker took of its own, weights in the page cache left out.

        ``need`` is what was predicted for it. ``filled``, the largest share of its cells that was
        in use, is given once, at the worker's end: only then can it have taken less than it should.
        Writes only when there is something to learn.
        """
        with self._lock:
            before = _peak(self._read(model), runtime, surveyed=need.surveyed)
        factor = 1.0 if before is None else before.correction
        after = corrections.corrected(factor, need, peak_bytes, filled=filled)
        if after == factor:
            return
        learnt = _Peak(
            runtime=runtime,
            surveyed=need.surveyed,
            correction=after,
            computed_bytes=min(need.computed_bytes, _MOST),
            peak_bytes=min(peak_bytes, _MOST),
        )
        log.info("memory_learnt", model=str(model), runtime=runtime, correction=after, was=factor)
        self._keep(model, peaks=(learnt,))

    def forget(self, model: Digest) -> None:
        """Everything about a model that is no longer here."""
        with self._lock:
            self._known.pop(model, None)
            try:
                self._file(model).unlink(missing_ok=True)
            except OSError as error:
                log.warning("tuning_file_left", model=str(model), reason=str(error))

    def export(self) -> dict[str, object]:
        """Tuned settings of every model, for another home on a machine like this one."""
        with self._lock:
            models = [self._read(digest) for digest in self._stored()]
        nothing: dict[str, object] = {"surveys": [], "peaks": []}
        kept = [one.model_copy(update=nothing) for one in models if one.tuned]
        document = _Export(kind=KIND, version=VERSION, models=kept[:_MOST_MODELS])
        return document.model_dump(mode="json", exclude={"models": {"__all__": {"peaks"}}})

    def take(self, document: object, *, key: str | None = None) -> int:
        """Keep what an export holds; returns how many models it was for. Raises BadTuningFile.

        With ``key`` (tuning.keys) only what was measured on such a machine is kept. What was
        measured here later than the document's stays. Dry runs and peaks are never taken: memory
        is not planned on somebody else's word.
        """
        models = _parse(document)
        latest = datetime.now(UTC) + _CLOCKS
        if any(tuned.at > latest for one in models for tuned in one.tuned):
            raise BadTuningFile("this file was measured in the future")
        taken = 0
        for one in models:
            fitting = [tuned for tuned in one.tuned if key is None or tuned.key == key]
            if fitting:
                self._keep(Digest(one.model), tuned=fitting, newest_wins=True)
                taken += 1
        if models and not taken:
            raise BadTuningFile("nothing in this file was measured on a machine like this one")
        return taken

    # --- files -------------------------------------------------------------------------------

    def _keep(
        self,
        model: Digest,
        *,
        tuned: Iterable[_Tuned] = (),
        surveys: Iterable[_Survey] = (),
        peaks: Iterable[_Peak] = (),
        newest_wins: bool = False,
    ) -> None:
        with self._lock:
            before = self._read(model)
            everything = [*before.tuned, *tuned]
            if newest_wins:
                everything.sort(key=lambda one: one.at)
            after = _Model(
                model=model.hex,
                tuned=_latest(everything, lambda one: (one.key, one.profile)),
                surveys=_latest([*before.surveys, *surveys], lambda one: one.runtime),
                peaks=_latest([*before.peaks, *peaks], lambda one: (one.runtime, one.surveyed)),
            )
            self._known[model] = after
            self._write(model, after)

    def _read(self, model: Digest) -> _Model:
        """With the lock held. A model of which nothing is known has an empty one."""
        if model not in self._known:
            self._known[model] = self._from_file(model)
        return self._known[model]

    def _from_file(self, model: Digest) -> _Model:
        empty = _Model(model=model.hex)
        try:
            found = _Model.model_validate_json(disk.read_file(self._file(model), _MOST_BYTES))
        except FileNotFoundError:
            return empty
        except (OSError, ValueError, RecursionError) as error:
            log.warning("tuning_file_ignored", model=str(model), reason=_first(error))
            return empty
        if found.model != model.hex:
            log.warning("tuning_file_ignored", model=str(model), reason="it is another model's")
            return empty
        return found

    def _write(self, model: Digest, content: _Model) -> None:
        try:
            with disk.wrapped("keep what was measured", self._folder):
                disk.make_folder(self._folder)
                raw = content.model_dump_json(indent=1).encode() + b"\n"
                disk.write_file(self._file(model), raw, ".tmp")
        except StoreError as error:  # it stays in memory, and is measured again some day
            log.warning("tuning_file_not_written", model=str(model), reason=error.message)

    def _stored(self) -> list[Digest]:
        try:
            names = sorted(path.stem for path in self._folder.glob("*.json"))
        except OSError:
            names = []
        known = {digest.hex for digest in self._known}
        hexes = sorted(known | {name for name in names if len(name) == 64})  # noqa: PLR2004
        return [Digest.parse(name) for name in hexes if set(name) <= set("0123456789abcdef")]

    def _file(self, model: Digest) -> Path:
        return self._folder / f"{model.hex}.json"


def _peak(content: _Model, runtime: str, *, surveyed: bool) -> _Peak | None:
    fitting = (one for one in content.peaks if (one.runtime, one.surveyed) == (runtime, surveyed))
    return next(fitting, None)


def _survey(survey: Survey) -> _Survey:
    content = asdict(survey)
    return _Survey.model_validate({**content, "points": list(content["points"])})


def _latest(entries: Iterable[_E], circumstances: Callable[[_E], object]) -> list[_E]:
    """Of several for the same circumstances the last one; of too many the last ones."""
    found: dict[object, _E] = {}
    for entry in entries:
        found.pop(circumstances(entry), None)
        found[circumstances(entry)] = entry
    return list(found.values())[-_MOST_EACH:]


def _is_sound(tuned: _Tuned, hardware: HardwareFacts) -> bool:
    """A file may claim any key; more threads than this machine runs would only slow it down."""
    most = max(hardware.limits.affinity_cpus, hardware.effective_cpus)
    return max(tuned.best.threads, tuned.best.threads_batch) <= most


def _parse(document: object) -> list[_Model]:
    if isinstance(document, dict) and document.get("kind") == KIND:
        version = document.get("version")
        if isinstance(version, int) and version > VERSION:
            raise BadTuningFile(
                "this file was written by a newer Stoker", hint="Update Stoker, then import it."
            )
    try:
        # As JSON, where a list is a list and a number is no text: stricter than Python's values.
        return _Export.model_validate_json(json.dumps(document)).models
    except (ValueError, TypeError, RecursionError) as error:
        raise BadTuningFile(f"this is no file of tuned settings: {_first(error)}") from error


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    return str(error)[:200] or type(error).__name__
