"""**Planning**, as a run sees it. (How rules and defaults decide is in tests/unit/planning.)"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from contract.kit import Fixed, calls, registry, reliable
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration import (
    PlanDecision,
    Planner,
    PlanningRule,
    PlanRequest,
    ReliabilityConfig,
    ReliableOrchestrator,
    RuleBasedPlanner,
    Tool,
)
from steer_llm_sdk.orchestration.planning import (
    ExecutionStrategy,
    RuleAction,
    RuleCondition,
    create_budget_aware_rule,
)
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.testing import OK, ScriptedTool, err

ONE = ReliabilityConfig(circuit_breaker_configs={"default": CircuitBreakerConfig(failure_threshold=1)})
NO_RETRY = {"max_retries": 0}


def ruled(*rules: PlanningRule, tools: tuple[Tool, ...]) -> ReliableOrchestrator:
    return ReliableOrchestrator(RuleBasedPlanner(rules), ONE, registry=registry(*tools))


def rule(name: str, tool: str, *fallbacks: str, when: RuleCondition | None = None, **fields: Any) -> PlanningRule:
    conditions = [] if when is None else [when]
    return PlanningRule(name, conditions=conditions, action=RuleAction(tool, fallback_tools=fallbacks), **fields)


async def test_the_planner_selects_where_no_tool_is_named() -> None:
    a, b = ScriptedTool("a"), ScriptedTool("b")
    output = await reliable(a, b, planner=Fixed("b")).run("q")
    assert (output.metadata["tool_name"], calls(a, b)) == ("b", [0, 1])
    assert output.metadata["plan"]["selected_tool"] == "b"


async def test_a_tool_that_is_named_is_simply_the_shortest_plan() -> None:
    planner = Fixed("b")
    a = ScriptedTool("a")
    output = await reliable(a, ScriptedTool("b"), planner=planner).run("q", "a")
    assert (len(a.calls), planner.asked) == (1, [])
    assert "plan" not in output.metadata


async def test_callers_options_over_plans_over_tools_defaults() -> None:
    tool = ScriptedTool("t", default_options={"a": "tool", "b": "tool", "c": "tool"})
    runner = reliable(tool, planner=Fixed("t", options={"b": "plan", "c": "plan"}))
    await runner.run("q", None, {"c": "caller"})
    seen = tool.calls[0].options
    assert {name: seen[name] for name in "abc"} == {"a": "tool", "b": "plan", "c": "caller"}


async def test_the_planner_is_told_the_budget_and_what_the_tools_declare() -> None:
    told: list[tuple[Mapping[str, Any], PlanRequest | None]] = []

    class Watching(Planner):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            told.append((available_tools, context))
            return PlanDecision(selected_tool="t")

    tool = ScriptedTool("t", capabilities=["qa"], resource_requirements={"estimated_cost_per_run": 0.5})
    await reliable(tool, planner=Watching()).run("q", None, None, {"budget": {"tokens": 50}})
    ((tools, context),) = told
    assert (tools["t"].capabilities, tools["t"].resource_requirements) == (["qa"], {"estimated_cost_per_run": 0.5})
    assert context is not None
    assert context.budget == {"tokens": 50}


async def test_a_rule_whose_primary_is_open_uses_its_declared_fallbacks_before_any_other_rule() -> None:
    a, b, c = ScriptedTool("a", err(503)), ScriptedTool("b", OK("b")), ScriptedTool("c", OK("c"))
    runner = ruled(rule("first", "a", "b", priority=9), rule("second", "c", priority=5), tools=(c, b, a))
    await runner.run("q", "a", None, NO_RETRY)
    output = await runner.run("q")
    assert (output.content, len(a.calls)) == ("b", 1)
    assert output.metadata["plan"]["matched_rule"] == "first"
    assert output.passed_over == output.metadata["plan"]["passed_over"] == {"a": "its circuit breaker is open"}
    assert [call["tool"] for call in output.attempts] == ["b"]


async def test_a_rule_whose_primary_is_missing_uses_its_declared_fallbacks() -> None:
    b, c = ScriptedTool("b", OK("b")), ScriptedTool("c")
    output = await ruled(rule("r", "gone", "b"), tools=(c, b)).run("q")
    assert output.content == "b"


async def test_an_unrelated_tool_is_never_used_by_accident() -> None:
    unrelated = ScriptedTool("unrelated", capabilities=["poetry"])
    a = ScriptedTool("a", err(503), capabilities=["qa"])
    runner = ruled(rule("r", "a"), tools=(unrelated, a))
    await runner.run("q", "a", None, NO_RETRY)
    with pytest.raises(ValueError, match="No tools available") as caught:
        await runner.run("q")
    assert unrelated.calls == []
    assert set(caught.value.reasons) == {"a", "unrelated"}  # type: ignore[attr-defined]


async def test_a_default_falls_back_only_among_tools_that_share_a_declared_capability() -> None:
    a = ScriptedTool("a", err(400), capabilities=["qa"])
    other, b = ScriptedTool("other", capabilities=["poetry"]), ScriptedTool("b", OK("b"), capabilities=["qa", "x"])
    output = await ruled(tools=(a, other, b)).run({"type": "qa", "query": "q"})
    assert (output.content, calls(a, other, b)) == ("b", [1, 0, 1])
    assert output.metadata["plan"]["selection_method"] == "default"


@pytest.mark.parametrize(
    "condition",
    [
        RuleCondition("n", "gt", "five"),
        RuleCondition("n", "regex", "("),
        RuleCondition("n", "regex", r"(a)\1"),
        RuleCondition("n", "contains", 5),
        RuleCondition("n", "equals", 1, lambda value: 1 / 0),
    ],
)
async def test_a_rule_that_raises_is_skipped_recorded_in_the_decision_and_never_aborts_the_run(
    condition: RuleCondition,
) -> None:
    a, b = ScriptedTool("a"), ScriptedTool("b", OK("b"))
    runner = ruled(rule("broken", "a", when=condition, priority=9), rule("sound", "b"), tools=(a, b))
    output = await runner.run({"n": 5})
    assert (output.content, a.calls) == ("b", [])
    assert list(output.metadata["plan"]["skipped_rules"]) == ["broken"]


async def test_patterns_run_in_linear_time() -> None:
    a, b = ScriptedTool("a"), ScriptedTool("b", OK("b"))
    evil = rule("evil", "a", when=RuleCondition("query", "regex", "^(a+)+$"), priority=9)
    output = await ruled(evil, rule("sound", "b"), tools=(a, b)).run("a" * 100_000 + "!")
    assert output.content == "b"


async def test_a_planner_that_names_a_tool_nobody_has_says_so() -> None:
    with pytest.raises(ValueError, match=re.escape("Tool 'nobody' not found")):
        await reliable(ScriptedTool("t"), planner=Fixed("nobody")).run("q")


@pytest.mark.parametrize(
    ("strategy", "metadata", "asked"),
    [
        ("chain", {}, ["a", "b"]),
        ("parallel", {}, ["a", "b"]),
        ("conditional", {"bound": 0.9}, ["a", "b"]),
    ],
)
async def test_a_strategy_of_a_plan_is_carried_out(strategy: str, metadata: Any, asked: list[str]) -> None:
    a, b = ScriptedTool("a"), ScriptedTool("b")
    planner = Fixed("a", "b")
    update = {"execution_strategy": ExecutionStrategy(strategy), "metadata": metadata}
    planner.decision = planner.decision.model_copy(update=update)
    output = await reliable(a, b, planner=planner).run("hi")
    assert sorted({line["tool"] for line in output.attempts}) == asked
    assert output.metadata["strategy"]["kind"] == {"parallel": "race", "conditional": "cascade"}.get(strategy, strategy)


async def test_a_conditional_plan_without_a_bound_is_refused_and_nobody_is_asked() -> None:
    a, b = ScriptedTool("a"), ScriptedTool("b")
    planner = Fixed("a", "b")
    planner.decision = planner.decision.model_copy(update={"execution_strategy": ExecutionStrategy.CONDITIONAL})
    with pytest.raises(ValueError, match="conditional"):
        await reliable(a, b, planner=planner).run("hi")
    assert a.calls == b.calls == []


async def test_the_plan_adapts_to_the_budget() -> None:
    tool = ScriptedTool("t")
    runner = ruled(create_budget_aware_rule("t"), tools=(tool,))
    for budget in ({"tokens": 500}, {"tokens": 50_000}, None):
        await runner.run("q", None, None, {"budget": budget})
    assert [call.options["k"] for call in tool.calls] == [2, 5, 5]


async def test_a_planner_that_is_put_in_the_place_of_another_is_asked() -> None:
    runner = ReliableOrchestrator(registry=registry(ScriptedTool("a"), ScriptedTool("b")))
    names = [(await runner.run("q")).metadata["tool_name"]]
    for planner in (Fixed("b"), RuleBasedPlanner([rule("r", "b")]), RuleBasedPlanner()):
        runner.planner = planner
        names.append((await runner.run("q")).metadata["tool_name"])
    assert names == ["a", "b", "b", "a"]


async def test_a_rule_that_is_added_later_is_asked_from_then_on() -> None:
    planner = RuleBasedPlanner([rule("first", "a")])
    runner = ReliableOrchestrator(planner, registry=registry(ScriptedTool("a"), ScriptedTool("b")))
    assert (await runner.run("q")).metadata["tool_name"] == "a"
    planner.add_rule(rule("second", "b", priority=5))
    assert (await runner.run("q")).metadata["tool_name"] == "b"


async def test_a_tool_registered_later_is_planned_from_then_on() -> None:
    tools = registry(ScriptedTool("a"))
    runner = ReliableOrchestrator(RuleBasedPlanner([rule("r", "b", priority=1)]), registry=tools)
    with pytest.raises(ValueError, match="No tools available"):
        await runner.run("q")
    tools.register_tool(ScriptedTool("b"))
    assert (await runner.run("q")).metadata["tool_name"] == "b"


async def test_a_tool_that_moves_to_another_provider_is_planned_as_one_of_that() -> None:
    a, b = ScriptedTool("a", err(503), OK("back"), provider="p"), ScriptedTool("b", provider="p")
    runner = ruled(rule("r", "a", "b"), tools=(a, b))
    await runner.run("q", options=NO_RETRY)
    a.provider = "elsewhere"
    output = await runner.run("q", options=NO_RETRY)
    assert [(line["tool"], line["provider"]) for line in output.attempts] == [("a", "elsewhere")]
    a._steps = [err(503)]
    b.provider = "there"
    output = await runner.run("q", options=NO_RETRY)
    assert [(line["tool"], line["provider"]) for line in output.attempts] == [("a", "elsewhere"), ("b", "there")]


class Same(RuleBasedPlanner):
    """Answers with the same decision always, and changes it in place."""

    decision = PlanDecision(selected_tool="a")

    def decide(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        self.decision.selected_tool = request["query"]
        self.decision.tool_options["n"] = len(self.decision.tool_options)
        return self.decision


async def test_a_decision_that_is_changed_in_place_is_carried_out_as_it_is_now() -> None:
    a, b = ScriptedTool("a"), ScriptedTool("b")
    runner = reliable(a, b, planner=Same())
    names = [(await runner.run(name)).metadata["tool_name"] for name in ("a", "b", "a")]
    assert (names, calls(a, b)) == (["a", "b", "a"], [2, 1])


class Writes(Planner):
    """Writes into what it is told of the tools."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        tool = available_tools["a"]
        self.seen.append((len(available_tools), [*available_tools], "b" in available_tools, tool.model_dump()))
        assert available_tools["a"] is tool
        tool.capabilities.append("flying")
        tool.default_options["a"]["b"] = 2
        tool.version = "9"
        return PlanDecision(selected_tool="a")


