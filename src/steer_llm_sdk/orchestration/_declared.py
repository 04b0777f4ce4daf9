"""What a tool declares, looked at once: later one wrong value would stop every run that plans over its registry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.tool_registry import Tool

_MOST = 1e15
_NUMBERS = (("estimated_cost_per_run", "USD"), ("estimated_duration_ms", "milliseconds"))
_SEQUENCES = ("capabilities", "supported_models", "tenants")


def check_declared(tool: Tool) -> None:
    """InvalidRequest, a ValueError, names the tool, what it declares wrongly, the value, and what would do."""
    name = tool.name
    if not isinstance(name, str) or not name.strip():
        raise InvalidRequest("tool.name", name, "it is empty; give the tool a name")
    if not _is_text(name):
        raise InvalidRequest("tool.name", name, "it holds half a character; give a name that UTF-8 can write")
    _require(name, "description", tool.description, _is_text(tool.description), "give a text")
    version = tool.version
    written = _is_text(version) and version.split() == [version]
    _require(name, "version", version, written, "give a text without spaces, as in '1.0.0'")
    _require(name, "provider", tool.provider, tool.provider is None or _is_text(tool.provider), "give a name, or None")
    for field in ("validate_request", "validate_options"):
        given = getattr(tool, field)
        _require(name, field, given, not iscoroutinefunction(given), "nobody awaits it; write def, and not async def")
    for field in _SEQUENCES:
        names_of(name, field, getattr(tool, field))
    for field in ("default_options", "resource_requirements"):
        given = getattr(tool, field)
        _require(name, field, given, _is_named(given), "give a mapping with text as keys, {} for none")
    window = tool.context_window
    counts = isinstance(window, int) and not isinstance(window, bool) and window > 0
    _require(name, "context_window", window, window is None or counts, "give a whole number of tokens from 1, or None")
    for number, unit in _NUMBERS:
        # A declared cost is reserved before each attempt: one that is no price would stop every run with a budget.
        given = tool.resource_requirements.get(number)
        remedy = f"give {unit} as a finite number from 0, or leave it out"
        _require(name, f"resource_requirements['{number}']", given, given is None or _is_amount(given), remedy)


def names_of(tool: str, field: str, given: Any) -> tuple[str, ...]:
    """Names as a tool of that name is to declare them. A text would be taken for a list of its letters."""
    named = isinstance(given, Collection) and not isinstance(given, (str, bytes, bytearray, Mapping))
    remedy = f"give a list of names: [{given!r}]" if isinstance(given, str) else "give a list of names, [] for none"
    _require(tool, field, given, named and all(map(_is_text, given)), remedy)
    return tuple(given)


def _is_text(given: object) -> bool:
    """Half of a surrogate pair could be put into no JSON."""
    if not isinstance(given, str):
        return False
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_named(given: object) -> bool:
    return isinstance(given, Mapping) and all(isinstance(key, str) for key in given)


def _is_amount(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given <= _MOST


def _require(tool: str, field: str, given: object, does: bool, remedy: str) -> None:
    if not does:
        raise InvalidRequest(f"Tool '{tool}' {field}", given, remedy)
