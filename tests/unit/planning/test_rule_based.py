from __future__ import annotations

import tracemalloc
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.errors import InvalidRequest, NoEligibleTool, OrchestratorError
from steer_llm_sdk.orchestration.planning import (
    ExecutionStrategy,
    PlanDecision,
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
    explain,
)

Tools = dict[str, ToolMetadata]


def tools(**capabilities: str) -> Tools:
    """Tools by name; capabilities as one text, split at blanks."""
    return {name: ToolMetadata(name=name, capabilities=words.split()) for name, words in capabilities.items()}


def always(name: str, tool: str, *fallbacks: str, priority: int = 0) -> PlanningRule:
    return PlanningRule(name, priority, [], RuleAction(tool, fallback_tools=list(fallbacks)))


def opened(*names: str, **more: Any) -> PlanRequest:
    return PlanRequest(circuit_breaker_states=dict.fromkeys(names, "open"), **more)


# A rule that matches


async def test_a_match_says_which_rule_decided() -> None:
    planner = RuleBasedPlanner([always("everything", "b", "c", "a")])
    decision = await planner.plan({"query": "x"}, tools(a="", b="", c=""))
    assert decision == PlanDecision(
        selected_tool="b",
        tool_version="1.0.0",
        fallback_tools=["c", "a"],
        reasoning="Matched rule: everything",
        metadata={"matched_rule": "everything", "selection_method": "rule"},
    )
    assert decision.confidence == 1.0


async def test_a_match_hands_on_options_and_strategy() -> None:
    action = RuleAction("a", {"k": 4, "nested": {"x": [1]}}, [], ExecutionStrategy.PARALLEL)
    decision = await RuleBasedPlanner([PlanningRule("r", 0, [], action)]).plan({}, tools(a=""))
    assert decision.tool_options == {"k": 4, "nested": {"x": [1]}}
    assert decision.execution_strategy is ExecutionStrategy.PARALLEL


async def test_a_rule_without_conditions_always_matches() -> None:
    request: Any
    for request in ({}, {"query": "x"}, [], None, 5, "text"):
        decision = await RuleBasedPlanner([always("r", "b")]).plan(request, tools(a="", b=""))
        assert decision.metadata["matched_rule"] == "r"


async def test_all_conditions_must_hold() -> None:
    both = [RuleCondition("x", "equals", 1), RuleCondition("y", "equals", 2)]
    planner = RuleBasedPlanner([PlanningRule("r", 0, both, RuleAction("b"))])
    assert (await planner.plan({"x": 1, "y": 2}, tools(a="", b=""))).selected_tool == "b"
    assert (await planner.plan({"x": 1, "y": 3}, tools(a="", b=""))).selected_tool == "a"
    assert (await planner.plan({"x": 0, "y": 2}, tools(a="", b=""))).selected_tool == "a"


async def test_the_highest_priority_is_asked_first() -> None:
    planner = RuleBasedPlanner([always("low", "a", priority=1), always("high", "b", priority=9)])
    planner.add_rule(always("middle", "c", priority=5))
    assert (await planner.plan({}, tools(a="", b="", c=""))).selected_tool == "b"
    assert [rule.name for rule in planner.rules] == ["high", "middle", "low"]


async def test_among_equals_the_first_added_is_asked_first() -> None:
    planner = RuleBasedPlanner([always(name, name, priority=3) for name in "cab"])
    assert (await planner.plan({}, tools(a="", b="", c=""))).selected_tool == "c"
    assert [rule.name for rule in planner.rules] == ["c", "a", "b"]


async def test_a_rule_without_action_is_passed_over() -> None:
    planner = RuleBasedPlanner([PlanningRule("mute", 9), always("r", "b")])
    decision = await planner.plan({}, tools(a="", b=""))
    assert decision.metadata == {"matched_rule": "r", "selection_method": "rule"}
    assert [rule.name for rule in planner.rules] == ["mute", "r"]


def test_what_is_no_rule_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="expected a PlanningRule, got dict"):
        RuleBasedPlanner().add_rule({"name": "r"})  # type: ignore[arg-type]


