"""The output of a run: one constructor for an answer, one for a failure, both read off the same timeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded
from steer_llm_sdk.models.plain import copied
from steer_llm_sdk.models.usage import add_usage
from steer_llm_sdk.orchestration._call import Attempt, Run, Spent, Usage
from steer_llm_sdk.orchestration._result import ToolResult, as_json, describe_error
from steer_llm_sdk.orchestration.fallback import Answer
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning.planner import PlanDecision
from steer_llm_sdk.orchestration.tool_registry import Tool

_Shown: TypeAlias = Callable[[], dict[str, Any]]
"""What is shown of the plan, anew each time."""

_NO_VALID_REPLICATE = {
    "type": "NoValidReplicate",
    "message": "no replicate of the bundle is valid",
    "code": "bad_response",
    "is_retryable": False,
}


def answered(run: Run, plan: _Shown | None, answer: Answer) -> OrchestrationOutput:
    """The output of a run in which a tool answered; the failures before it are kept under `errors`."""
    tool, result, failures, acceptable, silent = answer
    assert result is not None
    content, _, _, breakdown, own, bundle = result
    timeline, spending = run.timeline, run.spending
    if len(timeline) == 1 and spending and not failures:
        # Most runs. `_account` comes to the same.
        who, spent = spending[0]
        used, price = spent.usage, spent.cost_usd
        cost = None if price is None else float(price)
        usage = {**used} if used else {}  # It may be no dict, which is slower.
        tools = {who: {"attempts": 1, "usage": usage, "cost_usd": cost, "timeline": [timeline[0]]}}
    else:
        tools, usage, cost = _account(run, answer, result)
    status, errors = "succeeded", None
    if bundle is not None or own or failures:
        status = result.status
        errors = _described(failures) or None
    if status == "failed":
        errors = {**(errors or {}), tool.name: dict(_NO_VALID_REPLICATE)}
        content = {"error": dict(_NO_VALID_REPLICATE), **content}
    elif not acceptable:
        status = "partial"
    clock = run.clock
    # What model_construct makes, in a seventh of the time.
    output = _new(OrchestrationOutput)
    _set(
        output,
        "__dict__",
        {
            "content": content,
            "usage": copied(usage) if usage else {},
            "cost_usd": cost,
            "cost_breakdown": dict(breakdown) if breakdown else {} if cost is None else _costs(tools),
            "elapsed_ms": int((clock() - run.started) * 1000 + 0.5),
            "per_agent": tools,
            "status": status,
            "errors": errors,
            "metadata": _metadata(run, plan, tool, own, silent),
            "replayed": False,
        },
    )
    _set(output, "__pydantic_fields_set__", _FIELDS.copy())
    _set(output, "__pydantic_extra__", None)
    _set(output, "__pydantic_private__", None)
    return output


_new = object.__new__
_set = object.__setattr__
_FIELDS = set(OrchestrationOutput.model_fields)


def failed(run: Run, plan: _Shown | None, answer: Answer) -> OrchestrationOutput:
    """The output of a run in which no tool answered. A budget that stopped the last one is raised, with the output if
    anything was sent."""
    last = list(answer.failures.values())[-1]
    if isinstance(last, BudgetExceeded) and not run.timeline:
        raise last
    errors = _described(answer.failures)
    tools, usage, cost = _account(run, answer, None)
    output = OrchestrationOutput(
        content={"error": _one_error(answer.failures, errors)},
        usage=usage,
        cost_usd=cost,
        cost_breakdown=_costs(tools),
        elapsed_ms=_whole(elapsed_ms(run)),
        per_agent=tools,
        status="failed",
        errors=errors,
        metadata=_metadata(run, plan, answer.tool, _simulated(run), answer.silent),
    )
    for error in answer.failures.values():
        _let_go(error, run.handled)
    if isinstance(last, BudgetExceeded):
        last.output = output if last.output is None else last.output
        raise last
    output._cause = last if len(errors) == 1 else AllToolsFailed(answer.failures)
    return output


def _let_go(error: BaseException, handled: BaseException | None) -> None:
    """Take the tracebacks off, for the output keeps the error, and their frames would keep the request. The frames are
    not emptied: some belong to coroutines that are still at work. A bug of a tool is in the log with its lines. What
    the caller was handling when he asked is his, though it is the context of all that failed since."""
    chain: list[BaseException | None] = [error]
    seen = {id(handled)}
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            with suppress(Exception):  # There are some that raise whatever they are asked.
                if link.__context__ is handled:
                    link.__context__ = None  # Else the output would keep the caller's frame, which has the output.
                chain += (link.__cause__, link.__context__)


def cut_off(run: Run, exceeded: BudgetExceeded) -> OrchestrationOutput:
    """The output of a run that its deadline ended: what was sent until then, and what is known of its usage and cost.
    What an attempt used that was cut off, or is still running, nobody knows. An answer that was not acceptable is one
    all the same where no better one came."""
    assert run.plan is not None
    (steps, shown), info = run.plan, describe_error(exceeded)
    if run.unaccepted:
        best = max(run.unaccepted, key=lambda kept: kept.found)
        failures = {**dict.fromkeys(exceeded.affected_agents, exceeded), best.tool.name: best}
        return answered(run, shown, Answer(best.tool, best.result, failures, acceptable=False))
    asked = dict.fromkeys(line["tool"] for line in run.timeline)
    last = next((step.tool for step in steps if step.tool.name == list(asked)[-1]), steps[-1].tool)
    answer = Answer(last, None, {})
    found, usage, cost = _account(run, answer, None)
    tools = {name: found[name] for name in asked}
    for name, entry in tools.items():
        cut = name in exceeded.affected_agents
        entry["error"] = info if cut else entry["timeline"][-1].get("error", info)
    return OrchestrationOutput(
        content={"error": info},
        usage=usage,
        cost_usd=cost,
        cost_breakdown=_costs(tools),
        elapsed_ms=_whole(exceeded.actual),
        per_agent=tools,
        status="failed",
        errors={name: entry["error"] for name, entry in tools.items()},
        metadata=_metadata(run, shown, answer.tool, _simulated(run), ()),
    )


def _simulated(run: Run) -> dict[str, Any]:
    """What a tool would have said of its answer: that recordings gave all that anything is known to have cost."""
    replies = [spent for _, spent in run.spending]
    all_are = bool(replies) and all(isinstance(spent, Spent) and spent.simulated for spent in replies)
    return {"simulated": True} if all_are else {}


def elapsed_ms(run: Run) -> float:
    return (run.clock() - run.started) * 1000


def _whole(number: float) -> int:
    """Rounded as `answered` does it, a half up: a built-in round() takes three times as long."""
    return int(number + 0.5)


def _described(failures: Mapping[str, Exception]) -> dict[str, dict[str, Any]]:
    return {name: describe_error(error) for name, error in failures.items()} if failures else {}


def _one_error(failures: Mapping[str, Exception], errors: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    infos = [{**info} for info in errors.values()]
    if len(infos) == 1:
        return infos[0]
    return {**describe_error(AllToolsFailed(failures)), "failures": dict(zip(errors, infos, strict=True))}


_Account: TypeAlias = tuple[dict[str, Any], dict[str, Any], float | None]
"""What each tool that was tried came to (attempts, usage, cost, its error if any, and its timeline); the sums."""


def _account(run: Run, answer: Answer, told: ToolResult | None) -> _Account:
    """Where no attempt measured anything, what the tool says of itself is the sum."""
    timeline, spending = run.timeline, run.spending
    tools = {name: _entry_of(run, name) for name in _in_order(answer, timeline)}
    for name, error in answer.failures.items():
        tools[name]["error"] = describe_error(error)
    usage, cost = _sum(spent for _, spent in spending)
    if told is None:
        return tools, usage, cost
    return tools, usage or dict(told.usage), told.cost_usd if not spending else cost


def _in_order(answer: Answer, timeline: Sequence[Attempt]) -> list[str]:
    """The tools that were tried, as they started; one that was sent nothing is before the one that came after it."""
    names, after = list(dict.fromkeys(line["tool"] for line in timeline)), ""
    for name in (answer.tool.name, *reversed(answer.failures)):
        if name not in names:
            names.insert(names.index(after) if after in names else len(names), name)
        after = name
    return names


def _entry_of(run: Run, name: str) -> dict[str, Any]:
    lines = [_as_it_stands(line) for line in run.timeline if line["tool"] == name]
    usage, cost = _sum(spent for tool, spent in run.spending if tool == name)
    return {"attempts": len(lines), "usage": usage, "cost_usd": cost, "timeline": lines}


def _as_it_stands(line: Attempt) -> Attempt:
    """An attempt that was left behind still writes into its line."""
    return line if line["outcome"] == "succeeded" else line.copy()


def _sum(spending: Iterable[Usage]) -> tuple[dict[str, Any], float | None]:
    """The cost is None as soon as something was used whose price nobody knows."""
    usage: dict[str, Any] = {}
    cost: float | None = None
    unknown = False
    for spent in spending:
        used, price = spent.usage, spent.cost_usd
        if used:
            usage = add_usage(usage, used)
        if price is not None:
            cost = price + (cost or 0.0)
        elif used:
            unknown = True
    return usage, None if unknown else cost


def _costs(tools: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: entry["cost_usd"] for name, entry in tools.items() if entry["cost_usd"] is not None}


def _metadata(
    run: Run, plan: _Shown | None, tool: Tool, own: Mapping[str, Any], silent: Sequence[str]
) -> dict[str, Any]:
    """Ours first; a tool's own metadata may add to it and not overwrite it."""
    metadata: dict[str, Any] = {
        "tool_name": tool.name,
        "tool_version": tool.version,
        "trace_id": run.trace_id,
        "request_id": run.request_id,
        "budget": None,
    }
    if not run.plain:
        _add_given(metadata, run.options)
    if plan is not None:
        metadata["plan"] = plan()
    if silent:
        metadata["silent_tools"] = list(silent)
    return {**own, **metadata} if own else metadata


def _add_given(metadata: dict[str, Any], options: OrchestrationConfig) -> None:
    if options.budget is not None:
        metadata["budget"] = dict(options.budget)
    if options.metadata:
        metadata["user"], _ = as_json(options.metadata)
    if options.quality_requirements is not None:
        metadata["quality_requirements"], _ = as_json(options.quality_requirements)


def plan_shown(decision: PlanDecision) -> dict[str, Any]:
    """What the output says of a decision."""
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
