from __future__ import annotations

import pytest

from stoker_tray.adapters.native import default_command, shape
from stoker_tray.face import Row
from tests.fakes.tray_listener import button, line, use

BEFORE = (line("ram", "2 GB"), button("a", checked=True), line("m", children=(button("b"),)))


def test_words_ticks_and_commands_do_not_change_the_shape() -> None:
    after = (button("ram", "3 GB"), line("a", checked=False), line("m", "x", children=BEFORE[1:2]))

    assert shape(BEFORE[:2]) == shape(after[:2])
    assert shape(BEFORE) != shape(after)  # another line below


@pytest.mark.parametrize(
    "other",
    [
        line("gpu", "2 GB"),
        line("ram", separator=True),
        line("ram", checked=True),
        line("ram", radio=True),
        line("ram", children=(line("b"),)),
    ],
)
def test_lines_that_cannot_become_each_other_in_an_open_menu_differ(other: Row) -> None:
    assert shape(BEFORE[:1]) != shape((other,))


def test_click_on_the_icon_means_the_default_row_if_it_can_be_clicked() -> None:
    assert default_command((button("a"), button("b", default=True))) == use("b")
    assert default_command((button("a"), line("b", default=True))) is None