async def test_changing_the_list_of_rules_does_not_change_the_planner() -> None:
    planner = RuleBasedPlanner([always("r", "b")])
    planner.rules.clear()
    assert (await planner.plan({}, tools(a="", b=""))).selected_tool == "b"


# A rule whose tools cannot be chosen


async def test_an_open_primary_is_replaced_by_its_first_usable_fallback_before_any_other_rule() -> None:
    planner = RuleBasedPlanner([always("r", "a", "b", "c", priority=5), always("other", "d")])
    decision = await planner.plan({}, tools(d="", a="", b="", c=""), opened("a", "b"))
    assert decision.selected_tool == "c"
    assert decision.reasoning == "Matched rule: r"
    assert decision.fallback_tools == ["b"]
    assert decision.metadata == {
        "matched_rule": "r",
        "selection_method": "rule",
        "passed_over": {"a": "its circuit breaker is open", "b": "its circuit breaker is open"},
    }


async def test_a_missing_primary_is_replaced_by_its_fallback() -> None:
    decision = await RuleBasedPlanner([always("r", "gone", "b")]).plan({}, tools(a="", b=""))
    assert decision.selected_tool == "b"
    assert decision.metadata["passed_over"] == {"gone": "it is not registered"}


@pytest.mark.parametrize("state", ["closed", "half_open"])
async def test_a_closed_or_half_open_breaker_does_not_stand_in_the_way(state: str) -> None:
    context = PlanRequest(circuit_breaker_states={"a": state})
    assert (await RuleBasedPlanner([always("r", "a", "b")]).plan({}, tools(a="", b=""), context)).selected_tool == "a"


async def test_the_next_matching_rule_follows_when_no_tool_of_the_first_can_be_chosen() -> None:
    planner = RuleBasedPlanner([always("r", "a", "b", priority=5), always("other", "d")])
    decision = await planner.plan({}, tools(a="", b="", c="", d=""), opened("a", "b"))
    assert decision.metadata["matched_rule"] == "other"
    assert decision.selected_tool == "d"


async def test_a_rule_without_usable_tools_never_leads_to_an_unrelated_one() -> None:
    with pytest.raises(NoEligibleTool) as caught:
        await RuleBasedPlanner([always("r", "a", "gone")]).plan({}, tools(c="text", a="image"), opened("a"))
    assert caught.value.reasons == {
        "c": "no rule that matches (r) names it, and it shares no declared capability with their tools",
        "a": "its circuit breaker is open",
        "gone": "it is not registered",
    }


async def test_a_rule_without_usable_tools_may_lead_to_one_with_the_same_capability() -> None:
    planner = RuleBasedPlanner([always("r", "a")])
    decision = await planner.plan({}, tools(c="text", a="image", d="image"), opened("a"))
    assert decision.selected_tool == "d"
    assert decision.confidence == 0.5
    assert decision.reasoning == "No tool of rule r can be used, using one with the same capability"
    assert decision.metadata["selection_method"] == "related"


async def test_a_rule_for_a_missing_tool_may_lead_to_one_that_can_do_the_type() -> None:
    planner = RuleBasedPlanner([create_type_based_rule("image", "gone")])
    assert (await planner.plan({"type": "image"}, tools(c="text", d="image"))).selected_tool == "d"


async def test_a_tool_that_declares_to_be_slower_than_allowed_is_not_eligible() -> None:
    slow = ToolMetadata(name="a", resource_requirements={"estimated_duration_ms": 5000})
    context = PlanRequest(quality_requirements={"max_latency_ms": 1000})
    decision = await RuleBasedPlanner([always("r", "a", "b")]).plan({}, {"a": slow, **tools(b="")}, context)
    assert decision.selected_tool == "b"
    assert decision.metadata["passed_over"] == {"a": "it declares 5000 ms, and max_latency_ms is 1000"}


@pytest.mark.parametrize("limit", [5000, "fast", None, True])
async def test_a_latency_that_is_allowed_or_no_number_excludes_nobody(limit: object) -> None:
    slow = ToolMetadata(name="a", resource_requirements={"estimated_duration_ms": 5000})
    context = PlanRequest(quality_requirements={"max_latency_ms": limit})
    assert (await RuleBasedPlanner().plan({}, {"a": slow}, context)).selected_tool == "a"


