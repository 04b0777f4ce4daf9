"""**Nothing paid for is lost.** (That content of any JSON type is accepted is in test_what_goes_in_and_out.)"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from contract.kit import Fixed, bundle, now, plain, reliable, tasks
from steer_llm_sdk import Budget, EventManager
from steer_llm_sdk.errors import ProviderUnavailable, StoreUnavailable
from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    OrchestrationOutput,
    PlanningRule,
    ReliableOrchestrator,
    RuleBasedPlanner,
)
from steer_llm_sdk.orchestration.planning import RuleAction
from steer_llm_sdk.reliability import IdempotencyManager
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err, stubborn

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])
PAID = OK("worth it", usage={"total_tokens": 500}, cost_usd=2.0, metadata={"model": "m"})


# ── a budget found exceeded after the work ───────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(
    ("budget", "kind", "actual"), [({"tokens": 10}, "tokens", 500), ({"cost_usd": 0.5}, "cost", 2.0)]
)
async def test_a_budget_found_exceeded_after_the_work_raises_with_the_finished_output_on_it(
    orchestrator: Any, key: str | None, budget: dict[str, float], kind: str, actual: float
) -> None:
    runner = orchestrator(ScriptedTool("t", PAID))
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", "t", None, {"budget": budget, "idempotency_key": key})
    error = caught.value
    assert (error.budget_type, error.limit, error.actual) == (kind, next(iter(budget.values())), actual)
    output = error.output
    assert isinstance(output, OrchestrationOutput)
    assert (output.status, output.content, output.usage, output.cost_usd) == (
        "succeeded",
        "worth it",
        {"total_tokens": 500},
        2.0,
    )


@BOTH
async def test_a_bundle_over_budget_is_on_the_error_too(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK(bundle("a", "a", confidence=1.0, usage={"total_tokens": 500}))))
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", "t", None, {"budget": {"tokens": 10}})
    assert caught.value.output.evidence.summary.consensus == "a"


@BOTH
@pytest.mark.parametrize("key", [None, "k"])
async def test_work_that_is_finished_in_the_grace_after_the_deadline_is_on_the_error(
    orchestrator: Any, key: str | None
) -> None:
    runner = orchestrator(ScriptedTool("t", stubborn(1.01, PAID)))
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", "t", None, {"timeout_ms": 1000, "idempotency_key": key})
    assert (caught.value.budget_type, caught.value.output.content) == ("time", "worth it")


@BOTH
async def test_a_keyed_run_over_budget_is_remembered_and_not_bought_again(orchestrator: Any) -> None:
    tool = ScriptedTool("t", PAID)
    runner = orchestrator(tool)
    with pytest.raises(BudgetExceeded):
        await runner.run("q", "t", None, {"budget": {"tokens": 10}, "idempotency_key": "k"})
    again = await runner.run("q", "t", None, {"idempotency_key": "k"})
    assert (again.content, again.replayed, len(tool.calls)) == ("worth it", True, 1)


# ── handlers and redactors ───────────────────────────────────────────────────────────────────────────────────────────


def raises(_: Any) -> Any:
    raise KeyError("handler")


async def raises_later(_: Any) -> Any:
    await asyncio.sleep(0.01)
    raise KeyError("handler")


async def hangs(_: Any) -> Any:
    await asyncio.sleep(3600)


async def hangs_deaf(_: Any) -> Any:
    end = now() + 1
    while now() < end:
        try:
            await asyncio.sleep(end - now())
        except asyncio.CancelledError:
            continue


def cancels(_: Any) -> Any:
    raise asyncio.CancelledError


def exits(_: Any) -> Any:
    sys.exit("enough")


async def exits_later(_: Any) -> Any:
    await asyncio.sleep(0.01)
    sys.exit("enough")


def writes(event: Any) -> Any:
    for payload in (getattr(event, name, None) for name in ("usage", "error", "delta", "metadata")):
        if isinstance(payload, dict):
            payload.clear()


HANDLERS = [raises, raises_later, hangs, hangs_deaf, cancels, exits, exits_later, writes, lambda: None]
REDACTORS: list[Callable[..., Any]] = [
    raises,
    cancels,
    exits,
    lambda content: content.clear(),
    lambda content: {},
    lambda: None,
]
TOOLS = [
    [OK("x", usage={"total_tokens": 3, "details": {"cached": 1}}, cost_usd=0.1)],
    [err(503), OK("x")],
    [err(400)],
    [OK(bundle("a", "b", confidence=0.5))],
]


async def outcome(orchestrator: Any, steps: Any, **listening: Any) -> Any:
    events = EventManager(**{f"on_{kind}": listening["handler"] for kind in KINDS}) if "handler" in listening else None
    if "redactor_cb" in listening:
        events = EventManager(on_create_event=lambda _: None)
    options = {"request_id": "r", "metadata": {"team": {"name": "a"}}, "redactor_cb": listening.get("redactor_cb")}
    output = await orchestrator(ScriptedTool("t", *steps)).run("q", "t", None, options, events)
    view = output.model_dump()
    view.pop("elapsed_ms")
    for entry in view["per_agent"].values():
        for line in entry["timeline"]:
            line.pop("started_ms")
            line.pop("elapsed_ms")
    return view


KINDS = ("start", "delta", "usage", "complete", "error")


@BOTH
@pytest.mark.parametrize("steps", TOOLS)
@pytest.mark.parametrize("handler", HANDLERS)
async def test_an_event_handler_that_fails_or_hangs_never_changes_the_outcome(
    orchestrator: Any, steps: Any, handler: Any
) -> None:
    assert await outcome(orchestrator, steps, handler=handler) == await outcome(orchestrator, steps)


@BOTH
@pytest.mark.parametrize("steps", TOOLS)
@pytest.mark.parametrize("redactor", REDACTORS)
async def test_a_redactor_that_fails_never_changes_the_outcome(orchestrator: Any, steps: Any, redactor: Any) -> None:
    assert await outcome(orchestrator, steps, redactor_cb=redactor) == await outcome(orchestrator, steps)


@BOTH
async def test_handlers_get_a_quarter_of_a_second_in_all_then_they_are_dropped_with_a_warning(
    orchestrator: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def slow(event: Any) -> None:
        await asyncio.sleep(0.1)
        seen.append(event.type)

    runner = orchestrator(ScriptedTool("t", OK("x", usage={"total_tokens": 1})))
    with caplog.at_level(logging.WARNING):
        await runner.run("q", "t", None, None, EventManager(on_create_event=slow))
    assert now() == pytest.approx(0.25, abs=0.02)
    assert seen == ["start", "usage"]
    assert "the event handlers of run" in caplog.text
    await asyncio.sleep(10)
    assert seen == ["start", "usage"]
    assert not tasks()


@BOTH
async def test_slow_handlers_that_run_beside_the_work_cost_the_run_nothing(orchestrator: Any) -> None:
    async def slow(_: Any) -> None:
        await asyncio.sleep(0.05)

    runner = orchestrator(ScriptedTool("t", OK("x", after=10)))
    await runner.run("q", "t", None, None, EventManager(on_start=slow))
    assert now() == 10


# ── a planner that cannot be told ────────────────────────────────────────────────────────────────────────────────────


class Deaf(Fixed):
    """It cannot take in how its runs went."""

    def observe(self, request: Any, decision: Any, outcomes: Any) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize("step", [PAID, err(503)])
async def test_a_planner_that_fails_when_it_is_told_how_a_run_went_does_not_change_the_outcome(
    step: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        output = await reliable(ScriptedTool("t", step), planner=Deaf("t")).run("q")
    assert output.status == ("succeeded" if step is PAID else "failed")
    assert "the planner failed when it was told how a run went" in caplog.text


# ── a store that is down ─────────────────────────────────────────────────────────────────────────────────────────────


class Down(IdempotencyManager):
    async def get(self, key: str) -> Any:
        raise ConnectionError("no route")

    async def store(self, key: str, value: Any) -> None:
        raise ConnectionError("no route")


class DownAfterwards(Down):
    async def get(self, key: str) -> Any:
        return None


@BOTH
async def test_when_the_store_is_down_a_run_without_a_key_is_unaffected(orchestrator: Any) -> None:
    assert (await orchestrator(ScriptedTool("t"), manager=Down()).run("q", "t")).content == "ok"


@BOTH
async def test_when_the_store_is_down_a_keyed_run_fails_and_nothing_is_bought(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    with pytest.raises(StoreUnavailable, match="run_unprotected") as caught:
        await orchestrator(tool, manager=Down()).run("q", "t", None, {"idempotency_key": "k"})
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert tool.calls == []


async def test_when_the_store_is_down_a_keyed_run_goes_on_where_that_was_asked_for() -> None:
    runner = reliable(ScriptedTool("t"), manager=Down(), on_store_down="run_unprotected")
    output = await runner.run("q", "t", None, {"idempotency_key": "k"})
    assert (output.content, output.replayed) == ("ok", False)


@BOTH
async def test_a_store_that_goes_down_during_the_work_does_not_cost_the_answer(orchestrator: Any) -> None:
    output = await orchestrator(ScriptedTool("t"), manager=DownAfterwards()).run(
        "q", "t", None, {"idempotency_key": "k"}
    )
    assert output.content == "ok"


@BOTH
async def test_duplicates_of_a_run_whose_store_is_down_all_learn_of_it(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t"), manager=Down())
    runs: list[Awaitable[Any]] = [runner.run("q", "t", None, {"idempotency_key": "k"}) for _ in range(3)]
    ends = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(end) for end in ends] == [StoreUnavailable] * 3


@BOTH
async def test_a_run_that_hangs_in_a_tool_leaves_nothing_behind_when_it_is_cancelled(orchestrator: Any) -> None:
    tool = ScriptedTool("t", HANG)
    running = asyncio.create_task(orchestrator(tool).run("q", "t", None, {"idempotency_key": "k"}))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tool.running, tasks()) == (0, set())


@pytest.mark.parametrize("around", ["itself", "a list", "an object"])
async def test_a_number_too_long_to_be_written_is_kept_as_text_and_can_be_replayed(around: str) -> None:
    number = 10**5000  # In no parameter: pytest would write it.
    answer = {"itself": number, "a list": [number], "an object": {"content": {"n": number}, "usage": {"n": number}}}
    orchestrator, options = reliable(ScriptedTool("t", OK(answer[around]))), {"idempotency_key": "k"}
    first = await orchestrator.run("q", "t", options=options)
    replayed = await orchestrator.run("q", "t", options=options)
    assert replayed.replayed
    assert replayed == first
    assert OrchestrationOutput.model_validate_json(first.model_dump_json()) == first
    assert hex(number) in str(first.content)
    assert "4,200 digits" in first.metadata["content_warning"]


# ── a plan with a fallback ───────────────────────────────────────────────────────────────────────────────────────────


def with_fallback(first: ScriptedTool, fallback: ScriptedTool) -> ReliableOrchestrator:
    action = RuleAction(tool_name=first.name, fallback_tools=[fallback.name])
    runner = reliable(first, fallback)
    runner.planner = RuleBasedPlanner([PlanningRule(name="all", action=action)])
    return runner


async def test_a_bundle_below_min_confidence_is_on_the_error_where_the_deadline_comes_before_a_better_one() -> None:
    first = ScriptedTool("first", OK(bundle("a", "b", confidence=0.3, cost=0.2)))
    runner = with_fallback(first, ScriptedTool("second", HANG))
    asked = {"timeout_ms": 1000, "quality_requirements": {"min_confidence": 0.5}}
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", options=asked)
    output = caught.value.output
    assert (output.status, output.cost_usd, output.evidence.summary.confidence) == ("partial", 0.2, 0.3)
    assert {name: entry["error"]["type"] for name, entry in output.per_agent.items()} == {
        "first": "NotAcceptable",
        "second": "BudgetExceeded",
    }


async def test_what_failed_attempts_used_is_on_the_error_where_the_budget_refuses_the_fallback() -> None:
    failed = err(ProviderUnavailable("down", "p", 503, usage={"total_tokens": 400}))
    fallback = ScriptedTool("second", OK("x"))
    runner = with_fallback(ScriptedTool("first", failed, failed, failed), fallback)
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", options={"budget": {"tokens": 1000}})
    output = caught.value.output
    assert (output.status, output.usage["total_tokens"], len(output.attempts)) == ("failed", 1200, 3)
    assert fallback.calls == []


async def test_what_a_deadline_cut_off_costs_the_run_what_it_costs_the_budget() -> None:
    tool = ScriptedTool("t", HANG, resource_requirements={"estimated_cost_per_run": 0.02})
    runner = reliable(tool)
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", options={"timeout_ms": 1000, "budgets": [Budget("team", usd=1)]})
    output = caught.value.output
    assert output.cost_usd == runner.budgets["team"]["spent"]["usd"] == 0.02
    assert output.attempts[0]["spent"] == "estimated"
