"""What a run tells the planner that planned it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from steer_llm_sdk.errors import ErrorCategory
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration.fallback import Answer, ToolCall
from steer_llm_sdk.orchestration.planning.planner import Observed, Outcome, PlanDecision
from steer_llm_sdk.reliability.classify import classify


def observe(tell: Observed, decision: PlanDecision, run: Run, steps: Sequence[ToolCall], answer: Answer) -> None:
    """Tell of each tool that was sent something and came to an end by itself."""
    timeline = run.timeline
    if len(timeline) == 1 and not answer.failures:  # Most runs.
        tool, spending = answer.tool, run.spending
        cost = spending[0][1].cost_usd if spending else None
        tell(run.request, decision, (Outcome(tool.name, tool.version, True, cost, timeline[0]["elapsed_ms"]),))
        return
    outcomes = tuple(_outcomes(run, steps, answer))
    if outcomes:
        tell(run.request, decision, outcomes)


def _outcomes(run: Run, steps: Sequence[ToolCall], answer: Answer) -> Iterator[Outcome]:
    versions = {step.tool.name: step.tool.version for step in steps}
    for name, version in versions.items():
        lines: list[Any] = [line for line in run.timeline if line["tool"] == name]
        error = answer.failures.get(name)
        answered = answer.result is not None and answer.tool.name == name and error is None
        if not lines or not (answered or (error is not None and _is_its_own(error))):
            continue
        costs = [spent.cost_usd for tool, spent in run.spending if tool == name and spent.cost_usd is not None]
        took = max(line["started_ms"] + line["elapsed_ms"] for line in lines) - min(
            line["started_ms"] for line in lines
        )
        yield Outcome(name, version, answered, sum(costs) if costs else None, took if answered else None)


def _is_its_own(error: Exception) -> bool:
    """Whether a failure says something of the tool: a request that no tool could serve does not."""
    return classify(error).category is not ErrorCategory.VALIDATION
