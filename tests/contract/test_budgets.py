"""**Budgets.** What is reserved is an upper bound; an excess is recorded, charged and stops further admission."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from contract.kit import STEADY, Model, calls, failed, plain, reliable
from steer_llm_sdk.errors import ConnectionFailed, ProviderTimeout
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import BudgetExceeded
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


def priced(name: str, *steps: Any, cost: float = 0.4, **kwargs: Any) -> ScriptedTool:
    return ScriptedTool(name, *steps, resource_requirements={"estimated_cost_per_run": cost}, **kwargs)


class Counted(ScriptedTool):
    """Says how many tokens one call takes at most."""

    most = 100

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(self.most, 0.0)


@BOTH
async def test_what_is_declared_is_reserved_before_the_call(orchestrator: Any) -> None:
    tool = priced("t", cost=5.0)
    with pytest.raises(BudgetExceeded, match="cost budget exceeded: 5 > 1"):
        await orchestrator(tool).run("q", "t", None, {"budget": {"cost_usd": 1.0}})
    assert tool.calls == []


@BOTH
async def test_tokens_are_reserved_before_the_call(orchestrator: Any) -> None:
    tool = Counted("t")
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 100 > 99"):
        await orchestrator(tool).run("q", "t", None, {"budget": {"tokens": 99}})
    assert (await orchestrator(tool).run("q", "t", None, {"budget": {"tokens": 100}})).status == "succeeded"
    assert len(tool.calls) == 1


async def test_spent_and_reserved_stay_within_the_limit_over_all_attempts() -> None:
    """Each failed attempt may have been billed, so each is charged at its worst: two fit, a third does not."""
    tool = priced("t", err(ProviderTimeout("silence", "p")), cost=0.4)
    with pytest.raises(BudgetExceeded) as caught:
        await reliable(tool).run("q", "t", None, {"budget": {"cost_usd": 1.0}})
    assert len(tool.calls) == 2
    assert caught.value.actual == pytest.approx(1.2)


@pytest.mark.parametrize(
    "step",
    [err(503), err(429, retry_after=0), err(ConnectionRefusedError), err(ConnectionFailed("x", "p", sent=False))],
    ids=repr,
)
async def test_an_attempt_that_cannot_have_been_billed_is_charged_nothing(step: Any) -> None:
    tool = priced("t", step, step, OK("x", cost_usd=0.4), cost=0.9)
    output = await reliable(tool).run("q", "t", None, {"budget": {"cost_usd": 1.0}})
    assert (output.status, len(tool.calls)) == ("succeeded", 3)


async def test_a_failed_attempt_is_charged_the_tokens_it_is_known_to_have_used() -> None:
    tool = Counted("t", err(503, usage={"total_tokens": 60}), OK("x"))
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 160 > 150"):
        await reliable(tool).run("q", "t", None, {"budget": {"tokens": 150}})
    assert len(tool.calls) == 1


async def test_an_attempt_that_was_stopped_is_charged_at_its_worst() -> None:
    tool = priced("t", HANG, cost=0.6)
    with pytest.raises(BudgetExceeded, match="cost"):
        await reliable(tool).run("q", "t", None, {"budget": {"cost_usd": 1.0}, "per_agent_timeout_ms": 200})
    assert len(tool.calls) == 1


async def test_an_answer_of_unknown_cost_is_charged_as_it_was_reserved() -> None:
    first, second = priced("first", OK("x"), cost=0.6), priced("second", cost=0.6)
    assert (await reliable(first, second).run("q", None, None, {"budget": {"cost_usd": 1.0}})).status == "succeeded"


async def test_the_ledger_is_shared_by_all_tools_of_a_run() -> None:
    first, second = priced("first", err(ProviderTimeout("x", "p")), cost=0.6), priced("second", cost=0.6)
    with pytest.raises(BudgetExceeded, match=r"cost budget exceeded: 1\.2 > 1"):
        await reliable(first, second, retry=STEADY).run(
            "q", None, None, {"budget": {"cost_usd": 1.0}, "max_retries": 0}
        )
    assert calls(first, second) == [1, 0]


@BOTH
async def test_parallel_calls_of_one_run_reserve_against_one_another(orchestrator: Any) -> None:
    """A model call takes at most 20 tokens: of ten at once, two fit into 45."""
    model = Model(after=1)
    output = await orchestrator(LLMBundleTool("t", model, k=10)).run("q", "t", None, {"budget": {"tokens": 45}})
    assert (output.status, output.evidence.meta.k_completed) == ("partial", len(model.requests))
    assert output.usage["total_tokens"] <= 45
    assert 2 <= len(model.requests) <= 3


class Liar(Model):
    """Takes 15 tokens where it says that it takes at most 5."""

    def worst_case(self, request: Any) -> Amount:
        return Amount(5, 0.0)


@BOTH
async def test_an_excess_is_recorded_charged_and_stops_further_admission(orchestrator: Any) -> None:
    model, events = Liar(), RecordedEvents()
    output = await orchestrator(LLMBundleTool("t", model, k=5)).run(
        "q", "t", None, {"budget": {"tokens": 200}, "max_parallel": 1}, events
    )
    assert (len(model.requests), output.status, output.evidence.meta.early_stop_reason) == (1, "partial", "budget")
    assert output.usage["total_tokens"] == 15
    assert events.data("budget_overrun") == [
        {"tool_name": "t", "budget": None, "kind": "tokens", "reserved": 5, "actual": 15}
    ]


@BOTH
async def test_an_excess_that_passes_the_limit_is_raised_with_the_work_that_was_done(orchestrator: Any) -> None:
    model = Liar()
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 15 > 10") as caught:
        await orchestrator(LLMBundleTool("t", model, k=5)).run(
            "q", "t", None, {"budget": {"tokens": 10}, "max_parallel": 1}
        )
    assert (len(model.requests), caught.value.output.usage["total_tokens"]) == (1, 15)


@BOTH
async def test_a_tool_that_promises_nothing_is_charged_what_it_took_and_stops_at_the_limit(orchestrator: Any) -> None:
    model = Model()
    model.worst_case = lambda request: Amount()  # type: ignore[method-assign]
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 30 > 20") as caught:
        await orchestrator(LLMBundleTool("t", model, k=5)).run(
            "q", "t", None, {"budget": {"tokens": 20}, "max_parallel": 1}
        )
    assert (len(model.requests), caught.value.output.usage["total_tokens"]) == (2, 30)


@BOTH
async def test_an_answer_whose_tokens_nobody_counted_is_charged_as_it_was_reserved(orchestrator: Any) -> None:
    class Silent(Model):
        async def request(self, request: Any, on_text: Any = None) -> Any:
            return dataclasses.replace(await super().request(request, on_text), usage={}, cost_usd=None)

    model = Silent()
    output = await orchestrator(LLMBundleTool("t", model, k=5)).run(
        "q", "t", None, {"budget": {"tokens": 45}, "max_parallel": 1}
    )
    assert (len(model.requests), output.status) == (2, "partial")


@BOTH
async def test_a_price_that_nobody_knows_cannot_be_kept_below_a_limit(orchestrator: Any) -> None:
    class Unpriced(ScriptedTool):
        def worst_case(self, request: Any, options: Any) -> Amount:
            return Amount(10, None)

    tool = Unpriced("t")
    info = failed(await orchestrator(tool).run("q", "t", None, {"budget": {"cost_usd": 1.0}}))
    assert "price of the model is unknown" in info["message"]
    assert tool.calls == []
    assert (await orchestrator(tool).run("q", "t", None, {"budget": {"tokens": 10}})).status == "succeeded"


@BOTH
async def test_a_limit_that_is_exactly_met_is_kept(orchestrator: Any) -> None:
    tool = priced("t", OK("x", usage={"total_tokens": 10}, cost_usd=0.3), cost=0.1 + 0.2)
    output = await orchestrator(tool).run("q", "t", None, {"budget": {"tokens": 10, "cost_usd": 0.3}})
    assert output.status == "succeeded"


@BOTH
async def test_each_run_has_a_budget_of_its_own(orchestrator: Any) -> None:
    runner = orchestrator(priced("t", OK("x", cost_usd=0.9, after=1), cost=0.9))
    options = {"budget": {"cost_usd": 1.0}}
    outputs = await asyncio.gather(*(runner.run("q", "t", None, options) for _ in range(5)))
    assert [output.cost_usd for output in outputs] == [0.9] * 5


async def test_a_budget_counts_all_attempts_and_not_only_the_last() -> None:
    tool = ScriptedTool("t", err(503, usage={"total_tokens": 8}), OK("x", usage={"total_tokens": 8}))
    with pytest.raises(BudgetExceeded, match="16 > 10") as caught:
        await reliable(tool).run("q", "t", None, {"budget": {"tokens": 10}})
    assert caught.value.output.content == "x"


@BOTH
async def test_a_model_that_fails_without_a_bill_leaves_the_budget_for_the_next(orchestrator: Any) -> None:
    dead, alive = Model(ProviderError("down", "p", 503), name="dead", target="a"), Model(name="alive", target="b")
    output = await orchestrator(LLMTool("t", [dead, alive])).run("q", "t", None, {"budget": {"cost_usd": 0.03}})
    assert (output.status, output.metadata["model"]) == ("succeeded", "alive")
