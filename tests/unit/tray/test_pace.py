"""Alarms ring once and in time; attempts get rarer, and never stop."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stoker_tray.pace import Alarm, Alarms, retry_s

times_s = st.floats(0, 1e6)


def test_attempts_get_rarer_down_to_one_in_ten_seconds() -> None:
    """However long the daemon is away."""
    waits_s = [retry_s(failures) for failures in range(20)]

    assert waits_s[0] == 1
    assert all(sooner <= later for sooner, later in pairwise(waits_s))
    assert retry_s(10**9) == waits_s[-1] == 10


@given(wanted=st.dictionaries(st.sampled_from(Alarm), times_s), now_s=times_s)
def test_alarms_ring_once_in_their_order(wanted: dict[Alarm, float], now_s: float) -> None:
    """Those that are due, and no other."""
    alarms = Alarms()
    for alarm, at_s in wanted.items():
        alarms.set(alarm, at_s)
    first_s = alarms.next_s()

    rung = alarms.ring(now_s)

    assert first_s == min(wanted.values(), default=None)
    assert set(rung) == {alarm for alarm, at_s in wanted.items() if at_s <= now_s}
    assert [wanted[alarm] for alarm in rung] == sorted(wanted[alarm] for alarm in rung)
    assert alarms.ring(now_s) == []
    assert all((alarm in alarms) == (alarm not in rung) for alarm in wanted)


def test_an_alarm_that_is_set_again_rings_at_its_new_time() -> None:
    alarms = Alarms()
    alarms.set(Alarm.TICK, 5)
    alarms.set(Alarm.TICK, 9)
    alarms.set(Alarm.LOOK, 7)
    alarms.clear(Alarm.LOOK, Alarm.MENU)

    assert alarms.ring(8) == []
    assert alarms.ring(9) == [Alarm.TICK]
    assert alarms.next_s() is None
