"""`config show`, `config set` and `config check`: the settings file, edited with care."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stoker import errors, paths
from stoker.cli.output import clean, clean_line, note, print_json, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")
_SECRET: Final = "key"  # noqa: S105  # its name
_HIDDEN: Final = "(hidden)"
# Settings that are tables: one line cannot hold them, so they are written by hand.
_TABLES: Final = {
    "models": """\
[models."starter"]           # a name of `stoker list`
keep_alive_s = 3600          # unload it after an idle hour; -1 never
priority = 5                 # its requests go before those of others; -10 to 10""",
    "upstreams": """\
[[upstreams]]
name = "gpu-box"             # its models are listed as gpu-box/MODEL
base_url = "https://gpu-box.example/v1"
key_file = "~/.config/gpu-box.key"   # if it asks for one""",
}
_MORE: Final = {"models": "settings.md", "upstreams": "upstreams.md"}


def register(app: typer.Typer) -> None:
    config = typer.Typer(
        help="Show, change and check the settings.", no_args_is_help=True, rich_markup_mode=None
    )
    for name, command in (("show", show), ("set", set_value), ("check", check)):
        config.command(name)(command)
    app.add_typer(config, name="config")


def show(
    key: str | None = typer.Argument(None, help="One setting; all when left out."),
    as_json: bool = _JSON,
) -> None:
    """Show the settings: value, where it comes from, what it means."""
    rows = _rows(paths.from_environment().config_file, os.environ)
    if key is not None:
        _field(key)
        rows = [row for row in rows if row["key"] == key]
    if as_json:
        print_json(rows)
        return
    if key in _TABLES and rows[0]["value"]:
        print(clean(_toml(key, rows[0]["value"])))
        return
    headers = ("SETTING", "VALUE", "FROM", "MEANING")
    shown = [(row["key"], _text(row["value"]), row["source"], row["description"]) for row in rows]
    print(table(headers, shown))


