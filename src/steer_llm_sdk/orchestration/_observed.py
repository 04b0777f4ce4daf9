"""What a run tells the planner that planned it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

from steer_llm_sdk.errors import ErrorCategory
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration.fallback import Answer, ToolCall
from steer_llm_sdk.orchestration.planning.planner import Outcome, PlanDecision, Planner
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.reliability.classify import classify


class Observer:
    """Tells of each tool that was sent something and came to an end by itself.

    Of the runs in which the tool that was chosen answered at once, the first COUNTED are told one by one, then one in
    EVERY seconds, which stands for those that began since: so telling takes a thousandth of the time at most, however
    many runs there are. A planner that says `observes_every_run` is told of each. `before`: who told of an earlier
    decision for the same tool, and goes on in this one.
    """

    __slots__ = ("_decision", "_due", "_every", "_passed", "_planner", "_told", "_told_at")

    def __init__(self, planner: Planner, decision: PlanDecision, before: Observer | None = None) -> None:
        self._planner = planner
        self._decision = decision
        self._every = 0.0 if planner.observes_every_run else EVERY
        self._told = self._passed = 0
        self._told_at = self._due = -inf
        if before is not None and before.of == self.of:
            self._told, self._passed = before._told, before._passed
            self._told_at, self._due = before._told_at, before._due

    @property
    def of(self) -> tuple[str, str | None]:
        return self._decision.selected_tool, self._decision.tool_version

    def tell(self, run: Run, steps: Sequence[ToolCall], answer: Answer) -> None:
        timeline = run.timeline
        if len(timeline) != 1 or answer.failures:
            outcomes = tuple(outcomes_of(run, steps, answer))
            if outcomes:
                self._planner.observe(run.request, self._decision, outcomes)
            return
        began = run.started
        if self._told_at <= began < self._due:  # Earlier than before: that is another loop's clock.
            self._passed += 1
            return
        stood_for, self._passed, self._told = self._passed + 1, 0, self._told + 1
        if self._told >= COUNTED:
            self._told_at, self._due = began, began + self._every
        tool, spending = answer.tool, run.spending
        cost = spending[0][1].cost_usd if spending else None
        outcome = Outcome(tool.name, tool.version, True, cost, timeline[0]["elapsed_ms"], stood_for, *_said(answer))
        self._planner.observe(run.request, self._decision, (outcome,))


COUNTED = 64
EVERY = 0.05


def watch_canaries(registry: ToolRegistry, run: Run, steps: Sequence[ToolCall], answer: Answer) -> None:
    """Count the run for and against canaries; one that is taken back for it is told as an event."""
    if not any(registry.watches(step.tool.name) for step in steps):
        return
    for seen in outcomes_of(run, steps, answer):
        if registry.watches(seen.tool):
            taken = registry.saw(seen.tool, seen.version, seen.succeeded, seen.confidence)
            if taken is not None:
                version, why = taken
                run.tell("canary_taken_back", {"tool_name": seen.tool, "tool_version": version, "message": why})


def outcomes_of(run: Run, steps: Sequence[ToolCall], answer: Answer) -> Iterator[Outcome]:
    versions = {step.tool.name: step.tool.version for step in steps}
    for name, version in versions.items():
        # A tool that asks others has its calls under their names.
        names = {name} if any(line["tool"] == name for line in run.timeline) else _parts(run, versions)
        lines: list[Any] = [line for line in run.timeline if line["tool"] in names]
        error = answer.failures.get(name)
        answered = answer.result is not None and answer.tool.name == name and error is None
        if not lines or not (answered or (error is not None and _is_its_own(error))):
            continue
        costs = [spent.cost_usd for tool, spent in run.spending if tool in names and spent.cost_usd is not None]
        took = max(line["started_ms"] + line["elapsed_ms"] for line in lines) - min(
            line["started_ms"] for line in lines
        )
        said = _said(answer) if answered else ()
        yield Outcome(name, version, answered, sum(costs) if costs else None, took if answered else None, 1, *said)


def _parts(run: Run, steps: Mapping[str, str]) -> set[str]:
    return {line["tool"] for line in run.timeline} - steps.keys()


def _said(answer: Answer) -> tuple[Any, float | None]:
    """The content, and the confidence of a bundle."""
    result = answer.result
    if result is None:
        return None, None
    return result.content, None if result.bundle is None else result.bundle.summary.confidence


def _is_its_own(error: Exception) -> bool:
    """Whether a failure says something of the tool: a request that no tool could serve does not."""
    return classify(error).category is not ErrorCategory.VALIDATION
