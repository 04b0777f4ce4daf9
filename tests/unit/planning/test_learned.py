"""LearnedPlanner: rules first, then what was learned; rewards by decision id; a budget that holds."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, NoEligibleTool
from steer_llm_sdk.orchestration.planning import (
    LearnedPlanner,
    Neighbours,
    Outcome,
    Pacing,
    PlanDecision,
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleCondition,
    ToolMetadata,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.planning.beliefs import shown
from steer_llm_sdk.reliability.stores.sums import MemorySums, SQLiteSums

TOOLS = {name: ToolMetadata(name=name) for name in ("cheap", "good", "odd")}
CODE = {"type": "code", "query": "Sort a list."}


def row(task: str, count: int = 1, costs: Mapping[str, float] | None = None, **scores: float) -> list[dict[str, Any]]:
    return [{"type": task, "query": "x" * 40, "scores": scores, "costs": costs or {}}] * count


def decided(planner: LearnedPlanner, request: Any = CODE, tools: Any = TOOLS, context: Any = None) -> str:
    return planner.decide(request, tools, context).selected_tool


async def test_nothing_known_is_answered_by_the_default_tool() -> None:
    decision = await LearnedPlanner(default_tool="good").plan(CODE, TOOLS)
    assert decision.selected_tool == "good"
    assert decision.metadata["propensity"] == 1.0
    assert decision.fallback_tools


def test_without_a_default_tool_it_is_the_one_that_rules_would_choose() -> None:
    assert decided(LearnedPlanner()) == "cheap"


@pytest.mark.parametrize("default", ["good", None])
@pytest.mark.parametrize("chance", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("explore", ["thompson", "off"])
def test_the_order_of_registration_decides_only_where_the_decision_says_so(
    default: str | None, chance: float, explore: Any
) -> None:
    found = []
    for names in permutations(TOOLS):
        planner = LearnedPlanner(default, explore=explore, chance=lambda: chance)
        found.append(planner.decide(CODE, {name: TOOLS[name] for name in names}))
    says = {"order_of_registration" in decision.metadata for decision in found}
    assert says == {default is None}
    if default is not None:
        assert len({(decision.selected_tool, *decision.fallback_tools) for decision in found}) == 1


def test_the_order_of_registration_is_not_told_where_the_default_tool_is_the_only_one_of_its_type() -> None:
    tools = {**TOOLS, "coder": ToolMetadata(name="coder", capabilities=["code"])}
    for order in (tools, dict(reversed(tools.items()))):
        decision = LearnedPlanner(explore=False).decide(CODE, order)
        assert (decision.selected_tool, decision.metadata.get("order_of_registration")) == ("coder", None)


def test_which_of_many_unknown_tools_get_their_turn_does_not_depend_on_their_order() -> None:
    many = {f"tool{number}": ToolMetadata(name=f"tool{number}") for number in range(100)}
    weighed = []
    for tools in (many, dict(reversed(many.items()))):
        planner = LearnedPlanner("tool7", explore="thompson", chance=lambda: 0.3)
        weighed.append(set(planner.decide(CODE, tools).metadata["candidates"]))
    assert weighed[0] == weighed[1]


async def test_a_tool_that_is_better_for_a_type_is_chosen_for_it_and_not_for_others() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off")
    planner.learn(row("code", 100, good=0.5, odd=0.9) + row("poem", 100, good=0.8, odd=0.3))
    assert decided(planner) == "odd"
    assert decided(planner, {"type": "poem", "query": "Roses"}) == "good"
    assert decided(planner, {"type": "never seen", "query": "?"}) == "good"


def test_a_cheaper_tool_is_worth_its_loss_of_quality_by_the_cost_weight() -> None:
    rows = row("code", 100, {"good": 0.01, "cheap": 0.001}, good=0.8, cheap=0.7)
    chosen = {}
    for weight in (0.0, 0.5):
        planner = LearnedPlanner(default_tool="good", cost_weight=weight, explore="off")
        planner.learn(rows)
        chosen[weight] = decided(planner)
    assert chosen == {0.0: "good", 0.5: "cheap"}


async def test_a_late_tool_is_worth_less_by_the_latency_weight() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off", latency_weight=0.5, latency_target_ms=100)
    planner.learn(row("code", 50, good=0.6, odd=0.7))
    for tool, ms in (("good", 90.0), ("odd", 400.0)):
        for _ in range(5):
            decision = await planner.plan(CODE, {tool: TOOLS[tool]})
            await planner.feedback(decision.metadata["decision_id"], None, latency_ms=ms)
    assert decided(planner) == "good"


async def test_rules_come_first_and_a_pinned_decision_teaches_all_the_same() -> None:
    planner = LearnedPlanner(default_tool="good", rules=[create_type_based_rule("code", "odd")])
    planner.learn(row("code", 200, good=1.0, odd=0.0))
    decision = await planner.plan(CODE, TOOLS)
    assert (decision.selected_tool, decision.metadata["propensity"]) == ("odd", 1.0)
    before = planner.beliefs.reward("code", "odd@1.0.0").runs
    assert await planner.feedback(decision.metadata["decision_id"], 1.0)
    assert planner.beliefs.reward("code", "odd@1.0.0").runs == before + 1


def test_what_a_rule_forbids_is_never_chosen() -> None:
    forbid = PlanningRule("no odd", 1, [RuleCondition("type", "equals", "code")], RuleAction("odd", effect="forbid"))
    planner = LearnedPlanner(default_tool="good", rules=[forbid], explore="thompson")
    planner.learn(row("code", 200, good=0.1, odd=1.0, cheap=0.1))
    assert {decided(planner) for _ in range(200)} <= {"good", "cheap"}


def test_a_tool_whose_circuit_is_open_is_never_chosen_and_none_is_said_with_reasons() -> None:
    planner = LearnedPlanner(default_tool="good", explore="thompson")
    two_open = PlanRequest(circuit_breaker_states={"good": "open", "odd": "open"})
    assert {decided(planner, context=two_open) for _ in range(50)} == {"cheap"}
    all_open = PlanRequest(circuit_breaker_states=dict.fromkeys(TOOLS, "open"))
    with pytest.raises(NoEligibleTool) as raised:
        decided(planner, context=all_open)
    assert set(raised.value.reasons) == set(TOOLS)


A_OPEN = PlanRequest(circuit_breaker_states={"good": "open"})
OPEN = "its circuit breaker is open"


def test_a_default_tool_that_cannot_serve_is_passed_over_with_the_reason() -> None:
    decision = LearnedPlanner("good").decide(CODE, TOOLS, A_OPEN)
    assert decision.metadata["passed_over"] == {"good": OPEN}
    assert decision.reasoning.startswith("'cheap' in place of the default 'good', which cannot serve")
    decision = LearnedPlanner("nobody").decide(CODE, TOOLS)
    assert decision.metadata["passed_over"] == {"nobody": "it is not registered"}
    for context, reason in (
        (PlanRequest(previous_failures=["good"]), "it failed before"),
        (PlanRequest(user_preferences={"avoid_tools": ["good"]}), "the caller would rather not have it"),
    ):
        assert LearnedPlanner("good").decide(CODE, TOOLS, context).metadata["passed_over"] == {"good": reason}


def test_without_a_default_tool_what_the_rules_pass_over_is_told() -> None:
    decision = LearnedPlanner().decide(CODE, TOOLS, PlanRequest(circuit_breaker_states={"cheap": "open"}))
    assert (decision.selected_tool, decision.metadata["passed_over"]) == ("good", {"cheap": OPEN})


def test_a_rule_of_which_no_tool_can_serve_is_named_with_its_tools() -> None:
    planner = LearnedPlanner("odd", rules=[create_type_based_rule("code", "good")])
    decision = planner.decide(CODE, TOOLS, A_OPEN)
    assert (decision.selected_tool, decision.metadata["passed_over"]) == ("odd", {"good": OPEN})
    assert decision.reasoning.startswith("No tool of rule type_code can be used. Default 'odd'")


def test_a_tool_that_is_known_to_be_better_and_cannot_serve_is_passed_over() -> None:
    planner = LearnedPlanner("odd", explore="off")
    planner.learn(row("code", 100, good=0.9, odd=0.5, cheap=0.1))
    decision = planner.decide(CODE, TOOLS, A_OPEN)
    assert (decision.selected_tool, decision.metadata["passed_over"]) == ("odd", {"good": OPEN})
    worse_is_out = planner.decide(CODE, TOOLS, PlanRequest(circuit_breaker_states={"cheap": "open"}))
    assert (worse_is_out.selected_tool, worse_is_out.metadata.get("passed_over")) == ("good", None)


def test_a_default_tool_that_the_budget_does_not_reach_for_is_passed_over() -> None:
    planner = LearnedPlanner("good", pacing=Pacing(budget_usd=0.005, requests=10))
    planner.learn(row("code", 20, {"good": 0.004, "cheap": 0.0001}, good=0.9, cheap=0.8))
    decision = planner.decide(CODE, {name: TOOLS[name] for name in ("good", "cheap")})
    assert decision.metadata["passed_over"] == {"good": "it is too dear for what is left of the budget"}


async def test_propensities_are_how_often_tools_are_chosen() -> None:
    rng = random.Random(5)
    planner = LearnedPlanner(default_tool="good", explore="thompson", chance=rng.random)
    planner.learn(row("code", 10, good=0.6, odd=0.6, cheap=0.5))
    chosen: Counter[str] = Counter()
    propensities: dict[str, list[float]] = {name: [] for name in TOOLS}
    for _ in range(4000):
        decision = planner.decide(CODE, TOOLS)
        chosen[decision.selected_tool] += 1
        propensities[decision.selected_tool].append(decision.metadata["propensity"])
    for name, count in chosen.items():
        said = sum(propensities[name]) / count
        assert abs(count / 4000 - said) < 0.03


def test_auto_explores_only_while_feedback_comes() -> None:
    planner = LearnedPlanner(default_tool="good")
    assert {planner.decide(CODE, TOOLS).metadata["propensity"] for _ in range(20)} == {1.0}


async def test_auto_explores_after_feedback_and_a_deterministic_run_does_not() -> None:
    planner = LearnedPlanner(default_tool="good", chance=random.Random(1).random)
    await planner.feedback((await planner.plan(CODE, TOOLS)).metadata["decision_id"], 0.5)
    assert len({decided(planner) for _ in range(100)}) > 1
    assert len({decided(planner, context=PlanRequest(explore=False)) for _ in range(100)}) == 1


async def test_a_second_reward_takes_the_place_of_the_first() -> None:
    planner = LearnedPlanner(default_tool="good")
    decision_id = (await planner.plan(CODE, TOOLS)).metadata["decision_id"]
    for reward in (0.0, 1.0, 1.0):
        assert await planner.feedback(decision_id, reward, cost_usd=0.5)
    seen = planner.beliefs.cells["code", "good@1.0.0"]
    assert (seen.runs, seen.reward, seen.costs) == (1.0, 1.0, 1.0)


async def test_feedback_for_a_decision_that_nobody_made_teaches_nothing() -> None:
    planner = LearnedPlanner(default_tool="good")
    assert not await planner.feedback("unknown", 1.0)
    assert planner.beliefs.cells == {}


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan"), True, "1"])
async def test_a_reward_that_is_none_is_refused(reward: Any) -> None:
    planner = LearnedPlanner(default_tool="good")
    decision_id = (await planner.plan(CODE, TOOLS)).metadata["decision_id"]
    with pytest.raises(InvalidRequest, match="reward"):
        await planner.feedback(decision_id, reward)


@pytest.mark.parametrize(
    "options", [{"cost_weight": -1}, {"explore": "always"}, {"gate": float("nan")}, {"latency_weight": 1.0}]
)
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        LearnedPlanner(**options)


async def test_a_silent_regression_is_noticed_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    planner = LearnedPlanner(default_tool="good", explore="thompson", chance=random.Random(3).random)
    good = {"good": 0.9, "odd": 0.7, "cheap": 0.2}
    rng = random.Random(4)
    late: Counter[str] = Counter()
    for turn in range(1600):
        if turn == 800:
            good["good"] = 0.2
        decision = await planner.plan(CODE, TOOLS)
        tool = decision.selected_tool
        await planner.feedback(decision.metadata["decision_id"], float(rng.random() < good[tool]))
        if turn >= 1200:
            late[tool] += 1
    assert late["odd"] > 300
    assert "does differently" in caplog.text


def test_in_the_shadow_the_default_serves_and_the_other_is_only_named() -> None:
    planner = LearnedPlanner(default_tool="good", shadow=True)
    planner.learn(row("code", 100, good=0.2, odd=0.9))
    decision = planner.decide(CODE, TOOLS)
    assert (decision.selected_tool, decision.metadata["shadow"], decision.metadata["propensity"]) == ("good", "odd", 1)


async def test_a_budget_is_never_overspent_and_refused_when_it_is_used_up() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off", pacing=Pacing(budget_usd=0.05, requests=50))
    planner.learn(row("code", 50, {"good": 0.004, "cheap": 0.0005}, good=0.9, cheap=0.5))
    spent, refused, costs = 0.0, 0, {"good": 0.004, "cheap": 0.0005, "odd": 0.002}
    for _ in range(200):
        try:
            decision = await planner.plan(CODE, {name: TOOLS[name] for name in ("good", "cheap")})
        except BudgetExceeded:
            refused += 1
            continue
        cost = costs[decision.selected_tool]
        spent += cost
        await planner.feedback(decision.metadata["decision_id"], 0.5, cost)
    assert spent <= 0.05
    assert spent > 0.045
    assert refused > 100


async def test_what_is_given_up_before_it_is_sent_is_free_again() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off", pacing=Pacing(budget_usd=0.01, requests=2))
    planner.learn(row("code", 10, {"good": 0.009}, good=0.9))
    only = {"good": TOOLS["good"]}
    first = await planner.plan(CODE, only)
    with pytest.raises(BudgetExceeded):
        await planner.plan(CODE, only)
    await planner.release(first.metadata["decision_id"])
    assert (await planner.plan(CODE, only)).selected_tool == "good"


def outcome_of(planner: LearnedPlanner, decision: PlanDecision, **told: Any) -> None:
    tool = TOOLS[decision.selected_tool]
    outcome = Outcome(tool.name, tool.version, **{"succeeded": True, **told})
    planner.observe(CODE, decision, (outcome,))


async def test_a_failure_is_worth_nothing_and_an_evaluator_says_what_an_answer_is_worth() -> None:
    planner = LearnedPlanner(default_tool="good", evaluator=lambda request, content: len(content) / 10)
    outcome_of(planner, await planner.plan(CODE, TOOLS), succeeded=False)
    assert planner.beliefs.cells["code", "good@1.0.0"][:2] == (1.0, 0.0)
    outcome_of(planner, await planner.plan(CODE, TOOLS, PlanRequest(explore=False)), content="12345")
    assert planner.beliefs.cells["code", "good@1.0.0"][:2] == (2.0, 0.5)


async def test_an_evaluator_may_wait_or_fail() -> None:
    async def judge(request: Any, content: Any) -> float:
        if content is None:
            raise RuntimeError("no content")
        return 1.0

    planner = LearnedPlanner(default_tool="good", evaluator=judge, explore="off")
    for content in ("fine", None):
        outcome_of(planner, await planner.plan(CODE, TOOLS), content=content, cost_usd=0.1)
    await planner.settled()
    seen = planner.beliefs.cells["code", "good@1.0.0"]
    assert (seen.runs, seen.reward, seen.costs) == (1.0, 1.0, 2.0)


async def test_the_confidence_of_a_bundle_counts_only_where_it_is_trusted() -> None:
    for trusted, runs in ((True, 1.0), (False, 0.0)):
        planner = LearnedPlanner(default_tool="good", trust_confidence=trusted)
        outcome_of(planner, await planner.plan(CODE, TOOLS), confidence=0.75)
        assert planner.beliefs.cells["code", "good@1.0.0"].runs == runs


async def test_a_fallback_that_answered_costs_the_same_budget() -> None:
    planner = LearnedPlanner(default_tool="good", pacing=Pacing(budget_usd=1.0, requests=10))
    decision = await planner.plan(CODE, TOOLS)
    failed = Outcome("good", "1.0.0", False)
    planner.observe(CODE, decision, (failed, Outcome("odd", "1.0.0", True, 0.25)))
    assert planner.paced is not None
    assert planner.paced.spent == 0.25


GOOD_FAILED, ODD_ANSWERED = Outcome("good", "1.0.0", False), Outcome("odd", "1.0.0", True, 0.25, content="1234")


async def test_the_reward_of_a_run_that_a_fallback_answered_is_the_fallbacks() -> None:
    planner = LearnedPlanner(default_tool="good")
    for reward in (0.5, 1.0):
        decision = await planner.plan(CODE, TOOLS, PlanRequest(explore=False))
        planner.observe(CODE, decision, (GOOD_FAILED, ODD_ANSWERED))
        for said in (0.0, reward):
            assert await planner.feedback(decision.metadata["decision_id"], said)
    assert planner.beliefs.cells["code", "good@1.0.0"][:2] == (2.0, 0.0)
    assert planner.beliefs.cells["code", "odd@1.0.0"][:2] == (2.0, 1.5)


async def test_an_evaluator_says_what_the_answer_of_a_fallback_is_worth() -> None:
    async def judge(request: Any, content: Any) -> float:
        return len(content) / 10

    for evaluator in (lambda request, content: len(content) / 10, judge):
        planner = LearnedPlanner(default_tool="good", evaluator=evaluator)
        planner.observe(CODE, await planner.plan(CODE, TOOLS), (GOOD_FAILED, ODD_ANSWERED))
        await planner.settled()
        assert planner.beliefs.cells["code", "good@1.0.0"][:2] == (1.0, 0.0)
        assert planner.beliefs.cells["code", "odd@1.0.0"][:2] == (1.0, 0.4)


async def test_a_tool_that_was_refused_gets_nothing_of_what_its_fallback_earned() -> None:
    lines: list[str] = []
    planner = LearnedPlanner(default_tool="good", log=lines.append)
    decision = await planner.plan(CODE, TOOLS)
    planner.observe(CODE, decision, (ODD_ANSWERED,))
    assert await planner.feedback(decision.metadata["decision_id"], 1.0)
    assert ("code", "good@1.0.0") not in planner.beliefs.cells
    assert planner.beliefs.cells["code", "odd@1.0.0"][:2] == (1.0, 1.0)
    assert lines == []


async def test_what_a_fallback_earned_is_not_logged_with_the_propensity_of_the_tool_that_failed() -> None:
    lines: list[str] = []
    planner = LearnedPlanner(default_tool="good", evaluator=lambda request, content: 0.5, log=lines.append)
    decision = await planner.plan(CODE, TOOLS)
    planner.observe(CODE, decision, (GOOD_FAILED, ODD_ANSWERED))
    await planner.feedback(decision.metadata["decision_id"], 1.0)
    [line] = map(json.loads, lines)
    assert (line["tool"], line["reward"], line["propensity"]) == ("good", 0.0, 1.0)


async def test_what_was_reserved_is_settled_by_what_the_fallback_cost() -> None:
    for told in (0.25, None):
        planner = LearnedPlanner(default_tool="good", pacing=Pacing(budget_usd=1.0, requests=10))
        planner.learn(row("code", 10, {"good": 0.1}, good=0.9))
        decision = await planner.plan(CODE, TOOLS, PlanRequest(explore=False))
        assert planner.paced is not None
        assert planner.paced.reserved > 0
        planner.observe(CODE, decision, (GOOD_FAILED, ODD_ANSWERED._replace(cost_usd=told)))
        await planner.feedback(decision.metadata["decision_id"], 1.0, 0.25)
        assert (planner.paced.reserved, planner.paced.spent) == (0.0, 0.25)


async def test_a_log_has_what_an_evaluation_needs() -> None:
    lines: list[str] = []
    planner = LearnedPlanner(default_tool="good", log=lines.append)
    decision = await planner.plan(CODE, TOOLS)
    assert lines == []
    await planner.feedback(decision.metadata["decision_id"], 0.5, 0.01, 120.0)
    [line] = map(json.loads, lines)
    assert line["propensity"] == 1.0
    assert (line["type"], line["tool"], line["reward"], line["cost_usd"]) == ("code", "good", 0.5, 0.01)
    assert set(line["candidates"]) == set(TOOLS)


def test_prompts_that_read_alike_tell_tools_apart_without_a_type() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off", neighbours=Neighbours())
    planner.learn(
        {"query": f"{text} number {n}", "scores": {"good": good, "odd": 1 - good}}
        for n in range(60)
        for text, good in (("Solve the equation", 0.0), ("Write a poem about", 1.0))
    )
    assert decided(planner, {"query": "Solve the equation x + 1 = 3"}) == "odd"
    assert decided(planner, {"query": "Write a poem about rain"}) == "good"


def test_with_many_tools_only_some_are_weighed_and_the_better_one_is_found() -> None:
    tools = {f"t{n}": ToolMetadata(name=f"t{n}") for n in range(300)}
    planner = LearnedPlanner(default_tool="t0", explore="off")
    planner.learn(row("code", 100, t0=0.5, t250=0.9))
    decision = planner.decide(CODE, tools)
    assert decision.selected_tool == "t250"
    assert len(decision.metadata["candidates"]) <= 12


def test_a_tool_that_nobody_knows_among_many_gets_its_turn() -> None:
    tools = {f"t{n}": ToolMetadata(name=f"t{n}") for n in range(100)}
    planner = LearnedPlanner(default_tool="t0", explore="thompson", chance=random.Random(2).random)
    assert len({decided(planner, CODE, tools) for _ in range(3000)}) > 25


async def test_a_tool_that_a_rule_pins_is_refused_where_the_budget_has_nothing_left_for_it() -> None:
    pacing = Pacing(budget_usd=0.01, requests=2)
    planner = LearnedPlanner(rules=[create_type_based_rule("code", "good")], pacing=pacing)
    planner.learn(row("code", 10, {"good": 0.009}, good=0.9))
    assert decided(planner) == "good"
    with pytest.raises(BudgetExceeded) as caught:
        decided(planner)
    assert (caught.value.limit, caught.value.affected_agents) == (0.01, ["good"])


def test_where_the_default_cannot_serve_the_one_that_does_best_in_general_takes_its_place() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off")
    planner.learn(row("poem", 100, cheap=0.2, odd=0.9))
    assert decided(planner, context=PlanRequest(circuit_breaker_states={"good": "open"})) == "odd"


def test_a_rule_that_raises_is_named_in_the_decision_and_forbids_nothing() -> None:
    def broken(value: Any, expected: Any) -> bool:
        raise RuntimeError("no idea")

    raises = RuleCondition("type", "equals", "code", custom_matcher=broken)
    rule = PlanningRule("broken", 1, [raises], RuleAction("good", effect="forbid"))
    decision = LearnedPlanner(default_tool="good", rules=[rule]).decide(CODE, TOOLS)
    assert (decision.selected_tool, list(decision.metadata["skipped_rules"])) == ("good", ["broken"])


def test_what_is_expected_is_said_the_best_first_and_nothing_is_decided() -> None:
    planner = LearnedPlanner(default_tool="good", pacing=Pacing(budget_usd=1.0, requests=10))
    planner.learn(row("code", 100, good=0.5, odd=0.9, cheap=0.1))
    assert [candidate.name for candidate in planner.expected(CODE, TOOLS)] == ["odd", "good", "cheap"]
    assert [candidate.name for candidate in planner.expected("Sort a list.", {"odd": TOOLS["odd"]})] == ["odd"]
    assert planner.paced is not None
    assert (planner.paced.spent, planner.paced.reserved) == (0, 0)


async def test_a_decision_of_another_planner_teaches_nothing() -> None:
    planner = LearnedPlanner(default_tool="good")
    outcome_of(planner, await LearnedPlanner(default_tool="good").plan(CODE, TOOLS))
    assert planner.beliefs.cells == {}


async def test_an_evaluator_that_fails_or_has_no_opinion_leaves_what_the_answer_cost() -> None:
    opinions: list[Any] = [None, 7.0, RuntimeError("no idea")]

    def judge(request: Any, content: Any) -> Any:
        opinion = opinions.pop(0)
        if isinstance(opinion, Exception):
            raise opinion
        return opinion

    planner = LearnedPlanner(default_tool="good", evaluator=judge)
    for _ in range(3):
        outcome_of(planner, await planner.plan(CODE, TOOLS), content="x", cost_usd=0.1)
    seen = planner.beliefs.cells["code", "good@1.0.0"]
    assert (opinions, seen.runs, seen.costs) == ([], 0.0, 3.0)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"explore": "sometimes"}, "explore"), ({"store": object()}, "store"), ({"gate": -1.0}, "gate")],
)
def test_what_no_planner_can_be_made_of_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        LearnedPlanner(**options)


@pytest.mark.parametrize(("given", "meant"), [(True, "thompson"), (False, "off"), (None, "off"), ("auto", "auto")])
def test_exploring_is_named_or_switched(given: Any, meant: str) -> None:
    assert LearnedPlanner(explore=given).explore == meant


def test_a_planner_with_a_store_learns_from_no_rows() -> None:
    with pytest.raises(InvalidRequest, match="feedback"):
        LearnedPlanner(store=MemorySums()).learn(row("code", good=0.5))


@pytest.mark.parametrize("key", ["query", "prompt", "text", "content", "input"])
def test_the_text_of_a_prompt_is_found_under_any_of_its_names(key: str) -> None:
    planner = LearnedPlanner(default_tool="good", explore="off", neighbours=True)
    planner.learn(
        {"query": f"{text} number {n}", "scores": {"good": good, "odd": 1 - good}}
        for n in range(60)
        for text, good in (("Solve the equation", 0.0), ("Write a poem about", 1.0))
    )
    assert decided(planner, {key: "Solve the equation x + 1 = 3"}) == "odd"
    assert decided(planner, {key: 7, "other": "Solve the equation x + 1 = 3"}) == "good"


def test_of_more_prompts_than_it_may_keep_the_older_half_is_forgotten() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off", neighbours=Neighbours(k=5, capacity=40))
    for text, good in (("Solve the equation", 0.0), ("Write a poem about", 1.0), ("Solve the equation", 1.0)):
        planner.learn({"query": f"{text} {n}", "scores": {"good": good, "odd": 1 - good}} for n in range(40))
    assert decided(planner, {"query": "Solve the equation 7"}) == "good"


@pytest.mark.parametrize("options", [{"k": 0}, {"capacity": 99}, {"beta": -1.0}, {"prior": 0.0}])
def test_neighbours_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give k from 1"):
        Neighbours(**options)


def test_neighbours_without_numpy_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ImportError, match=r"pip install .*\[numpy\]"):
        Neighbours()


def test_what_is_believed_can_be_shown_by_type_and_version() -> None:
    planner = LearnedPlanner(default_tool="good")
    planner.learn(row("code", 100, good=1.0, **{"good@2.0.0": 0.0, "good@next": 0.0}))
    table = shown(planner.beliefs)
    assert list(table) == ["code"]
    assert table["code"]["good@1.0.0"] > 0.9
    assert max(table["code"]["good@2.0.0"], table["code"]["good@next"]) < 0.1


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield MemorySums()
        return
    sums = SQLiteSums(str(tmp_path / "learned.db"))
    yield sums
    sums.close()


async def test_two_planners_learn_from_each_other_through_a_store(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (LearnedPlanner(default_tool="good", explore="off", store=store) for _ in range(2))
    for tool, reward in (("good", 0.3), ("odd", 0.9)):
        for _ in range(60):
            decision = await one.plan(CODE, {tool: TOOLS[tool]})
            await one.feedback(decision.metadata["decision_id"], reward, 0.01)
    decision = await other.plan(CODE, TOOLS)
    assert decision.selected_tool == "odd"
    assert other.beliefs.cells["code", "odd@1.0.0"].runs == 60
    # A decision of one, judged by the other: counted once, however often it is told.
    for reward in (0.0, 1.0):
        assert await one.feedback(decision.metadata["decision_id"], reward)
    third = LearnedPlanner(default_tool="good", explore="off", store=store)
    await third.plan(CODE, TOOLS)
    assert third.beliefs.cells["code", "odd@1.0.0"].runs == 61


async def test_feedback_in_another_process_is_of_the_fallback_that_answered(store: Any) -> None:
    one, other = (LearnedPlanner(default_tool="good", explore="off", store=store) for _ in range(2))
    decision = await one.plan(CODE, TOOLS)
    one.observe(CODE, decision, (GOOD_FAILED, ODD_ANSWERED))
    await one.settled()
    for reward in (0.5, 1.0):
        assert await other.feedback(decision.metadata["decision_id"], reward)
    third = LearnedPlanner(default_tool="good", store=store)
    await third.plan(CODE, TOOLS)
    assert third.beliefs.cells["code", "good@1.0.0"][:2] == (1.0, 0.0)
    assert third.beliefs.cells["code", "odd@1.0.0"][:2] == (1.0, 1.0)


async def test_planners_that_share_a_budget_do_not_overspend_it(store: Any) -> None:
    pacing = Pacing(budget_usd=0.02, requests=20)
    planners = [LearnedPlanner(default_tool="good", explore="off", store=store, pacing=pacing) for _ in range(2)]
    only, spent, refused = (
        {"good": ToolMetadata(name="good", resource_requirements={"estimated_cost_per_run": 0.003})},
        0.0,
        0,
    )
    for turn in range(20):
        planner = planners[turn % 2]
        try:
            decision = await planner.plan(CODE, only)
        except BudgetExceeded:
            refused += 1
            continue
        spent += 0.003
        await planner.feedback(decision.metadata["decision_id"], 1.0, 0.003)
    assert spent <= 0.02
    assert refused == 14


def test_a_tool_that_the_caller_prefers_is_worth_more() -> None:
    planner = LearnedPlanner(default_tool="good", explore="off")
    planner.learn(row("code", 100, good=0.6, odd=0.6))
    assert decided(planner, context=PlanRequest(user_preferences={"preferred_tools": ["odd"]})) == "odd"
