"""Any order of requests, cancels, crashes, wishes and slow effects keeps the promises."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.unit.lifecycle.machine import SchedulerMachine

STEPS = 20_000
_EXAMPLES, _STEPS_EACH = 700, 50


class _Counting(SchedulerMachine):
    steps: ClassVar[int] = 0

    @invariant()
    def count(self) -> None:
        type(self).steps += 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_promises_hold_for_twenty_thousand_steps() -> None:
    """See `machine` for the promises; the steps are counted, because Hypothesis may do fewer."""
    _Counting.steps = 0

    run_state_machine_as_test(
        _Counting,
        settings=settings(max_examples=_EXAMPLES, stateful_step_count=_STEPS_EACH),
    )

    assert _Counting.steps >= STEPS
