"""**No tool can serve**: NoEligibleTool, with a reason per tool."""

from __future__ import annotations

from typing import Any

import pytest

from contract.kit import Fixed, registry, reliable
from steer_llm_sdk.errors import InvalidRequest, NoEligibleTool
from steer_llm_sdk.orchestration import OrchestratorError, PlanDecision, ReliabilityConfig, ReliableOrchestrator
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.testing import RecordedEvents, ScriptedTool, err

ONE = ReliabilityConfig(circuit_breaker_configs={"default": CircuitBreakerConfig(failure_threshold=1)})


async def broken() -> ReliableOrchestrator:
    """Two tools: one behind an open breaker, the other too slow for what is asked."""
    slow = ScriptedTool("slow", resource_requirements={"estimated_duration_ms": 9000})
    runner = ReliableOrchestrator(None, ONE, registry=registry(ScriptedTool("down", err(503)), slow))
    await runner.run("q", "down", None, {"max_retries": 0})
    return runner


WANTED = {"quality_requirements": {"max_latency_ms": 100}}


async def test_it_is_an_orchestrator_error_and_a_value_error_whose_text_contains_no_tools_available() -> None:
    runner = await broken()
    for kind in (OrchestratorError, ValueError, NoEligibleTool):
        with pytest.raises(kind, match="No tools available"):
            await runner.run("q", None, None, WANTED)


async def test_it_has_a_reason_per_tool() -> None:
    runner = await broken()
    with pytest.raises(NoEligibleTool) as caught:
        await runner.run("q", None, None, WANTED)
    assert caught.value.reasons["down"] == "its circuit breaker is open"
    assert "9000 ms" in caught.value.reasons["slow"]
    assert all(reason in str(caught.value) for reason in caught.value.reasons.values())


async def test_it_is_told_as_an_error_event() -> None:
    events = RecordedEvents()
    runner = await broken()
    with pytest.raises(NoEligibleTool):
        await runner.run("q", None, None, WANTED, events)
    assert events.types == ["error"]


async def test_a_named_tool_behind_an_open_breaker_is_a_failed_output_and_no_error() -> None:
    runner = await broken()
    output = await runner.run("q", "down", None, {"max_retries": 0})
    assert output.content["error"]["type"] == "CircuitOpen"


async def test_one_tool_that_is_well_serves() -> None:
    assert (await reliable(ScriptedTool("t")).run("q")).status == "succeeded"


async def test_what_a_planner_says_of_nobody_is_what_the_caller_is_told() -> None:
    class Nobody(Fixed):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            raise NoEligibleTool({"t": "it is Sunday"})

    with pytest.raises(NoEligibleTool, match="t: it is Sunday"):
        await reliable(ScriptedTool("t"), planner=Nobody("t")).run("q")


@pytest.mark.parametrize("confidence", [True, "high", 1.5])
async def test_a_confidence_that_is_none_is_refused_by_its_name(confidence: Any) -> None:
    tool = ScriptedTool("t")
    with pytest.raises(InvalidRequest, match="min_confidence"):
        await reliable(tool).run("q", None, None, {"quality_requirements": {"min_confidence": confidence}})
    assert tool.calls == []
