"""Size budgets, and documents that mention everything there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import typer.main

from stoker.errors import StokerError, all_errors
from stoker.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
SOURCES = ("daemon", "tray", "service_files")
LONGEST_MODULE = 700  # lines
LONGEST_BODY = 60  # lines, without the docstring


def _modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _bodies(module: Path) -> Iterator[tuple[str, int]]:
    """Each function with the length of its body."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if ast.get_docstring(node) is not None and len(body) > 1:
                body = body[1:]
            last = body[-1].end_lineno or body[-1].lineno
            yield f"{module.relative_to(ROOT)}:{node.lineno} {node.name}", last - body[0].lineno + 1


def test_no_module_is_too_long() -> None:
    """A module is a subject that one reads in one go."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in _modules(*SOURCES, "tests")
    }

    assert len(lengths) > 20
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_function_is_too_long() -> None:
    """A function does one thing at one level."""
    lengths = dict(body for path in _modules(*SOURCES, "tests") for body in _bodies(path))

    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > LONGEST_BODY} == {}


def test_the_roots_are_not_packages() -> None:
    """`daemon` and `tray` must not hide packages of those names."""
    assert [name for name in SOURCES if (ROOT / name / "__init__.py").exists()] == []


def test_nothing_is_left_to_do_in_the_source() -> None:
    """An open point is an issue, not a comment."""
    marker = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")

    found = [path for path in _modules(*SOURCES) if marker.search(path.read_text("utf-8"))]

    assert found == []


# --- documents -------------------------------------------------------------------------------


def _doc(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _table(name: str) -> dict[str, list[str]]:
    """The rows of a document's tables whose first cell is `code`, by that code."""
    rows = {}
    for line in _doc(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) > 1:
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`"


def test_every_setting_is_documented() -> None:
    """docs/settings.md says of each setting what the program says, with the same default."""
    expected = {
        name: [
            f"`{PREFIX}{name.upper()}`",
            _shown(field.get_default(call_default_factory=True)),
            field.description,
        ]
        for name, field in Settings.model_fields.items()
    }

    assert _table("docs/settings.md") == expected


def test_every_error_code_is_documented() -> None:
    """docs/errors.md lists each code once, with a meaning and the hint's first words."""
    rows = _table("docs/errors.md")

    ours = {
        code: cls for code, cls in all_errors().items() if cls.__module__ == StokerError.__module__
    }
    assert set(rows) == set(ours)
    assert {code: rows[code][1] for code in ours} == {code: c.hint for code, c in ours.items()}


def _commands(command: Any, name: str) -> Iterator[str]:
    for child, sub in getattr(command, "commands", {}).items():
        yield from _commands(sub, f"{name} {child}")
    if not hasattr(command, "commands") and not command.hidden:
        yield name


def test_every_command_is_documented() -> None:
    """docs/cli.md mentions each command with its full name."""
    from stoker.cli import app

    names = list(_commands(typer.main.get_command(app), "stoker"))

    assert len(names) > 15
    text = _doc("docs/cli.md")
    assert [name for name in names if not re.search(rf"{name}\b", text)] == []


def test_every_control_route_is_documented() -> None:
    """docs/control-api.md mentions each route with its method."""
    from stoker.api.control import create_control_app

    app: Any = create_control_app(MagicMock())
    while not hasattr(app, "openapi"):
        app = next(part for part in vars(app).values() if callable(part))  # a layer around it
    routes = [
        f"{method.upper()} {_nameless(path)}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]

    assert len(routes) > 10
    text = _nameless(_doc("docs/control-api.md"))
    assert [route for route in routes if f"`{route}" not in text] == []


def _nameless(path: str) -> str:
    """A parameter's name is nobody's business but the code's."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_the_map_shows_every_part() -> None:
    """ARCHITECTURE.md names each module and package of the daemon at the top level."""
    text = _doc("ARCHITECTURE.md")

    parts = [
        f"`{path.name}/`" if path.is_dir() else f"`{path.name}`"
        for path in (ROOT / "daemon" / "stoker").iterdir()
        if path.suffix in {"", ".py"} and not path.name.startswith(("_", "py.typed"))
    ]

    assert len(parts) > 15
    assert [part for part in parts if part not in text] == []


def test_every_module_says_what_it_is() -> None:
    """The first line of a module is a sentence for a newcomer."""
    silent = []
    for path in _modules(*SOURCES):
        text = path.read_text(encoding="utf-8")
        if text and not (ast.get_docstring(ast.parse(text)) or "").strip():
            silent.append(str(path.relative_to(ROOT)))

    assert silent == []


def test_every_job_is_documented() -> None:
    """ARCHITECTURE.md names each scheduled job."""
    from stoker.jobs import JOBS

    text = _doc("ARCHITECTURE.md")

    assert [job.name for job in JOBS if f"`{job.name}`" not in text] == []


def test_documents_do_not_point_nowhere() -> None:
    """Every relative link leads to a file."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    link = re.compile(r"\]\((?!https?://|#)([^)#]+)")

    broken = [
        f"{path.name}: {target}"
        for path in documents
        for target in link.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]

    assert len(documents) > 5
    assert broken == []
