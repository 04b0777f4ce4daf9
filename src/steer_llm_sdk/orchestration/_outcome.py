"""The output of a run: one constructor for an answer, one for a failure, both read off the same timeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded
from steer_llm_sdk.models.usage import add_usage
from steer_llm_sdk.orchestration._call import Attempt, Run, Spent
from steer_llm_sdk.orchestration._result import ToolResult, as_json, describe_error
from steer_llm_sdk.orchestration.fallback import Answer
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning.planner import PlanDecision
from steer_llm_sdk.orchestration.tool_registry import Tool

_NO_VALID_REPLICATE = {
    "type": "NoValidReplicate",
    "message": "no replicate of the bundle is valid",
    "code": "bad_response",
    "is_retryable": False,
}


def answered(run: Run, decision: PlanDecision | None, answer: Answer) -> OrchestrationOutput:
    """The output of a run in which a tool answered; the failures before it are kept under `errors`."""
    result = answer.result
    assert result is not None
    status: str = "partial" if not answer.acceptable and result.status != "failed" else result.status
    errors = _described(answer.failures)
    content = result.content
    if status == "failed":
        errors[answer.tool.name] = dict(_NO_VALID_REPLICATE)
        content = {"error": dict(_NO_VALID_REPLICATE), **content}
    tools, usage, cost = _account(run, answer, result)
    # Validating a mapping costs half of what keyword arguments do.
    return OrchestrationOutput.model_validate(
        {
            "content": content,
            "usage": usage,
            "cost_usd": cost,
            "cost_breakdown": dict(result.cost_breakdown) or ({} if cost is None else _costs(tools)),
            "elapsed_ms": round(elapsed_ms(run)),
            "per_agent": tools,
            "status": status,
            "errors": errors or None,
            "metadata": _metadata(run, decision, answer.tool, result.metadata),
        }
    )


def failed(run: Run, decision: PlanDecision | None, answer: Answer) -> OrchestrationOutput:
    """The output of a run in which no tool answered. A budget that stopped the last one is raised instead."""
    last = list(answer.failures.values())[-1]
    if isinstance(last, BudgetExceeded):
        raise last
    errors = _described(answer.failures)
    tools, usage, cost = _account(run, answer, None)
    return OrchestrationOutput(
        content={"error": _one_error(answer.failures, errors)},
        usage=usage,
        cost_usd=cost,
        cost_breakdown=_costs(tools),
        elapsed_ms=round(elapsed_ms(run)),
        per_agent=tools,
        status="failed",
        errors=errors,
        metadata=_metadata(run, decision, answer.tool, {}),
    )


def elapsed_ms(run: Run) -> float:
    return (run.clock() - run.started) * 1000


def _described(failures: Mapping[str, Exception]) -> dict[str, dict[str, Any]]:
    return {name: describe_error(error) for name, error in failures.items()} if failures else {}


def _one_error(failures: Mapping[str, Exception], errors: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    infos = list(errors.values())
    if len(infos) == 1:
        return infos[0]
    return {**describe_error(AllToolsFailed(failures)), "failures": dict(errors)}


class _Account(NamedTuple):
    """`tools` has, for each that was tried: attempts, usage, cost, its error if any, and its timeline."""

    tools: dict[str, Any]
    usage: dict[str, Any]
    cost_usd: float | None


def _account(run: Run, answer: Answer, told: ToolResult | None) -> _Account:
    """Where no attempt measured anything, what the tool says of itself is the sum."""
    if len(run.timeline) == 1 and len(run.spending) == 1 and not answer.failures:
        # Most runs. The general way below comes to the same.
        tool, (used, cost) = run.spending[0]
        usage = dict(used)
        return _Account({tool: _entry(usage, cost, run.timeline)}, usage, cost)
    names = dict.fromkeys((*answer.failures, answer.tool.name, *(line["tool"] for line in run.timeline)))
    tools = {name: _entry_of(run, name) for name in names}
    for name, error in answer.failures.items():
        tools[name]["error"] = describe_error(error)
    usage, cost = _sum(spent for _, spent in run.spending)
    if told is None:
        return _Account(tools, usage, cost)
    return _Account(tools, usage or dict(told.usage), told.cost_usd if not run.spending else cost)


def _entry_of(run: Run, name: str) -> dict[str, Any]:
    usage, cost = _sum(spent for tool, spent in run.spending if tool == name)
    return _entry(usage, cost, [line for line in run.timeline if line["tool"] == name])


def _entry(usage: dict[str, Any], cost: float | None, lines: list[Attempt]) -> dict[str, Any]:
    # Copies: an attempt that was left behind still writes into its line.
    timeline = [line.copy() for line in lines]
    return {"attempts": len(lines), "usage": usage, "cost_usd": cost, "timeline": timeline}


def _sum(spending: Iterable[Spent]) -> tuple[dict[str, Any], float | None]:
    """The cost is None as soon as something was used whose price nobody knows."""
    usage: dict[str, Any] = {}
    cost: float | None = None
    unknown = False
    for used, price in spending:
        if used:
            usage = add_usage(usage, used)
        if price is not None:
            cost = price + (cost or 0.0)
        elif used:
            unknown = True
    return usage, None if unknown else cost


def _costs(tools: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: entry["cost_usd"] for name, entry in tools.items() if entry["cost_usd"] is not None}


def _metadata(run: Run, decision: PlanDecision | None, tool: Tool, own: Mapping[str, Any]) -> dict[str, Any]:
    """Ours first; a tool's own metadata may add to it and not overwrite it."""
    config = run.options
    metadata: dict[str, Any] = {
        "tool_name": tool.name,
        "tool_version": tool.version,
        "trace_id": run.trace_id,
        "request_id": run.request_id,
        "budget": None if config.budget is None else dict(config.budget),
    }
    if config.metadata:
        metadata["user"], _ = as_json(config.metadata)
    if config.quality_requirements is not None:
        metadata["quality_requirements"], _ = as_json(config.quality_requirements)
    if decision is not None:
        metadata["plan"] = _plan(decision)
    return {**own, **metadata} if own else metadata


def _plan(decision: PlanDecision) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "selected_tool": decision.selected_tool,
        "reasoning": decision.reasoning,
        "confidence": decision.confidence,
    }
    if decision.fallback_tools:
        plan["fallback_tools"] = list(decision.fallback_tools)
    for name, value in decision.metadata.items():
        plan[name], _ = as_json(value)
    return plan
