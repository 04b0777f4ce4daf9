"""**Fallback.** Who answers when the first cannot, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from contract.kit import Fixed, bundle, calls, failed, kinds, now, registry, reliable
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    PlanningRule,
    ReliabilityConfig,
    ReliableOrchestrator,
    RuleBasedPlanner,
    ToolExecutionError,
)
from steer_llm_sdk.orchestration.planning import RuleAction
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

NO_RETRY = {"max_retries": 0}


class Choosy(ScriptedTool):
    """Takes only requests that have `wants`."""

    def __init__(self, name: str, *steps: Any, wants: str, **kwargs: Any) -> None:
        super().__init__(name, *steps, **kwargs)
        self.wants = wants

    def validate_request(self, request: Any) -> None:
        if self.wants not in request:
            raise ValueError(f"{self.wants}: give one")


@pytest.mark.parametrize(
    "step",
    [
        err(503),
        err(429, retry_after=900),
        err(400),
        err(401),
        err(404),
        err(ValueError("x")),
        err(KeyError("x")),
        err(TimeoutError),
        err(ToolExecutionError("t", KeyError("x"))),
        err(ExceptionGroup("g", [ValueError("x")])),
        OK(bundle(invalid=3)),
    ],
    ids=repr,
)
async def test_it_is_tried_when_the_primary_fails_for_any_reason_that_another_tool_could_cure(step: Any) -> None:
    first, second = ScriptedTool("first", step), ScriptedTool("second", OK("x"))
    output = await reliable(first, second).run("q", None, None, NO_RETRY)
    assert (output.status, output.content, calls(first, second)) == ("succeeded", "x", [1, 1])
    assert output.errors is not None
    assert list(output.errors) == ["first"]


async def test_it_is_tried_when_the_primary_refuses() -> None:
    first, second = ScriptedTool("first", err(503), provider="p"), ScriptedTool("second", OK("x"))
    runner = reliable(first, second, breaker=CircuitBreakerConfig(failure_threshold=1))
    await runner.run("q", None, None, NO_RETRY)
    output = await runner.run("q", None, None, NO_RETRY)
    assert output.content == "x"
    assert list(kinds(output.errors)) == [("first", "CircuitOpen")]


async def test_it_is_tried_when_an_attempt_takes_longer_than_it_may() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", OK("x"))
    output = await reliable(first, second).run("q", None, None, {**NO_RETRY, "per_agent_timeout_ms": 300})
    assert (output.content, now()) == ("x", 0.3)


async def test_it_is_tried_after_the_retries_and_not_before() -> None:
    first, second = ScriptedTool("first", err(503), err(503), OK("third time")), ScriptedTool("second")
    assert (await reliable(first, second).run("q")).content == "third time"
    assert calls(first, second) == [3, 0]


async def test_validation_of_the_request_is_not_one() -> None:
    first, second = Choosy("first", wants="url"), ScriptedTool("second")
    output = await reliable(first, second).run({"query": "q"})
    assert (failed(output)["code"], calls(first, second)) == ("validation", [0, 0])


async def test_a_fallback_that_the_request_does_not_suit_is_passed_over_for_the_next() -> None:
    first, second, third = ScriptedTool("first", err(503)), Choosy("second", wants="url"), ScriptedTool("third")
    output = await reliable(first, second, third).run({"query": "q"}, None, None, NO_RETRY)
    assert (output.metadata["tool_name"], calls(first, second, third)) == ("third", [1, 0, 1])
    assert list(kinds(output.errors)) == [("first", "ProviderError"), ("second", "ValueError")]


async def test_output_cost_usage_and_events_name_the_tool_that_answered() -> None:
    class Talks(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            await event_manager.emit_delta(StreamDeltaEvent(self.name))
            return await super().execute(request, options, event_manager)

    first = Talks("first", err(400), version="1.1")
    second = Talks("second", OK("x", usage={"total_tokens": 5}, cost_usd=0.5, metadata={"model": "m"}), version="2.2")
    events = RecordedEvents()
    output = await reliable(first, second).run("q", None, None, None, events)
    assert (output.metadata["tool_name"], output.metadata["tool_version"]) == ("second", "2.2")
    assert (output.usage, output.cost_usd, output.cost_breakdown) == ({"total_tokens": 5}, 0.5, {"second": 0.5})
    named = [(type_, event.metadata["tool_name"]) for type_, event in zip(events.types, events.all, strict=True)]
    assert named == [
        ("start", "first"),
        ("delta", "first"),
        ("fallback", "first"),
        ("restart", "second"),
        ("delta", "second"),
        ("usage", "second"),
        ("complete", "second"),
    ]
    assert events.all[-1].metadata["tool_version"] == "2.2"


async def test_the_failures_before_it_are_kept_in_order() -> None:
    tools = [ScriptedTool("a", err(503)), ScriptedTool("b", err(ValueError("x"))), ScriptedTool("c", OK("x"))]
    output = await reliable(*tools).run("q", None, None, NO_RETRY)
    assert list(kinds(output.errors)) == [("a", "ProviderError"), ("b", "ValueError")]
    assert list(output.per_agent) == ["a", "b", "c"]
    assert [output.per_agent[name].get("error", {}).get("type") for name in "abc"] == [
        "ProviderError",
        "ValueError",
        None,
    ]


async def test_when_all_fail_all_causes_are_there_in_order() -> None:
    tools = [ScriptedTool("a", err(400)), ScriptedTool("b", err(503)), ScriptedTool("c", err(KeyError("x")))]
    output = await reliable(*tools).run("q", None, None, NO_RETRY)
    info = failed(output)
    assert (info["type"], info["code"], info["is_retryable"]) == ("AllToolsFailed", "validation", True)
    assert list(info["failures"]) == ["a", "b", "c"]
    assert output.errors == info["failures"]
    assert "a: " in info["message"]
    assert output.metadata["tool_name"] == "c"


async def test_what_a_failed_tool_used_is_part_of_the_usage() -> None:
    first = ScriptedTool("first", err(400, usage={"total_tokens": 7}))
    second = ScriptedTool("second", OK("x", usage={"total_tokens": 5}))
    output = await reliable(first, second).run("q")
    assert output.usage == {"total_tokens": 12}
    assert [output.per_agent[name]["usage"] for name in ("first", "second")] == [
        {"total_tokens": 7},
        {"total_tokens": 5},
    ]


async def test_a_run_goes_by_the_config_as_it_is_now_and_not_by_the_plan_before() -> None:
    tools = [ScriptedTool(name, err(400)) for name in "tuv"]
    rule = PlanningRule("r", action=RuleAction("t", fallback_tools=["u", "v"]))
    config = ReliabilityConfig()
    runner = ReliableOrchestrator(RuleBasedPlanner([rule]), config, registry=registry(*tools))
    asked = []
    for name, value in (("enable_fallback", True), ("max_fallback_attempts", 1), ("enable_fallback", False)):
        setattr(config, name, value)
        asked.append(list((await runner.run("q")).per_agent))
    assert asked == [["t", "u", "v"], ["t", "u"], ["t"]]


@pytest.mark.parametrize(("limit", "asked"), [(0, 1), (1, 2), (2, 3), (5, 5)])
async def test_max_fallback_attempts_bounds_them(limit: int, asked: int) -> None:
    tools = [ScriptedTool(str(n), err(400)) for n in range(5)]
    await reliable(*tools, max_fallback_attempts=limit).run("q")
    assert sum(calls(*tools)) == asked


async def test_each_tool_is_tried_at_most_once_and_one_that_is_missing_is_passed_over() -> None:
    a, b = ScriptedTool("a", err(400)), ScriptedTool("b", err(400))
    await reliable(a, b, planner=Fixed("a", "nobody", "a", "b", "b")).run("q")
    assert calls(a, b) == [1, 1]


async def test_a_tool_that_was_named_has_no_fallback() -> None:
    a, b = ScriptedTool("a", err(400)), ScriptedTool("b")
    assert failed(await reliable(a, b).run("q", "a"))
    assert calls(a, b) == [1, 0]


async def test_each_tool_gets_its_own_default_options_under_those_of_plan_and_caller() -> None:
    first = ScriptedTool("first", err(400), default_options={"k": 1, "own": "first"})
    second = ScriptedTool("second", default_options={"k": 2, "own": "second"})
    await reliable(first, second, planner=Fixed("first", "second", options={"k": 5, "plan": 1})).run(
        "q", None, {"plan": 2}
    )
    seen = [{name: tool.calls[0].options.get(name) for name in ("k", "own", "plan")} for tool in (first, second)]
    assert seen == [{"k": 5, "own": "first", "plan": 2}, {"k": 5, "own": "second", "plan": 2}]


async def test_the_key_a_fallback_gets_is_its_own() -> None:
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second")
    await reliable(first, second).run("q", None, None, {"idempotency_key": "k"})
    assert [tool.calls[0].options["idempotency_key"] for tool in (first, second)] == ["k:first", "k:second"]


async def test_a_budget_that_stops_the_first_is_no_reason_not_to_ask_a_cheaper_one() -> None:
    dear = ScriptedTool("dear", resource_requirements={"estimated_cost_per_run": 5.0})
    cheap = ScriptedTool("cheap", resource_requirements={"estimated_cost_per_run": 0.01})
    output = await reliable(dear, cheap).run("q", None, None, {"budget": {"cost_usd": 1.0}})
    assert (output.metadata["tool_name"], calls(dear, cheap)) == ("cheap", [0, 1])


async def test_a_budget_that_stops_the_last_is_raised() -> None:
    tools = [ScriptedTool(name, resource_requirements={"estimated_cost_per_run": 5.0}) for name in "ab"]
    with pytest.raises(BudgetExceeded, match="cost budget exceeded: 5 > 1"):
        await reliable(*tools).run("q", None, None, {"budget": {"cost_usd": 1.0}})
    assert calls(*tools) == [0, 0]


async def test_of_several_bundles_that_are_not_acceptable_the_best_is_returned_as_partial() -> None:
    tools = [
        ScriptedTool("low", OK(bundle("a", "b", confidence=0.3))),
        ScriptedTool("best", OK(bundle("c", "d", confidence=0.6))),
        ScriptedTool("none", OK(bundle("e", "f"))),
    ]
    output = await reliable(*tools).run("q", None, None, {"quality_requirements": {"min_confidence": 0.9}})
    assert (output.status, output.metadata["tool_name"]) == ("partial", "best")
    assert output.evidence is not None
    assert output.evidence.summary.confidence == 0.6
    assert output.errors is not None
    assert list(output.errors) == ["low", "best", "none"]


async def test_an_answer_below_what_was_asked_for_is_better_than_none() -> None:
    low = ScriptedTool("low", OK(bundle("a", "b", confidence=0.3)))
    dead = ScriptedTool("dead", err(ProviderError("x", "p", 400)))
    output = await reliable(low, dead).run("q", None, None, {"quality_requirements": {"min_confidence": 0.9}})
    assert (output.status, output.metadata["tool_name"]) == ("partial", "low")