# Tools that failed before


async def test_a_tool_that_failed_gives_way_to_a_fallback() -> None:
    planner = RuleBasedPlanner([always("r", "a", "b")])
    decision = await planner.plan({}, tools(a="", b=""), PlanRequest(previous_failures=["a"]))
    assert decision.selected_tool == "b"
    assert decision.metadata["passed_over"] == {"a": "it failed before"}


async def test_a_tool_that_failed_gives_way_to_the_next_rule_and_to_related_tools() -> None:
    context = PlanRequest(previous_failures=["a"])
    planner = RuleBasedPlanner([always("r", "a", priority=1)])
    assert (await planner.plan({}, tools(a="x", b="x"), context)).selected_tool == "b"
    planner.add_rule(always("next", "c"))
    assert (await planner.plan({}, tools(a="x", b="x", c=""), context)).selected_tool == "c"


async def test_a_tool_that_failed_is_chosen_when_nothing_else_can_be() -> None:
    context = PlanRequest(previous_failures=["a", "b"])
    decision = await RuleBasedPlanner([always("r", "a")]).plan({}, tools(a="x", b="x", c="y"), context)
    assert decision.selected_tool == "a"
    assert decision.metadata["matched_rule"] == "r"
    assert (await RuleBasedPlanner().plan({}, tools(a="", b=""), context)).selected_tool == "a"


async def test_related_tools_that_failed_come_after_everything_else() -> None:
    planner = RuleBasedPlanner([always("r", "a")])
    decision = await planner.plan({}, tools(a="x", b="x"), opened("a", previous_failures=["b"]))
    assert decision.selected_tool == "b"


async def test_the_last_resort_skips_a_rule_that_cannot_make_its_options() -> None:
    def broken(options: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("no options today")

    rule = PlanningRule("r", 0, [], RuleAction("a", option_transformer=broken))
    context = PlanRequest(previous_failures=["a"])
    with pytest.raises(NoEligibleTool):
        await RuleBasedPlanner([rule]).plan({}, tools(a=""), context)


async def test_default_selection_prefers_tools_that_did_not_fail() -> None:
    context = PlanRequest(previous_failures=["a"])
    decision = await RuleBasedPlanner().plan({"type": "x"}, tools(a="x", b="y", c="x"), context)
    assert decision.selected_tool == "c"
    assert decision.fallback_tools == ["a"]


# No rule matches


async def test_a_default_takes_the_first_registered_tool() -> None:
    decision = await RuleBasedPlanner().plan({"query": "x"}, tools(b="", a=""))
    assert decision == PlanDecision(
        selected_tool="b",
        tool_version="1.0.0",
        tool_options={"k": 3, "epsilon": 0.2, "max_parallel": 10},
        confidence=0.5,
        reasoning="No matching rules, using default selection",
        metadata={"selection_method": "default", "order_of_registration": ["selected_tool"]},
    )


async def test_a_default_prefers_a_tool_that_declares_the_type() -> None:
    decision = await RuleBasedPlanner().plan({"type": "image"}, tools(a="text", b="image", c="image"))
    assert decision.selected_tool == "b"


@pytest.mark.parametrize("kind", [None, 5, ["image"], {"a": 1}, "sound", ""])
async def test_a_type_that_no_tool_declares_means_the_first_registered(kind: object) -> None:
    assert (await RuleBasedPlanner().plan({"type": kind}, tools(a="text", b="image"))).selected_tool == "a"


async def test_a_type_that_cannot_be_read_means_the_first_registered() -> None:
    class Awkward:
        @property
        def type(self) -> str:
            raise RuntimeError("not now")

    assert (await RuleBasedPlanner().plan(Awkward(), tools(a="", b=""))).selected_tool == "a"


@pytest.mark.parametrize(
    ("budget", "k"),
    [
        (None, 3),
        ({}, 3),
        ({"tokens": 999}, 2),
        ({"tokens": 1000}, 3),
        ({"cost_usd": 0.049}, 2),
        ({"cost_usd": 0.05}, 3),
        ({"tokens": 5000, "cost_usd": 0.01}, 2),
        ({"ms": 1}, 3),
    ],
)
async def test_a_small_budget_means_two_replicates(budget: dict[str, float] | None, k: int) -> None:
    decision = await RuleBasedPlanner().plan({}, tools(a=""), PlanRequest(budget=budget))
    assert decision.tool_options["k"] == k


async def test_a_default_falls_back_only_to_tools_with_a_shared_capability() -> None:
    some = tools(a="text image", b="sound", c="image", d="text", e="")
    decision = await RuleBasedPlanner().plan({}, some)
    assert decision.fallback_tools == ["c", "d"]
    assert (await RuleBasedPlanner().plan({}, tools(a="", b="", c=""))).fallback_tools == []


async def test_a_default_lists_no_open_fallback() -> None:
    decision = await RuleBasedPlanner().plan({}, tools(a="x", b="x", c="x"), opened("b"))
    assert decision.fallback_tools == ["c"]


async def test_a_default_lists_ten_fallbacks_at_most() -> None:
    many = tools(**{f"t{i}": "x" for i in range(40)})
    decision = await RuleBasedPlanner().plan({}, many)
    assert decision.fallback_tools == [f"t{i}" for i in range(1, 11)]


async def test_an_open_tool_is_not_eligible_by_default() -> None:
    decision = await RuleBasedPlanner().plan({"type": "x"}, tools(a="x", b="y"), opened("a"))
    assert decision.selected_tool == "b"
    assert decision.metadata["passed_over"] == {"a": "its circuit breaker is open"}


async def test_no_tools_at_all_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="No tools available for planning") as caught:
        await RuleBasedPlanner().plan({}, {})
    assert isinstance(caught.value, OrchestratorError)


