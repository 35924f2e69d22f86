"""The tray as a person uses it: real panels on a virtual screen, a mouse, the real daemon.

Pictures of every step are kept in $STOKER_TEST_ARTEFACTS, or in the test's own folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image

from stoker import __version__
from stoker.schemas import (
    DaemonView,
    ErrorView,
    ModelView,
    PullView,
    ResourcesView,
    ServerView,
    StatusView,
)
from stoker.types import ModelState, PullState
from tests.fakes.daemon import Daemon
from tests.fakes.desktop import STALL_S, Desktop
from tests.fakes.desktop_control import ScriptedControl
from tests.fakes.desktop_panels import LXQT, SCREEN, WAYBAR, XFCE, XFCE_LIGHT, Panel
from tests.fakes.desktop_pictures import appeared, changed, middle
from tests.fakes.desktop_programs import wait_until
from tests.fakes.desktop_session import artefact_folder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

SWITCH_S = 60.0  # a load on a busy two-core machine
UNITS = {"MB": 1e6, "GB": 1e9}


@pytest.fixture(params=[XFCE, WAYBAR, LXQT], ids=lambda panel: panel.name)
def desktop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desktop]:
    """A screen with a panel: two on X11, by GTK and by Qt, and one on Wayland."""
    panel: Panel = request.param
    if panel.missing():
        problem = f"THE TRAY WAS NOT TRIED IN {panel.name}: needs {', '.join(panel.missing())}"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    artefacts = artefact_folder(tmp_path / "artefacts") / request.node.originalname
    print(f"pictures: {artefacts}")  # noqa: T201  # where to look when it fails
    with Desktop(panel, artefacts) as desktop:
        yield desktop


@pytest.fixture
def tray(desktop: Desktop, daemon: Daemon, starter_gguf: Path) -> psutil.Process:
    """The real tray in the panel, connected to a daemon with two models, one of them ready."""
    daemon.add(starter_gguf, "second")
    with daemon.client() as client:
        client.load("starter")
    process = desktop.start_tray(daemon.home)
    wait_for_row(desktop, "starter — ready")
    wait_for_row(desktop, "Start at login")  # the whole menu is there before anybody opens it
    return process


def wait_for_row(desktop: Desktop, beginning: str) -> str:
    """The whole text of the row that begins like this, once the tray publishes it."""

    def look() -> str | None:
        if not desktop.published.items():
            return None
        texts = desktop.published.menu().texts()
        return next((text for text in texts if text.startswith(beginning)), None)

    return desktop.programs.wait_until(look, f"a row that begins with {beginning!r}")


def wait_for_model(daemon: Daemon, name: str, state: ModelState) -> None:
    wait_until(lambda: daemon.model(name).state is state, f"{name} {state}", SWITCH_S)


def can_connect(base_url: str) -> bool:
    url = urlsplit(base_url)
    try:
        socket.create_connection((str(url.hostname), int(url.port or 80)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def looks_different(one: Image.Image, other: Image.Image) -> bool:
    return one.size != other.size or changed(one, other) is not None


def ticks(desktop: Desktop) -> dict[str, bool]:
    """Which entries have a tick; models by their names."""
    entries = desktop.published.menu().walk()
    return {entry.text.split(" — ")[0]: entry.checked for entry in entries if entry.toggle}


def figures_in(row: str) -> tuple[float, float, float]:
    """The bytes in ``Model 911 MB · Memory 1.9 of 25.3 GB``."""
    found = re.fullmatch(
        r"Model ([\d.]+) (MB|GB) · Memory ([\d.]+) ?(MB|GB)? of ([\d.]+) (MB|GB)", row
    )
    assert found is not None, row
    model, model_unit, used, used_unit, whole, whole_unit = found.groups()
    return (
        float(model) * UNITS[model_unit],
        float(used) * UNITS[used_unit or whole_unit],
        float(whole) * UNITS[whole_unit],
    )


def wait_for_another_icon(desktop: Desktop, before: Image.Image) -> Image.Image:
    """The icon, once it looks different."""

    def look() -> Image.Image | None:
        now = desktop.icon()
        return now if looks_different(before, now) else None

    return desktop.programs.wait_until(look, "another icon")


def test_the_icon_appears_and_its_shape_tells_the_state(
    desktop: Desktop, daemon: Daemon, tray: psutil.Process
) -> None:
    """In the empty panel an icon appears; it looks different ready, idle and without a daemon."""
    ready = desktop.icon(STALL_S)  # not the one from before it was ready
    desktop.picture("ready")

    assert daemon.cli("unload", "starter").returncode == 0
    idle = wait_for_another_icon(desktop, ready)
    desktop.picture("idle")
    daemon.stop()
    off = wait_for_another_icon(desktop, idle)
    desktop.picture("off")

    assert looks_different(ready, off)


def test_clicking_a_model_switches_the_daemon_to_it(
    desktop: Desktop, daemon: Daemon, tray: psutil.Process
) -> None:
    """Two clicks in the menu: the other model is ready, the first one gone, the tick has moved."""
    desktop.choose("Models", "second", picture="models")

    wait_for_model(daemon, "second", ModelState.READY)
    wait_for_model(daemon, "starter", ModelState.UNLOADED)
    wait_for_row(desktop, "second — ready")
    # A model that drains is still marked, until the next face.
    wait_until(lambda: not ticks(desktop)["starter"], "one tick")
    desktop.open_menu()
    desktop.picture("switched")
    assert ticks(desktop)["second"]
    assert not ticks(desktop)["starter"]


def test_clicking_the_server_item_closes_the_port_and_opens_it_again(
    desktop: Desktop, daemon: Daemon, tray: psutil.Process
) -> None:
    """Off: connect is refused, while the daemon lives on; on: the same address answers again."""
    base_url = daemon.base_url
    assert can_connect(base_url)

    desktop.choose("Serve", picture="on")

    wait_until(lambda: not can_connect(base_url), "a closed port")
    wait_for_row(desktop, "Server is off")
    assert not daemon.status().server.enabled
    desktop.choose("Serve", picture="off")
    wait_until(lambda: can_connect(base_url), "an open port")
    wait_for_model(daemon, "starter", ModelState.READY)
    assert daemon.base_url == base_url


def test_the_memory_line_is_the_workers_real_memory(
    desktop: Desktop, daemon: Daemon, tray: psutil.Process
) -> None:
    """What the menu says while it is open is what the system says of the worker's process."""
    worker = psutil.Process(daemon.model("starter").pid)
    desktop.open_menu()
    desktop.picture("resources")

    def is_true() -> bool:
        model, used, whole = figures_in(wait_for_row(desktop, "Model "))
        machine = psutil.virtual_memory()
        return (
            math.isclose(model, worker.memory_info().rss, rel_tol=0.02)
            and math.isclose(used, machine.total - machine.available, rel_tol=0.1)
            and math.isclose(whole, machine.total, rel_tol=0.01)
        )

    desktop.programs.wait_until(is_true, "true figures in the menu")


