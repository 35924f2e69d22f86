"""The panels that the tray is shown in, and what each needs around it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from Xlib import X
from Xlib.display import Display

from tests.fakes.desktop_programs import Programs, listens

SCREEN = (1200, 800)
_PANEL_PX = 32
_NOBODY = 65534

_XFCE_PANEL = """<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="dark-mode" type="bool" value="{dark}"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=10;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="size" type="uint" value="32"/>
      <property name="plugin-ids" type="array">
        <value type="int" value="1"/>
        <value type="int" value="2"/>
      </property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="separator">
      <property name="expand" type="bool" value="true"/>
      <property name="style" type="uint" value="0"/>
    </property>
    <property name="plugin-2" type="string" value="systray"/>
  </property>
</channel>
"""
_LXQT_PANEL = """[General]
panels=panel1
[panel1]
alignment=-1
desktop=0
iconSize=22
panelSize=32
plugins=statusnotifier
position=Top
width=100
width-percent=true
[statusnotifier]
type=statusnotifier
"""
_SWAY = """output * resolution {0}x{1} position 0 0
output * background #000000 solid_color
default_border none
"""
_WAYBAR = {
    "layer": "top",
    "position": "top",
    "height": _PANEL_PX,
    "modules-right": ["tray"],
    "tray": {"icon-size": 22},
}
_WAYBAR_STYLE = """* { font-family: sans-serif; font-size: 13px; }
window#waybar { background: #2b303b; }
"""  # as dark as its own style

Start = Callable[[Programs, Path], None]


@dataclass(frozen=True, slots=True)
class Panel:
    """A kind of panel; the programs `needs` must be installed."""

    name: str
    needs: tuple[str, ...]
    surround: Start  # starts what the panel runs in, in a folder
    run: Start
    is_black: bool = False  # as the screen, mostly: without an icon it cannot be seen

    def missing(self) -> tuple[str, ...]:
        """The programs that are not installed here."""
        needs = ("Xvfb", "xdotool", "dbus-daemon", *self.needs)
        return tuple(program for program in needs if shutil.which(program) is None)


def _openbox(programs: Programs, folder: Path) -> None:
    programs.start("wm", "openbox")
    with closing(Display(programs.environ["DISPLAY"])) as display:
        sign = display.get_atom("_NET_SUPPORTING_WM_CHECK")

        def look() -> bool:
            return display.screen().root.get_full_property(sign, X.AnyPropertyType) is not None

        programs.wait_until(look, "a window manager")  # a panel that comes before it stays hidden


def _xfce(programs: Programs, folder: Path, *, dark: bool = True) -> None:
    channels = folder / "home/.config/xfce4/xfconf/xfce-perchannel-xml"
    if not channels.exists():
        channels.mkdir(parents=True)
        (channels / "xfce4-panel.xml").write_text(_XFCE_PANEL.format(dark=str(dark).lower()))
    programs.start("panel", "xfce4-panel", "--disable-wm-check")


def _lxqt(programs: Programs, folder: Path) -> None:
    config = folder / "panel.conf"
    config.write_text(_LXQT_PANEL)
    programs.start("panel", "lxqt-panel", "-c", str(config))


def _sway(programs: Programs, folder: Path) -> None:
    """Nested in the X server, so that xdotool can drive it. It refuses to run as root."""
    home = folder / "sway"
    home.mkdir(mode=0o700)
    config = home / "config"
    config.write_text(_SWAY.format(*SCREEN))
    user = _NOBODY if os.geteuid() == 0 else None
    if user is not None:
        os.chown(home, user, user)
    programs.start(
        "wm",
        *("sway", "-c", str(config)),
        user=user,
        XDG_RUNTIME_DIR=str(home),
        WLR_BACKENDS="x11",
        WLR_RENDERER="pixman",
        LIBSEAT_BACKEND="noop",
    )
    programs.wait_until(lambda: listens(_wayland(folder)), "a compositor")


def _waybar(programs: Programs, folder: Path) -> None:
    config = folder / "waybar.json"
    config.write_text(json.dumps(_WAYBAR))
    style = folder / "waybar.css"
    style.write_text(_WAYBAR_STYLE)
    programs.start(
        "panel",
        *("waybar", "-c", str(config), "-s", str(style)),
        WAYLAND_DISPLAY=str(_wayland(folder)),
        GDK_BACKEND="wayland",
    )


def _wayland(folder: Path) -> Path:
    return folder / "sway/wayland-1"  # the first name that a compositor tries


XFCE = Panel("xfce", ("openbox", "xfce4-panel"), _openbox, _xfce)
XFCE_LIGHT = Panel("xfce-light", XFCE.needs, _openbox, partial(_xfce, dark=False))
WAYBAR = Panel("waybar", ("sway", "waybar"), _sway, _waybar)
LXQT = Panel("lxqt", ("openbox", "lxqt-panel"), _openbox, _lxqt, is_black=True)
