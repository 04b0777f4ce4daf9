from __future__ import annotations

import pytest
from pydantic import ValidationError

from steer_llm_sdk.orchestration.planning import (
    ExecutionStrategy,
    PlanDecision,
    PlanRequest,
    RuleBasedPlanner,
    ToolMetadata,
)

planner = RuleBasedPlanner()


def tool(cost: object = None, duration: object = None, **defaults: object) -> ToolMetadata:
    declared = {"estimated_cost_per_run": cost, "estimated_duration_ms": duration}
    return ToolMetadata(
        name="t",
        default_options=defaults,
        resource_requirements={name: value for name, value in declared.items() if value is not None},
    )


def test_a_decision_needs_only_its_tool() -> None:
    decision = PlanDecision(selected_tool="t")
    assert decision.model_dump() == {
        "selected_tool": "t",
        "tool_version": None,
        "tool_options": {},
        "fallback_tools": [],
        "execution_strategy": ExecutionStrategy.SINGLE,
        "estimated_cost": None,
        "estimated_duration_ms": None,
        "confidence": 1.0,
        "reasoning": "",
        "metadata": {},
    }


def test_a_plan_request_starts_empty() -> None:
    assert PlanRequest().model_dump() == {
        "budget": None,
        "quality_requirements": None,
        "previous_failures": [],
        "circuit_breaker_states": {},
        "user_preferences": {},
        "probes_left": {},
        "capabilities": [],
        "models": [],
        "versions": {},
        "input_tokens": None,
        "tenant": None,
        "explore": True,
    }


def test_the_strategies_are_four() -> None:
    assert [strategy.value for strategy in ExecutionStrategy] == ["single", "chain", "parallel", "conditional"]


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_a_confidence_is_between_0_and_1(confidence: float) -> None:
    with pytest.raises(ValidationError, match="confidence"):
        PlanDecision(selected_tool="t", confidence=confidence)


def test_availability_is_asked_by_name_or_by_decision() -> None:
    tools = {"t": tool()}
    assert planner.validate_tool_availability("t", tools)
    assert planner.validate_tool_availability(PlanDecision(selected_tool="t"), tools)
    assert not planner.validate_tool_availability("u", tools)
    assert not planner.validate_tool_availability(PlanDecision(selected_tool="u"), tools)


def test_cost_is_the_declared_one_times_k() -> None:
    assert planner.estimate_cost(tool(cost=0.25), {"k": 4}) == 1.0
    assert planner.estimate_cost(tool(cost=0.25)) == 0.25
    assert planner.estimate_cost(tool(cost=0.25, k=2)) == 0.5
    assert planner.estimate_cost(tool(cost=0.25, k=2), {"k": 3}) == 0.75


@pytest.mark.parametrize(
    ("k", "max_parallel", "rounds"), [(1, 1, 1), (3, 10, 1), (10, 10, 1), (11, 10, 2), (7, 2, 4), (7, 1, 7)]
)
def test_duration_is_the_declared_one_times_the_rounds(k: int, max_parallel: int, rounds: int) -> None:
    estimate = planner.estimate_duration(tool(duration=100), {"k": k, "max_parallel": max_parallel})
    assert estimate == 100 * rounds


def test_ten_replicates_run_at_once_unless_told_otherwise() -> None:
    assert planner.estimate_duration(tool(duration=100), {"k": 11}) == 200
    assert planner.estimate_duration(tool(duration=100, max_parallel=2), {"k": 11}) == 600


def test_nothing_declared_is_none_and_not_zero() -> None:
    assert planner.estimate_cost(tool(), {"k": 3}) is None
    assert planner.estimate_duration(tool(), {"k": 3}) is None


@pytest.mark.parametrize("declared", ["cheap", True, -1, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_number_counts_as_not_declared(declared: object) -> None:
    assert planner.estimate_cost(tool(cost=declared)) is None
    assert planner.estimate_duration(tool(duration=declared)) is None


@pytest.mark.parametrize("k", ["three", 0, -2, 1.5, True, 10**400, None])
def test_a_k_that_is_no_count_is_passed_over(k: object) -> None:
    assert planner.estimate_cost(tool(cost=0.5), {"k": k}) == 0.5
    assert planner.estimate_duration(tool(duration=50), {"k": k, "max_parallel": k}) == 50
