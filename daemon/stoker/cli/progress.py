"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from stoker.cli.output import clean_line, duration, size

_LINE_EVERY_S: Final = 5.0  # plain output lands in logs: seldom enough not to flood them


@dataclass(frozen=True, slots=True)
class Step:
    """Where the work stands. `label` names what is being done."""

    label: str
    done: int = 0
    total: int | None = None
    bytes_per_s: float = 0.0
    eta_s: float | None = None

    @property
    def detail(self) -> str:
        """``40 MB of 98 MB, 12 MB/s, 5 s left``; parts that are unknown are left out."""
        parts = []
        if self.total:
            parts.append(f"{size(self.done)} of {size(self.total)}")
        elif self.done:
            parts.append(size(self.done))
        if self.bytes_per_s >= 1:
            parts.append(f"{size(self.bytes_per_s)}/s")
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} left")
        return ", ".join(parts)


Show = Callable[[Step], None]


@contextmanager
def showing() -> Iterator[Show]:
    """A function to call with every step; the display ends with the block."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[label]}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, label="", detail="")

        def show(step: Step) -> None:
            progress.update(
                task,
                total=step.total,
                completed=step.done,
                label=clean_line(step.label),
                detail=step.detail,
            )

        yield show


@contextmanager
def waiting(text: str, expected_s: float | None = None) -> Iterator[None]:
    """A sign of life while one call takes its time; nothing where no one watches.

    With the expected time it counts: ``Loading starter … 4 s of about 12 s``.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    began = time.monotonic()

    class Counting:
        """Drawn anew several times a second. As text: a name is no markup."""

        def __rich__(self) -> Text:
            return Text(counted(text, time.monotonic() - began, expected_s))

    with Console(stderr=True).status(Counting()):
        yield


def counted(text: str, elapsed_s: float, expected_s: float | None) -> str:
    """The text and how far it is, as long as that is known."""
    label = clean_line(text)
    if expected_s is None or elapsed_s > expected_s:
        return label
    return f"{label} {duration(elapsed_s)} of about {duration(max(1.0, expected_s))}"


class Lines:
    """Plain progress: the label when it changes, and how far it is every few seconds.

    Figures at the first step would only say that the work has begun.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._label = ""
        self._next = 0.0

    def __call__(self, step: Step) -> None:
        now = self._clock()
        if step.label != self._label:
            detail = ""
        elif now >= self._next and step.detail:
            detail = f": {step.detail}"
        else:
            return
        self._label, self._next = step.label, now + _LINE_EVERY_S
        print(f"{clean_line(step.label)}{detail}", file=sys.stderr, flush=True)


class Meter:
    """Rate and time left from how the count grew since the first step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None

    def step(self, label: str, done: int, total: int) -> Step:
        now = self._clock()
        if self._start is None:
            self._start = now, done
        elapsed, grown = now - self._start[0], done - self._start[1]
        rate = grown / elapsed if elapsed > 0 else 0.0
        eta = (total - done) / rate if rate > 0 else None
        return Step(label, done, total, rate, eta)