def _rows(file: Path, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    from stoker import settings

    loaded = settings.load(file, environ).model_dump(mode="json")
    written = settings.read_file(file)
    overridden = {name.upper() for name in environ}
    rows = []
    for key, field in settings.Settings.model_fields.items():
        source = "file" if key in written else "default"
        if f"{settings.PREFIX}{key}".upper() in overridden:
            source = "environment"
        rows.append(
            {
                "key": key,
                "value": _without_secrets(loaded[key]),
                "source": source,
                "default": field.get_default(call_default_factory=True),
                "description": field.description,
            }
        )
    return rows


def _text(value: object) -> str:
    """A value as `config set` takes it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(value) or "(empty)"
    if isinstance(value, list | tuple):
        entries = (one["name"] if isinstance(one, dict) else str(one) for one in value)
        return ",".join(entries) or "(empty)"
    return str(value)


def _without_secrets(value: Any) -> Any:
    """The same, with each key replaced; what is printed may be copied into a question."""
    if isinstance(value, list):
        return [_without_secrets(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    shown = {name: _without_secrets(entry) for name, entry in value.items()}
    if isinstance(shown.get(_SECRET), str):
        shown[_SECRET] = _HIDDEN
    return shown


def _toml(key: str, value: Any) -> str:
    """A setting that is a table, or several, as it would stand in the file."""
    import tomlkit

    document = tomlkit.document()
    document[key] = _written(value)
    return tomlkit.dumps(document).strip()


def _written(value: Any) -> Any:
    """Without what is unset or empty, which TOML cannot say or nobody would write."""
    if isinstance(value, list):
        return [_written(entry) for entry in value]
    if isinstance(value, dict):
        return {k: _written(v) for k, v in value.items() if v is not None and v != []}
    return value


def check(as_json: bool = _JSON) -> None:
    """Check the settings file and the environment."""
    from stoker import settings

    file = paths.from_environment().config_file
    settings.load(file)
    if as_json:
        print_json({"ok": True, "file": str(file), "exists": file.exists()})
    else:
        print(f"{file} is sound." if file.exists() else f"No {file}: the defaults are used.")


def set_value(
    key: str = typer.Argument(help="A setting of `stoker config show`."),
    value: str | None = typer.Argument(None, help="Its new value; a list is written a,b,c."),
    unset: bool = typer.Option(False, "--unset", help="Go back to the default."),
) -> None:
    """Change one setting in config.toml; comments and the rest stay as they are."""
    if (value is None) != unset:
        msg = "give a value, or --unset to go back to the default"
        raise errors.BadUsage(msg, hint=f"For example: stoker config set {clean_line(key)} VALUE")
    file = paths.from_environment().config_file
    _refuse_table(key, file, whole=unset)
    write(file, key, None if value is None else parse(key, _field(key), value))
    print(f"{key} is back to its default." if unset else f"{key} = {value}")
    if f"STOKER_{key}".upper() in {name.upper() for name in os.environ}:
        note(f"The environment variable STOKER_{key.upper()} is set and wins over the file.")
    if _daemon_runs():
        note("The running daemon still uses the old value: `stoker restart`.")


def _refuse_table(key: str, file: Path, *, whole: bool) -> None:
    """Raises BadUsage for a table, which `whole` lets pass, and for a part of one."""
    name = re.split(r"[.\[]", key, maxsplit=1)[0]
    if name not in _TABLES or (whole and key == name):
        return
    print(f"{_TABLES[name]}\n", file=sys.stderr)
    msg = f"{name} holds tables, which one value cannot say"
    hint = f"Write lines such as those above into {file}; see docs/{_MORE[name]}."
    raise errors.BadUsage(msg, hint=hint)


def _field(key: str) -> FieldInfo:
    """Raises BadSetting that names the nearest key."""
    from difflib import get_close_matches

    from stoker import settings

    fields = settings.Settings.model_fields
    if key not in fields:
        near = get_close_matches(key, fields, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        msg = f"unknown setting {key[:60]!r}"
        raise errors.BadSetting(msg, hint=f"{hint}See the settings with `stoker config show`.")
    return fields[key]


def parse(key: str, field: FieldInfo, text: str) -> Any:
    """The value of a setting from what was typed. Raises BadSetting."""
    from pydantic import TypeAdapter, ValidationError

    raw: Any = text
    if isinstance(field.default, tuple):
        raw = [part.strip() for part in text.split(",") if part.strip()]
    try:
        value = TypeAdapter[Any](_kind(field)).validate_python(raw)
    except ValidationError as error:
        msg = f"{key}: {error.errors()[0]['msg']} (got {text!r:.80})"
        raise errors.BadSetting(msg, hint=f"{key}: {field.description}") from error
    return list(value) if isinstance(value, tuple) else value


def _kind(field: FieldInfo) -> Any:
    """The field's type with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def write(file: Path, key: str, value: Any) -> None:
    """Set one key, or remove it with None; the new file is checked before it replaces the old.

    On return it is whole on disk; on an error the old file is untouched. Raises BadSetting.
    """
    import tomlkit
    import tomlkit.exceptions

    from stoker import settings

    target = file.resolve()  # a link to a file in a dotfiles folder stays a link
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = target.read_text(encoding="utf-8") if target.exists() else ""
    try:
        document = tomlkit.parse(before)
    except tomlkit.exceptions.ParseError as error:
        msg = f"cannot read {target}: {error}"
        raise errors.BadSetting(msg, hint="Correct the file, then set it again.") from error
    if value is None:
        if document.pop(key, None) is None:
            _field(key)  # a stale key can be removed, a misspelt one is told
    else:
        document[key] = value
    handle, name = tempfile.mkstemp(prefix=".config-", suffix=".toml", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(tomlkit.dumps(document))
            stream.flush()
            os.fsync(stream.fileno())
        settings.load(draft)
        draft.replace(target)
    except errors.BadSetting as error:
        error.message = error.message.replace(name, str(target))
        raise
    finally:
        draft.unlink(missing_ok=True)


def _daemon_runs() -> bool:
    from stoker.cli import process

    with contextlib.suppress(errors.StokerError):
        return process.running() is not None
    return False
