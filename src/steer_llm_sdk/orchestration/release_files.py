"""How far versions of tools are released, in a file that `steer-llm tools` writes and running registries follow.

    [text_analyzer."2.0.0"]
    state = "canary"
    share = 0.1

Versions that are not named are active.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.versions import ACTIVE, MARGIN, Release

Releases = dict[str, dict[str, Release]]


def read_releases(path: str | Path) -> Releases:
    """What is in the file; nothing where there is none. InvalidRequest, with the tool, version and field, where it
    cannot be used."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        return {}
    import tomllib  # 4 ms that only those with such a file pay

    try:
        content = tomllib.loads(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest("releases", str(path), f"it is not TOML: {error}") from None
    found: Releases = {}
    for name, versions in content.items():
        if not isinstance(versions, Mapping):
            raise InvalidRequest(f"releases.{name}", versions, f'write [{name}."VERSION"] above the fields')
        found[name] = {version: _release(f"{name}@{version}", given) for version, given in versions.items()}
    return found


def _release(of: str, given: Any) -> Release:
    known = {field.name for field in fields(Release)}
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"releases.{of}", given, f"give fields: {', '.join(sorted(known))}")
    for key in given:
        if key not in known:
            raise InvalidRequest(
                f"releases.{of}.{key}", given[key], f"there is no such field; there are {sorted(known)}"
            )
    try:
        return Release(**given)
    except InvalidRequest as error:
        raise InvalidRequest(f"releases.{of}.{error.field}", error.given, error.remedy) from None


def write_releases(path: str | Path, releases: Mapping[str, Mapping[str, Release]]) -> None:
    """Put it in the place of what was there, all at once: who reads meanwhile sees the old or the new."""
    lines = ["# Written by `steer-llm tools`. Versions that are not named are active."]
    for name, versions in sorted(releases.items()):
        for version, release in sorted(versions.items()):
            if release != ACTIVE:
                lines += ["", f"[{_quoted(name)}.{_quoted(version)}]", *_lines(release)]
    import tempfile  # 6 ms that only who writes pays

    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _lines(release: Release) -> list[str]:
    found = {field.name: getattr(release, field.name) for field in fields(Release)}
    if release.state != "canary":
        del found["share"], found["key"], found["margin"]
    elif release.margin == MARGIN:
        del found["margin"]
    return [f"{name} = {_toml(value)}" for name, value in found.items() if value is not None]


def _toml(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
