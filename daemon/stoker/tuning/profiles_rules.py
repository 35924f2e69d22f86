"""What each profile wants: how much context and how many slots, how many threads. Pure.

| profile | for | shortest context | slots | threads |
|---|---|---|---|---|
| chat | one person who talks | 2,048 | 4 | all |
| coding | an agent with tools and files | 16,384 | 2 | all |
| batch | many requests, nobody waits for the first word | 2,048 | 16 | all |
| quiet | a machine that others work on | 2,048 | 2 | half |
| battery | a laptop away from the mains | 2,048 | 2 | half to write, all to read |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stoker.tuning.launch import Profile

_UBATCH: Final = 512  # tokens; CPU prefill is flat from 256 to 1024
_UBATCHES: Final = (512, 256, 128)


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers behind a profile."""

    why: str  # in words for a person
    shortest: int = 2048  # tokens; less does not hold a system prompt and an answer
    comfort: int = 4096  # tokens; speed is given up to reach it
    roomy: int = 16384  # tokens; beyond it a context may take half of what is still free
    parallel: int = 4  # slots; they share one context, so an idle one costs a few MiB
    checkpoints: int = 2  # per slot: before the last turn, and the one before that
    pool_most: int = 32768  # cells; four long chats
    pool_share: int = 8  # a pool beyond one context takes one part in so many of what is free
    prompt_cache_mib: int = 0  # conversations beyond the slots
    half_to_write: bool = False  # half the cores while it answers
    half_to_read: bool = False  # half the cores while it reads a prompt


_RULES: Final[dict[Profile, Rules]] = {
    "chat": Rules("for conversations: the first words come soon"),
    "coding": Rules(
        "for coding: tools and files need a long context, and what was read is kept",
        shortest=16384,
        comfort=16384,
        roomy=65536,
        parallel=2,
        checkpoints=4,
        pool_most=131_072,
        pool_share=4,
        prompt_cache_mib=512,
    ),
    "batch": Rules(
        "for many requests at once: all of them together count, not the first words of one",
        parallel=16,
        pool_most=131_072,
        pool_share=2,
    ),
    # Half the cores: writing waits for memory, not for them, so it loses little.
    "quiet": Rules(
        "for a machine that others work on: half of the cores stay free",
        parallel=2,
        half_to_write=True,
        half_to_read=True,
    ),
    # Reading a prompt is pure work: the sooner it is done, the sooner the processor sleeps. A
    # smaller step would read the weights more often for the same prompt, and cost energy.
    "battery": Rules(
        "for a laptop away from the mains: no more cores than writing can use",
        parallel=2,
        half_to_write=True,
    ),
}


def rules(profile: Profile) -> Rules:
    return _RULES[profile]


def most_threads(profile: Profile, cpus: int) -> tuple[int, int]:
    """The most threads to write and to read with; at least 1. Tuning stays below them, too."""
    found = rules(profile)
    half = -(-max(1, cpus) // 2)
    return (half if found.half_to_write else max(1, cpus)), (
        half if found.half_to_read else max(1, cpus)
    )


def ladder(
    profile: Profile, *, ubatch: int | None, most_ubatch: int, parallel: int | None
) -> tuple[tuple[int, int], ...]:
    """(ubatch, slots) in the order in which speed is given up; the first is wanted most.

    ``ubatch`` and ``parallel`` are the user's; ``most_ubatch`` is what would be chosen freely.
    """
    steps = (most_ubatch, *(step for step in _UBATCHES if step < most_ubatch))
    if ubatch is not None:
        steps = (ubatch,)
    if parallel is not None:
        return tuple((step, parallel) for step in steps)
    slots = rules(profile).parallel
    rungs = [(step, slots) for step in steps]
    while slots > 1:
        slots //= 2
        rungs.append((steps[-1], slots))
    return tuple(rungs)


def usual_ubatch() -> int:
    return _UBATCH