async def test_no_eligible_tool_comes_with_a_reason_per_tool() -> None:
    with pytest.raises(NoEligibleTool, match="No tools available") as caught:
        await RuleBasedPlanner().plan({}, tools(a="", b=""), opened("a", "b"))
    assert caught.value.reasons == dict.fromkeys("ab", "its circuit breaker is open")


# Rules that cannot be evaluated


async def test_a_bad_pattern_skips_its_rule_and_aborts_nothing() -> None:
    bad = PlanningRule("bad", 9, [RuleCondition("query", "regex", "(")], RuleAction("a"))
    decision = await RuleBasedPlanner([bad, always("good", "b")]).plan({"query": "x"}, tools(a="", b=""))
    assert decision.selected_tool == "b"
    assert list(decision.metadata["skipped_rules"]) == ["bad"]
    assert "missing )" in decision.metadata["skipped_rules"]["bad"]


async def test_mixed_types_skip_the_rule_for_this_request_only() -> None:
    rule = PlanningRule("big", 9, [RuleCondition("n", "gt", 5)], RuleAction("b"))
    planner = RuleBasedPlanner([rule])
    decision = await planner.plan({"n": "many"}, tools(a="", b=""))
    assert decision.selected_tool == "a"
    assert decision.metadata == {
        "selection_method": "default",
        "order_of_registration": ["selected_tool"],
        "skipped_rules": {"big": "gt: the value is a str, compared with an int"},
    }
    assert (await planner.plan({"n": 6}, tools(a="", b=""))).metadata["matched_rule"] == "big"


async def test_a_skipped_rule_below_the_one_that_decides_is_not_mentioned() -> None:
    bad = PlanningRule("bad", 1, [RuleCondition("query", "regex", "(")], RuleAction("a"))
    decision = await RuleBasedPlanner([bad, always("good", "b", priority=5)]).plan({"query": "x"}, tools(a="", b=""))
    assert "skipped_rules" not in decision.metadata


@pytest.mark.parametrize(
    ("transformer", "reason"),
    [
        (lambda options: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda options: ["k"], "option_transformer: returned a list, not a mapping of options"),
    ],
)
async def test_a_transformer_that_fails_skips_the_rule(transformer: Any, reason: str) -> None:
    rule = PlanningRule("r", 0, [], RuleAction("b", option_transformer=transformer))
    decision = await RuleBasedPlanner([rule]).plan({}, tools(a="", b=""))
    assert decision.metadata["skipped_rules"] == {"r": reason}


# Options