@pytest.mark.parametrize("desktop", [XFCE, WAYBAR], indirect=True, ids=lambda panel: panel.name)
def test_a_left_click_opens_the_menu(desktop: Desktop, tray: psutil.Process) -> None:
    """It changes nothing by a slip of the hand. (LXQt does nothing at all with it.)"""
    before = desktop.published.menu()

    box = desktop.open_menu(button=1)

    desktop.picture("left-click")
    assert box[3] - box[1] > 20 * len(before.selectable)  # as high as its rows


def test_the_icon_comes_back_when_the_panel_was_restarted(
    desktop: Desktop, daemon: Daemon, tray: psutil.Process
) -> None:
    """The panel crashes; the next one shows the icon, and its menu works."""
    desktop.restart_panel()

    wait_until(desktop.published.items, "the icon in the new panel")
    desktop.choose("Models", "None")
    wait_for_model(daemon, "starter", ModelState.UNLOADED)
    assert tray.is_running()


# --- pictures of what rarely happens: a scripted daemon ---------------------------------------


def status(*models: ModelView, **changes: object) -> StatusView:
    return StatusView(
        daemon=DaemonView(version=__version__, pid=1, uptime_s=5.0, home="/nowhere"),
        server=ServerView(enabled=True, base_url="http://127.0.0.1:4328/v1"),
        models=models,
        resources=ResourcesView(cpu_percent=8, ram_used_bytes=5 * 10**9, ram_total_bytes=10**10),
    ).model_copy(update=changes)


