"""Fallback: the tools of a plan, one after the other, until one gives an acceptable answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steer_llm_sdk.errors import OrchestratorError
from steer_llm_sdk.orchestration._call import Run, Scope, enter, leave
from steer_llm_sdk.orchestration._result import ToolResult, describe_error
from steer_llm_sdk.orchestration.reliability import use_tool
from steer_llm_sdk.orchestration.tool_registry import Tool


class NotAcceptable(OrchestratorError):
    """A bundle below the confidence that the caller asked for. `result` is kept: it may be the best there is."""

    def __init__(self, tool: Tool, result: ToolResult, found: float | None, wanted: float) -> None:
        shown = "no confidence" if found is None else f"a confidence of {found:.2f}"
        super().__init__(f"Tool '{tool.name}' came to {shown}; min_confidence is {wanted:g}")
        self.tool = tool
        self.result = result
        self.found = -1.0 if found is None else found


class ToolCall(NamedTuple):
    """One tool of a plan, with the options it will see."""

    tool: Tool
    options: dict[str, Any]


class Answer(NamedTuple):
    """Who answered, or (`result` None) that nobody did; what went wrong before, in order, by tool.

    `acceptable` False: the best of several bundles that were all below `min_confidence`.
    """

    tool: Tool
    result: ToolResult | None
    failures: dict[str, Exception]
    acceptable: bool = True


async def first_answer(run: Run, plan: Sequence[ToolCall], min_confidence: float | None) -> Answer:
    """Ask the tools in order. The next is tried whatever went wrong, except a request that does not validate."""
    failures: dict[str, Exception] = {}
    for step in plan:
        if failures:
            _tell_fallback(run, plan, step, failures)
        try:
            step.tool.validate_request(run.request)
        except ValueError as error:
            failures[step.tool.name] = error
            break
        try:
            result = await _ask(run, step)
            if min_confidence is not None:
                _check(step.tool, result, min_confidence)
            return Answer(step.tool, result, failures)
        except Exception as error:
            failures[step.tool.name] = error
    return _best_of(plan, failures)


async def _ask(run: Run, step: ToolCall) -> ToolResult:
    tool = step.tool
    scope = Scope(run, tool.name, tool.version)
    token = enter(scope)
    try:
        return await use_tool(scope, tool, step.options)
    finally:
        leave(token)


def _check(tool: Tool, result: ToolResult, min_confidence: float) -> None:
    if result.bundle is None:
        return
    found = result.bundle.summary.confidence
    if found is None or found < min_confidence:
        raise NotAcceptable(tool, result, found, min_confidence)


def _best_of(plan: Sequence[ToolCall], failures: dict[str, Exception]) -> Answer:
    """Nobody's answer was acceptable. What was paid for is not thrown away: the best bundle is returned as it is."""
    kept = [error for error in failures.values() if isinstance(error, NotAcceptable)]
    if not kept:
        return Answer(plan[len(failures) - 1].tool, None, failures)
    best = max(kept, key=lambda error: error.found)
    return Answer(best.tool, best.result, failures, acceptable=False)


def _tell_fallback(run: Run, plan: Sequence[ToolCall], step: ToolCall, failures: Mapping[str, Exception]) -> None:
    if run.events is None:
        return
    name, error = list(failures.items())[-1]
    run.tell("fallback", {"from": name, "to": step.tool.name, "error": describe_error(error)})