@pytest.mark.parametrize(
    "transformer",
    [
        lambda options: {**options, "n": 7},
        lambda opts: {**opts, "n": 7},
        lambda request, options: {**options, "n": request["n"]},
        lambda r, o: {**o, "n": r["n"]},
        lambda r, o, c: {**o, "n": r["n"] if c is None else 0},
        lambda options, request, context: {**options, "n": request["n"] if context is None else 0},
        lambda opts, bonus=7: {**opts, "n": bonus},
        lambda *given: {**given[1], "n": given[0]["n"]},
        lambda request, *, options: {**options, "n": request["n"]},
    ],
)
async def test_a_transformer_is_given_what_it_asks_for(transformer: Any) -> None:
    rule = PlanningRule("r", 0, [], RuleAction("a", {"k": 2}, option_transformer=transformer))
    decision = await RuleBasedPlanner([rule]).plan({"n": 7}, tools(a=""))
    assert decision.tool_options == {"k": 2, "n": 7}


async def test_estimates_come_from_what_the_tool_declares_and_the_options_of_the_plan() -> None:
    declared = {"estimated_cost_per_run": 0.01, "estimated_duration_ms": 200}
    some = {"a": ToolMetadata(name="a", resource_requirements=declared)}
    rule = PlanningRule("r", 0, [], RuleAction("a", {"k": 4, "max_parallel": 2}))
    decision = await RuleBasedPlanner([rule]).plan({}, some)
    assert decision.estimated_cost == pytest.approx(0.04)
    assert decision.estimated_duration_ms == 400
    default = await RuleBasedPlanner().plan({}, some)
    assert default.estimated_cost == pytest.approx(0.03)
    assert default.estimated_duration_ms == 200


async def test_changing_a_decision_changes_no_later_one() -> None:
    def greedy(options: dict[str, Any]) -> dict[str, Any]:
        options["list"].append(2)
        return options

    rules = [
        PlanningRule("r", 0, [], RuleAction("a", {"k": 2, "list": [1]}, ["b"])),
        PlanningRule("t", 5, [RuleCondition("t", "exists")], RuleAction("a", {"list": [1]}, option_transformer=greedy)),
    ]
    planner = RuleBasedPlanner(rules)
    for request in ({}, {"t": 1}):
        first = await planner.plan(request, tools(a="", b=""))
        expected = first.model_copy(deep=True)
        first.tool_options["list"].append(9)
        first.tool_options["k"] = 0
        first.fallback_tools.append("z")
        first.metadata["z"] = 1
        assert await planner.plan(request, tools(a="", b="")) == expected
    assert rules[0].action is not None
    assert rules[0].action.tool_options == {"k": 2, "list": [1]}


async def test_changing_a_rule_after_it_was_added_changes_nothing() -> None:
    action = RuleAction("b", {"list": [1]}, ["a"])
    conditions = [RuleCondition("x", "equals", 1)]
    planner = RuleBasedPlanner([PlanningRule("r", 0, conditions, action)])
    action.tool_options["list"].append(2)
    action.fallback_tools.clear()
    decision = await planner.plan({"x": 1}, tools(a="", b=""))
    assert decision.tool_options == {"list": [1]}
    assert decision.fallback_tools == ["a"]


# Ready-made rules


async def test_a_type_rule_sends_its_type_to_the_tool() -> None:
    rule = create_type_based_rule("image", "b", k=4)
    assert (rule.name, rule.priority) == ("type_image", 10)
    planner = RuleBasedPlanner([rule])
    decision = await planner.plan({"type": "image"}, tools(a="", b=""))
    assert (decision.selected_tool, decision.tool_options) == ("b", {"k": 4})
    assert (await planner.plan({"type": "text"}, tools(a="", b=""))).selected_tool == "a"
    assert create_type_based_rule("x", "b", 3, fallback_tools=["c"]).action == RuleAction("b", {}, ["c"])
    assert create_type_based_rule("x", "b", 3).priority == 3