@pytest.fixture
def control(desktop: Desktop) -> Iterator[ScriptedControl]:
    """A scripted daemon with the tray connected to it."""
    with ScriptedControl(desktop.folder / "stoker", status()) as control:
        desktop.start_tray(desktop.folder / "stoker")
        wait_for_row(desktop, "No model loaded")
        wait_for_row(desktop, "Start at login")
        yield control
        desktop.programs.end("tray")


def test_any_of_200_models_is_four_clicks_away(desktop: Desktop, control: ScriptedControl) -> None:
    """Every level of the menu fits on the screen, and the click names the right model."""
    names = [f"org/model-{n:03}-GGUF:Q4_K_M" for n in range(200)]
    stored = (ModelView(id=name, state=ModelState.UNLOADED) for name in names)
    control.become(status(*stored))
    wait_for_row(desktop, "More")

    desktop.choose("Models", "More", "org/model-112", "org/model-120", picture="many")

    wait_until(lambda: control.asked_for("/use"), "a click that reaches the daemon")
    (use,) = [asked for asked in control.asked if asked.target == "/use"]
    assert json.loads(use.body) == {"model": "org/model-120-GGUF:Q4_K_M"}


def test_all_that_can_happen_at_once_is_told(desktop: Desktop, control: ScriptedControl) -> None:
    """A load, a download, a failed one, a problem and an open network: rows, icon and tooltip."""
    before = desktop.icon()
    loading = ModelView(id="qwen3-4b", state=ModelState.LOADING, load_s=3000)
    fetching = PullView(
        id="p1", reference="a/big", model="big", state=PullState.FETCHING,
        bytes_done=370_000_000, bytes_total=10**9, bytes_per_s=9e6, eta_s=65,
    )  # fmt: skip
    full = ErrorView(code="disk_full", message="the disk is full", hint="Free 3 GB.")
    failed = PullView(id="p2", reference="b/c", model="c", state=PullState.FAILED, error=full)
    exposed = ServerView(enabled=True, base_url="http://127.0.0.1:4328/v1", lan=True)
    problems = ("starter is damaged and is not served; pull it again to repair it",)
    control.become(status(loading, pulls=(fetching, failed), server=exposed, problems=problems))

    wait_for_row(desktop, "qwen3-4b — loading")
    wait_for_row(desktop, "big — 37 % of 1.0 GB, 1 min left")
    wait_for_row(desktop, "c — failed: the disk is full")
    wait_for_row(desktop, "1 problem")
    wait_for_another_icon(desktop, before)
    desktop.picture("icon")
    box = desktop.open_menu()
    desktop.picture("menu")
    assert box[3] - box[1] < SCREEN[1] * 0.8
    desktop.close_menu()
    icon = desktop.icon_box()
    bare = desktop.settled()
    desktop.point(*middle(icon))
    wait_until(lambda: appeared(bare, desktop.look(), icon), "a tooltip")
    desktop.settled()
    desktop.picture("tooltip")


@pytest.mark.parametrize("desktop", [XFCE_LIGHT], indirect=True, ids=lambda panel: panel.name)
def test_the_icon_can_be_seen_on_a_light_panel(desktop: Desktop, control: ScriptedControl) -> None:
    """Where nothing tells how light the panel is, the icon has enough contrast all the same."""
    icon = desktop.icon()

    desktop.picture("light")
    assert icon.width > 12
    assert icon.height > 12
