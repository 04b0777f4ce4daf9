"""What the innermost policies do with each other and with the rest: the limit of all attempts, the record of each, and
an error classifier of one's own. And that there is a test for every pair of what stands in the list."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest

from compose import test_pairs, test_two_at_once
from compose.test_pairs import ALONE, NO_RETRY, ONE, PER_SECOND, Priced, keyed, limited, opened, settled
from compose.test_two_at_once import WARM, hedging
from contract.kit import STEADY, Fixed, calls, failed, now, reliable
from steer_llm_sdk.errors import ErrorCategory
from steer_llm_sdk.orchestration import BudgetExceeded, OrchestrationConfig, PlanDecision
from steer_llm_sdk.orchestration import reliability as order
from steer_llm_sdk.reliability import ErrorClassification, ErrorClassifier, RateLimit
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

INNERMOST = ("attempt_limit", "classify", "record")
NAMES = {
    "Retry": "retry",
    "Hedge": "hedge",
    "RateLimiter": "rate_limit",
    "Breaker": "breaker",
    "Reserve": "reserve",
    "AttemptLimit": "attempt_limit",
    "record": "record",
    "Classify": "classify",
    "AttemptTimeout": "attempt_timeout",
}
OTHERS = (*test_pairs.POLICIES, "hedge", "silence")


def test_every_policy_of_the_list_has_a_test_with_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    whole = order.at_once

    def at_once(policies: Sequence[Any]) -> Any:
        listed.extend(getattr(policy, "__name__", type(policy).__name__) for policy in policies)
        return whole(policies)

    monkeypatch.setattr(order, "at_once", at_once)
    runner = reliable(
        ScriptedTool("t"),
        hedging=test_two_at_once.HEDGED,
        rate_limits={"t": ALONE},
        learn_rate_limits=True,
        error_classifier=Mine(),
    )
    options = OrchestrationConfig(budget={"tokens": 1}, per_agent_timeout_ms=100)
    runner.executor.policies(runner._asks(options.__dict__))
    assert list(dict.fromkeys(listed)) == list(NAMES)
    every = {*OTHERS, *NAMES.values()}
    written = {**vars(test_pairs), **vars(test_two_at_once), **globals()}
    named = [name.removeprefix("test_").partition("__")[0] for name in written if name.startswith("test_")]
    missing = [
        (one, other)
        for one, other in combinations(sorted(every), 2)
        if not {f"{one}_and_{other}", f"{other}_and_{one}"} & set(named)
    ]
    assert missing == []


class Busy(Exception):
    """Nobody but `Mine` has heard of it."""


class Final(Exception):
    """Nor of this."""


class Mine(ErrorClassifier):
    def __init__(self, category: ErrorCategory = ErrorCategory.SERVER_ERROR, after: float | None = None) -> None:
        self.category, self.after = category, after

    def classify(self, error: BaseException) -> ErrorClassification:
        if isinstance(error, Busy):
            return ErrorClassification(self.category, True, self.after, maybe_billed=False)
        if isinstance(error, Final):
            return ErrorClassification(ErrorCategory.UNKNOWN, False, maybe_billed=True)
        return super().classify(error)


def busy(after: float = 0.0) -> Any:
    return err(Busy("busy"), after=after)


# ── classify ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_classify_and_deadline__a_delay_that_it_names_and_that_outlasts_the_deadline_is_not_waited_for() -> None:
    tool = ScriptedTool("t", busy(), OK("x"))
    output = await reliable(tool, error_classifier=Mine(after=7.0)).run("q", "t", None, {"timeout_ms": 5000})
    assert (failed(output)["type"], len(tool.calls), now()) == ("Busy", 1, 0)


@pytest.mark.parametrize(("error", "made"), [(Busy("busy"), 2), (Final("no"), 1)], ids=["may pass", "final"])
async def test_classify_and_replay__what_it_says_may_pass_is_not_remembered(error: Exception, made: int) -> None:
    tool = ScriptedTool("t", err(error))
    runner = reliable(tool, error_classifier=Mine())
    for _ in range(2):
        failed(await runner.run("q", "t", None, keyed(**NO_RETRY)))
    assert len(tool.calls) == made


async def test_classify_and_plan__a_planner_that_fails_is_no_attempt_and_is_not_tried_again() -> None:
    class Fails(Fixed):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            await super().plan(request, available_tools, context)
            raise Busy("planner")

    planner, tool = Fails("t"), ScriptedTool("t")
    with pytest.raises(Busy, match="planner"):
        await reliable(tool, planner=planner, error_classifier=Mine()).run("q")
    assert (len(planner.asked), tool.calls, now()) == (1, [], 0)


async def test_classify_and_fallback__what_it_says_is_final_is_answered_by_another_at_once() -> None:
    first, second = ScriptedTool("first", err(Final("no"))), ScriptedTool("second", OK("x"))
    output = await reliable(first, second, error_classifier=Mine()).run("q")
    assert (output.content, calls(first, second), now()) == ("x", [1, 1], 0)


async def test_classify_and_retry__what_it_says_may_pass_is_tried_again_when_it_says() -> None:
    tool = ScriptedTool("t", busy(), OK("x"))
    assert (await reliable(tool, error_classifier=Mine(after=7.0)).run("q")).content == "x"
    assert 7.0 <= tool.calls[1].at <= 7.7


async def test_classify_and_rate_limit__a_delay_of_what_it_calls_a_rate_limit_holds_for_the_others_too() -> None:
    tool = ScriptedTool("t", busy(), OK("x"))
    runner = limited(tool, limit=PER_SECOND, error_classifier=Mine(ErrorCategory.RATE_LIMIT, 4.0))
    first = asyncio.create_task(runner.run("q", "t", None, NO_RETRY))
    await asyncio.sleep(0.5)
    assert (await runner.run("q", "t")).content == "x"
    assert failed(await first)["code"] == "rate_limit"
    assert [call.at for call in tool.calls] == [0, 4]


@pytest.mark.parametrize(("error", "state"), [(Busy("busy"), "open"), (Final("no"), "closed")], ids=["speaks", "not"])
async def test_classify_and_breaker__only_what_it_says_of_the_provider_counts(error: Exception, state: str) -> None:
    runner = reliable(ScriptedTool("t", err(error)), breaker=ONE, error_classifier=Mine())
    await runner.run("q", "t", None, NO_RETRY)
    assert runner.breakers["t"]["state"] == state


@pytest.mark.parametrize(("error", "charged"), [(Busy("busy"), 0), (Final("no"), 100)], ids=["unbilled", "maybe"])
async def test_classify_and_reserve__what_it_says_was_not_billed_is_not_charged(error: Exception, charged: int) -> None:
    tool = Priced("t", err(error))
    await reliable(tool, error_classifier=Mine()).run("q", "t", None, {"budget": {"tokens": 500}, **NO_RETRY})
    assert settled(tool.ledgers[0])[::2] == (0, charged)


async def test_classify_and_attempt_timeout__it_is_asked_what_an_attempt_that_took_too_long_means() -> None:
    class Never(ErrorClassifier):
        def classify(self, error: BaseException) -> ErrorClassification:
            return ErrorClassification(ErrorCategory.VALIDATION, False)

    tool = ScriptedTool("t", HANG)
    output = await reliable(tool, error_classifier=Never()).run("q", "t", None, {"per_agent_timeout_ms": 500})
    assert (failed(output)["code"], len(tool.calls)) == ("validation", 1)


async def test_classify_and_hedge__where_both_have_failed_it_says_whether_they_are_tried_again() -> None:
    tool = ScriptedTool("t", *WARM, busy(2), busy(2), OK("x"))
    runner = await hedging(tool, error_classifier=Mine())
    output = await runner.run("q", "t")
    assert (output.content, [line["outcome"] for line in output.attempts]) == ("x", ["failed", "failed", "succeeded"])
    tool = ScriptedTool("t", *WARM, err(Final("no"), after=2), err(Final("no"), after=2), OK("x"))
    runner = await hedging(tool, error_classifier=Mine())
    assert (failed(await runner.run("q", "t"))["type"], len(tool.calls)) == ("Final", 2)


async def test_classify_and_silence__one_that_was_silent_may_be_tried_again_while_the_other_is_under_way() -> None:
    first, second = ScriptedTool("first", busy(12), HANG), ScriptedTool("second", OK("x", after=5))
    output = await reliable(first, second, error_classifier=Mine()).run("q")
    assert (output.content, calls(first, second), now()) == ("x", [2, 1], 15)
    assert first.calls[1].at == 13


# ── the limit of all attempts ────────────────────────────────────────────────────────────────────────────────────────


async def test_attempt_limit_and_deadline__the_run_ends_with_the_last_attempt_however_much_time_is_left() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, max_total_attempts=2, retry=STEADY.model_copy(update={"max_attempts": 9}))
    failed(await runner.run("q", "t", None, {"timeout_ms": 60_000}))
    assert (len(tool.calls), now()) == (2, 1)


async def test_attempt_limit_and_replay__those_who_join_have_one_limit_and_the_next_run_has_its_own() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, max_total_attempts=2)
    await asyncio.gather(*(runner.run("q", "t", None, keyed()) for _ in range(3)))
    assert len(tool.calls) == 2
    await runner.run("q", "t", None, keyed())
    assert len(tool.calls) == 4


async def test_attempt_limit_and_plan__a_plan_of_more_tools_than_attempts_is_followed_as_far_as_they_go() -> None:
    tools = [ScriptedTool(name, err(400)) for name in "abc"]
    output = await reliable(*tools, max_total_attempts=2).run("q")
    assert (output.status, calls(*tools)) == ("failed", [1, 1, 0])


async def test_attempt_limit_and_fallback__with_one_attempt_there_is_no_fallback() -> None:
    first, second = ScriptedTool("first", err(503)), ScriptedTool("second")
    output = await reliable(first, second, max_total_attempts=1).run("q")
    assert (output.status, calls(first, second)) == ("failed", [1, 0])
    assert "max_total_attempts" in output.errors["second"]["message"]


async def test_attempt_limit_and_retry__it_bounds_the_retries_of_one_tool() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, max_total_attempts=4, retry=STEADY.model_copy(update={"max_attempts": 9}))
    failed(await runner.run("q"))
    assert len(tool.calls) == 4


async def test_attempt_limit_and_rate_limit__a_call_that_was_not_let_through_is_none_of_them() -> None:
    first, second = ScriptedTool("first"), ScriptedTool("second", OK("x"))
    limit = RateLimit(requests_per_minute=1, max_queue=0)
    runner = limited(first, second, limit=limit, max_total_attempts=1)
    await runner.run("q", "first")
    assert ((await runner.run("q")).content, calls(first, second)) == ("x", [1, 1])


async def test_attempt_limit_and_breaker__a_call_that_an_open_circuit_refuses_is_none_of_them() -> None:
    first, second = ScriptedTool("first", err(503)), ScriptedTool("second", OK("x"))
    runner = reliable(first, second, breaker=ONE, max_total_attempts=1)
    await opened(runner, "first")
    assert ((await runner.run("q")).content, calls(first, second)) == ("x", [1, 1])


async def test_attempt_limit_and_reserve__a_call_that_does_not_fit_the_budget_is_none_of_them() -> None:
    first, second = Priced("first", cost=2.0), Priced("second", OK("x", cost_usd=0.1))
    output = await reliable(first, second, max_total_attempts=1).run("q", None, None, {"budget": {"cost_usd": 1.0}})
    assert (output.content, calls(first, second)) == ("x", [0, 1])


async def test_attempt_limit_and_attempt_timeout__an_attempt_that_took_too_long_is_one_of_them() -> None:
    tool = ScriptedTool("t", HANG)
    failed(await reliable(tool, max_total_attempts=2).run("q", "t", None, {"per_agent_timeout_ms": 500}))
    assert len(tool.calls) == 2


async def test_attempt_limit_and_hedge__with_one_attempt_there_is_no_hedge() -> None:
    tool, events = ScriptedTool("t", *WARM, OK("slow", after=60)), RecordedEvents()
    runner = await hedging(tool, max_total_attempts=1)
    assert (await runner.run("q", "t", None, None, events)).content == "slow"
    assert ([event["reason"] for event in events.data("hedge_refused")], len(tool.calls)) == (["attempts"], 1)


async def test_attempt_limit_and_silence__with_one_attempt_the_silent_one_is_waited_for() -> None:
    first, second = ScriptedTool("first", OK("slow", after=60)), ScriptedTool("second")
    output = await reliable(first, second, max_total_attempts=1).run("q")
    assert (output.content, calls(first, second), now()) == ("slow", [1, 0], 60)


async def test_attempt_limit_and_classify__what_it_says_may_pass_is_tried_so_often() -> None:
    tool = ScriptedTool("t", busy())
    failed(await reliable(tool, max_total_attempts=2, error_classifier=Mine()).run("q"))
    assert len(tool.calls) == 2


# ── the record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(output: Any) -> list[tuple[str, str]]:
    return [(line["tool"], line["outcome"]) for line in output.attempts]


async def test_record_and_deadline__an_attempt_that_is_stopped_by_it_has_a_line() -> None:
    with pytest.raises(BudgetExceeded) as caught:
        await reliable(ScriptedTool("t", HANG)).run("q", "t", None, {"timeout_ms": 500})
    assert lines(caught.value.output) == [("t", "cancelled")]
    assert caught.value.output.attempts[0]["elapsed_ms"] == pytest.approx(500)


async def test_record_and_replay__a_replay_shows_the_attempts_of_the_run_and_makes_none() -> None:
    runner = reliable(ScriptedTool("t", err(503), OK("x")))
    first = await runner.run("q", "t", None, keyed())
    assert (await runner.run("q", "t", None, keyed())).attempts == first.attempts
    assert lines(first) == [("t", "failed"), ("t", "succeeded")]


async def test_record_and_plan__planning_has_no_line_and_the_attempt_begins_after_it() -> None:
    output = await reliable(ScriptedTool("t"), planner=test_pairs.SlowPlan(2, "t")).run("q")
    assert [(line["tool"], line["started_ms"]) for line in output.attempts] == [("t", 2000)]


async def test_record_and_fallback__the_lines_are_in_the_order_in_which_they_were_sent() -> None:
    output = await reliable(ScriptedTool("first", err(400)), ScriptedTool("second")).run("q")
    assert lines(output) == [("first", "failed"), ("second", "succeeded")]


async def test_record_and_retry__every_attempt_has_a_line_with_its_number() -> None:
    output = await reliable(ScriptedTool("t", err(503), err(503), OK())).run("q")
    assert [(line["attempt"], line["started_ms"]) for line in output.attempts] == [(1, 0), (2, 1000), (3, 3000)]


async def test_record_and_rate_limit__the_time_in_the_queue_is_said_apart_and_one_who_is_refused_has_no_line() -> None:
    runner = limited(ScriptedTool("t"), limit=RateLimit(requests_per_minute=60, max_wait=1.5))
    await test_pairs.used_up(runner)
    waits, refused = await asyncio.gather(*(runner.run("q", "t", None, NO_RETRY) for _ in range(2)))
    assert [(line["queued_ms"], line["elapsed_ms"]) for line in waits.attempts] == [(1000, 0)]
    assert (failed(refused)["type"], refused.attempts) == ("WaitTooLong", [])


async def test_record_and_breaker__one_who_is_refused_has_no_line() -> None:
    runner = reliable(ScriptedTool("t", err(503)), breaker=ONE)
    await opened(runner, "t")
    refused = await runner.run("q", "t", None, NO_RETRY)
    assert (failed(refused)["type"], refused.attempts) == ("CircuitOpen", [])


async def test_record_and_reserve__one_that_does_not_fit_has_no_line() -> None:
    first, second = Priced("first", cost=2.0), Priced("second", OK("x", cost_usd=0.1))
    output = await reliable(first, second).run("q", None, None, {"budget": {"cost_usd": 1.0}})
    assert lines(output) == [("second", "succeeded")]


async def test_record_and_attempt_timeout__one_that_took_too_long_has_failed_after_its_time() -> None:
    output = await reliable(ScriptedTool("t", HANG)).run("q", "t", None, {"per_agent_timeout_ms": 500, **NO_RETRY})
    assert [(line["outcome"], line["error"]["type"]) for line in output.attempts] == [("failed", "ProviderTimeout")]
    assert output.attempts[0]["elapsed_ms"] == pytest.approx(500, abs=30)


async def test_record_and_hedge__the_one_that_is_stopped_has_a_line_too() -> None:
    runner = await hedging(ScriptedTool("t", *WARM, HANG, OK("x", after=0.5)))
    output = await runner.run("q", "t")
    assert (output.content, lines(output)) == ("x", [("t", "cancelled"), ("t", "succeeded")])


async def test_record_and_silence__the_one_that_is_stopped_has_a_line_too() -> None:
    output = await reliable(ScriptedTool("first", HANG), ScriptedTool("second", OK("x", after=1))).run("q")
    assert (output.content, lines(output)) == ("x", [("first", "cancelled"), ("second", "succeeded")])


async def test_record_and_classify__a_line_says_what_it_says() -> None:
    output = await reliable(ScriptedTool("t", busy()), error_classifier=Mine()).run("q", "t", None, NO_RETRY)
    assert [(line["error"]["type"], line["error"]["code"]) for line in output.attempts] == [("Busy", "server_error")]


async def test_record_and_attempt_limit__there_are_as_many_lines_as_attempts() -> None:
    output = await reliable(ScriptedTool("t", err(503)), max_total_attempts=2).run("q")
    assert lines(output) == [("t", "failed")] * 2