@pytest.mark.parametrize("text", ["URGENT: help", "please, Asap!", "c++ (beta)?", "STRASSE ÜBER"])
async def test_a_keyword_rule_matches_any_keyword_in_any_case(text: str) -> None:
    rule = create_keyword_based_rule(["urgent", "asap", "C++ (beta)", "über"], "query", "b", k=2)
    assert rule.priority == 5
    decision = await RuleBasedPlanner([rule]).plan({"query": text}, tools(a="", b=""))
    assert (decision.selected_tool, decision.tool_options) == ("b", {"k": 2})


@pytest.mark.parametrize("request_", [{"query": "calm"}, {"query": ""}, {"query": None}, {}, {"other": "urgent"}])
async def test_a_keyword_rule_does_not_match_without_a_keyword(request_: dict[str, Any]) -> None:
    rule = create_keyword_based_rule(["urgent"], "query", "b")
    assert (await RuleBasedPlanner([rule]).plan(request_, tools(a="", b=""))).selected_tool == "a"


@given(word=st.text(min_size=1, max_size=8).filter(lambda word: word.isprintable() or word.isascii()))
def test_a_keyword_is_taken_literally(word: str) -> None:
    planner = RuleBasedPlanner([create_keyword_based_rule([word], "query", "b")])
    assert planner.decide({"query": f"before {word} after"}, tools(a="", b="")).selected_tool == "b"


@pytest.mark.parametrize("keywords", [[], "urgent", [""], ["a", 5]])
def test_keywords_are_a_list_of_words(keywords: Any) -> None:
    with pytest.raises(InvalidRequest, match="keywords"):
        create_keyword_based_rule(keywords, "query", "b")


@pytest.mark.parametrize(
    ("request_budget", "context_budget", "k"),
    [
        (None, None, 5),
        ({"tokens": 1999}, None, 2),
        ({"tokens": 2000}, None, 5),
        ({"cost_usd": 0.09}, None, 2),
        ({"cost_usd": 0.10}, None, 5),
        (None, {"tokens": 1999}, 2),
        (None, {"cost_usd": 0.05}, 2),
        ({"tokens": 9000}, {"tokens": 100}, 2),
        ({"tokens": 100}, {"tokens": 9000}, 2),
        ({"tokens": "few"}, None, 5),
        ({"tokens": True}, None, 5),
        ("small", None, 5),
    ],
)
async def test_a_budget_rule_chooses_k_by_the_budget(request_budget: Any, context_budget: Any, k: int) -> None:
    rule = create_budget_aware_rule("b")
    assert rule.priority == 8
    request = {"options": {"budget": request_budget}}
    decision = await RuleBasedPlanner([rule]).plan(request, tools(a="", b=""), PlanRequest(budget=context_budget))
    assert (decision.selected_tool, decision.tool_options) == ("b", {"k": k})


async def test_a_budget_rule_takes_other_ks_and_odd_requests() -> None:
    planner = RuleBasedPlanner([create_budget_aware_rule("a", low_budget_k=3, high_budget_k=9, priority=1)])
    assert (await planner.plan({"options": {"budget": {"tokens": 1}}}, tools(a=""))).tool_options == {"k": 3}
    request: Any
    for request in ({"options": 5}, [], None, "text"):
        assert (await planner.plan(request, tools(a=""))).tool_options == {"k": 9}


# Scale


async def test_a_read_only_view_of_tools_is_catalogued_once_and_anew_when_it_changes() -> None:
    planner = RuleBasedPlanner()
    some = tools(a="x", b="y")
    view = MappingProxyType(some)
    assert (await planner.plan({"type": "y"}, view)).selected_tool == "b"
    assert (await planner.plan({"type": "y"}, view)).selected_tool == "b"
    del some["b"]
    assert (await planner.plan({"type": "y"}, view)).selected_tool == "a"
    other = MappingProxyType(tools(c="y", d=""))
    assert (await planner.plan({"type": "y"}, other)).selected_tool == "c"


