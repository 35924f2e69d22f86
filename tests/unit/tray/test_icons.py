from __future__ import annotations

import subprocess
import sys
from itertools import combinations, pairwise
from math import dist, hypot
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops
from PIL.IcoImagePlugin import IcoImageFile

from stoker_tray.face import PROGRESS_STEPS, Badge, IconKey, IconState
from stoker_tray.icons import Theme, image, svg
from stoker_tray.icons.coverage import coverage
from stoker_tray.icons.export import ICNS_SIZES, ICO_SIZES, PNG_SIZES
from stoker_tray.icons.outline import Box, Outline, bar, bow, disc, polygon, rectangle
from stoker_tray.icons.scene import FLAME, Grid

TRAY_SIZES = (16, 18, 22, 24, 32, 36, 48)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GROUNDS = ((Theme.LIGHT, WHITE), (Theme.DARK, BLACK))
BADGES = (None, *Badge)
STEPS = (None, 0, PROGRESS_STEPS // 2, PROGRESS_STEPS)
CLEAR = 96  # of 255: a difference in luminance that everybody sees


def luminance(key: IconKey, size: int, theme: Theme, ground: tuple[int, int, int]) -> Image.Image:
    """What is left of a picture for an eye that sees no colours."""
    seen = Image.new("RGB", (size, size), ground)
    drawn = image(key, size, theme)
    seen.paste(drawn, mask=drawn)
    return seen.convert("L")


def clearly_different(one: Image.Image, other: Image.Image) -> int:
    """In how many pixels two pictures differ so much that it is seen."""
    return sum(value >= CLEAR for value in ImageChops.difference(one, other).tobytes())


def contrast(one: float, other: float) -> float:
    """Compute the contrast ratio of WCAG 2 for two grey values of 0 to 255."""

    def light(value: float) -> float:
        part = value / 255
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


# --- told apart ------------------------------------------------------------------------------


@pytest.mark.parametrize(("theme", "ground"), GROUNDS)
@pytest.mark.parametrize(("size", "pixels"), [(16, 10), (22, 20), (32, 40)])
def test_states_are_told_apart_without_colour(
    theme: Theme, ground: tuple[int, int, int], size: int, pixels: int
) -> None:
    for badge in BADGES:
        drawn = [luminance(IconKey(s, badge), size, theme, ground) for s in IconState]
        assert min(clearly_different(*pair) for pair in combinations(drawn, 2)) >= pixels


@pytest.mark.parametrize(("theme", "ground"), GROUNDS)
@pytest.mark.parametrize("badge", BADGES)
@pytest.mark.parametrize("step", [0, PROGRESS_STEPS // 2, PROGRESS_STEPS])
def test_states_are_told_apart_beside_progress(
    theme: Theme, ground: tuple[int, int, int], badge: Badge | None, step: int
) -> None:
    drawn = [luminance(IconKey(s, badge, step), 22, theme, ground) for s in IconState]

    assert min(clearly_different(*pair) for pair in combinations(drawn, 2)) >= 8


@pytest.mark.parametrize("ground", [WHITE, (40, 40, 44)])
def test_states_of_the_application_s_icon_are_told_apart_without_colour(
    ground: tuple[int, int, int],
) -> None:
    drawn = [luminance(IconKey(s), 32, Theme.COLOUR, ground) for s in IconState]

    assert min(clearly_different(*pair) for pair in combinations(drawn, 2)) >= 20


@pytest.mark.parametrize("state", IconState)
@pytest.mark.parametrize(("size", "pixels"), [(16, 20), (22, 30)])
def test_badges_are_told_apart_and_seen(state: IconState, size: int, pixels: int) -> None:
    drawn = [luminance(IconKey(state, badge), size, Theme.DARK, BLACK) for badge in BADGES]

    assert min(clearly_different(*pair) for pair in combinations(drawn, 2)) >= pixels


@pytest.mark.parametrize("badge", BADGES)
@pytest.mark.parametrize("state", IconState)
def test_each_step_of_progress_is_seen(state: IconState, badge: Badge | None) -> None:
    """A badge hides none of them: the ring leaves out its corner."""
    steps = range(PROGRESS_STEPS + 1)
    drawn = [luminance(IconKey(state, badge, s), 22, Theme.DARK, BLACK) for s in steps]

    assert min(clearly_different(*pair) for pair in pairwise(drawn)) >= 4


# --- seen ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theme", "ground"), GROUNDS)
@pytest.mark.parametrize("size", TRAY_SIZES)
def test_glyph_stands_out_from_its_panel(
    theme: Theme, ground: tuple[int, int, int], size: int
) -> None:
    """Contrast as for text, over an area that no other program's icon falls behind."""
    for state in IconState:
        values = luminance(IconKey(state), size, theme, ground).tobytes()
        strong = sum(contrast(value, ground[0]) >= 7 for value in values)
        assert strong >= 0.15 * size * size


@pytest.mark.parametrize(("theme", "ground"), GROUNDS)
def test_what_is_only_hinted_at_can_be_seen_too(theme: Theme, ground: tuple[int, int, int]) -> None:
    track = luminance(IconKey(IconState.READY, progress=0), 48, theme, ground)

    assert contrast(track.getpixel((24, 2)), ground[0]) >= 2.5  # type: ignore[arg-type]


@pytest.mark.parametrize("size", TRAY_SIZES)
def test_grate_is_as_sharp_as_the_screen(size: int) -> None:
    """Each of its pixels is either full or empty, at every size."""
    alpha = image(IconKey(IconState.READY), size, Theme.LIGHT).getchannel("A")
    grid = Grid(size)
    below = alpha.crop((0, size - grid.margin - grid.bar - grid.gap, size, size)).tobytes()

    assert set(below) == {0, 255}
    assert below.count(255) >= grid.bar * 0.8 * size


@pytest.mark.parametrize("theme", Theme)
def test_every_key_can_be_drawn_at_every_size(theme: Theme) -> None:
    for size in (16, 22):
        for state in IconState:
            for badge in BADGES:
                for step in STEPS:
                    drawn = image.__wrapped__(IconKey(state, badge, step), size, theme)
                    assert (drawn.mode, drawn.size) == ("RGBA", (size, size))
                    assert max(drawn.getchannel("A").tobytes()) >= 200


@pytest.mark.parametrize(
    ("theme", "colour"),
    [(Theme.TEMPLATE, (0, 0, 0)), (Theme.LIGHT, (36, 36, 36)), (Theme.DARK, (242, 242, 242))],
)
def test_glyph_has_one_colour_and_alpha(theme: Theme, colour: tuple[int, int, int]) -> None:
    red, green, blue, _ = image(IconKey(IconState.BUSY, Badge.EXPOSED), 36, theme).split()

    assert tuple(channel.getextrema() for channel in (red, green, blue)) == tuple(
        (value, value) for value in colour
    )


def test_picture_is_drawn_once() -> None:
    key = IconKey(IconState.LOADING, progress=3)

    assert image(key, 22, Theme.DARK) is image(key, 22, Theme.DARK)


def test_importing_the_icons_and_drawing_one_loads_little() -> None:
    """Pillow comes with the first picture; its drawing and fonts never do."""
    program = (
        "import sys\n"
        "from stoker_tray.face import IconKey, IconState\n"
        "from stoker_tray import icons\n"
        "assert not any(name.startswith('PIL') for name in sys.modules)\n"
        "icons.image(IconKey(IconState.BUSY), 22, icons.Theme.DARK)\n"
        "assert 'PIL.Image' in sys.modules\n"
        "assert not {'PIL.ImageDraw', 'PIL.ImageFont', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- outlines --------------------------------------------------------------------------------

SIZE = 24
INSIDE = st.floats(3, SIZE - 3)


def area(outline_values: bytes) -> float:
    return sum(outline_values) / 255


@given(st.lists(st.tuples(INSIDE, INSIDE), min_size=3, max_size=3))
def test_covered_area_is_the_area_of_the_outline(corners: list[tuple[float, float]]) -> None:
    (x0, y0), (x1, y1), (x2, y2) = corners
    double = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    clockwise = corners if double > 0 else corners[::-1]

    covered = area(coverage(polygon(*clockwise), SIZE))

    assert covered == pytest.approx(abs(double) / 2, abs=0.25)  # each value is rounded to 1/255


@given(INSIDE, INSIDE, st.floats(0.5, 20), st.floats(0.5, 20))
def test_what_lies_beside_the_picture_is_cut_off(
    x: float, y: float, width: float, height: float
) -> None:
    covered = area(coverage(rectangle(Box(x, y, width, height)), SIZE))

    seen = min(width, SIZE - x) * min(height, SIZE - y)
    assert covered == pytest.approx(seen, abs=0.25)


def test_what_lies_to_the_left_or_above_is_cut_off() -> None:
    assert area(coverage(rectangle(Box(-5, -7, 9, 10)), SIZE)) == 4 * 3
    triangle = polygon((-6, 0), (6, 6), (-6, 12))
    assert area(coverage(triangle, SIZE)) == pytest.approx(18, abs=0.1)
    assert area(coverage(triangle, 4)) == pytest.approx(1, abs=0.1)


def test_half_a_pixel_is_half_covered() -> None:
    values = coverage(rectangle(Box(2.5, 1, 1, 1)), 5)

    assert list(values) == [0] * 7 + [128, 128] + [0] * 16


def test_opacity_scales_the_covered_part() -> None:
    assert set(coverage(rectangle(Box(0, 0, 4, 4)), 4, 0.4)) == {102}


def test_round_shapes_have_their_areas() -> None:
    pi = 3.14159265
    assert area(coverage(disc((12, 12), 8), SIZE)) == pytest.approx(pi * 64, rel=0.01)
    assert area(coverage(bow((12, 12), 8, 2, 0, 360), SIZE)) == pytest.approx(pi * 32, rel=0.01)
    half = pi * 16 + pi  # half a ring and two half discs at its ends
    assert area(coverage(bow((12, 12), 8, 2, 10, 190), SIZE)) == pytest.approx(half, rel=0.01)
    stroke = hypot(10, 6) * 3 + pi * 1.5**2
    assert area(coverage(bar((5, 8), (15, 14), 3), SIZE)) == pytest.approx(stroke, rel=0.01)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_inset_keeps_what_is_this_far_inside(width: float) -> None:
    """Also at the two tips, where the edge inside runs backwards."""
    flame = FLAME.within(Box(2, 2, 17, 20))
    whole, inside = coverage(flame, SIZE), coverage(flame.inset(width), SIZE)
    edge = flame.points(100)

    for number, (outer, inner) in enumerate(zip(whole, inside, strict=True)):
        centre = (number % SIZE + 0.5, number // SIZE + 0.5)
        depth = min(dist(centre, point) for point in edge) if outer else 0.0
        assert inner <= 8 or depth > width - 0.75  # half a pixel's diagonal, and a little
        assert inner == 255 or outer < 255 or depth < width + 0.75


def test_below_keeps_what_lies_below() -> None:
    flame = FLAME.within(Box(2, 2, 16, 20))
    values, whole = coverage(flame.below(12), SIZE), coverage(polygon(*flame.points()), SIZE)

    assert values == bytes(12 * SIZE) + whole[12 * SIZE :]


# --- files -----------------------------------------------------------------------------------

MARK = IconKey(IconState.READY)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    command = [sys.executable, "-m", "stoker_tray.icons", str(folder)]
    done = subprocess.run(command, check=True, timeout=110, capture_output=True, text=True)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    assert done.stdout.splitlines() == [str(path) for path in written]
    return folder


@pytest.mark.parametrize("size", PNG_SIZES)
def test_icon_theme_has_each_size(exported: Path, size: int) -> None:
    with Image.open(exported / f"hicolor/{size}x{size}/apps/stoker.png") as found:
        assert found.convert("RGBA").tobytes() == image(MARK, size, Theme.COLOUR).tobytes()


def test_windows_icon_holds_each_size_as_it_was_drawn(exported: Path) -> None:
    with IcoImageFile(exported / "stoker.ico") as found:
        assert sorted(found.info["sizes"]) == [(size, size) for size in ICO_SIZES]
        for size in ICO_SIZES:
            found.size = (size, size)
            drawn = found.copy()
            assert drawn.tobytes() == image(MARK, size, Theme.COLOUR).tobytes()


def test_macos_icon_holds_each_size(exported: Path) -> None:
    with Image.open(exported / "stoker.icns") as found:
        sizes = {width * scale for width, _height, scale in found.info["sizes"]}

    assert sizes == set(ICNS_SIZES)


def test_symbolic_icon_is_plain_paths_of_one_colour(exported: Path) -> None:
    """A desktop recolours nothing else."""
    root = read_svg((exported / "hicolor/symbolic/apps/stoker-symbolic.svg").read_text())
    drawn = [part for part in root if not part.tag.endswith("title")]

    assert {part.tag for part in drawn} == {"{http://www.w3.org/2000/svg}path"}
    assert {part.get("fill") for part in drawn} == {"#bebebe"}
    assert root.get("viewBox") == "0 0 16 16"


def read_svg(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - our own file


def test_scalable_icon_has_the_outlines_of_the_pictures(exported: Path) -> None:
    root = read_svg((exported / "hicolor/scalable/apps/stoker.svg").read_text())
    ground, *mark = [part for part in root.iter() if part.get("d")]
    floor = _outline(ground.get("d", "")).points()

    assert (min(floor), max(floor)) == ((0, 51.2), (128, 115.2))
    assert [part.get("fill") for part in (ground, *mark)] == [
        "#2e2622",
        "#e4dad0",
        "#ff7a1a",
        "#ffd46b",
    ]


def test_svg_draws_what_the_picture_shows() -> None:
    """Its outlines, read back from the text, cover the same pixels."""
    root = read_svg(svg.symbolic())
    paths = [part.get("d", "") for part in root if part.get("d")]
    covered = [coverage(_outline(path), 16) for path in paths]

    alpha = image(MARK, 16, Theme.LIGHT).getchannel("A").tobytes()
    assert all(abs(max(values) - seen) <= 1 for *values, seen in zip(*covered, alpha, strict=True))


def _outline(path: str) -> Outline:
    assert path.startswith("M")
    assert path.endswith("Z")
    start, *segments = path[1:-1].replace("L", "C").split("C")
    return Outline(_points(start)[0], tuple(_points(segment) for segment in segments))


def _points(text: str) -> tuple[tuple[float, float], ...]:
    numbers = [float(n) for n in text.split()]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def test_contact_sheet_shows_all(exported: Path) -> None:
    with Image.open(exported / "contact-sheet.png") as found:
        assert found.width > 1000
        assert found.height > 1000
