"""A provider that stays silent, over real HTTP: the fallback is asked beside it and the first answer wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from steer_llm_sdk.orchestration import OrchestrationOutput, ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.orchestration.planning import PlanDecision, Planner
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import RecordedEvents

ANSWER = {"type": "object", "properties": {"answer": {}}, "required": ["answer"]}
QUESTION = shipped_recording().questions[3].text
FIRST, SECOND = "gpt-4o-2024-05-13", "claude-3-haiku-20240307"
SILENT = 0.3
"""Seconds: what is 10 by default."""


class InOrder(Planner):
    """The tools in the order they were registered."""

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        first, *others = available_tools
        return PlanDecision(selected_tool=first, fallback_tools=others, reasoning="in order")


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


def first(server: SimulatedServer) -> Model:
    return Model(f"openai:{FIRST}", base_url=f"{server.base_url}/v1")


def second(server: SimulatedServer) -> Model:
    return Model(f"anthropic:{SECOND}", base_url=server.base_url)


async def run(*tools: Tool, events: RecordedEvents | None = None, **options: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    config = ReliabilityConfig(silence_timeout=SILENT, retry_policy=RetryPolicy(initial_delay=0.01))
    async with ReliableOrchestrator(InOrder(), config, registry=registry) as orchestrator:
        output = await orchestrator.run(QUESTION, None, None, options, events)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "first_of" in repr(task) or "_one" in repr(task)]
    return output


async def warm(server: SimulatedServer, *tools: Tool) -> None:
    """What is loaded when first used is loaded now."""
    for tool in tools:
        await run(tool)


@pytest.mark.parametrize("fault", ["silence", "stall:chunks=0"])
async def test_a_silent_model_is_answered_by_the_tools_next_one(server: SimulatedServer, fault: str) -> None:
    tool = LLMTool("t", [first(server), second(server)], output_type=ANSWER)
    await warm(server, tool)
    await server.set_faults([f"{fault}{',' if ':' in fault else ':'}model={FIRST}"])
    events = RecordedEvents()
    output = await run(tool, events=events)
    assert (output.status, output.metadata["model"]) == ("succeeded", SECOND)
    assert output.metadata["silent_models"] == [f"openai:{FIRST}"]
    assert "no byte for 0.3 s (silence_timeout)" in output.metadata["failed_models"][f"openai:{FIRST}"]
    assert [line["outcome"] for line in output.attempts] == ["cancelled", "succeeded"]
    assert 300 <= output.attempts[1]["started_ms"] < 800
    (told,) = events.data("silence")
    assert (told["model"], told["beside"]) == (f"openai:{FIRST}", f"anthropic:{SECOND}")


async def test_a_silent_tool_is_answered_by_the_plans_fallback(server: SimulatedServer) -> None:
    tools = LLMTool("a", first(server), output_type=ANSWER), LLMTool("b", second(server), output_type=ANSWER)
    await warm(server, *tools)
    await server.set_faults([f"silence:model={FIRST}"])
    output = await run(*tools)
    assert (output.status, output.metadata["tool_name"], output.metadata["silent_tools"]) == ("succeeded", "b", ["a"])
    assert {name: entry["attempts"] for name, entry in output.per_agent.items()} == {"a": 1, "b": 1}
    assert output.errors is not None
    assert output.errors["a"]["type"] == "ProviderTimeout"


async def test_a_slow_answer_that_has_begun_is_not_silence(server: SimulatedServer) -> None:
    """The first bytes come at once, the others after a pause."""
    tool = LLMTool("t", [first(server), second(server)], output_type=ANSWER)
    await warm(server, tool)
    await server.set_faults([f"stall:chunks=2,seconds=0.7,model={FIRST}"])
    output = await run(tool)
    assert (output.status, output.metadata["model"], len(output.attempts)) == ("succeeded", FIRST, 1)
    assert output.elapsed_ms > 600


async def test_without_a_next_one_a_slow_answer_survives(server: SimulatedServer) -> None:
    tool = LLMTool("t", first(server), output_type=ANSWER)
    await warm(server, tool)
    await server.set_faults(["slow:seconds=1"])
    output = await run(tool)
    assert (output.status, len(output.attempts)) == ("succeeded", 1)
    assert output.elapsed_ms > 900


async def test_an_answer_after_the_silence_may_still_be_the_first(server: SimulatedServer) -> None:
    tool = LLMTool("t", [first(server), second(server)], output_type=ANSWER)
    await warm(server, tool)
    await server.set_faults([f"slow:seconds=0.6,model={FIRST}", f"silence:model={SECOND}"])
    output = await run(tool)
    assert (output.metadata["model"], output.metadata["silent_models"]) == (FIRST, [f"openai:{FIRST}"])
    assert [line["outcome"] for line in output.attempts] == ["succeeded", "cancelled"]
    assert "failed_models" not in output.metadata


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("fault", "attempts"), [("429:should-retry=false", 1), ("503:should-retry=false", 1), ("400:should-retry=true", 3)]
)
async def test_what_a_server_says_of_trying_again_is_believed(
    server: SimulatedServer, wire: str, fault: str, attempts: int
) -> None:
    await server.set_faults([fault])
    output = await run(LLMTool("t", first(server) if wire == "openai" else second(server)))
    assert (output.status, len(output.attempts)) == ("failed", attempts)
