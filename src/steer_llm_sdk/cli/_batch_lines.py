"""The file of requests of a batch, read and checked in full before anything is spent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._command import check, config_of
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry

_KEYS = ("request", "tool_name", "tool_options", "options", "id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the command line asks for; a line of the file goes before it. `made_of` goes into the line's mark: an answer
    of other models or of another schema is not the answer to the same line."""

    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: Mapping[str, Any]
    made_of: Sequence[Any] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request. `position` is the number of its line in the file; `mark` tells whether a result belongs to it."""

    position: int
    id: str | None
    request: Any
    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: OrchestrationConfig
    mark: str


def read_lines(path: str, defaults: Defaults, registry: ToolRegistry) -> list[Line]:
    """Every request of the file. InvalidRequest names the file, the line, the field, what was given and what would do.

    A line is a JSON text, or an object with `request` and what it has of `tool_name`, `tool_options`, `options`, `id`.
    Blank lines are passed over.
    """
    reader = _Reader("standard input" if path == "-" else path, defaults, registry)
    raw = inputs.bytes_or_standard_input(path, "--batch").removeprefix(b"\xef\xbb\xbf")
    lines = [reader.read(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise InvalidRequest("--batch", path, "there is no request in it; give one JSON text or object a line")
    return lines


class _Reader:
    def __init__(self, path: str, defaults: Defaults, registry: ToolRegistry) -> None:
        self._path = path
        self._defaults = defaults
        self._registry = registry
        self._seen: dict[str, int] = {}

    def read(self, number: int, raw: bytes) -> Line:
        where = f"{self._path}, line {number}"
        try:
            line = self._line(number, _object(raw))
            check(line.request, line.tool_name, line.tool_options, self._registry)
        except InvalidRequest as error:
            field_name = f"{where}: {error.field}" if error.field else where
            raise InvalidRequest(field_name, error.given, error.remedy) from error
        except ValueError as error:  # A tool of somebody else's, or a planner, in words of its own.
            raise InvalidRequest(where, _Raw(raw), str(error)) from error
        return line

    def _line(self, number: int, given: Mapping[str, Any]) -> Line:
        defaults = self._defaults
        name = _text("tool_name", given.get("tool_name")) or defaults.tool_name
        request, tool_options = _request(given), {**defaults.tool_options, **_mapping(given, "tool_options")}
        return Line(
            position=number,
            id=self._id(number, given),
            request=request,
            tool_name=name,
            tool_options=tool_options,
            options=config_of({**defaults.options, **_mapping(given, "options")}),
            mark=_mark([request, name, tool_options, defaults.made_of]),
        )

    def _id(self, number: int, given: Mapping[str, Any]) -> str | None:
        name = _text("id", given.get("id"))
        if name is None:
            return None
        if name in self._seen:
            raise InvalidRequest("id", name, f"line {self._seen[name]} has it already; give each line its own, or none")
        self._seen[name] = number
        return name


class _Raw:
    """Bytes of a file, as an error shows them."""

    def __init__(self, raw: bytes) -> None:
        self._text = raw[:60].decode("utf-8", "replace").strip()

    def __repr__(self) -> str:
        return repr(self._text)


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        given = inputs.strict_json(raw)
    except ValueError as error:
        why = str(error).replace("line 1, ", "")
        raise InvalidRequest("", _Raw(raw), f"{why}; give a text in quotes, or an object, on one line") from error
    if isinstance(given, str):
        return {"request": given}
    if not isinstance(given, dict):
        raise InvalidRequest("", given, 'give a text, or an object such as {"request": "..."}')
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise InvalidRequest(unknown[0], given[unknown[0]], f"the keys of a line are {', '.join(_KEYS)}")
    return given


def _request(given: Mapping[str, Any]) -> Any:
    request = given.get("request")
    if isinstance(request, str):
        if not request.strip():
            raise InvalidRequest("request", request, "give a question or a text; what is there is empty")
        return request
    if not isinstance(request, dict):
        raise InvalidRequest("request", request, "give a text or an object")
    return request


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(key, value, "give an object")
    return value


def _text(key: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise InvalidRequest(key, value, "give a text that is not empty")


def _mark(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode("utf-8", "replace")).hexdigest()[:16]
