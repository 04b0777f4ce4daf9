"""What planners read of a request and of what is told beside it, and the options that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from steer_llm_sdk.orchestration.planning._conditions import reader
from steer_llm_sdk.orchestration.planning.planner import PlanRequest, ToolMetadata
from steer_llm_sdk.orchestration.planning.rules import budget_is_below

LONGEST_TYPE = 200
"""Characters of a task type. Who sends longer texts, each time others, is not to fill the memory with them."""

_read_type = reader("type")


def task_type_of(request: Any) -> str | None:
    """The request's `type`, where it is a text of a sensible length: what tools declare they can do, and what is
    learned about them apart."""
    try:
        kind = request.get("type") if type(request) is dict else _read_type(request)
    except Exception:  # an attribute that raises is no type
        return None
    return kind if isinstance(kind, str) and len(kind) <= LONGEST_TYPE else None


DEFAULT_OPTIONS: Mapping[str, Any] = MappingProxyType({"k": 3, "epsilon": 0.2, "max_parallel": 10})


def default_options(tool: ToolMetadata | None, request: Any, context: PlanRequest | None) -> dict[str, Any]:
    """What a tool gets where no rule says it: what it declares itself, else DEFAULT_OPTIONS; k 2 on a small budget."""
    declared = {} if tool is None else tool.default_options
    options = {name: declared.get(name, value) for name, value in DEFAULT_OPTIONS.items()}
    if budget_is_below(request, context, tokens=1000, cost_usd=0.05):
        options["k"] = 2
    return options


def names_in(given: Any) -> list[str]:
    """One name or several, as somebody's preference."""
    if isinstance(given, str):
        return [given]
    return [name for name in given if isinstance(name, str)] if isinstance(given, (list, tuple, set, frozenset)) else []
