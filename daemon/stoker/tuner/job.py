"""One model's search: what is known of it, where it stands, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import anyio

from stoker.errors import StokerError
from stoker.schemas import ErrorView, SpeedsView, TuneView
from stoker.tuner.policy import Shape
from stoker.tuning.launch import LaunchPlan, Profile, Speeds, Trial, Tuned
from stoker.tuning.search import BUDGET_S, Search
from stoker.types import Digest, ModelId

State = Literal["waiting", "running", "paused", "done", "failed", "cancelled"]
ACTIVE: Final = frozenset(("waiting", "running", "paused"))


@dataclass(frozen=True, slots=True)
class Basis:
    """What a search starts from. When any of it changes, its figures mean nothing any more."""

    key: str  # tuning.keys
    profile: Profile
    runtimes: tuple[str, ...]  # that may be measured, the plan's own first
    safe: frozenset[str]  # of these, those whose extra buffers are not sound here
    path: Path
    plan: LaunchPlan  # untuned
    baseline: Trial

    def same_as(self, other: Basis) -> bool:
        """Whether measurements of one count for the other: free memory may have changed."""
        ours = (self.key, self.profile, self.runtimes, self.safe, self.path, self.baseline)
        return ours == (
            other.key,
            other.profile,
            other.runtimes,
            other.safe,
            other.path,
            other.baseline,
        )


@dataclass(slots=True)
class Job:
    """Lives as long as the daemon, so that a paused search goes on where it was."""

    model: ModelId
    digest: Digest
    profile: Profile
    asked: bool = False  # by a person: starts as soon as no request runs
    budget_s: float = BUDGET_S
    state: State = "waiting"
    note: str | None = None
    basis: Basis | None = None
    search: Search | None = None
    shape: Shape | None = None
    error: StokerError | None = None
    ended_at: float | None = None  # on the service's clock
    tuned: Tuned | None = None  # what came of it
    scope: anyio.CancelScope | None = None  # while it runs
    idle: anyio.Event = field(default_factory=anyio.Event)  # set while it does not run

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def forget_progress(self) -> None:
        self.basis = self.search = self.shape = None

    def view(self) -> TuneView:
        if self.state == "done" and self.tuned is not None:
            return tuned_view(self.model, self.tuned)
        view = TuneView(
            model=str(self.model),
            state=self.state,
            profile=self.profile,
            budget_s=self.budget_s,
            note=self.note,
            error=_error_view(self.error),
        )
        search = self.search
        if search is None or not search.measured:
            return view
        result = search.result()
        return view.model_copy(
            update={
                "trials": result.trials,
                "spent_s": round(result.seconds, 1),
                "settings": asdict(result.best),
                "speeds": speeds_view(result.speeds),
                "baseline": speeds_view(result.baseline),
            }
        )


def tuned_view(model: ModelId, tuned: Tuned) -> TuneView:
    return TuneView(
        model=str(model),
        state="done",
        profile=tuned.profile,
        trials=tuned.trials,
        spent_s=round(tuned.seconds, 1),
        budget_s=round(tuned.seconds, 1),
        note=None if tuned.complete else "the time was up before everything had been tried",
        settings=asdict(tuned.best),
        speeds=speeds_view(tuned.speeds),
        baseline=speeds_view(tuned.baseline),
        measured_at=datetime.fromisoformat(tuned.at),
    )


def speeds_view(speeds: Speeds) -> SpeedsView:
    return SpeedsView(
        prefill_tokens_per_s=round(speeds.prefill_tokens_per_s, 2),
        decode_tokens_per_s=round(speeds.decode_tokens_per_s, 2),
        batch_tokens_per_s=round(speeds.batch_tokens_per_s, 2),
    )


def trial_of(plan: LaunchPlan) -> Trial:
    """The part of a plan that a search may change."""
    return Trial(
        runtime=plan.runtime,
        threads=plan.threads,
        threads_batch=plan.threads_batch,
        ubatch=plan.ubatch,
        flash_attention=plan.flash_attention,
        extra_buffers=plan.extra_buffers,
        gpu_layers=plan.gpu_layers,
    )


def in_words(trial: Trial) -> str:
    """What is being tried, for a person who watches."""
    threads = f"{trial.threads} threads"
    if trial.threads_batch != trial.threads:
        threads += f" ({trial.threads_batch} for prompts)"
    attention = "on" if trial.flash_attention else "off"
    return (
        f"tries {threads}, batches of {trial.ubatch}, flash attention {attention}, {trial.runtime}"
    )


def _error_view(error: StokerError | None) -> ErrorView | None:
    if error is None:
        return None
    return ErrorView(
        code=error.code, message=error.message, hint=error.hint, facts=dict(error.facts)
    )
