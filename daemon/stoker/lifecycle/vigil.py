"""Is a worker that says nothing still at work? Pure: the caller measures.

A long prompt keeps a healthy engine silent for minutes, so silence tells nothing. These do:

| under a request | judged |
|---|---|
| tokens came, or the engine's own counters moved | alive |
| the engine says that it has no request left | alive: the client does not read its answer |
| processor time is used, no GPU | alive: one step of a long prompt takes minutes |
| no processor time, no GPU | hung after half a minute |
| no processor time, a GPU, the engine answers | hung after five minutes: a GPU may work alone |
| no processor time, a GPU, no answer | hung after half a minute |
| processor time is used, a GPU | hung after five minutes: it only waits for the GPU |

So has one that nobody asks anything and that computes on and on: it lost its way in a request
whose client is long gone.
"""

from __future__ import annotations

from typing import Final

from stoker.engine.heartbeat import NOT_ASKED, Beat, Heard

# Looks in a row, five seconds apart. Counted in looks, not in seconds: when the whole machine
# or the daemon was suspended, the worker must not be judged by the clock.
PATIENCE: Final = 6
_GPU_PATIENCE: Final = 60  # the longest step on a GPU that is any use ends well before
_LEAST_CPU_S: Final = 0.01  # per look; the clock of processor time ticks that often
_LEAST_CPU_ASKED_S: Final = 0.03  # the answer to our own question costs some, too
_LOST_CPU_S: Final = 2.5  # per look: half a processor
_LOST_PATIENCE: Final = 60  # looks; a slow machine ends a given-up batch of a prompt well before


class Vigil:
    """One per worker."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self._marks: tuple[float, ...] = ()
        self._looks = 0  # without any sign of life
        self._stuck_looks = 0  # on a GPU, without anything that came of it
        self._lost_looks = 0

    def refresh(self) -> None:
        """Begin anew: what came before says nothing, because the machine slept."""
        self._last = None
        self._looks = self._stuck_looks = self._lost_looks = 0

    def has_hung(
        self,
        cpu_s: float | None,
        requests: int,
        tokens: int,
        beat: Heard = NOT_ASKED,
        *,
        on_gpu: bool = False,
    ) -> bool:
        """One look: processor seconds used so far (None: cannot tell), requests, tokens so far.

        ``beat`` is what the engine was heard saying since the last look.
        """
        if isinstance(beat, Beat) and not beat.marks and beat.busy != 0:
            beat = NOT_ASKED  # it answered, but told nothing of itself
        before, self._last = self._last, None if cpu_s is None else (cpu_s, tokens)
        moved = self._has_moved(beat)
        if before is None or cpu_s is None:
            self._looks = self._stuck_looks = self._lost_looks = 0
            return False
        used_s = cpu_s - before[0]
        owes = not (isinstance(beat, Beat) and beat.busy == 0)
        if not requests or not owes or moved or tokens != before[1]:
            self._looks = self._stuck_looks = 0
        else:
            self._count(used_s, beat, on_gpu=on_gpu)
        self._lost_looks = self._lost_looks + 1 if not requests and used_s >= _LOST_CPU_S else 0
        return (
            self._looks >= PATIENCE
            or self._stuck_looks >= _GPU_PATIENCE
            or self._lost_looks >= _LOST_PATIENCE
        )

    def _has_moved(self, beat: Heard) -> bool:
        """Whether the engine's counters show work since they were last seen."""
        if not isinstance(beat, Beat) or not beat.marks:
            return False
        before, self._marks = self._marks, beat.marks
        return beat.marks != before

    def _count(self, used_s: float, beat: Heard, *, on_gpu: bool) -> None:
        """A look at a worker that has a request and of which nothing came."""
        asked = beat is not NOT_ASKED
        works = used_s >= (_LEAST_CPU_ASKED_S if asked else _LEAST_CPU_S)
        may_work = works or (on_gpu and isinstance(beat, Beat))
        self._looks = 0 if may_work else self._looks + 1
        if on_gpu and asked:
            self._stuck_looks += 1
