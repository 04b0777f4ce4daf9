"""Strategies over real HTTP with faults on the way: losers stopped, budgets and deadlines kept, costs that add up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.orchestration import OrchestrationOutput, ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.strategies import Calibration, StrategyTool, cascade, chain, merge, quorum, race, step
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.models import Model, Price
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.reliability import RetryPolicy

ANSWER = {"type": "object", "properties": {"answer": {}}, "required": ["answer"]}
QUESTION, NEXT = (shipped_recording().questions[number].text for number in (3, 4))
GPT, CLAUDE = "gpt-4o-2024-05-13", "claude-3-haiku-20240307"
DEAR, CHEAP = Price(input=2.5, output=10.0), Price(input=0.25, output=1.25)
SURE = Calibration(bound=0.8, auroc=0.9, right_at_least=0.95, answers=300)


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


def gpt(server: SimulatedServer, name: str = "gpt") -> LLMTool:
    return LLMTool(name, Model(f"openai:{GPT}", base_url=f"{server.base_url}/v1", price=DEAR), output_type=ANSWER)


def claude(server: SimulatedServer, name: str = "claude") -> LLMTool:
    return LLMTool(name, Model(f"anthropic:{CLAUDE}", base_url=server.base_url, price=CHEAP), output_type=ANSWER)


async def run(strategy: Any, **options: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    registry.register_tool(StrategyTool("strategy", strategy))
    patience = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.01, max_delay=0.02))
    async with ReliableOrchestrator(registry=registry, reliability_config=patience) as orchestrator:
        output = await orchestrator.run(QUESTION, "strategy", options=options)
    assert not [task for task in asyncio.all_tasks() if "carry_out" in repr(task)]
    return output


def adds_up(output: OrchestrationOutput) -> None:
    """What the tools cost is what the run cost, to the last digit."""
    costs = [entry["cost_usd"] for entry in output.per_agent.values() if entry["cost_usd"] is not None]
    assert output.cost_usd is not None
    assert math.isclose(math.fsum(costs), output.cost_usd, rel_tol=1e-12)
    assert math.isclose(math.fsum(output.cost_breakdown.values()), output.cost_usd, rel_tol=1e-12)


async def test_a_race_is_won_beside_a_provider_that_stalls_and_the_loser_is_stopped(server: SimulatedServer) -> None:
    await run(merge(gpt(server), claude(server)))  # What is loaded once is loaded now.
    await server.set_faults([f"silence:model={GPT}"])
    output = await run(race(gpt(server), claude(server)))
    assert output.metadata["strategy"]["winner"] == "claude"
    assert {line["tool"]: line["outcome"] for line in output.attempts} == {"gpt": "cancelled", "claude": "succeeded"}
    assert output.per_agent["gpt"]["cost_usd"] > 0
    adds_up(output)


async def test_a_race_outlives_a_provider_that_is_down(server: SimulatedServer) -> None:
    await server.set_faults([f"503:model={GPT}"])
    output = await run(race(gpt(server), claude(server)))
    assert (output.status, output.metadata["strategy"]["winner"]) == ("succeeded", "claude")
    adds_up(output)


async def test_stages_of_a_chain_are_retried_by_themselves_and_their_costs_add_up(server: SimulatedServer) -> None:
    await server.set_faults(["503:first=1", "500:after=2,first=1"])
    second = claude(server)
    asks_next = step(second, takes=lambda content: {"query": NEXT})
    output = await run(chain(gpt(server), asks_next))
    assert output.status == "succeeded"
    assert (output.per_agent["gpt"]["attempts"], output.per_agent["claude"]["attempts"]) == (2, 2)
    adds_up(output)


async def test_a_chain_keeps_what_it_has_where_a_later_stage_is_down(server: SimulatedServer) -> None:
    await server.set_faults([f"503:model={CLAUDE}"])
    output = await run(chain(gpt(server), step(claude(server), takes=lambda content: {"query": NEXT})))
    assert output.status == "partial"
    assert "answer" in output.content
    adds_up(output)


async def test_a_merge_over_two_formats_is_one_bundle_and_partial_where_one_is_down(server: SimulatedServer) -> None:
    whole = await run(merge(gpt(server), claude(server), fields=["answer"]))
    assert whole.evidence is not None
    assert whole.evidence.meta.k_completed == 2
    adds_up(whole)
    await server.set_faults([f"400:model={CLAUDE}"])
    part = await run(merge(gpt(server), claude(server), fields=["answer"]))
    assert (part.status, part.evidence.meta.k_completed if part.evidence else None) == ("partial", 1)
    adds_up(part)


async def test_a_quorum_waits_for_nobody_once_it_is_reached(server: SimulatedServer) -> None:
    slow = LLMTool("slow", Model(f"openai:{GPT}", base_url=f"{server.base_url}/v1", price=DEAR), output_type=ANSWER)
    await server.set_faults([f"silence:model={GPT}"])
    agree = quorum(2, slow, claude(server, "a"), claude(server, "b"), same=lambda content: content["answer"])
    output = await run(agree)
    assert output.status == "succeeded"
    assert sum(line["outcome"] == "cancelled" for line in output.attempts) == 1
    adds_up(output)


async def test_a_cascade_escalates_where_the_cheap_model_fails_or_is_not_trusted(server: SimulatedServer) -> None:
    doubtful = await run(cascade(claude(server), gpt(server), calibration=SURE, verifier=lambda request, content: 0.1))
    assert [name for name in doubtful.per_agent if name != "strategy"] == ["claude", "gpt"]
    adds_up(doubtful)
    await server.set_faults([f"400:model={CLAUDE}"])
    broken = await run(cascade(claude(server), gpt(server), calibration=SURE, verifier=lambda request, content: 1.0))
    assert broken.metadata["model"] == GPT
    adds_up(broken)


@pytest.mark.parametrize("kind", [race, merge, chain])
async def test_the_deadline_holds_whatever_stalls(server: SimulatedServer, kind: Any) -> None:
    await server.set_faults(["silence"])
    began = time.monotonic()
    with pytest.raises(BudgetExceeded) as raised:
        await run(kind(gpt(server), claude(server)), timeout_ms=700)
    assert raised.value.budget_type == "time"
    assert time.monotonic() - began < 10  # The server never answers.


@pytest.mark.parametrize("faults", [[], ["503:rate=0.5"], ["reset:rate=0.5"]])
async def test_no_strategy_spends_more_than_the_budget(server: SimulatedServer, faults: list[str]) -> None:
    await server.set_faults(faults)
    limit = 0.05
    for kind in (race, merge, chain):
        try:
            output = await run(kind(gpt(server), claude(server), gpt(server, "again")), budget={"cost_usd": limit})
        except BudgetExceeded as exceeded:
            output = exceeded.output
        assert output is None or (output.cost_usd or 0.0) <= limit
