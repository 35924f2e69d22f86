"""The menu on the bus: clicks, and changes while it is shown."""

from __future__ import annotations

import threading

import pytest

from stoker_tray.adapters.dbusmenu import LEVELS_AT_ONCE
from stoker_tray.adapters.sni import SniShell
from stoker_tray.face import Notice, Row
from tests.fakes.sni_shell import Show
from tests.fakes.tray_host import ITEM_PATH, SNI, TrayHost
from tests.fakes.tray_listener import RecordingListener, button, face, line, use

# --- clicks ----------------------------------------------------------------------------------


def test_every_kind_of_row_can_be_clicked(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(
        button("acts"),
        button("tick", checked=True),
        button("radio", checked=False, radio=True),
        Row("s", separator=True),
        line("more", children=(line("deeper", children=(button("deepest"),)),)),
    )

    for labels in (["acts"], ["tick"], ["radio"], ["more", "deeper", "deepest"]):
        host.click(*labels)

    assert listener.clicks == [use("acts"), use("tick"), use("radio"), use("deepest")]


def test_rows_that_only_inform_cannot_be_clicked(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(line("informs"), line("more", children=(button("a"),)))

    host.click("informs")
    host.click("more")

    assert listener.clicks == []


def test_a_click_on_a_line_that_is_gone_is_ignored(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"), button("b"))
    stale = host.find("a")
    show(button("b"))

    host.event(stale.number, "clicked")

    assert listener.clicks == []


def test_a_left_click_does_the_default(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"), button("b", default=True))

    host.left_click()

    assert (listener.clicks, host.properties()["ItemIsMenu"]) == ([use("b")], False)


def test_a_left_click_is_for_the_menu_when_nothing_is_the_default(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"))

    host.left_click()

    assert (listener.clicks, host.properties()["ItemIsMenu"]) == ([], True)


@pytest.mark.parametrize(
    ("member", "signature", "args"),
    [("SecondaryActivate", "ii", (1, 1)), ("ContextMenu", "ii", (1, 1)), ("Scroll", "is", (1, ""))],
)
def test_other_gestures_are_taken_and_do_nothing(
    member: str,
    signature: str,
    args: tuple[object, ...],
    show: Show,
    host: TrayHost,
    listener: RecordingListener,
) -> None:
    show(button("a", default=True))

    host.ask(ITEM_PATH, SNI, member, signature, *args)

    assert listener.clicks == []


def test_a_tick_that_a_host_turned_by_itself_is_set_right(show: Show, host: TrayHost) -> None:
    show(button("server", checked=True))

    host.click("server")
    host.properties()

    ((told, gone),) = [signal.body for signal in host.heard("ItemsPropertiesUpdated")]
    assert (told, gone) == ([(host.find("server").number, {"toggle-state": ("i", 1)})], [])


def test_opening_and_closing_the_menu_is_reported(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"))

    host.open_menu()
    host.close_menu()

    assert (listener.opened_count, listener.closed_count) == (2, 1)


# --- changes ---------------------------------------------------------------------------------


def test_labels_change_while_the_menu_stands_open(show: Show, host: TrayHost) -> None:
    show(line("cpu", "CPU 6 %"), button("a"))
    host.open_menu()
    before = [each.number for each in host.menu()]

    show(line("cpu", "CPU 8 %"), button("a"))

    assert [each.number for each in host.menu()] == before
    assert host.heard("LayoutUpdated") == []
    ((told, _),) = [signal.body for signal in host.heard("ItemsPropertiesUpdated")]
    assert told == [(host.find("CPU 8 %").number, {"label": ("s", "CPU 8 %")})]


def test_a_new_model_changes_its_submenu_only(show: Show, host: TrayHost) -> None:
    more = line("more", children=(button("x"),))
    show(line("models", children=(button("a"),)), more)

    show(line("models", children=(button("a"), button("b"))), more)

    ((_, parent),) = [signal.body for signal in host.heard("LayoutUpdated")]
    assert parent == host.find("models").number


def test_five_hundred_faces_cost_one_message_each_at_most(
    show: Show, host: TrayHost, shell: SniShell
) -> None:
    show(line("cpu", "0 %"), button("a"))
    before = [each.number for each in host.menu()]

    for count in range(1, 501):
        shell.show(face(line("cpu", f"{count} %"), button("a"), title="face 1"))
    show(line("cpu", "500 %"), button("a"))

    assert [each.number for each in host.menu()] == before
    assert host.find("500 %").label == "500 %"
    assert len(host.heard("ItemsPropertiesUpdated")) <= 500
    members = {signal.member for signal in host.signals}
    assert members == {"NewTitle", "NewToolTip", "ItemsPropertiesUpdated"}


def test_two_hundred_models_in_nested_menus_are_all_there(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    models = tuple(
        line(f"m{n}", f"owner/model_{n}:Q4_K_M", children=(button(f"use {n}", checked=False),))
        for n in range(200)
    )
    show(line("models", children=models))

    host.click("models", "owner/model_137:Q4_K_M", "use 137")

    assert (len(list(host.menu())), listener.clicks) == (402, [use("use 137")])


@pytest.mark.parametrize(
    "name",
    [
        "نموذج_العربية",
        "דגם עברי",
        "模型_名前 モデル",
        "🤖 👩‍👩‍👧 🏴‍☠️",
        "ą̊́ é",
        "R&D __init__ <b>&amp;",
        "ไทย हिन्दी",
        "\u202eright to left\u202c",
    ],
)
def test_names_in_any_script_reach_the_menu(name: str, show: Show, host: TrayHost) -> None:
    show(button("m", name))

    assert host.find(name).label == name


@pytest.mark.parametrize("text", ["nul \0 inside", "lone \ud800 surrogate", "x" * 1_000_000])
def test_no_text_can_cut_the_connection(text: str, show: Show, host: TrayHost) -> None:
    show(button("m", text))
    show(button("m", text + "!"), button("other"))

    assert host.find("other").label == "other"
    assert len(host.items) == 1


def test_a_menu_far_too_deep_does_not_cut_the_connection(show: Show, host: TrayHost) -> None:
    rows: tuple[Row, ...] = (button("bottom"),)
    for level in range(40):
        rows = (line(f"level {level}", children=rows),)

    show(*rows)

    assert len(list(host.menu())) == 1 + LEVELS_AT_ONCE
    assert len(host.items) == 1


def test_many_threads_may_show_at_once(shell: SniShell, host: TrayHost, show: Show) -> None:
    show(button("a"))

    def work(number: int) -> None:
        for count in range(50):
            shell.show(face(line("a", f"{number} {count}"), title=f"{number} {count}"))
            shell.notify(Notice(f"kind {number}", "title", "text"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shell.show(face(line("the last"), title="the last"))
    while host.properties()["Title"] != "the last":
        pass  # each turn waits for an answer

    assert host.find("the last").label == "the last"
