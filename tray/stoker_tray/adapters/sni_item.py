"""The icon on the bus: org.kde.StatusNotifierItem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from stoker_tray.adapters.dbus_object import Interface, Method, Property
from stoker_tray.face import IconKey, IconState
from stoker_tray.icons import Theme

if TYPE_CHECKING:
    from PIL.Image import Image

SNI: Final = "org.kde.StatusNotifierItem"
ID: Final = "stoker"
_PIXMAPS = "a(iiay)"

SIZES = (22, 24, 32, 48, 64)  # panels of 1x and 2x; a host takes the nearest
_EDGE: Final = 0.6  # opacity: seen on white, and no border on black
_TOOLTIP_SIZE = 48
_NOTICE_SIZE = 64
_APPLICATION = IconKey(IconState.READY)  # the application's own face, in full colour

# Some hosts read a tooltip as markup and show nothing when it is broken, others show it as it is.
_NO_MARKUP = str.maketrans({"&": "＆", "<": "‹", ">": "›"})  # noqa: RUF001  # on purpose alike

Draw = Callable[[IconKey, int, Theme], "Image"]
Pixmap = tuple[int, int, bytes]


# --- pictures --------------------------------------------------------------------------------


def panel_theme(color_scheme: int, desktop: str) -> Theme:
    """What the panel's ground is, from the portal's setting and XDG_CURRENT_DESKTOP.

    Panels are mostly dark: only who asks for light has a light one, and GNOME's is dark even then.
    """
    is_light = color_scheme == 2 and "GNOME" not in desktop.upper().split(":")  # noqa: PLR2004  # the portal's number
    return Theme.LIGHT if is_light else Theme.DARK


def _edged(draw: Draw, key: IconKey, size: int) -> Image:
    """The light glyph with a dark edge around it, for a ground that may be light after all.

    Where no portal says how light the panel is, dark is a guess; the edge cannot be seen there.
    """
    from PIL import Image, ImageFilter

    margin = size // SIZES[0]
    glyph = draw(key, size - 2 * margin, Theme.DARK).convert("RGBA")
    shape = Image.new("L", (size, size))
    shape.paste(glyph.getchannel("A"), (margin, margin))
    wide = shape.filter(ImageFilter.MaxFilter(2 * margin + 1))
    picture = Image.new("RGBA", (size, size))
    picture.putalpha(wide.point([int(value * _EDGE) for value in range(256)]))
    picture.alpha_composite(glyph, (margin, margin))
    return picture


def _pixmap(image: Image) -> Pixmap:
    """ARGB32 in network byte order, from any picture."""
    rgba = image.convert("RGBA").tobytes()
    argb = bytearray(len(rgba))
    for to, source in enumerate((3, 0, 1, 2)):
        argb[to::4] = rgba[source::4]
    return image.width, image.height, bytes(argb)


class Pictures:
    """The icon's pixels, drawn when a host asks for them."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.of = lru_cache(maxsize=16)(self._of)  # about 35 kB each

    def _of(self, key: IconKey, theme: Theme) -> list[Pixmap]:
        if theme is Theme.DARK:
            return [_pixmap(_edged(self._draw, key, size)) for size in SIZES]
        return [_pixmap(self._draw(key, size, theme)) for size in SIZES]

    def tooltip(self) -> list[Pixmap]:
        return [_pixmap(self._draw(_APPLICATION, _TOOLTIP_SIZE, Theme.COLOUR))]

    def notice(self) -> tuple[str, Any]:
        """The picture of a notification, as the value of its hint `image-data`."""
        image = self._draw(_APPLICATION, _NOTICE_SIZE, Theme.COLOUR).convert("RGBA")
        bits, channels = 8, 4
        return "(iiibiiay)", (
            *(image.width, image.height, image.width * channels),
            *(True, bits, channels, image.tobytes()),
        )


# --- the interface ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ItemSource:
    """Where the item's values come from when a host asks."""

    title: Callable[[], str]
    pixmaps: Callable[[], list[Pixmap]]
    tooltip_pixmaps: Callable[[], list[Pixmap]]
    is_menu: Callable[[], bool]  # a left click has nothing to do but open it
    activate: Callable[[], None]


def item_interface(menu_path: str, source: ItemSource) -> Interface:
    """The D-Bus face of the icon.

    The status stays Active: some hosts hide a Passive item, and what needs attention is drawn.
    """

    def tooltip() -> tuple[str, list[Pixmap], str, str]:
        return "", source.tooltip_pixmaps(), source.title().translate(_NO_MARKUP), ""

    def activate(_x: int, _y: int) -> tuple[()]:
        source.activate()
        return ()

    def ignore(*_args: object) -> tuple[()]:
        return ()

    def text(value: str) -> Property:
        return Property("s", lambda: value)

    return Interface(
        SNI,
        properties={
            "Category": text("ApplicationStatus"),
            "Id": text(ID),
            "Title": Property("s", source.title),
            "Status": text("Active"),
            "WindowId": Property("i", lambda: 0),
            "IconName": text(""),
            "IconThemePath": text(""),
            "IconPixmap": Property(_PIXMAPS, source.pixmaps),
            "OverlayIconName": text(""),
            "OverlayIconPixmap": Property(_PIXMAPS, list),
            "AttentionIconName": text(""),
            "AttentionIconPixmap": Property(_PIXMAPS, list),
            "AttentionMovieName": text(""),
            "ToolTip": Property(f"(s{_PIXMAPS}ss)", tooltip),
            "ItemIsMenu": Property("b", source.is_menu),
            "Menu": Property("o", lambda: menu_path),
        },
        methods={
            "Activate": Method("ii", "", activate),
            "SecondaryActivate": Method("ii", "", ignore),
            "ContextMenu": Method("ii", "", ignore),  # the host shows the menu itself
            "Scroll": Method("is", "", ignore),
        },
        signals={
            "NewTitle": "",
            "NewIcon": "",
            "NewAttentionIcon": "",
            "NewOverlayIcon": "",
            "NewToolTip": "",
            "NewStatus": "s",
        },
    )
