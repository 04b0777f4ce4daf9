"""From words on a command line to values, with one clear sentence where that cannot be done."""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from steer_llm_sdk.cli.exits import refuse
from steer_llm_sdk.errors import MISSING, a_kind
from steer_llm_sdk.evidence import Calibrator, parse_path
from steer_llm_sdk.orchestration.models.evidence_bundle import json_value
from steer_llm_sdk.orchestration.options import A_YEAR, BUDGET_KEYS
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry, get_global_registry

MOST_BYTES = 256_000_000
"""What a file may have at most."""


def read_text(text: str | None, name: str = "TEXT") -> str:
    """The text itself, standard input for "-", a file for "@path". `name` is that of the argument."""
    if text is None:
        refuse(name, MISSING, "give a question or a text, @FILE, - for standard input, or many with --batch FILE")
    if text == "-":
        found, field = _decoded(_standard_input(name), "standard input"), "standard input"
    elif text == "@":
        refuse(name, text, "name a file that can be read behind the @, as in @README.md")
    elif text.startswith("@"):
        found, field = _decoded(bytes_of(text[1:], name), text), text
    else:
        found, field = text, name
    if not found.strip():
        refuse(field, found[:20], "give a question or a text; what is there is empty")
    return found


def read_request(given: str | None, name: str = "TEXT") -> Any:
    """A text, or the object that it is the JSON of."""
    text = read_text(given, name)
    if not text.lstrip().startswith("{"):
        return text
    try:
        return strict_json(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        refuse(name, text, f"{error}; give a text, or a JSON object")


def imported(path: str, option: str, example: str) -> Any:
    """What MODULE:NAME names. The module is looked for in the folder of the call first."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        refuse(option, path, f"write MODULE:NAME, as in {example}")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # Whatever the module does when it is imported.
        refuse(option, path, f"name a module that can be imported from here, and what is in it ({error!r})")


def registry_of(path: str, option: str) -> ToolRegistry:
    """The ToolRegistry that MODULE:NAME names, or that of an orchestrator there; for a MODULE, which is imported for
    what it does then, the global one. The module is looked for in the folder of the call first."""
    if ":" in path:
        found = imported(path, option, "my_app:registry")
        registry = found if isinstance(found, ToolRegistry) else getattr(found, "registry", None)
        if not isinstance(registry, ToolRegistry):
            refuse(option, path, f"it is {a_kind(found)}; name a ToolRegistry, or an orchestrator")
        return registry
    sys.path.insert(0, os.getcwd())
    try:
        import_module(path)
    except Exception as error:  # Whatever the module does when it is imported.
        refuse(option, path, f"name a module that can be imported from here ({error!r})")
    return get_global_registry()


def read_schema(given: str | None) -> dict[str, Any] | None:
    """The JSON Schema in a file, or `given` itself where it begins with a brace."""
    if given is None:
        return None
    inline = given.lstrip().startswith("{")
    what = "the schema" if inline else "the file"
    try:
        schema = strict_json(given.encode("utf-8", "surrogatepass") if inline else bytes_of(given, "--schema"))
    except ValueError as error:
        refuse("--schema", given, f"{what} must be a JSON Schema ({error})")
    if not isinstance(schema, dict):
        refuse("--schema", given, f'{what} must be a JSON object, such as {{"type": "object", "properties": {{...}}}}')
    return schema


def read_calibrator(file: str | None) -> Calibrator | None:
    """The calibrator in a file that `steer-llm calibrate` made."""
    if file is None:
        return None
    try:
        return Calibrator.from_json(bytes_of(file, "--calibrator").decode())
    except ValueError as error:
        refuse("--calibrator", file, f"give a file that `steer-llm calibrate LABELS --out FILE` made ({error})")


def read_fields(given: Sequence[str]) -> list[tuple[str, ...]]:
    """The dotted paths of --fields, as keys."""
    paths = []
    for path in given:
        try:
            paths.append(parse_path(path))
        except ValueError:
            refuse("--fields", path, "write a dotted path, such as answer or person.name")
    return paths


def schema_with(paths: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """A JSON Schema of objects that have a value at each of `paths`."""
    keys = list(dict.fromkeys(path[0] for path in paths if path))
    if not keys:
        return {}
    inner = {key: schema_with([path[1:] for path in paths if path[:1] == (key,)]) for key in keys}
    return {"type": "object", "properties": inner, "required": keys}


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """`k=v` pairs; a value that is JSON is read as JSON, any other is text."""
    options: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            refuse("--option", pair, "write NAME=VALUE")
        options[key.strip()] = _json_or_text(value)
    return options


def read_budget(given: Sequence[str]) -> dict[str, float] | None:
    """`tokens=1000`, `cost_usd=0.05`, `ms=5000`: several options, or one with commas."""
    budget: dict[str, float] = {}
    for pair in (part for text in given for part in text.split(",")):
        key, _, value = (side.strip() for side in pair.partition("="))
        if key not in BUDGET_KEYS:
            refuse("--budget", pair, f"write one of {', '.join(f'{name}=NUMBER' for name in BUDGET_KEYS)}")
        budget[key] = _positive("--budget", pair, value)
    return budget or None


def read_timeout(seconds: float | None) -> int | None:
    """Seconds to whole ms. A run needs 0.1 s at least."""
    if seconds is None:
        return None
    if not 0.1 <= seconds <= A_YEAR / 1000:
        refuse("--timeout", seconds, "give seconds, 0.1 or more, and less than a year")
    return round(seconds * 1000)


def _positive(field: str, pair: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number <= 0:
        refuse(field, pair, "give a positive number after the =")
    return number


def _json_or_text(value: str) -> Any:
    try:
        return strict_json(value.encode("utf-8", "surrogatepass"))
    except ValueError:
        return value


def strict_json(raw: bytes) -> Any:
    """The value of a JSON document. ValueError, in a few words, where it is none or nothing to be worked with: not
    UTF-8, NaN, half a character, a number of thousands of digits, nested more than 200 deep."""
    try:
        return json_value(json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def bytes_of(path: str, field: str) -> bytes:
    try:
        if not path.startswith("/dev/fd/") and not stat.S_ISREG(Path(path).stat().st_mode) and not Path(path).is_dir():
            # A pipe that nobody writes to, or a terminal, would be waited for without end. `<(…)` has its writer.
            refuse(field, path, "it is a pipe or a device; give a file, or - and the text on standard input")
        with Path(path).open("rb") as file:
            found = file.read(MOST_BYTES + 1)
        if len(found) <= MOST_BYTES:
            return found
        refuse(field, path, f"it has more than {MOST_BYTES // 1_000_000} MB; give less, in several runs")
    except (OSError, ValueError) as error:
        refuse(field, path, f"name a file that can be read ({getattr(error, 'strerror', None) or error})")


def bytes_or_standard_input(path: str, field: str) -> bytes:
    """What is in a file, or in standard input for "-"."""
    return _standard_input(field, "give a file") if path == "-" else bytes_of(path, field)


def _standard_input(field: str, instead: str = "give the text itself, or @FILE") -> bytes:
    if sys.stdin is None:
        refuse(field, "-", f"standard input is closed; {instead}")
    found = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        refuse(field, "-", f"it has more than {MOST_BYTES // 1_000_000} MB; give less, in several runs")
    return found


def _decoded(raw: bytes, field: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(field, raw[error.start : error.start + 8], f"the text must be UTF-8; byte {error.start} is not")
