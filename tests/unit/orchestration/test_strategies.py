"""Several tools for one answer: chain, race, merge, quorum, cascade, branch, and how they compose."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, OrchestratorError
from steer_llm_sdk.orchestration._calibration import auroc, wilson_lower
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning import ExecutionStrategy, PlanDecision, Planner
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig, RetryPolicy
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.strategies import (
    Calibration,
    StrategyTool,
    branch,
    cascade,
    chain,
    merge,
    quorum,
    race,
    step,
)
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

ONCE = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
SURE = Calibration(bound=0.8, auroc=0.9, right_at_least=0.95, answers=300)


def priced(name: str, content: Any = "ok", cost: float = 0.01, after: float = 0.0, **given: Any) -> ScriptedTool:
    return ScriptedTool(name, OK(content, cost_usd=cost, usage={"total_tokens": 10}, after=after), **given)


async def run(strategy: Any, request: Any = "hello", **options: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    registry.register_tool(StrategyTool("both", strategy))
    orchestrator = ReliableOrchestrator(reliability_config=ONCE, registry=registry)
    return await orchestrator.run(request, "both", options=options)


class Fixed(Planner):
    def __init__(self, **decision: Any) -> None:
        self.decision = PlanDecision(**decision)

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        return self.decision


async def planned(tools: list[Tool], strategy: ExecutionStrategy, **given: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    metadata, options = given.pop("metadata", {}), given
    first, *others = [tool.name for tool in tools]
    planner = Fixed(selected_tool=first, fallback_tools=others, execution_strategy=strategy, metadata=metadata)
    orchestrator = ReliableOrchestrator(planner, ONCE, registry=registry)
    return await orchestrator.run("hello", options=options)


# ── chain ──


@pytest.mark.parametrize("answers", [("x", "y", "z"), ("x", "y", RuntimeError("z"))], ids=["all", "not the last"])
async def test_attempts_and_tools_are_in_the_order_in_which_they_started_also_at_one_and_the_same_time(
    answers: Any,
) -> None:
    last = err(answers[2]) if isinstance(answers[2], Exception) else OK(answers[2])
    tools: list[Tool] = [ScriptedTool("c", OK(answers[0])), ScriptedTool("a", OK(answers[1])), ScriptedTool("b", last)]
    output = await planned(tools, ExecutionStrategy.CHAIN)
    assert {line["started_ms"] for line in output.attempts} == {0.0}
    assert [line["tool"] for line in output.attempts] == ["c", "a", "b"]
    assert list(output.per_agent) == ["c", "a", "b"]


async def test_in_a_chain_each_content_is_the_next_request_and_costs_add_up() -> None:
    a, b, c = priced("a", {"text": "x"}), priced("b", "words"), priced("c", [1, 2])
    output = await run(chain(a, b, c))
    assert [tool.calls[0].request for tool in (a, b, c)] == [{"query": "hello"}, {"text": "x"}, {"query": "words"}]
    assert output.content == [1, 2]
    assert output.cost_usd == pytest.approx(0.03)
    assert output.cost_breakdown == pytest.approx({"a": 0.01, "b": 0.01, "c": 0.01})
    assert [line["tool"] for line in output.attempts] == ["a", "b", "c"]
    assert output.metadata["strategy"]["finished"] == 3


async def test_a_stage_may_make_its_request_itself_and_have_options_of_its_own() -> None:
    second = priced("second")
    await run(chain(priced("first", {"n": 7}), step(second, lambda content: {"number": content["n"]}, depth=2)))
    assert second.calls[0].request == {"number": 7}
    assert second.calls[0].options["depth"] == 2


async def test_where_a_stage_fails_what_was_finished_is_kept() -> None:
    output = await run(chain(priced("a", "first"), ScriptedTool("b", err(500)), priced("c")))
    assert output.status == "partial"
    assert output.content == "first"
    stages = output.metadata["strategy"]["stages"]
    assert [(one["tool"], one["outcome"]) for one in stages] == [("a", "succeeded"), ("b", "failed")]


class Strict(ScriptedTool):
    def validate_request(self, request: Any) -> None:
        if "number" not in request:
            raise ValueError("request.number: it is missing; give a number")


async def test_a_stage_that_does_not_validate_its_request_has_failed_and_is_not_asked() -> None:
    strict = Strict("strict")
    output = await run(chain(priced("a", {"text": "x"}), strict))
    assert output.status == "partial"
    assert strict.calls == []
    assert "number" in output.metadata["stage_errors"]["strict"]["message"]


async def test_a_chain_whose_first_stage_fails_has_failed() -> None:
    output = await run(chain(ScriptedTool("a", err(500)), priced("b")))
    assert output.status == "failed"


async def test_at_the_deadline_a_chain_keeps_what_was_finished() -> None:
    with pytest.raises(BudgetExceeded) as raised:
        await run(chain(priced("a", "first"), ScriptedTool("b", HANG)), timeout_ms=1000)
    output = raised.value.output
    assert output.content == "first"
    assert output.status == "partial"
    assert output.cost_usd == pytest.approx(0.01)


async def test_stages_share_the_budget() -> None:
    declared = {"estimated_cost_per_run": 0.04}
    a, b, c = (priced(name, cost=0.04, resource_requirements=declared) for name in "abc")
    output = await run(chain(a, b, c), budget={"cost_usd": 0.1})
    assert c.calls == []
    assert output.status == "partial"
    assert output.cost_usd == pytest.approx(0.08)
    assert output.metadata["stage_errors"]["c"]["type"] == "BudgetExceeded"


async def test_a_chain_whose_time_is_up_between_two_stages_ends_with_the_last_answer() -> None:
    late = ScriptedTool("late", HANG)
    output = await run(chain(priced("one", "paid for", after=1.0), late), timeout_ms=1000)
    assert (output.status, output.content, late.calls) == ("partial", "paid for", [])
    with pytest.raises(BudgetExceeded) as caught:
        await run(chain(priced("one", "paid for", after=0.5), late), timeout_ms=1000)
    assert caught.value.output is not None
    assert (caught.value.output.status, caught.value.output.content) == ("partial", "paid for")


async def test_a_stage_that_cannot_make_a_request_of_what_it_is_given_has_failed() -> None:
    def broken(content: Any) -> Any:
        raise RuntimeError("takes nothing")

    never = ScriptedTool("never")
    output = await run(chain(priced("one", "paid for"), step(never, takes=broken), priced("three")))
    assert (output.status, output.content, never.calls) == ("partial", "paid for", [])
    assert [stage["outcome"] for stage in output.metadata["strategy"]["stages"]] == ["succeeded", "failed"]


@pytest.mark.parametrize(
    "strategy",
    [race, merge, lambda *tools: quorum(2, *tools), lambda *tools: cascade(*tools, calibration=SURE)],
    ids=["race", "merge", "quorum", "cascade"],
)
async def test_where_all_have_failed_every_failure_is_told(strategy: Any) -> None:
    output = await run(strategy(ScriptedTool("one", err(400)), ScriptedTool("two", err(403))))
    assert output.status == "failed"
    assert output.content["error"]["type"] == "AllToolsFailed"
    assert {"one answered 400", "two answered 403"} <= set(re.findall(r"\w+ answered \d+", str(output.content)))


async def test_where_no_quorum_agrees_the_first_of_the_largest_group_is_given_as_partial() -> None:
    output = await run(quorum(2, priced("one", "1"), priced("two", "2")))
    assert (output.status, output.content, output.metadata["strategy"]["votes"]) == ("partial", "1", 1)


async def test_a_content_that_is_neither_text_nor_a_mapping_is_handed_on_as_json() -> None:
    second = priced("two")
    await run(chain(priced("one", [1, "ä"]), second))
    assert dict(second.calls[0].request) == {"query": '[1,"ä"]', "input": [1, "ä"]}


@pytest.mark.parametrize(
    ("made", "kind", "says"),
    [
        (lambda: chain(priced("one"), 7), TypeError, "expected a Tool or a strategy, got int"),  # type: ignore[arg-type]
        (lambda: branch("no", priced("one"), priced("two")), InvalidRequest, "when"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_stage_and_no_question_is_refused(made: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        made()


async def test_a_strategy_that_is_called_by_itself_says_what_runs_it() -> None:
    with pytest.raises(OrchestratorError, match="run it with an orchestrator"):
        await StrategyTool("both", chain(priced("one"), priced("two"))).execute({"query": "q"})


# ── side by side ──


async def test_in_a_race_the_first_acceptable_answer_wins_and_the_others_are_stopped_and_charged() -> None:
    declared = {"estimated_cost_per_run": 0.05}
    slow = priced("slow", "slow", cost=0.05, after=9.0, resource_requirements=declared)
    quick_failure, quick = ScriptedTool("broken", err(500)), priced("quick", "quick", after=1.0)
    output = await run(race(slow, quick_failure, quick))
    assert output.content == "quick"
    assert slow.cancelled == 1
    assert slow.running == 0
    assert output.cost_usd == pytest.approx(0.06)
    trace = output.metadata["strategy"]
    assert (trace["winner"], trace["stopped"]) == ("quick", ["slow"])
    assert {line["tool"]: line["outcome"] for line in output.attempts} == {
        "slow": "cancelled",
        "broken": "failed",
        "quick": "succeeded",
    }


async def test_a_race_that_nobody_wins_has_failed_with_every_cause() -> None:
    output = await run(race(ScriptedTool("a", err(500)), ScriptedTool("b", err(400))))
    assert output.status == "failed"


async def test_a_race_that_is_cancelled_leaves_nobody_running() -> None:
    tools = [ScriptedTool(name, HANG) for name in "abc"]
    task = asyncio.create_task(run(race(*tools)))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [tool.running for tool in tools] == [0, 0, 0]


async def test_the_deadline_holds_for_a_race() -> None:
    tools = [ScriptedTool(name, HANG) for name in "ab"]
    with pytest.raises(BudgetExceeded) as raised:
        await run(race(*tools), timeout_ms=500)
    assert raised.value.budget_type == "time"
    assert [tool.running for tool in tools] == [0, 0]


async def test_a_race_never_exceeds_the_budget() -> None:
    declared = {"estimated_cost_per_run": 0.04}
    tools = [priced(name, cost=0.04, after=1.0, resource_requirements=declared) for name in "abcd"]
    output = await run(race(*tools), budget={"cost_usd": 0.1})
    assert sum(len(tool.calls) for tool in tools) == 2
    assert output.cost_usd is not None
    assert output.cost_usd <= 0.1


async def test_merged_answers_are_the_replicates_of_one_bundle() -> None:
    output = await run(
        merge(priced("a", {"city": "Bern"}), priced("b", {"city": "Bern"}), priced("c", {"city": "Rom"}))
    )
    evidence = output.evidence
    assert evidence is not None
    assert evidence.summary.consensus == {"city": "Bern"}
    assert [one.model for one in evidence.replicates] == ["a", "b", "c"]
    assert evidence.summary.confidence is not None
    assert evidence.summary.confidence < 0.7
    assert output.cost_usd == pytest.approx(0.03)


async def test_a_merge_of_which_some_fail_is_partial_and_of_which_all_fail_has_failed() -> None:
    some = await run(merge(priced("a", "x"), priced("b", "x"), ScriptedTool("c", err(500))))
    assert (some.status, some.evidence.meta.k_completed if some.evidence else None) == ("partial", 2)
    assert (await run(merge(ScriptedTool("a", err(500)), ScriptedTool("b", err(500))))).status == "failed"


async def test_a_quorum_is_reached_as_soon_as_so_many_say_the_same() -> None:
    slow = priced("slow", "no", after=60.0)
    output = await run(quorum(2, slow, priced("a", "yes", after=1.0), priced("b", "yes", after=2.0)))
    assert output.content == "yes"
    assert slow.cancelled == 1
    assert output.metadata["strategy"]["agreed"] == ["a", "b"]
    assert output.status == "succeeded"


async def test_without_a_quorum_the_answer_of_the_most_is_partial() -> None:
    output = await run(quorum(3, priced("a", "x"), priced("b", "x"), priced("c", "y")))
    assert (output.content, output.status) == ("x", "partial")


async def test_a_quorum_that_can_no_longer_be_reached_waits_for_nobody() -> None:
    slow = priced("slow", "x", after=60.0)
    output = await run(quorum(3, priced("a", "x"), priced("b", "y"), slow))
    assert slow.cancelled == 1
    assert output.status == "partial"


# ── conditional ──


@pytest.mark.parametrize(("score", "asked"), [(0.9, ["cheap"]), (0.5, ["cheap", "dear"])])
async def test_a_cascade_asks_the_dear_tool_only_where_the_cheap_answer_is_not_trusted(
    score: float, asked: list[str]
) -> None:
    cheap, dear = priced("cheap", "cheap", 0.001), priced("dear", "dear", 0.1)
    output = await run(cascade(cheap, dear, calibration=SURE, verifier=lambda request, content: score))
    assert output.content == asked[-1]
    assert [line["tool"] for line in output.attempts] == asked
    assert output.cost_usd == pytest.approx(0.001 if score > 0.8 else 0.101)


async def test_a_cascade_goes_on_after_a_failure_and_keeps_an_untrusted_answer_where_nothing_better_comes() -> None:
    goes_on = await run(cascade(ScriptedTool("cheap", err(500)), priced("dear", "dear"), calibration=SURE))
    assert goes_on.content == "dear"
    kept = await run(cascade(priced("cheap", "cheap"), ScriptedTool("dear", err(500)), calibration=SURE))
    assert (kept.content, kept.status) == ("cheap", "partial")


async def test_a_verifier_that_fails_trusts_nothing() -> None:
    output = await run(cascade(priced("cheap"), priced("dear", "dear"), calibration=SURE, verifier=lambda r, c: 1 / 0))
    assert output.content == "dear"


@pytest.mark.parametrize(("score", "asked"), [(0.9, ["cheap"]), (0.5, ["cheap", "dear"])])
async def test_an_async_verifier_is_waited_for(score: float, asked: list[str]) -> None:
    async def verifier(request: Any, content: Any) -> float:
        await asyncio.sleep(0.1)
        return score

    output = await run(cascade(priced("cheap"), priced("dear"), calibration=SURE, verifier=verifier))
    assert [line["tool"] for line in output.attempts] == asked
    assert output.metadata["strategy"]["scores"] == [score, None][: len(asked)]


async def test_what_was_answered_before_the_deadline_is_kept_where_the_verifier_is_too_slow() -> None:
    async def verifier(request: Any, content: Any) -> float:
        await asyncio.sleep(10)
        return 1.0

    with pytest.raises(BudgetExceeded) as caught:
        await run(cascade(priced("cheap", "x"), priced("dear"), calibration=SURE, verifier=verifier), timeout_ms=500)
    assert caught.value.output is not None
    assert (caught.value.output.status, caught.value.output.content) == ("partial", "x")


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
async def test_a_score_that_is_no_finite_number_is_none_and_a_warning(
    score: float, caplog: pytest.LogCaptureFixture
) -> None:
    output = await run(cascade(priced("cheap"), priced("dear"), calibration=SURE, verifier=lambda r, c: score))
    assert [line["tool"] for line in output.attempts] == ["cheap", "dear"]
    assert output.metadata["strategy"]["scores"] == [None, None]
    assert "finite number" in caplog.text
    json.dumps(output.metadata, allow_nan=False)


async def test_an_async_condition_of_a_branch_is_waited_for() -> None:
    async def never(request: Any) -> bool:
        return False

    output = await run(branch(never, priced("then"), priced("otherwise")))
    assert [line["tool"] for line in output.attempts] == ["otherwise"]


async def test_what_makes_the_request_of_a_stage_may_be_async() -> None:
    async def takes(content: Any) -> Any:
        return {"query": f"after {content}"}

    last = priced("last")
    await run(chain(priced("first", "x"), step(last, takes)))
    assert [call.request for call in last.calls] == [{"query": "after x"}]


async def test_the_trust_of_a_bundle_decides_where_there_is_no_verifier() -> None:
    agree = merge(priced("a", "x"), priced("b", "x"))
    differ = merge(priced("c", "x"), priced("d", "y"), priced("e", "x"))
    assert (await run(cascade(agree, priced("dear", "dear"), calibration=SURE))).evidence is not None
    assert (await run(cascade(differ, priced("dear", "dear"), calibration=SURE))).content == "dear"


@pytest.mark.parametrize(("request_", "asked"), [({"type": "code"}, "coder"), ({"type": "poem"}, "writer")])
async def test_a_branch_is_taken_by_the_request(request_: dict[str, Any], asked: str) -> None:
    output = await run(branch(lambda r: r["type"] == "code", priced("coder"), priced("writer")), request_)
    assert [line["tool"] for line in output.attempts] == [asked]


def test_a_verifier_that_cannot_tell_right_from_wrong_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"0\.65"):
        Calibration.of([(n % 10 / 10, n % 3 == 0) for n in range(300)], 0.9)
    with pytest.raises(InvalidRequest, match=r"0\.65"):
        Calibration(bound=0.5, auroc=0.64, right_at_least=0.9, answers=10)


def test_a_bound_is_where_the_lower_bound_of_what_is_right_meets_the_target() -> None:
    scored = [(score / 100, score >= 60 or score % 10 == 0) for score in range(100) for _ in range(3)]
    found = Calibration.of(scored, 0.9)
    above = [right for score, right in scored if score >= found.bound]
    assert sum(above) / len(above) > 0.9
    assert found.right_at_least >= 0.9
    assert found.bound < 0.62


def test_a_few_lucky_answers_are_no_calibration() -> None:
    found = Calibration.of([(0.9, True)] * 5 + [(0.1, False)] * 5, 0.95)
    assert found.bound == float("inf")


def test_auroc_counts_ties_as_half() -> None:
    assert auroc([(0.1, False), (0.9, True)]) == 1.0
    assert auroc([(0.5, False), (0.5, True)]) == 0.5
    with pytest.raises(InvalidRequest):
        auroc([(0.5, True)])


@given(st.integers(1, 200), st.integers(0, 200))
def test_a_wilson_bound_is_below_the_share(count: int, right: int) -> None:
    right = min(right, count)
    assert wilson_lower(right, count, 1.28) + 1e-9 >= 0
    assert wilson_lower(right, count, 1.28) <= right / count + 1e-9


# ── together ──


async def test_strategies_compose() -> None:
    fast, slow = priced("fast", {"n": 1}, after=1.0), priced("slow", {"n": 2}, after=9.0)
    last = priced("last", "end")
    output = await run(chain(race(fast, slow), branch(lambda r: r["n"] == 1, last, priced("never"))))
    assert output.content == "end"
    assert last.calls[0].request == {"n": 1}
    kinds = [stage["kind"] for stage in output.metadata["strategy"]["stages"]]
    assert kinds == ["race", "branch"]


async def test_a_strategy_shows_in_events() -> None:
    registry, events = ToolRegistry(), RecordedEvents()
    registry.register_tool(StrategyTool("both", race(priced("a", after=1.0), priced("b", after=5.0))))
    orchestrator = ReliableOrchestrator(reliability_config=ONCE, registry=registry)
    await orchestrator.run("hello", "both", event_manager=events)
    told = events.types
    assert told.count("stage_started") == 2
    assert told.count("stage_done") == 1
    assert "loser_stopped" in told


async def test_a_plan_may_be_a_chain_a_race_a_merge_a_quorum_or_a_cascade() -> None:
    tools = [priced("a", "x"), priced("b", "x", after=1.0)]
    assert (await planned(tools, ExecutionStrategy.CHAIN)).metadata["tool_name"] == "b"
    assert (await planned(tools, ExecutionStrategy.PARALLEL)).metadata["tool_name"] == "a"
    merged = await planned(tools, ExecutionStrategy.PARALLEL, metadata={"parallel": "merge"})
    assert merged.evidence is not None
    agreed = await planned(tools, ExecutionStrategy.PARALLEL, metadata={"parallel": 2})
    assert agreed.metadata["strategy"]["votes"] == 2
    escalated = await planned(tools, ExecutionStrategy.CONDITIONAL, metadata={"bound": 0.5})
    assert escalated.metadata["tool_name"] == "b"
    assert escalated.metadata["plan"]["execution_strategy"] == "conditional"


async def test_a_plan_that_cannot_be_carried_out_says_what_is_missing() -> None:
    with pytest.raises(InvalidRequest, match="two tools"):
        await planned([priced("a")], ExecutionStrategy.PARALLEL)
    with pytest.raises(InvalidRequest, match="bound"):
        await planned([priced("a"), priced("b")], ExecutionStrategy.CONDITIONAL)
    with pytest.raises(InvalidRequest, match="quorum"):
        await planned([priced("a"), priced("b")], ExecutionStrategy.PARALLEL, metadata={"parallel": "some"})


@pytest.mark.parametrize(
    "make", [lambda: race(priced("a")), lambda: chain(), lambda: quorum(3, priced("a"), priced("b"))]
)
def test_a_strategy_with_too_few_stages_is_refused(make: Any) -> None:
    with pytest.raises(InvalidRequest):
        make()


@pytest.mark.parametrize(
    "strategy",
    [
        lambda one, two: cascade(one, two, calibration=SURE, verifier=lambda request, content: 0.1),
        lambda one, two: quorum(2, one, two),
        lambda one, two: merge(one, two),
    ],
    ids=["cascade", "quorum", "merge"],
)
async def test_what_was_answered_before_the_deadline_is_kept_and_charged(strategy: Any) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        await run(strategy(priced("one", "paid for"), ScriptedTool("two", HANG)), timeout_ms=500)
    output = caught.value.output
    assert output is not None
    assert (output.status, output.cost_usd) == ("partial", 0.01)
    assert "paid for" in str(output.content)
