"""LearnedPlanner in a run: what it decides is done, and what came of it is learned."""

from __future__ import annotations

from typing import Any

from steer_llm_sdk.orchestration.planning import LearnedPlanner, Pacing
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig, RetryPolicy
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.strategies import StrategyTool, merge
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.testing import OK, ScriptedTool, err

ONCE = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
REQUEST = {"type": "code", "query": "Sort a list."}


def orchestrator(planner: LearnedPlanner, *tools: Tool) -> ReliableOrchestrator:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    return ReliableOrchestrator(planner, ONCE, registry=registry)


async def test_a_run_is_learned_from_and_its_decision_can_be_judged_by_the_output() -> None:
    planner = LearnedPlanner(default_tool="good")
    runner = orchestrator(planner, ScriptedTool("good", OK("x", cost_usd=0.25, after=0.5)), ScriptedTool("odd"))
    output = await runner.run(REQUEST)
    plan = output.metadata["plan"]
    assert plan["selected_tool"] == "good"
    assert await planner.feedback(plan["decision_id"], 0.75)
    seen = planner.beliefs.cells["code", "good@1.0.0"]
    assert (seen.runs, seen.reward, seen.costs, seen.ms) == (1.0, 0.75, 1.0, 500.0)
    assert planner.beliefs.mean_cost("good@1.0.0") == 0.25


async def test_a_tool_that_fails_is_worth_nothing_and_its_fallback_is_known_to_cost() -> None:
    planner = LearnedPlanner(default_tool="good", pacing=Pacing(budget_usd=10, requests=10))
    runner = orchestrator(planner, ScriptedTool("good", err(500)), ScriptedTool("odd", OK("x", cost_usd=0.5)))
    output = await runner.run(REQUEST)
    assert output.metadata["tool_name"] == "odd"
    assert planner.beliefs.cells["code", "good@1.0.0"][:2] == (1.0, 0.0)
    assert planner.paced is not None
    assert planner.paced.spent == 0.5


async def test_praise_for_what_a_fallback_said_is_not_for_the_tool_that_failed_and_it_is_chosen_next() -> None:
    planner = LearnedPlanner(default_tool="bad", explore="off")
    runner = orchestrator(planner, ScriptedTool("bad", err(503)), ScriptedTool("good", OK("y", cost_usd=0.25)))
    chosen = []
    for _ in range(3):
        output = await runner.run(REQUEST, options={"enable_circuit_breaker": False})
        assert output.metadata["tool_name"] == "good"
        chosen.append(output.metadata["plan"]["selected_tool"])
        await planner.feedback(output.metadata["plan"]["decision_id"], 1.0)
    assert chosen == ["bad", "bad", "good"]
    assert planner.beliefs.cells["code", "bad@1.0.0"][:2] == (2.0, 0.0)
    assert planner.beliefs.cells["code", "good@1.0.0"][:3] == (3.0, 3.0, 3.0)


async def test_an_evaluator_teaches_which_tool_is_better() -> None:
    def judge(request: Any, content: Any) -> float:
        return 1.0 if content == "right" else 0.0

    planner = LearnedPlanner(default_tool="good", evaluator=judge)
    runner = orchestrator(planner, ScriptedTool("good", OK("wrong")), ScriptedTool("odd", OK("right")))
    for _ in range(150):
        await runner.run(REQUEST)
    last = [(await runner.run(REQUEST)).content for _ in range(50)]
    assert last.count("right") > 40


async def test_a_deterministic_run_explores_nothing() -> None:
    planner = LearnedPlanner(default_tool="good", explore="thompson")
    odd = ScriptedTool("odd")
    runner = orchestrator(planner, ScriptedTool("good"), odd)
    for _ in range(30):
        await runner.run(REQUEST, options={"deterministic": True})
    assert odd.calls == []


async def test_the_trust_in_a_strategy_is_its_reward() -> None:
    planner = LearnedPlanner(default_tool="both", trust_confidence=True)
    both = StrategyTool("both", merge(ScriptedTool("a", OK("x")), ScriptedTool("b", OK("x"))))
    await orchestrator(planner, both).run(REQUEST)
    assert planner.beliefs.cells["code", "both@1.0.0"].runs == 1.0
