"""The output of a run: one constructor for an answer, one for a failure, both read off the same timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded
from steer_llm_sdk.models.usage import add_usage
from steer_llm_sdk.orchestration._call import Attempt, Run
from steer_llm_sdk.orchestration._result import as_json, describe_error
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
    tools = _by_tool(run, answer)
    # Validating a mapping costs half of what keyword arguments do.
    return OrchestrationOutput.model_validate(
        {
            "content": content,
            "usage": _total_usage(run, result.usage),
            "cost_usd": _total_cost(run, result.cost_usd),
            "cost_breakdown": dict(result.cost_breakdown) or _costs(tools),
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
    tools = _by_tool(run, answer)
    return OrchestrationOutput(
        content={"error": _one_error(answer.failures, errors)},
        usage=_total_usage(run, {}),
        cost_usd=_total_cost(run, None),
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
    return {
        **describe_error(AllToolsFailed(failures)),
        "code": infos[0]["code"],
        "is_retryable": any(info["is_retryable"] for info in infos),
        "failures": dict(errors),
    }


def _by_tool(run: Run, answer: Answer) -> dict[str, Any]:
    """For each tool that was tried: attempts, usage, cost, its error if any, and the timeline they are read from."""
    if not answer.failures and len(run.timeline) == 1:  # Most runs; the lines below would say the same of it.
        return {run.timeline[0].tool: _entry(run.timeline)}
    names = dict.fromkeys((*answer.failures, answer.tool.name, *(line.tool for line in run.timeline)))
    entries = {name: _entry([line for line in run.timeline if line.tool == name]) for name in names}
    for name, error in answer.failures.items():
        entries[name]["error"] = describe_error(error)
    return entries


def _entry(lines: Sequence[Attempt]) -> dict[str, Any]:
    usage: dict[str, Any] = {}
    cost: float | None = None
    for line in lines:
        used, price = line.spent
        if used:
            usage = add_usage(usage, used)
        if price is not None:
            cost = price + (cost or 0.0)
    return {"attempts": len(lines), "usage": usage, "cost_usd": cost, "timeline": [_shown(line) for line in lines]}


def _shown(line: Attempt) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "tool": line.tool,
        "provider": line.target,
        "attempt": line.number,
        "started_ms": round(line.started_ms, 1),
        "elapsed_ms": round(line.elapsed_ms, 1),
        "outcome": line.outcome,
    }
    if line.model is not None:
        shown["model"] = line.model
    if line.error is not None:
        shown["error"] = line.error
    return shown


def _costs(tools: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: entry["cost_usd"] for name, entry in tools.items() if entry["cost_usd"] is not None}


def _total_usage(run: Run, told: Mapping[str, Any]) -> dict[str, Any]:
    """What all attempts used; where no attempt measured anything, what the tool says of itself."""
    total: dict[str, Any] = {}
    for line in run.timeline:
        if line.spent.usage:
            total = add_usage(total, line.spent.usage)
    return total or dict(told)


def _total_cost(run: Run, told: float | None) -> float | None:
    """What all attempts cost; None as soon as one that used something has no known price."""
    total: float | None = None
    for line in run.timeline:
        used, price = line.spent
        if price is not None:
            total = price + (total or 0.0)
        elif used:
            return None
    return told if total is None else total


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
