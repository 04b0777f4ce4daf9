"""A budget in USD over the wire: a model of unknown price is not asked, a declared price makes it possible."""

from __future__ import annotations

from typing import Any

import pytest
from canned import model_at

from steer_llm_sdk import Budget, LLMBundleTool, LLMTool, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.models import Model, Price
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording

QUESTION = shipped_recording().questions[0].text
PRICE = Price(input=1000.0, output=2.0)
LIMITED = {"budgets": [Budget("team", usd=50, per="month")]}


async def run(tool: Any, tool_options: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    registry = ToolRegistry()
    registry.register_tool(tool)
    async with ReliableOrchestrator(registry=registry) as orchestrator:
        output = await orchestrator.run(QUESTION, tool.name, tool_options, {**LIMITED, **options})
        return output, orchestrator.budgets["team"]


async def test_a_model_of_unknown_price_is_refused_before_anything_is_sent(
    simulated: SimulatedServer, wire: str
) -> None:
    for options in ({}, {"budgets": [Budget("team", tokens=10**6)], "budget": {"cost_usd": 1.0}}):
        output, account = await run(LLMTool("t", model_at(simulated.base_url, wire)), **options)
        assert "the price of the model is unknown; declare one" in output.content["error"]["message"]
        assert output.attempts == []
        assert account["spent"] == {"tokens": 0, "usd": 0}


@pytest.mark.parametrize("where", ["on the model", "on the tool", "on a bundle"])
async def test_a_declared_price_is_reserved_and_charged(simulated: SimulatedServer, wire: str, where: str) -> None:
    url = simulated.base_url
    tools = {
        "on the model": lambda: LLMTool("t", model_at(url, wire, price=PRICE)),
        "on the tool": lambda: LLMTool("t", model_at(url, wire), price=PRICE),
        "on a bundle": lambda: LLMBundleTool("t", model_at(url, wire), k=2, price=PRICE),
    }
    output, account = await run(tools[where]())
    assert output.status == "succeeded"
    expected = (output.usage["input_tokens"] * 1000 + output.usage["output_tokens"] * 2) / 1e6
    assert output.cost_usd == pytest.approx(expected)
    assert account["spent"]["usd"] == pytest.approx(expected, abs=1e-11)
    assert account["spent"]["tokens"] == output.usage["total_tokens"]
    assert account["reserved"] == {"tokens": 0, "usd": 0}


async def test_a_models_own_price_goes_before_the_tools(simulated: SimulatedServer, wire: str) -> None:
    free = Price(input=0.0, output=0.0)
    output, account = await run(LLMTool("t", model_at(simulated.base_url, wire, price=free), price=PRICE))
    assert (output.status, output.cost_usd, account["spent"]["usd"]) == ("succeeded", 0.0, 0)


async def test_the_tools_price_is_not_that_of_another_model_that_an_option_names(
    simulated: SimulatedServer, wire: str
) -> None:
    tool = LLMTool("t", model_at(simulated.base_url, wire, "one"), price=PRICE)
    output, _ = await run(tool, {"model": model_at(simulated.base_url, wire, "another")})
    assert "the price of the model is unknown" in output.content["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "tokens"),
    [("reset", 50), ("no-end", 50), ("malformed", 50), ("drop", 50), ("503", 0), ("401", 0), ("refuse", 0)],
)
async def test_a_broken_answer_is_charged_what_was_reserved_and_one_that_was_refused_nothing(
    simulated: SimulatedServer, wire: str, fault: str, tokens: int
) -> None:
    """At a price for output alone, the worst case of 50 tokens is 50 tokens."""
    await simulated.set_faults(fault)
    tool = LLMTool("t", model_at(simulated.base_url, wire, price=Price(input=0.0, output=1000.0)), max_tokens=50)
    output, account = await run(tool, max_retries=0, streaming=True)
    assert output.status == "failed"
    assert (account["spent"]["usd"], account["reserved"]["usd"]) == (tokens / 1000, 0)


@pytest.mark.parametrize("price", [1.0, {"input": 1.0, "output": 2.0}])
def test_what_is_no_price_is_refused(price: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"price: .*give Price\(input=\.\.\., output=\.\.\.\)"):
        Model("ollama:m", price=price)
    with pytest.raises(InvalidRequest, match=r"price: .*give Price\(input=\.\.\., output=\.\.\.\)"):
        LLMTool("t", "ollama:m", price=price)