async def test_a_decision_that_was_made_before_is_as_good_as_a_new_one() -> None:
    rules = [
        PlanningRule("shaky", 9, [RuleCondition("n", "gt", 5)], RuleAction("b")),
        always("r", "a", "b", priority=5),
        PlanningRule("t", 1, [], RuleAction("b", option_transformer=lambda request, options: {"n": request["n"]})),
    ]
    planner, view = RuleBasedPlanner(rules), MappingProxyType(tools(a="", b=""))
    contexts = [None, PlanRequest(), opened("a"), PlanRequest(previous_failures=["a"]), None]
    for context in contexts:
        for request in ({"n": 1}, {"n": "x"}, {"n": 6}, {"n": 1}):
            assert await planner.plan(request, view, context) == await RuleBasedPlanner(rules).plan(
                request, dict(view), context
            )


async def test_changing_a_decision_about_a_view_changes_no_later_one() -> None:
    planner, view = (
        RuleBasedPlanner([PlanningRule("r", 0, [], RuleAction("a", {"list": [1]}))]),
        MappingProxyType(tools(a="")),
    )
    first = await planner.plan({}, view)
    first.tool_options["list"].append(2)
    first.metadata["x"] = 1
    account = explain(planner, {}, view)
    assert account.decision is not None
    account.decision.tool_options["list"].append(3)
    again = await planner.plan({}, view)
    assert again.tool_options == {"list": [1]}
    assert again.metadata == {"matched_rule": "r", "selection_method": "rule"}


ONE_GUARD_OR_TWO = pytest.mark.parametrize(
    "more", [[], [PlanningRule("other", 0, [RuleCondition("lang", "equals", "de")], RuleAction("b"))]]
)


@ONE_GUARD_OR_TWO
async def test_long_texts_are_not_kept_for_the_next_time(more: list[PlanningRule]) -> None:
    planner = RuleBasedPlanner([create_type_based_rule("x", "a"), *more])
    some = MappingProxyType(tools(a="", b=""))
    tracemalloc.start()
    try:
        for number in range(100):
            await planner.plan({"type": f"{number}" * 100_000}, some)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


@ONE_GUARD_OR_TWO
async def test_a_value_that_cannot_be_hashed_or_compared_is_no_error(more: list[PlanningRule]) -> None:
    class Odd:
        def __hash__(self) -> int:
            raise RuntimeError("no hash")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

    planner = RuleBasedPlanner([create_type_based_rule("x", "a"), *more])
    decision = await planner.plan({"type": Odd()}, tools(a="", b=""))
    assert decision.metadata["selection_method"] == "default"


async def test_a_decision_is_not_remembered_beyond_its_tool() -> None:
    some = tools(a="x", b="x")
    planner, view = RuleBasedPlanner([always("r", "a", "b")]), MappingProxyType(some)
    assert (await planner.plan({}, view)).selected_tool == "a"
    del some["a"]
    assert (await planner.plan({}, view)).selected_tool == "b"


async def test_a_plain_mapping_of_tools_may_change_between_plans() -> None:
    planner = RuleBasedPlanner()
    some = tools(a="x", b="y")
    assert (await planner.plan({"type": "z"}, some)).selected_tool == "a"
    some["b"] = ToolMetadata(name="b", capabilities=["z"])
    assert (await planner.plan({"type": "z"}, some)).selected_tool == "b"


class WatchedView(dict[str, ToolMetadata]):
    """Remembers which tools are looked at."""

    looked: ClassVar[set[str]] = set()

    def __iter__(self) -> Any:
        for name in super().__iter__():
            self.looked.add(name)
            yield name

    def get(self, key: Any, default: Any = None) -> Any:
        self.looked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.looked.add(key)
        return super().__getitem__(key)


async def test_a_rule_that_matches_looks_at_its_own_tool_only() -> None:
    many = WatchedView(tools(**{f"t{i}": "x" for i in range(500)}))
    await RuleBasedPlanner([always("r", "t7")]).plan({}, many)
    assert many.looked == {"t7"}


# Totality

