"""**State belongs to the orchestrator** that was constructed."""

from __future__ import annotations

from typing import Any

import pytest

from contract.kit import registry
from steer_llm_sdk.orchestration import (
    Orchestrator,
    PlanDecision,
    Planner,
    PlanRequest,
    ReliabilityConfig,
    ReliableOrchestrator,
)
from steer_llm_sdk.reliability import CircuitBreakerConfig, IdempotencyManager
from steer_llm_sdk.testing import OK, ScriptedTool, err

CONFIG = ReliabilityConfig(circuit_breaker_configs={"default": CircuitBreakerConfig(failure_threshold=1)})
ONCE = {"max_retries": 0}


async def test_breakers_are_not_shared_between_instances() -> None:
    tools = registry(ScriptedTool("t", err(503), OK("x"), provider="p"))
    one, two = (ReliableOrchestrator(None, CONFIG, registry=tools) for _ in range(2))
    await one.run("q", "t", None, ONCE)
    assert one.breakers["p"]["state"] == "open"
    assert (await two.run("q", "t", None, ONCE)).status == "succeeded"
    assert two.breakers["p"]["state"] == "closed"
    assert (await one.run("q", "t", None, ONCE)).content["error"]["type"] == "CircuitOpen"


async def test_what_a_planner_writes_into_its_context_is_told_to_no_other_run() -> None:
    class Writes(Planner):
        async def plan(self, request: Any, available_tools: Any, context: PlanRequest | None = None) -> PlanDecision:
            assert context is not None
            told.append(context.model_copy(deep=True))
            context.circuit_breaker_states["t"] = "open"
            context.previous_failures.append("t")
            return PlanDecision(selected_tool="t")

    told: list[PlanRequest] = []
    tools = registry(ScriptedTool("t"))
    for _ in range(2):
        await ReliableOrchestrator(Writes(), registry=tools).run("q")
    assert told == [PlanRequest(), PlanRequest()]
    assert (await ReliableOrchestrator(registry=tools).run("q")).status == "succeeded"


@pytest.mark.parametrize("kind", [Orchestrator, ReliableOrchestrator])
async def test_remembered_results_are_not_shared_between_instances(kind: Any) -> None:
    tool = ScriptedTool("t")
    tools = registry(tool)
    for _ in range(2):
        output = await kind(registry=tools).run("q", "t", None, {"idempotency_key": "k"})
        assert not output.replayed
    assert len(tool.calls) == 2


@pytest.mark.parametrize("kind", [Orchestrator, ReliableOrchestrator])
async def test_remembered_results_are_shared_where_one_manager_is_given_to_both(kind: Any) -> None:
    tool, manager = ScriptedTool("t"), IdempotencyManager()
    tools = registry(tool)
    outputs = [
        await kind(registry=tools, idempotency_manager=manager).run("q", "t", None, {"idempotency_key": "k"})
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    assert [output.replayed for output in outputs] == [False, True]
    assert len(tool.calls) == 1


async def test_leaving_the_context_closes_the_tools_that_were_used_and_no_others() -> None:
    class Opened(ScriptedTool):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1
            if self.name == "stuck":
                raise OSError("stuck")

    used, stuck, unused = Opened("used"), Opened("stuck"), Opened("unused")
    async with ReliableOrchestrator(registry=registry(used, stuck, unused)) as runner:
        for name in ("stuck", "used", "used"):
            await runner.run("q", name)
    assert (used.closed, stuck.closed, unused.closed) == (1, 1, 0)
