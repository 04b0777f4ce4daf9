from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
    create_keyword_based_rule,
    create_type_based_rule,
    explain,
)

TOOLS = {
    "a": ToolMetadata(name="a", version="1.2.0", capabilities=["x"]),
    "b": ToolMetadata(
        name="b",
        capabilities=["x"],
        resource_requirements={"estimated_cost_per_run": 0.01, "estimated_duration_ms": 300},
    ),
}


def planner() -> RuleBasedPlanner:
    return RuleBasedPlanner(
        [
            create_type_based_rule("image", "b", k=4),
            create_keyword_based_rule(["urgent"], "query", "a", fallback_tools=["b"]),
            PlanningRule("broken", 20, [RuleCondition("n", "gt", 3)], RuleAction("a")),
            PlanningRule("mute", 1, [], None),
        ]
    )


async def test_the_explained_decision_is_the_one_that_plan_takes() -> None:
    for request in ({"type": "image"}, {"query": "urgent"}, "urgent", {"n": "x"}, {}):
        for context in (None, PlanRequest(circuit_breaker_states={"a": "open"})):
            assert explain(planner(), request, TOOLS, context).decision == await planner().plan(request, TOOLS, context)


def test_every_rule_says_which_condition_failed_with_what_value() -> None:
    account = explain(planner(), {"type": "text", "n": "many"}, TOOLS)
    by_name = {rule.name: rule for rule in account.rules}
    assert [rule.name for rule in account.rules] == ["broken", "type_image", "keyword_urgent", "mute"]
    condition = by_name["type_image"].conditions[0]
    assert (condition.path, condition.operator, condition.expected) == ("type", "equals", "image")
    assert (condition.value, condition.holds, condition.problem) == ("text", False, None)
    assert not by_name["type_image"].matches
    assert by_name["broken"].conditions[0].holds is None
    assert by_name["broken"].problem == "gt: the value is a str, compared with an int"
    assert by_name["mute"].problem == "it has no action"


def test_the_rule_that_decides_is_marked() -> None:
    account = explain(planner(), {"type": "image", "query": "urgent"}, TOOLS)
    assert [(rule.name, rule.matches) for rule in account.rules if rule.matches and rule.tools] == [
        ("type_image", True),
        ("keyword_urgent", True),
    ]
    assert [rule.name for rule in account.rules if rule.decides] == ["type_image"]
    assert account.rules[2].tools == ("a", "b")


def test_every_tool_says_whether_it_is_eligible_and_what_it_would_take() -> None:
    context = PlanRequest(circuit_breaker_states={"a": "open"}, previous_failures=["b"])
    account = explain(planner(), {"type": "image"}, TOOLS, context)
    first, second = account.tools
    assert (first.name, first.version, first.eligible, first.reason) == (
        "a",
        "1.2.0",
        False,
        "its circuit breaker is open",
    )
    assert (first.selected, first.estimated_cost, first.estimated_duration_ms) == (False, None, None)
    assert (second.eligible, second.selected, second.failed_before) == (True, True, True)
    assert second.estimated_cost == pytest.approx(0.04)
    assert second.estimated_duration_ms == 300


def test_fallbacks_are_marked() -> None:
    account = explain(planner(), "urgent", TOOLS)
    assert [(tool.name, tool.selected, tool.fallback) for tool in account.tools] == [
        ("a", True, False),
        ("b", False, True),
    ]


def test_a_refusal_is_told_and_not_raised() -> None:
    account = explain(planner(), {}, TOOLS, PlanRequest(circuit_breaker_states={"a": "open", "b": "open"}))
    assert account.decision is None
    assert account.refusal is not None
    assert account.refusal.startswith("No tools available for planning: a: its circuit breaker is open")
    assert account.tools[1].estimated_cost == pytest.approx(0.03)
    assert explain(planner(), {}, {}).refusal == "No tools available for planning; register one first"


def test_a_policy_that_leaves_nobody_is_marked() -> None:
    only = PlanningRule("only", 0, [RuleCondition("n", "equals", 1)], RuleAction.restrict("nobody"))
    for asked, decides in (({"n": 1}, True), ({"n": 2}, False)):
        account = explain(RuleBasedPlanner([only]), asked, TOOLS)
        assert (account.decision is None, account.rules[0].decides) == (decides, decides)


def test_a_matcher_is_named_as_such() -> None:
    rule = PlanningRule("r", 0, [RuleCondition("x", "exists", None, lambda value: value == 1)], RuleAction("a"))
    condition = explain(RuleBasedPlanner([rule]), {"x": 1}, TOOLS).rules[0].conditions[0]
    assert (condition.operator, condition.holds) == ("custom_matcher", True)


@pytest.mark.parametrize(
    "value",
    ["long " * 1000, [["x"] * 50] * 50, {"k": "v" * 500}, 10**6000, object(), 1.5, None],
    ids=["text", "lists", "mapping", "number", "object", "float", "null"],
)
def test_values_are_shown_in_a_line_that_json_can_hold(value: Any) -> None:
    rule = PlanningRule("r", 0, [RuleCondition("x", "exists")], RuleAction("a"))
    account = explain(RuleBasedPlanner([rule]), {"x": value}, TOOLS)
    shown = json.dumps(dataclasses.asdict(account.rules[0]))
    assert len(shown) < 600


def test_a_value_nested_very_deep_is_shown_too() -> None:
    value: list[Any] = []
    for _ in range(20_000):
        value = [value]
    rule = PlanningRule("r", 0, [RuleCondition("x", "exists")], RuleAction("a"))
    account = explain(RuleBasedPlanner([rule]), {"x": value}, TOOLS)
    assert account.rules[0].matches