names = st.sampled_from(["a", "b", "c", "gone"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "x", "y", "options"]), inner),
    max_leaves=8,
)
conditions = st.builds(
    RuleCondition,
    attribute_path=st.sampled_from(["type", "x", "x.y", "x.0", "query", "options.budget.tokens"]),
    operator=st.sampled_from(["equals", "contains", "regex", "exists", "gt", "lt"]),
    value=json_values,
)
rules = st.builds(
    PlanningRule,
    name=st.text(min_size=1, max_size=3),
    priority=st.integers(-3, 3),
    conditions=st.lists(conditions, max_size=2),
    action=st.none()
    | st.builds(
        RuleAction,
        tool_name=names,
        tool_options=st.dictionaries(st.text(max_size=3), json_values, max_size=2),
        fallback_tools=st.lists(names, max_size=3),
    ),
)
toolsets = st.dictionaries(
    names.filter(lambda name: name != "gone"),
    st.builds(
        ToolMetadata,
        name=st.just("t"),
        capabilities=st.lists(st.sampled_from(["x", "y", ""]), max_size=2),
        default_options=st.dictionaries(st.sampled_from(["k", "max_parallel"]), json_values),
        resource_requirements=st.dictionaries(
            st.sampled_from(["estimated_cost_per_run", "estimated_duration_ms"]), json_values
        ),
    ),
)
contexts = st.none() | st.builds(
    PlanRequest,
    budget=st.none() | st.dictionaries(st.sampled_from(["ms", "tokens", "cost_usd"]), st.floats()),
    quality_requirements=st.none() | st.dictionaries(st.just("max_latency_ms"), json_values),
    previous_failures=st.lists(names, max_size=3),
    circuit_breaker_states=st.dictionaries(names, st.sampled_from(["open", "closed", "half_open"])),
)


@given(request=json_values, some=st.lists(rules, max_size=4), available=toolsets, context=contexts)
async def test_planning_answers_with_an_eligible_tool_or_says_that_there_is_none_and_writes_nothing(
    request: Any, some: list[PlanningRule], available: Tools, context: PlanRequest | None
) -> None:
    before = repr((request, available, context, some))
    planner = RuleBasedPlanner(some)
    states = {} if context is None else context.circuit_breaker_states
    refused = explain(planner, request, available, context).refusal
    if refused is not None:
        with pytest.raises(NoEligibleTool, match="No tools available") as caught:
            await planner.plan(request, available, context)
        assert set(available) <= set(caught.value.reasons) <= {"a", "b", "c", "gone"}
    else:
        decision = await planner.plan(request, available, context)
        assert decision.selected_tool in available
        assert states.get(decision.selected_tool) != "open"
        assert decision.selected_tool not in decision.fallback_tools
    assert repr((request, available, context, some)) == before


async def test_a_default_plans_what_the_tool_declares_and_k_2_on_a_small_budget() -> None:
    tools = {"vote": ToolMetadata(name="vote", default_options={"k": 5, "max_parallel": 2})}
    decision = await RuleBasedPlanner().plan("q", tools)
    assert decision.tool_options == {"k": 5, "epsilon": 0.2, "max_parallel": 2}
    decision = await RuleBasedPlanner().plan("q", tools, PlanRequest(budget={"tokens": 999}))
    assert decision.tool_options["k"] == 2


async def test_tools_in_a_mapping_that_is_changed_are_seen_as_they_are_now() -> None:
    planner, some = RuleBasedPlanner(), {**tools(a="x", b="y")}
    assert (await planner.plan({"type": "y"}, some)).selected_tool == "b"
    some["b"] = ToolMetadata(name="b", capabilities=["x"])
    some["a"] = ToolMetadata(name="a", capabilities=["y"])
    assert (await planner.plan({"type": "y"}, some)).selected_tool == "a"
    some["a"] = ToolMetadata(name="a", capabilities=["y"], unavailable="it is being mended")
    assert (await planner.plan({"type": "y"}, some)).selected_tool == "b"
    del some["b"]
    some["c"] = ToolMetadata(name="c", capabilities=["y"])
    assert (await planner.plan({"type": "y"}, some)).selected_tool == "c"


async def test_a_decision_that_its_caller_changes_changes_no_later_one() -> None:
    view = MappingProxyType(tools(a="", b=""))
    planner = RuleBasedPlanner([always("r", "a", "b")])
    for _ in range(3):
        decision = await planner.plan("q", view)
        assert (decision.tool_options, decision.fallback_tools) == ({}, ["b"])
        assert decision.metadata == {"matched_rule": "r", "selection_method": "rule"}
        decision.tool_options["k"] = 9
        decision.fallback_tools.append("z")
        decision.metadata.clear()
