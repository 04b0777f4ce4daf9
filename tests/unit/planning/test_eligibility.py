"""Which tools may serve, and why the others may not; what live knowledge changes of it."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.errors import NoEligibleTool
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    Statistics,
    ToolMetadata,
    eligible,
    explain,
)


def tool(name: str, **declared: Any) -> ToolMetadata:
    resources = {key: declared.pop(key) for key in ("cost", "ms", "quality") if key in declared}
    names = {"cost": "estimated_cost_per_run", "ms": "estimated_duration_ms", "quality": "expected_quality"}
    return ToolMetadata(
        name=name, resource_requirements={names[key]: value for key, value in resources.items()}, **declared
    )


def those(*tools: ToolMetadata) -> dict[str, ToolMetadata]:
    return {tool.name: tool for tool in tools}


A = tool("a")


@pytest.mark.parametrize(
    ("b", "context", "reason"),
    [
        (tool("b"), {"circuit_breaker_states": {"b": "open"}}, "its circuit breaker is open"),
        (
            tool("b"),
            {"circuit_breaker_states": {"b": "half_open"}, "probes_left": {"b": 0}},
            "its circuit breaker is half open, and all its probes are under way",
        ),
        (tool("b", capabilities=["x"]), {"capabilities": ["x", "y"]}, "it does not declare y"),
        (tool("b", supported_models=["m"]), {"models": ["n", "o"]}, "it declares none of the models n, o"),
        (
            tool("b", version="2.0"),
            {"versions": {"b": "<2"}},
            "no version of it that can be chosen satisfies <2 (it is at 2.0)",
        ),
        (
            tool("b", tenants=["acme"]),
            {"tenant": "umbrella"},
            "it serves acme only, and the tenant is umbrella",
        ),
        (tool("b", tenants=["acme"]), {}, "it serves acme only, and the tenant is not known"),
        (
            tool("b", context_window=100),
            {"input_tokens": 101},
            "its context window is 100 tokens, and the request has about 101",
        ),
        (tool("b", unavailable="it is resting"), {}, "it is resting"),
        (
            tool("b", ms=900),
            {"quality_requirements": {"max_latency_ms": 800}},
            "it declares 900 ms, and max_latency_ms is 800",
        ),
        (
            tool("b", quality=0.4),
            {"quality_requirements": {"min_quality": 0.5}},
            "it declares a quality of 0.4, and min_quality is 0.5",
        ),
        (
            tool("b", cost=0.2),
            {"quality_requirements": {"max_cost_usd": 0.1}},
            "it costs about $0.2, and max_cost_usd is 0.1",
        ),
        (
            tool("b", cost=0.2),
            {"budget": {"cost_usd": 0.1}},
            "it costs about $0.2, and the budget has $0.1 left",
        ),
    ],
)
def test_what_excludes_a_tool(b: ToolMetadata, context: dict[str, Any], reason: str) -> None:
    left = A.model_copy(update={"capabilities": ["x", "y"], "supported_models": ["n"]})
    assert eligible(those(left, b), PlanRequest(**context)) == (("a",), {"b": reason})


@pytest.mark.parametrize(
    ("b", "context"),
    [
        (tool("b"), {"circuit_breaker_states": {"b": "half_open"}, "probes_left": {"b": 1}}),
        (tool("b"), {"circuit_breaker_states": {"b": "half_open"}}),
        (tool("b", capabilities=["x", "y"]), {"capabilities": ["x"]}),
        (tool("b", tenants=["acme"]), {"tenant": "acme"}),
        (tool("b", context_window=100), {"input_tokens": 100}),
        (tool("b", context_window=100), {}),
        (tool("b"), {"quality_requirements": {"max_latency_ms": 1, "min_quality": 1, "max_cost_usd": 0}}),
        (tool("b", version="1.5"), {"versions": {"b": ">=1,<2"}}),
        (tool("b", cost=0.1), {"budget": {"cost_usd": 0.1}}),
        (tool("b", ms=900), {"budget": {"ms": 100}}),
    ],
)
def test_what_does_not(b: ToolMetadata, context: dict[str, Any]) -> None:
    assert eligible(those(b), PlanRequest(**context)) == (("b",), {})


def test_the_length_of_a_request_is_estimated_from_its_text() -> None:
    small = those(tool("s", context_window=100))
    texts: list[Any] = [
        {"query": "x" * 404},
        {"messages": [{"role": "user", "content": "x" * 400}]},
        {"text": "x" * 404},
    ]
    for request in texts:
        assert eligible(small, request=request).names == ()
    for request in ({"query": "x" * 400}, {"other": "x" * 4000}, None, 5):
        assert eligible(small, request=request).names == ("s",)


# What is known of runs


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def seen(
    count: int, name: str = "a", kind: str | None = None, clock: Callable[[], float] = Clock(), **each: Any
) -> Any:
    statistics = Statistics(clock=clock)
    for _ in range(count):
        statistics.record(kind, name, "1.0.0", **{"succeeded": True, **each})
    return statistics


def test_success_is_shrunken_to_the_tool_and_the_tool_to_one_half() -> None:
    statistics = Statistics(prior_runs=10)
    for _ in range(6):
        statistics.record("easy", "a", "1.0.0", succeeded=True)
    for _ in range(2):
        statistics.record("hard", "a", "1.0.0", succeeded=False)
    mu = (6 + 1) / (8 + 2)
    assert statistics.estimate("easy", A).success == pytest.approx((10 * mu + 6) / (10 + 6))
    assert statistics.estimate("hard", A).success == pytest.approx((10 * mu + 0) / (10 + 2))
    assert statistics.estimate("other", A).success == pytest.approx(mu)
    assert statistics.estimate(None, A).success == pytest.approx(mu)
    assert statistics.estimate("easy", tool("b")).success == 0.5


def test_cost_moves_from_what_is_declared_to_what_was_paid() -> None:
    statistics = Statistics(prior_runs=10)
    assert statistics.estimate("x", A, 0.01).cost_usd == 0.01
    for _ in range(30):
        statistics.record("x", "a", "1.0.0", succeeded=True, cost_usd=0.05)
    mu = (10 * 0.01 + 30 * 0.05) / 40
    assert statistics.estimate("x", A, 0.01).cost_usd == pytest.approx((10 * mu + 30 * 0.05) / 40)
    assert statistics.estimate("y", A, 0.01).cost_usd == pytest.approx(mu)
    assert statistics.estimate("y", A).cost_usd == pytest.approx(0.05)


def test_each_version_has_its_own_history() -> None:
    statistics = seen(30, cost_usd=0.5)
    assert statistics.estimate(None, A.model_copy(update={"version": "2.0"}), 0.1).cost_usd == 0.1
    assert (statistics.runs("a", "1.0.0"), statistics.runs("a", "2.0")) == (30, 0)


def test_a_duration_follows_a_tool_that_has_become_faster() -> None:
    statistics = seen(300, duration_ms=1000.0)
    for _ in range(300):
        statistics.record(None, "a", "1.0.0", succeeded=True, duration_ms=100.0)
    assert 100 < statistics.estimate(None, A).duration_ms < 250


def test_tails_are_known_from_twenty_runs() -> None:
    statistics = seen(19, duration_ms=100.0)
    assert statistics.estimate(None, A).p95_ms is None
    statistics.record(None, "a", "1.0.0", succeeded=True, duration_ms=900.0)
    estimate = statistics.estimate(None, A)
    assert (estimate.p95_ms, estimate.fastest_ms, estimate.runs) == (100.0, 100.0, 20)
    statistics.record(None, "a", "1.0.0", succeeded=True, duration_ms=900.0)
    assert statistics.estimate(None, A).p95_ms == 900.0


def test_a_run_may_stand_for_many() -> None:
    one, many = Statistics(), Statistics()
    for _ in range(61):
        one.record("x", "a", "1.0.0", succeeded=True, cost_usd=0.5, duration_ms=10.0)
    many.record("x", "a", "1.0.0", succeeded=True, cost_usd=0.5, duration_ms=10.0, runs=61)
    assert many.estimate("x", A)[:2] == pytest.approx(one.estimate("x", A)[:2])
    assert many.runs("a", "1.0.0") == 61


def test_what_is_old_is_believed_no_longer() -> None:
    clock = Clock()
    statistics = seen(30, clock=clock, duration_ms=5000.0)
    planner = RuleBasedPlanner(statistics=statistics)
    wanted = PlanRequest(quality_requirements={"max_latency_ms": 1000})
    with pytest.raises(NoEligibleTool, match="19 of 20 runs took up to 5000 ms, and max_latency_ms is 1000"):
        planner.decide({}, those(A), wanted)
    clock.now = 601.0
    assert planner.decide({}, those(A), wanted).selected_tool == "a"


def test_a_seen_latency_counts_more_than_the_declared_one() -> None:
    planner = RuleBasedPlanner(statistics=seen(30, duration_ms=100.0))
    wanted = PlanRequest(quality_requirements={"max_latency_ms": 1000})
    assert planner.decide({}, those(tool("a", ms=5000)), wanted).selected_tool == "a"


def test_a_seen_quality_is_a_floor() -> None:
    wanted = PlanRequest(quality_requirements={"min_quality": 0.5})
    planner = RuleBasedPlanner(statistics=seen(30, quality=0.2))
    assert planner.decide({}, those(A, tool("b")), wanted).selected_tool == "b"


def test_a_time_budget_excludes_a_tool_that_was_never_fast_enough() -> None:
    planner = RuleBasedPlanner(statistics=seen(30, duration_ms=900.0))
    decision = planner.decide({}, those(A, tool("b")), PlanRequest(budget={"ms": 500}))
    assert decision.selected_tool == "b"
    assert "none of its recent runs took less than 900 ms" in decision.metadata["passed_over"]["a"]


def test_a_run_that_another_thread_tells_meanwhile_stops_nobody_who_asks_what_has_changed() -> None:
    statistics = Statistics()

    class Name(str):
        __slots__ = ()

        def __hash__(self) -> int:  # Looked at while the changes are gone through: here the other thread has its turn.
            if asked:
                statistics.record(None, "b", "1.0.0", succeeded=True)
            return super().__hash__()

    asked = False
    statistics.record(None, Name("a"), "1.0.0", succeeded=True)
    statistics.record(None, "c", "1.0.0", succeeded=True)
    asked = True
    assert statistics.changed_since(0) == {"a", "c"}


def test_runs_that_two_threads_tell_at_once_are_forgotten_like_any_others() -> None:
    statistics = seen(1, duration_ms=9.0)
    turns = [1.0]

    class Duration(float):
        __hash__ = float.__hash__

        def __eq__(self, other: object) -> bool:  # Asked while the oldest is taken out: the other thread has its turn.
            if turns:
                statistics.record(None, "a", "1.0.0", succeeded=True, duration_ms=turns.pop())
            return super().__eq__(other)

    for duration in [Duration(1.0)] * 127 + [9.0] * 400:
        statistics.record(None, "a", "1.0.0", succeeded=True, duration_ms=duration)
    assert not turns
    assert statistics.estimate(None, A).fastest_ms == 9.0


def test_unbounded_task_types_do_not_fill_the_memory() -> None:
    statistics = Statistics()
    for number in range(10_500):
        statistics.record(f"type {number}", "a", "1.0.0", succeeded=True)
    assert statistics.estimate("type 0", A) == statistics.estimate("never seen", A)
    assert statistics.runs("a", "1.0.0") == 10_500


@pytest.mark.parametrize("wrong", [{"prior_runs": 0}, {"fresh_for": 0}])
def test_statistics_refuse_what_makes_no_sense(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Statistics(**wrong)


# Which of the eligible


def choose(*tools: ToolMetadata, planner: RuleBasedPlanner | None = None, **context: Any) -> str:
    return (planner or RuleBasedPlanner()).decide({"type": "x"}, those(*tools), PlanRequest(**context)).selected_tool


X = {"capabilities": ["x"]}


def test_the_cheaper_of_equals_is_chosen_wherever_it_was_registered() -> None:
    dear, cheap = tool("dear", cost=0.5, **X), tool("cheap", cost=0.1, **X)
    assert choose(dear, cheap) == choose(cheap, dear) == "cheap"
    assert choose(tool("dear", cost=0.5), tool("cheap", cost=0.1)) == "cheap"


def test_a_tool_that_can_do_the_type_goes_before_a_cheaper_one_that_cannot() -> None:
    assert choose(tool("other", cost=0.0), tool("able", cost=0.5, **X)) == "able"


def test_what_was_paid_counts_and_not_only_what_is_declared() -> None:
    planner = RuleBasedPlanner(statistics=seen(200, "a", cost_usd=1.0))
    assert choose(tool("a", cost=0.1, **X), tool("b", cost=0.3, **X), planner=planner) == "b"


def test_a_tool_that_mostly_fails_goes_last_among_its_equals() -> None:
    planner = RuleBasedPlanner(statistics=seen(30, "a", succeeded=False))
    assert choose(tool("a", **X), tool("b", **X), planner=planner) == "b"


def test_an_answer_is_paid_for_until_it_comes() -> None:
    statistics = seen(60, "a")
    for _ in range(50):
        statistics.record(None, "a", "1.0.0", succeeded=False)
    planner = RuleBasedPlanner(statistics=statistics)
    assert choose(tool("a", cost=0.10, **X), tool("b", cost=0.15, **X), planner=planner) == "b"
    assert choose(tool("a", cost=0.05, **X), tool("b", cost=0.15, **X), planner=planner) == "a"


@pytest.mark.parametrize("optimize", ["latency", "quality", "cost"])
def test_of_tools_equal_in_what_the_caller_optimizes_for_the_cheaper_is_chosen(optimize: str) -> None:
    wanted = PlanRequest(user_preferences={"optimize": optimize})
    dear, cheap = tool("dear", cost=0.03, ms=100, **X), tool("cheap", cost=0.02, ms=100, **X)
    for order in ((dear, cheap), (cheap, dear)):
        decision = RuleBasedPlanner().decide({"type": "x"}, those(*order), wanted)
        assert (decision.selected_tool, decision.metadata.get("order_of_registration")) == ("cheap", None)


def test_where_only_the_order_of_registration_decides_the_decision_says_so() -> None:
    decision = RuleBasedPlanner().decide({"type": "x"}, those(tool("a", **X), tool("b", **X)))
    assert decision.metadata["order_of_registration"] == ["selected_tool"]
    decision = RuleBasedPlanner().decide({"type": "x"}, those(tool("a", cost=1, **X), tool("b", cost=2, **X)))
    assert "order_of_registration" not in decision.metadata


@pytest.mark.parametrize(
    ("preferences", "chosen"),
    [
        ({}, "a"),
        ({"preferred_tools": ["b"]}, "b"),
        ({"preferred_tools": "b"}, "b"),
        ({"preferred_tools": ["nobody"]}, "a"),
        ({"preferred_models": ["m"]}, "c"),
        ({"avoid_tools": ["a"]}, "b"),
        ({"avoid_tools": ["a", "b", "c"]}, "a"),
        ({"optimize": "latency"}, "c"),
        ({"optimize": "cost"}, "a"),
    ],
)
def test_preferences_order_the_tools_that_may_serve(preferences: dict[str, Any], chosen: str) -> None:
    tools = [
        tool("a", cost=1, ms=300, **X),
        tool("b", cost=2, ms=200, **X),
        tool("c", cost=3, ms=100, supported_models=["m"], **X),
    ]
    assert choose(*tools, user_preferences=preferences) == chosen


def test_a_preference_for_quality_goes_by_what_was_seen() -> None:
    statistics = seen(30, "a", quality=0.2)
    for _ in range(30):
        statistics.record(None, "b", "1.0.0", succeeded=True, quality=0.9)
    planner = RuleBasedPlanner(statistics=statistics)
    tools = [tool("a", cost=1, **X), tool("b", cost=2, **X)]
    assert choose(*tools, planner=planner) == "a"
    assert choose(*tools, planner=planner, user_preferences={"optimize": "quality"}) == "b"


def test_a_preferred_tool_that_cannot_serve_is_not_chosen() -> None:
    context = {"user_preferences": {"preferred_tools": ["b"]}, "circuit_breaker_states": {"b": "open"}}
    assert choose(tool("a"), tool("b"), **context) == "a"


def test_a_preference_that_nobody_knows_is_named_in_the_decision() -> None:
    context = PlanRequest(user_preferences={"colour": "red", "optimize": "beauty"})
    decision = RuleBasedPlanner().decide({}, those(A), context)
    assert decision.metadata["unknown_preferences"] == ["colour", "optimize=beauty"]


# Rules that restrict, forbid and prefer


def rule(name: str, action: RuleAction, *conditions: RuleCondition, priority: int = 0) -> PlanningRule:
    return PlanningRule(name, priority, conditions, action)


ACME = RuleCondition("tenant", "equals", "acme")


def test_a_restriction_leaves_only_its_tools_and_no_pin_gets_round_it() -> None:
    planner = RuleBasedPlanner(
        [rule("policy", RuleAction.restrict("b", "c"), ACME, priority=-9), rule("pin", RuleAction("a"), priority=9)]
    )
    tools = those(A, tool("b", cost=2), tool("c", cost=1), tool("d", cost=0))
    assert planner.decide({}, tools).selected_tool == "a"
    with pytest.raises(NoEligibleTool) as caught:
        planner.decide({"tenant": "acme"}, tools)
    assert caught.value.reasons["a"] == "rule policy leaves only b, c"
    without = RuleBasedPlanner(planner.rules[1:])
    decision = without.decide({"tenant": "acme"}, tools)
    assert (decision.selected_tool, decision.metadata["applied_rules"]) == ("c", ["policy"])
    assert (
        without.decide({"tenant": "acme"}, tools, PlanRequest(circuit_breaker_states={"c": "open"})).selected_tool
        == "b"
    )


def test_a_pin_falls_back_to_what_a_restriction_leaves() -> None:
    planner = RuleBasedPlanner([rule("p", RuleAction.restrict("b")), rule("pin", RuleAction("a", {}, ["b"]))])
    decision = planner.decide({}, those(A, tool("b")))
    assert decision.selected_tool == "b"
    assert decision.metadata["passed_over"] == {"a": "rule p leaves only b"}


def test_two_restrictions_leave_what_both_leave_and_a_contradiction_leaves_nothing() -> None:
    rules = [rule("one", RuleAction.restrict("a", "b")), rule("two", RuleAction.restrict("b", "c"))]
    tools = those(A, tool("b"), tool("c"))
    assert RuleBasedPlanner(rules).decide({}, tools).selected_tool == "b"
    with pytest.raises(NoEligibleTool) as caught:
        RuleBasedPlanner([*rules, rule("three", RuleAction.restrict("a"))]).decide({}, tools)
    assert set(caught.value.reasons) == {"a", "b", "c"}


def test_what_is_forbidden_is_never_chosen() -> None:
    planner = RuleBasedPlanner([rule("never", RuleAction.forbid("a"), ACME), rule("pin", RuleAction("a", {}, ["b"]))])
    assert planner.decide({"tenant": "acme"}, those(A, tool("b"))).selected_tool == "b"
    assert planner.decide({}, those(A, tool("b"))).selected_tool == "a"
    with pytest.raises(NoEligibleTool, match="a: rule never forbids it"):
        planner.decide({"tenant": "acme"}, those(A))


@pytest.mark.parametrize("policy", [RuleAction.forbid("b"), RuleAction.restrict("a", "c")], ids=["forbid", "restrict"])
def test_the_fallbacks_of_a_pin_do_not_get_round_it_either(policy: RuleAction) -> None:
    planner = RuleBasedPlanner([rule("policy", policy, ACME), rule("pin", RuleAction("a", {}, ["b", "b<2", "c"]))])
    tools = those(A, tool("b"), tool("c"))
    assert planner.decide({"tenant": "acme"}, tools).fallback_tools == ["c"]
    assert planner.decide({}, tools).fallback_tools == ["b", "b<2", "c"]


def test_what_is_preferred_goes_first_by_the_sum_of_its_weights_and_below_zero_last() -> None:
    planner = RuleBasedPlanner([rule("one", RuleAction.prefer("b", "c")), rule("two", RuleAction.prefer("c"), ACME)])
    tools = those(A, tool("b"), tool("c"))
    assert planner.decide({}, tools).selected_tool == "b"
    assert planner.decide({"tenant": "acme"}, tools).selected_tool == "c"
    last = RuleBasedPlanner([rule("last", RuleAction.prefer("a", weight=-1))])
    assert last.decide({}, tools).selected_tool == "b"
    assert last.decide({}, those(A)).selected_tool == "a"


def test_a_preference_among_those_that_a_restriction_leaves() -> None:
    planner = RuleBasedPlanner([rule("r", RuleAction.restrict("a", "b")), rule("p", RuleAction.prefer("b", "c"))])
    assert planner.decide({}, those(A, tool("b"), tool("c"))).selected_tool == "b"


@pytest.mark.parametrize(
    "fields",
    [
        {"effect": "restrict", "tool_options": {"k": 2}},
        {"effect": "forbid", "execution_strategy": "chain"},
        {"effect": "prefer", "option_transformer": dict},
        {"effect": "forbid", "weight": 2.0},
        {"effect": "pin", "weight": 2.0},
        {"effect": "prefer", "weight": float("nan")},
        {"effect": "like"},
    ],
)
def test_what_an_effect_has_no_use_for_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"leave it out|finite|Input should be"):
        RuleAction(tool_name="a", **fields)


def test_allowed_tells_who_learns_what_he_may_choose_from() -> None:
    rules = [
        rule("never", RuleAction.forbid("c")),
        rule("better", RuleAction.prefer("b", weight=0.5)),
        rule("pin", RuleAction("a"), ACME),
        rule("broken", RuleAction("a"), RuleCondition("tenant", "regex", "(")),
    ]
    planner, tools = RuleBasedPlanner(rules), those(A, tool("b"), tool("c"))
    allowed = planner.allowed({}, tools)
    assert allowed.eligible == (("a", "b"), {"c": "rule never forbids it"})
    assert (allowed.pinned, allowed.weights, allowed.rules) == (None, {"b": 0.5}, ("never", "better"))
    assert list(allowed.skipped) == ["broken"]
    pinned = planner.allowed({"tenant": "acme"}, tools).pinned
    assert pinned is not None
    assert pinned.metadata["matched_rule"] == "pin"
    assert RuleBasedPlanner().allowed({}, MappingProxyType(tools)).eligible == (("a", "b", "c"), {})


# Properties

names = st.sampled_from(["a", "b", "c", "d"])
toolsets = st.lists(
    st.builds(
        tool,
        names,
        capabilities=st.lists(st.sampled_from(["x", "y"]), max_size=2),
        cost=st.sampled_from([0.0, 0.1, 0.2]),
        tenants=st.sampled_from([[], ["acme"]]),
    )
    | st.builds(tool, names, capabilities=st.lists(st.sampled_from(["x", "y"]), max_size=2)),
    min_size=1,
    max_size=4,
    unique_by=lambda tool: tool.name,
)
actions = st.builds(
    lambda effect, first, more: RuleAction(tool_name=first, fallback_tools=more, effect=effect),
    st.sampled_from(["pin", "restrict", "prefer", "forbid"]),
    names,
    st.lists(names, max_size=2),
)
rules = st.lists(
    st.builds(
        PlanningRule,
        st.sampled_from(["r1", "r2", "r3"]),
        st.integers(0, 3),
        st.lists(st.just(RuleCondition("type", "equals", "x")) | st.just(ACME), max_size=1),
        actions,
    ),
    max_size=4,
    unique_by=lambda rule: rule.name,
)
contexts = st.builds(
    PlanRequest,
    budget=st.none() | st.just({"cost_usd": 0.15}),
    previous_failures=st.lists(names, max_size=2),
    circuit_breaker_states=st.dictionaries(names, st.sampled_from(["open", "half_open", "closed"])),
    probes_left=st.dictionaries(names, st.integers(0, 1)),
    capabilities=st.lists(st.just("x"), max_size=1),
    tenant=st.sampled_from([None, "acme"]),
    user_preferences=st.fixed_dictionaries(
        {},
        optional={
            "preferred_tools": st.lists(names, max_size=2),
            "avoid_tools": st.lists(names, max_size=2),
            "optimize": st.sampled_from(["cost", "latency", "quality"]),
        },
    ),
)
requests = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["x", "y", "z"]), "tenant": st.just("acme")})


@given(toolsets, rules, contexts, requests)
def test_the_chosen_tool_is_always_eligible_and_the_fallbacks_of_a_default_too(
    tools: list[ToolMetadata], some: list[PlanningRule], context: PlanRequest, request: Any
) -> None:
    planner, view = RuleBasedPlanner(some), those(*tools)
    allowed = planner.allowed(request, view, context)
    if explain(planner, request, view, context).decision is None:
        with pytest.raises(NoEligibleTool) as caught:
            planner.decide(request, view, context)
        assert set(caught.value.reasons) >= set(view)
        return
    decision = planner.decide(request, view, context)
    assert decision.selected_tool in allowed.eligible.names
    if decision.metadata["selection_method"] == "default":
        assert set(decision.fallback_tools) <= set(allowed.eligible.names)


@given(toolsets, rules, contexts, requests, st.randoms(use_true_random=False))
def test_a_decision_depends_on_the_order_of_registration_only_where_it_says_so(
    tools: list[ToolMetadata], some: list[PlanningRule], context: PlanRequest, request: Any, chance: Any
) -> None:
    def decide(order: list[ToolMetadata]) -> Any:
        try:
            return RuleBasedPlanner(some).decide(request, those(*order), context)
        except NoEligibleTool as error:
            return set(error.reasons)

    one = decide(tools)
    other = decide(chance.sample(tools, len(tools)))
    if isinstance(one, set) or isinstance(other, set):
        assert one == other
        return
    for field in ("selected_tool", "fallback_tools"):  # Whoever is selected by order has fallbacks of his own.
        if getattr(one, field) != getattr(other, field):
            for decision in (one, other):
                assert {field, "selected_tool"} & set(decision.metadata.get("order_of_registration", ()))