class WritesByRule(RuleBasedPlanner):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def decide(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        self.seen.append(available_tools["a"].model_dump())
        available_tools["a"].capabilities.append("flying")
        return super().decide(request, available_tools, context)


@pytest.mark.parametrize("planner", [Writes(), WritesByRule()], ids=["planner", "rules"])
async def test_a_planner_that_writes_into_what_it_is_told_changes_nothing(planner: Any) -> None:
    tool = ScriptedTool("a", default_options={"a": {"b": 1}})
    runner = reliable(tool, planner=planner)
    for _ in range(2):
        await runner.run("q")
    first, second = planner.seen
    assert first == second
    assert runner.registry.get_tool_metadata("a")["capabilities"] == []
    assert tool.default_options == {"a": {"b": 1}}


async def test_a_fallback_that_is_not_registered_is_named_in_the_output_and_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second")
    runner = reliable(first, second, planner=Fixed("first", "secnod", "second"))
    for _ in range(3):
        output = await runner.run("q")
        assert output.metadata["plan"]["missing_tools"] == ["secnod"]
        assert output.metadata["tool_name"] == "second"
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("steer_llm_sdk")]
    assert said == "the fallback tool 'secnod' of the plan for 'first' is not registered and is passed over (fixed)"


async def test_a_plan_whose_fallbacks_are_there_has_nothing_missing() -> None:
    output = await reliable(ScriptedTool("first"), ScriptedTool("second")).run("q")
    assert "missing_tools" not in output.metadata["plan"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"planner": ReliabilityConfig()}, "planner: expected Planner, got ReliabilityConfig"),
        (
            {"reliability_config": {"max_total_attempts": 3}},
            "reliability_config: expected ReliabilityConfig, got dict",
        ),
        ({"idempotency_manager": 900}, "idempotency_manager: expected IdempotencyManager, got int"),
        ({"registry": [ScriptedTool("t")]}, "registry: expected ToolRegistry, got list"),
        ({"budget_accounts": 5}, "budget_accounts: expected BudgetAccounts, got int"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_by_its_name(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        ReliableOrchestrator(**arguments)


class Says(Planner):
    """A planner that answers whatever it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> Any:
        return self.answer


class NotAsync(Planner):
    def plan(self, request: Any, available_tools: Any, context: Any = None) -> Any:
        return PlanDecision(selected_tool="t")


@pytest.mark.parametrize("planner", [Says(None), Says("t"), Says({"selected_tool": "t"}), NotAsync()])
async def test_a_planner_that_gives_no_decision_is_named_with_what_it_gave(planner: Any) -> None:
    tool = ScriptedTool("t")
    says = rf"^{type(planner).__name__}\.plan\(\): .* cannot be used; it has to be an async function that "
    with pytest.raises(InvalidRequest, match=says):
        await ReliableOrchestrator(planner, registry=registry(tool)).run("q")
    assert tool.calls == []
