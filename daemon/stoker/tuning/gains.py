"""What one could gain by a change that Stoker cannot make alone. Pure: numbers in, sentences out.

Each sentence says what it rests on: a plan made anew with more memory, the sizes of files, or
what was measured elsewhere. Nothing is promised that no number stands behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning import quants
from stoker.tuning.launch import LaunchPlan
from stoker.tuning.refusal import gigabytes
from stoker.tuning.task import EMBEDDING_MOST

MOST_GAINS: Final = 4
_GB: Final = 1_000_000_000
_STEP: Final = _GB // 4  # memory is bought and freed in no finer steps
_MOST_EXTRA: Final = 512 * _GB
_LARGE_BITS: Final = 6.0  # bits per weight: above, a 4-bit file is clearly faster
_SMALL_BITS: Final = 3.7  # below, answers suffer
_FASTER: Final = "Q4_K_M"  # what most people use
_DICTIONARY: Final = "Q6_K"  # what such a file keeps its dictionary in
_BETTER: Final = ("Q5_K_M", "Q4_K_M")
_NOTICEABLE: Final = 1.15  # times as fast

Change = Literal["memory", "quantization", "runtime", "tune", "quota", "gpu"]


@dataclass(frozen=True, slots=True)
class Gain:
    """One thing to do, and what it brings."""

    change: Change
    text: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """A runtime that could be installed, and why it would help."""

    kind: str  # "native", "vulkan", "cuda", "rocm", "metal"
    why: str


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is known when gains are looked for."""

    plan: LaunchPlan
    facts: ModelFacts
    hardware: HardwareFacts
    replan: Callable[[int], LaunchPlan | None]  # with so many bytes of free memory more
    spare_bytes: int = 0  # free memory that the plan leaves
    tuned: bool = False
    tunes_itself: bool = True
    wished_context: int | None = None
    offers: Sequence[Offered] = field(default=())
    repository: str | None = None  # on the Hub, "owner/repo"


def gains(prospect: Prospect) -> tuple[Gain, ...]:
    """At most four, the ones that promise most first."""
    finders = (_gpu, _quota, _runtime, _memory, _tune, _quantization)
    found = [gain for finder in finders for gain in finder(prospect)]
    return tuple(found[:MOST_GAINS])


def _gpu(prospect: Prospect) -> Iterator[Gain]:
    """A graphics processor that no installed runtime uses."""
    for offer in prospect.offers:
        if offer.kind != "native":
            text = f"A runtime for the graphics processor: {offer.why}."
            yield Gain("gpu", text, f"stoker runtime install {offer.kind}")
            return


def _quota(prospect: Prospect) -> Iterator[Gain]:
    hardware = prospect.hardware
    quota = hardware.limits.quota_cpus
    if quota is None:
        return
    free = dataclasses.replace(
        hardware, limits=dataclasses.replace(hardware.limits, quota_cpus=None)
    ).effective_cpus
    now = hardware.effective_cpus
    if free > now:
        threads = "1 thread" if now == 1 else f"{now} threads"
        yield Gain(
            "quota",
            f"A CPU quota of {quota:g} leaves {threads}; with all {free} cores, prompts would be"
            f" read up to {free / now:.1f} times as fast (estimated).",
        )


def _runtime(prospect: Prospect) -> Iterator[Gain]:
    for offer in prospect.offers:
        if offer.kind == "native":
            text = (
                f"An engine compiled for this computer: {offer.why}. On another computer it read"
                " prompts 1.4 times as fast; here it is measured before it is used."
            )
            yield Gain("runtime", text, "stoker runtime install native")


def _memory(prospect: Prospect) -> Iterator[Gain]:
    """The smallest amount that doubles the context, or reaches what the model can do."""
    plan, trained = prospect.plan, prospect.facts.context_length
    most = min(trained, EMBEDDING_MOST) if plan.embedding else trained
    if plan.context >= most or prospect.wished_context is not None:
        return
    target = min(most, 2 * plan.context)
    better = _with_least_memory(prospect.replan, lambda other: other.context >= target)
    if better is not None:
        extra, longer = better
        yield Gain(
            "memory",
            f"With {gigabytes(extra)} more free memory a conversation could be"
            f" {longer.context:,} tokens long instead of {plan.context:,}.",
        )


def _with_least_memory(
    replan: Callable[[int], LaunchPlan | None], good: Callable[[LaunchPlan], bool]
) -> tuple[int, LaunchPlan] | None:
    high = _STEP
    while not ((found := replan(high)) and good(found)):
        if high >= _MOST_EXTRA:
            return None
        high *= 2
    low = high // 2  # not enough, or nothing
    while high - low > _STEP:
        middle = (low + high) // 2 // _STEP * _STEP
        other = replan(middle)
        if other is not None and good(other):
            high, found = middle, other
        else:
            low = middle
    return high, found


def _tune(prospect: Prospect) -> Iterator[Gain]:
    if prospect.tuned or prospect.plan.embedding:
        return
    when = "by itself when the computer is idle" if prospect.tunes_itself else "only when you ask"
    text = (
        "These settings follow rules of thumb. Measuring takes about 90 s and may find faster ones"
    )
    yield Gain("tune", f"{text}; Stoker does it {when}.", f"stoker tune {prospect.plan.model_id}")


def _quantization(prospect: Prospect) -> Iterator[Gain]:
    facts = prospect.facts
    bits = quants.bits_of(facts.file_bytes, facts.parameters)
    if bits is None or prospect.plan.embedding:
        return
    if bits > _LARGE_BITS:
        size = _four_bit_bytes(facts)
        factor = facts.file_bytes / max(1, size)
        if factor >= _NOTICEABLE:
            yield _other_file(
                prospect,
                _FASTER,
                f"A {_FASTER} file of this model (about {gigabytes(size)} instead of"
                f" {gigabytes(facts.file_bytes)}) would answer about {factor:.1f} times as fast,"
                " for a small loss of quality (estimated from its size).",
            )
    elif bits < _SMALL_BITS:
        fitting = (
            name
            for name in _BETTER
            if quants.size_bytes(name, facts.parameters) - facts.file_bytes <= prospect.spare_bytes
        )
        better = next(fitting, None)
        if better is not None:
            factor = facts.file_bytes / quants.size_bytes(better, facts.parameters)
            yield _other_file(
                prospect,
                better,
                f"A {better} file of this model fits, too: clearly better answers, at about"
                f" {factor:.0%} of the speed (estimated from its size).",
            )


def _four_bit_bytes(facts: ModelFacts) -> int:
    """About how large a file of the faster quantization would be; as it is when it is one.

    The file's own name for it tells more than its size: a small model with a
    large vocabulary has many bits per weight in any quantization, because of its dictionary.
    """
    now = quants.BITS.get(facts.quantization or "")
    if now is None:
        return quants.size_bytes(_FASTER, facts.parameters)
    layers = min(sum(facts.layer_bytes) or facts.file_bytes, facts.file_bytes)
    rest = facts.file_bytes - layers
    kept = min(1.0, quants.BITS[_DICTIONARY] / now)
    return int(layers * min(1.0, quants.BITS[_FASTER] / now) + rest * kept)


def _other_file(prospect: Prospect, name: str, text: str) -> Gain:
    repository = prospect.repository
    return Gain("quantization", text, f"stoker pull {repository}:{name}" if repository else None)
