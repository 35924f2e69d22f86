"""The file `runtime_catalogue.toml`: what the runtimes are made from. Data and a strict parser."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stoker.errors import InternalError

_FILE: Final = "runtime_catalogue.toml"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+!]{0,63}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tool(_Table):
    """A package that builds; any of the digests is good, they are of different platforms."""

    package: Name
    version: Version
    sha256: Annotated[tuple[Sha256, ...], Field(min_length=1)]

    @property
    def requirement(self) -> str:
        """One line of a requirements file that pip checks hashes by."""
        hashes = " ".join(f"--hash=sha256:{value}" for value in self.sha256)
        return f"{self.package}=={self.version} {hashes}"


class Native(_Table):
    """The engine that is compiled here."""

    package: Name
    version: Version
    sdist_sha256: Sha256
    sdist_bytes: Annotated[int, Field(gt=0)]
    tools: tuple[Tool, ...]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version} --hash=sha256:{self.sdist_sha256}"


class Wheels(_Table):
    """The engines that come compiled, for graphics processors."""

    package: Name
    version: Version
    index: Annotated[str, Field(pattern=r"^https?://")]
    most_bytes: Annotated[int, Field(gt=0)]
    variants: dict[Literal["cuda", "rocm", "vulkan"], tuple[Name, ...]]


class Pins(_Table):
    format: Literal[1]
    native: Native
    wheels: Wheels


@lru_cache(maxsize=1)
def pins() -> Pins:
    """The packaged file's content."""
    return parse(resources.files("stoker.runtimes").joinpath(_FILE).read_text("utf-8"))


def parse(text: str) -> Pins:
    """Raises InternalError: the file is part of Stoker."""
    try:
        return Pins.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InternalError(f"{_FILE}: {error}") from error
