"""Configuration in one place: `steer.toml`, and the environment over it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig
from steer_llm_sdk.reliability.stores import open_store
from steer_llm_sdk.reliability.stores._url import shown

FILE = "steer.toml"
VARIABLE = "STEER_CONFIG"
"""The environment variable that names another file."""
_PREFIX = "STEER_"


class Settings(BaseSettings):
    """`store` is a URL, see `open_store`. `model` answers where none is named. `options` are those of a run that sets
    none of its own; `reliability` is the orchestrator's.

    Each can be set in the environment: STEER_STORE, STEER_MODEL, STEER_RELIABILITY__RETRY_POLICY__MAX_ATTEMPTS=5.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    store: str | None = None
    model: str | None = None
    options: OrchestrationConfig = Field(default_factory=OrchestrationConfig)
    reliability: ReliabilityConfig = Field(default_factory=ReliabilityConfig)

    @field_validator("store")
    @classmethod
    def _check_store(cls, url: str | None) -> str | None:
        if url:
            open_store(url)
        return url or None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def load_settings(path: str | os.PathLike[str] | None = None) -> Settings:
    """Read `path`, else the file that STEER_CONFIG names, else `steer.toml` where the program runs, if it is there.

    InvalidRequest names the line, or the variable, that is wrong.
    """
    named = path or os.environ.get(VARIABLE)
    file = Path(named or FILE)
    if named is None and not file.is_file():
        return _settings({}, None, "")
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidRequest("settings", str(file), f"{type(error).__name__}: {error}") from error
    return _settings(found, file, text)


def _settings(found: Mapping[str, Any], file: Path | None, text: str) -> Settings:
    try:
        return Settings(**found)
    except SettingsError as error:
        raise InvalidRequest("settings", "the environment", f"{error}; give JSON, or one variable for each") from None
    except ValidationError as error:
        raise _refused(error, file, text) from None


def _refused(error: ValidationError, file: Path | None, text: str) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    place = tuple(str(part) for part in first["loc"])
    given = shown(str(first["input"])) if place == ("store",) else first["input"]
    remedy = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rpartition("cannot be used; ")[2]
    if first["type"] == "extra_forbidden":
        remedy = "there is no such option"
    return InvalidRequest(f"{'.'.join(place)} ({_where(place, file, text)})", given, remedy)


def _where(place: Sequence[str], file: Path | None, text: str) -> str:
    """The environment goes before the file, so it is looked at first."""
    variables = {name.upper(): name for name in os.environ}
    for length in range(len(place), 0, -1):
        name = _PREFIX + "__".join(place[:length]).upper()
        if name in variables:
            return variables[name]
    return "the environment" if file is None else f"{file}, line {line_of(text, place)}"


def line_of(text: str, place: Sequence[str]) -> int:
    """The line of the value at `place`, or of the table that should have it.

    It is the first line that a TOML text must have to hold it: the parser decides, which knows all ways to write one.
    """
    lines = text.splitlines(keepends=True)
    for length in range(len(place), 0, -1):
        whole = 0
        for number in range(1, len(lines) + 1):
            try:
                found: Any = tomllib.loads("".join(lines[:number]))
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a value of several lines
            if _has(found, place[:length]):
                return whole + 1
            whole = number
    return 1


def _has(found: Any, place: Sequence[str]) -> bool:
    for part in place:
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            return False
    return True
