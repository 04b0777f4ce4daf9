"""What a second attempt beside the first does with each other policy: a hedge of the same provider, and the next tool
or model beside one that is silent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.kit import STEADY, Fixed, Model, bundle, calls, failed, kinds, now, reliable, tasks
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import BudgetExceeded, OrchestrationOutput, PlanDecision, ReliableOrchestrator
from steer_llm_sdk.orchestration._call import current_scope
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.reliability import CircuitBreakerConfig, HedgingPolicy, RateLimit, RetryBudgetConfig
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err, stubborn

OTHERS = ("deadline", "replay", "plan", "fallback", "retry", "rate_limit", "breaker", "reserve", "attempt_timeout")
ONE = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, half_open_requests=1, timeout=10)
HEDGED = HedgingPolicy(min_samples=3, max_ratio=1.0)
WARM = [OK("warm", after=1)] * 3
"""Three answers after a second each: then a call is hedged after a second."""


def test_there_is_a_test_for_every_pair() -> None:
    pairs = [f"test_{two}_and_{one}__" for two in ("hedge", "silence") for one in OTHERS]
    pairs.append("test_silence_and_hedge__")
    assert [pair for pair in pairs if not any(name.startswith(pair) for name in globals())] == []


class Priced(ScriptedTool):
    """Takes at most 100 tokens and half a dollar. `ledgers` are the accounts of the runs that asked it."""

    def __init__(self, name: str, *steps: Any, **kwargs: Any) -> None:
        super().__init__(name, *steps, **kwargs)
        self.ledgers: list[Ledger] = []

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(100, 0.5)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        scope = current_scope()
        assert scope is not None
        if scope.run.ledger is not None:
            self.ledgers.append(scope.run.ledger)
        return await super().execute(request, options, event_manager)


def settled(ledger: Ledger) -> tuple[float, float, float, float]:
    return ledger.reserved_tokens, round(ledger.reserved_cost, 9), ledger.spent_tokens, round(ledger.spent_cost, 9)


async def hedging(*tools: ScriptedTool, **fields: Any) -> ReliableOrchestrator:
    """Its first tool has been asked three times, in a second each."""
    runner = reliable(*tools, **{"hedging": HEDGED, **fields})
    for _ in range(3):
        await runner.run("q", tools[0].name)
    tools[0].calls.clear()
    tools[0]._steps = tools[0]._steps[3:]
    return runner


def outcomes(output: OrchestrationOutput) -> list[tuple[str, str]]:
    return [(line["tool"], line["outcome"]) for line in output.attempts]


# ── hedge ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_hedge_and_deadline__both_attempts_end_with_it() -> None:
    tool = ScriptedTool("t", *WARM, HANG)
    runner = await hedging(tool)
    with pytest.raises(BudgetExceeded):
        await runner.run("q", "t", None, {"timeout_ms": 2000})
    assert (len(tool.calls), tool.cancelled, now()) == (2, 2, 5)
    assert not tasks()


async def test_hedge_and_replay__what_the_second_answered_is_replayed_and_duplicates_make_no_third() -> None:
    tool = ScriptedTool("t", *WARM, HANG, OK("x", after=1))
    runner = await hedging(tool)
    one, other = await asyncio.gather(*(runner.run("q", "t", None, {"idempotency_key": "k"}) for _ in range(2)))
    assert one == other == await runner.run("q", "t", None, {"idempotency_key": "k"})
    assert (one.content, len(tool.calls)) == ("x", 2)


async def test_hedge_and_plan__a_run_is_planned_once_for_both() -> None:
    planner = Fixed("t")
    tool = ScriptedTool("t", *WARM, HANG, OK("x", after=1))
    runner = await hedging(tool, planner=planner)
    assert (await runner.run("q")).content == "x"
    assert len(planner.asked) == 1


async def test_hedge_and_fallback__the_fallback_comes_when_both_have_failed() -> None:
    first = ScriptedTool("first", *WARM, err(400, after=5), err(400, after=2))
    second = ScriptedTool("second", OK("x"))
    runner = await hedging(first, second)
    began = now()
    output = await runner.run("q")
    assert (output.content, calls(first, second), now() - began) == ("x", [2, 1], 5)
    assert list(kinds(output.errors)) == [("first", "ProviderError")]


async def test_hedge_and_retry__both_count_among_the_attempts_of_the_call_and_of_the_run() -> None:
    for limits, made in (({}, 3), ({"max_total_attempts": 2}, 2)):
        tool = ScriptedTool("t", *WARM, err(503, after=3), err(503, after=3), err(503, after=0.1))
        runner = await hedging(tool, **limits)
        output = await runner.run("q", "t")
        assert failed(output)["status_code"] == 503
        assert (len(tool.calls), output.per_agent["t"]["attempts"]) == (made, made)
        assert [line["attempt"] for line in output.attempts] == list(range(1, made + 1))


async def test_hedge_and_retry__one_attempt_is_one_attempt() -> None:
    tool = ScriptedTool("t", *WARM, OK("x", after=9))
    runner = await hedging(tool)
    await runner.run("q", "t", None, {"max_retries": 0})
    assert len(tool.calls) == 1


async def test_hedge_and_retry__both_draw_from_one_budget() -> None:
    budget = RetryBudgetConfig(ratio=0, minimum=1, window=1000)
    tool = ScriptedTool("t", *WARM, err(503), OK("x", after=9))
    runner = await hedging(tool, retry_budget=budget)
    events = RecordedEvents()
    assert (await runner.run("q", "t", None, None, events)).content == "x"
    assert (len(tool.calls), [data["reason"] for data in events.data("hedge_refused")]) == (2, ["retry_budget"])


async def test_hedge_and_breaker__the_one_that_is_stopped_speaks_of_nobody() -> None:
    tool = ScriptedTool("t", *WARM, HANG, OK("x", after=1))
    runner = await hedging(tool, breaker=ONE)
    output = await runner.run("q", "t")
    assert outcomes(output) == [("t", "cancelled"), ("t", "succeeded")]
    assert (runner.breakers["t"]["state"], runner.breakers["t"]["failures"]) == ("closed", 0)


async def test_hedge_and_breaker__a_second_that_the_circuit_refuses_leaves_the_first_alone() -> None:
    tool = ScriptedTool("t", *WARM, OK("x", after=5), err(503))
    runner = await hedging(tool, breaker=ONE)
    slow = asyncio.create_task(runner.run("q", "t"))
    await asyncio.sleep(0.5)
    await runner.run("another", "t", None, {"max_retries": 0})
    assert runner.breakers["t"]["state"] == "open"
    output = await slow
    assert (output.content, len(tool.calls)) == ("x", 2)


async def test_hedge_and_reserve__each_is_reserved_and_the_one_that_is_stopped_is_charged_its_worst_case() -> None:
    tool = Priced("t", *WARM, HANG, OK("x", usage={"total_tokens": 30}, cost_usd=0.2, after=1))
    runner = await hedging(tool)
    output = await runner.run("q", "t", None, {"budget": {"tokens": 300, "cost_usd": 1.0}})
    assert settled(tool.ledgers[-1]) == (0, 0, 130, 0.7)
    assert (output.content, output.usage, output.cost_usd) == ("x", {"total_tokens": 130}, 0.7)


async def test_hedge_and_reserve__a_second_that_does_not_fit_is_not_sent() -> None:
    tool = Priced("t", *WARM, OK("x", after=5))
    runner = await hedging(tool)
    output = await runner.run("q", "t", None, {"budget": {"cost_usd": 0.9}})
    assert (output.content, len(tool.calls)) == ("x", 1)


async def test_hedge_and_attempt_timeout__each_attempt_has_a_time_of_its_own() -> None:
    tool = ScriptedTool("t", *WARM, HANG, OK("x", after=1.8))
    runner = await hedging(tool)
    began = now()
    output = await runner.run("q", "t", None, {"per_agent_timeout_ms": 2000})
    assert (output.content, len(tool.calls), now() - began) == ("x", 2, pytest.approx(2.8))
    assert outcomes(output) == [("t", "failed"), ("t", "succeeded")]


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_silence_and_fallback__by_default_the_fallback_is_asked_after_ten_silent_seconds() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", OK("x", after=0.5))
    events = RecordedEvents()
    output = await reliable(first, second).run("q", None, None, None, events)
    assert (output.content, output.status, now()) == ("x", "succeeded", 10.5)
    assert (first.cancelled, first.running, calls(first, second)) == (1, 0, [1, 1])
    assert (output.metadata["tool_name"], output.metadata["silent_tools"]) == ("second", ["first"])
    assert list(kinds(output.errors)) == [("first", "ProviderTimeout")]
    assert outcomes(output) == [("first", "cancelled"), ("second", "succeeded")]
    assert {name: entry["attempts"] for name, entry in output.per_agent.items()} == {"first": 1, "second": 1}
    assert events.types == ["start", "silence", "complete"]
    assert events.data("silence") == [{"tool_name": "first", "after_ms": 10_000, "beside": "second"}]
    assert not tasks()


async def test_silence_and_fallback__the_first_acceptable_answer_wins() -> None:
    first = ScriptedTool("first", OK("slow and honest", after=15))
    poor, other = ScriptedTool("poor", OK(bundle("x", confidence=0.1), after=1)), ScriptedTool("other", OK("y"))
    wanted = {"quality_requirements": {"min_confidence": 0.5}}
    output = await reliable(first, poor).run("q", None, None, wanted)
    assert (output.content, output.metadata["silent_tools"], now()) == ("slow and honest", ["first"], 15)
    assert list(kinds(output.errors)) == [("poor", "NotAcceptable")]
    assert calls(other) == [0]


async def test_silence_and_fallback__an_honest_slow_answer_may_win_and_the_other_is_stopped() -> None:
    first, second = ScriptedTool("first", OK("x", after=11)), ScriptedTool("second", HANG)
    output = await reliable(first, second).run("q")
    assert (output.content, output.errors, output.metadata["silent_tools"]) == ("x", None, ["first"])
    assert outcomes(output) == [("first", "succeeded"), ("second", "cancelled")]


async def test_silence_and_fallback__without_a_fallback_a_slow_answer_is_waited_for() -> None:
    first, second = ScriptedTool("first", OK("x", after=300)), ScriptedTool("second")
    for options in ({"enable_fallback": False}, {}):
        runner = reliable(first, second)
        output = await runner.run("q", None if options else "first", None, options)
        assert (output.content, calls(second)) == ("x", [0])


@pytest.mark.parametrize(("seconds", "starts"), [(2.0, 2.0), (None, None)])
async def test_silence_and_fallback__the_time_can_be_set_or_switched_off(
    seconds: float | None, starts: float | None
) -> None:
    first, second = ScriptedTool("first", OK("x", after=60)), ScriptedTool("second", OK("y"))
    output = await reliable(first, second, silence_timeout=seconds).run("q")
    assert [call.at for call in second.calls] == ([] if starts is None else [starts])
    assert output.content == ("x" if starts is None else "y")


async def test_silence_and_fallback__a_tool_that_tells_something_is_alive() -> None:
    class Talks(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            await asyncio.sleep(9)
            await event_manager.emit_delta(StreamDeltaEvent({"event_type": "progress", "data": {}}))
            return await super().execute(request, options, event_manager)

    first, second = Talks("first", OK("x", after=100)), ScriptedTool("second")
    events = RecordedEvents()
    assert (await reliable(first, second).run("q", None, None, None, events)).content == "x"
    assert (calls(second), events.types) == ([0], ["start", "progress", "complete"])


async def test_silence_and_fallback__of_two_who_write_one_is_shown() -> None:
    class Writes(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            for piece in ("one ", "two"):
                await asyncio.sleep(self.delay)
                await event_manager.emit_delta(StreamDeltaEvent(f"{self.name} {piece}"))
            return await super().execute(request, options, event_manager)

    for delays, text, types in (
        # The first wakes after the second has begun, and is last.
        ((12, 1.5), "second one second two", ["start", "silence", "delta", "delta", "complete"]),
        # It begins when the second is half done, and the second never ends.
        ((10.5, 2000), "first one first two", ["start", "silence", "delta", "delta", "complete"]),
    ):
        first, second = Writes("first", delay=delays[0]), Writes("second", delay=delays[1])
        events = RecordedEvents()
        await reliable(first, second).run("q", None, None, None, events)
        assert (events.text, events.types) == (text, types)


async def test_silence_and_fallback__where_the_other_wins_its_text_follows_a_restart() -> None:
    class Writes(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            await asyncio.sleep(10.5 if self.name == "first" else 1)
            await event_manager.emit_delta(StreamDeltaEvent(self.name))
            return await super().execute(request, options, event_manager)

    first, second = Writes("first", OK(after=60)), Writes("second", OK(after=1))
    events = RecordedEvents()
    output = await reliable(first, second).run("q", None, None, None, events)
    assert output.metadata["tool_name"] == "second"
    assert events.types == ["start", "silence", "delta", "restart", "delta", "complete"]
    named = [event.metadata["tool_name"] for event in events.all if event.type == "delta"]
    assert named == ["first", "first", "second", "second"]
    # It had begun before it was stopped: it was slow, not silent to the end.
    assert (output.errors, output.metadata["silent_tools"]) == (None, ["first"])


async def test_silence_and_plan__each_tool_of_the_plan_has_its_ten_seconds() -> None:
    tools = [ScriptedTool("a", HANG), ScriptedTool("b", HANG), ScriptedTool("c", OK("x", after=1))]
    output = await reliable(*tools).run("q")
    assert (output.content, [tool.calls[0].at for tool in tools], now()) == ("x", [0, 10, 20], 21)
    assert output.metadata["silent_tools"] == ["a", "b"]


async def test_silence_and_plan__planning_is_no_silence() -> None:
    class Slow(Fixed):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            await asyncio.sleep(30)
            return await super().plan(request, available_tools, context)

    first, second = ScriptedTool("first", OK("x", after=9)), ScriptedTool("second")
    assert (await reliable(first, second, planner=Slow("first", "second")).run("q")).content == "x"
    assert calls(second) == [0]


async def test_silence_and_deadline__both_end_with_it() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", HANG)
    with pytest.raises(BudgetExceeded) as caught:
        await reliable(first, second).run("q", None, None, {"timeout_ms": 12_000})
    assert (caught.value.affected_agents, first.cancelled, second.cancelled, now()) == (["first", "second"], 1, 1, 12)
    assert not tasks()


async def test_silence_and_deadline__tools_that_are_deaf_hold_nobody() -> None:
    first, second = ScriptedTool("first", stubborn(60)), ScriptedTool("second", stubborn(60))
    with pytest.raises(BudgetExceeded):
        await reliable(first, second).run("q", None, None, {"timeout_ms": 12_000})
    assert now() <= 12.05


async def test_silence_and_deadline__a_deaf_tool_does_not_hold_up_the_answer_of_the_other() -> None:
    first, second = ScriptedTool("first", stubborn(60)), ScriptedTool("second", OK("x"))
    output = await reliable(first, second).run("q")
    assert (output.content, now()) == ("x", pytest.approx(10.02))


async def test_silence_and_fallback__a_deaf_tool_that_answers_too_late_has_not_failed() -> None:
    first, second = (
        ScriptedTool("first", stubborn(11, then=OK("late", cost_usd=1))),
        ScriptedTool("second", OK("x", after=0.99)),
    )
    output = await reliable(first, second).run("q")
    assert (output.content, output.errors, output.metadata["silent_tools"]) == ("x", None, ["first"])
    assert outcomes(output) == [("first", "succeeded"), ("second", "succeeded")]
    assert output.per_agent["first"]["cost_usd"] == 1


class MakesAnError(Priced):
    """Makes an error of its cancellation."""

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        try:
            return await super().execute(request, options, event_manager)
        except asyncio.CancelledError as error:
            raise ValueError("stopped") from error


@pytest.mark.parametrize(
    ("kind", "spent", "usage"),
    [
        (ScriptedTool, "unknown", {}),
        (Priced, "estimated", {"total_tokens": 100}),
        (MakesAnError, "estimated", {"total_tokens": 100}),
    ],
)
async def test_silence_and_fallback__what_the_one_that_is_stopped_took_is_said_to_be_estimated_or_unknown(
    kind: Any, spent: str, usage: Any
) -> None:
    output = await reliable(kind("first", HANG), ScriptedTool("second", OK("x", cost_usd=0.1))).run("q")
    assert [line.get("spent") for line in output.attempts] == [spent, None]
    assert [line["outcome"] for line in output.attempts] == ["cancelled", "succeeded"]
    assert output.per_agent["first"]["usage"] == usage


async def test_silence_and_replay__duplicates_wait_for_one_race_and_a_replay_has_what_came_of_it() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", OK("x", after=1))
    runner = reliable(first, second)
    options = {"idempotency_key": "k", "timeout_ms": 30_000}
    outputs = await asyncio.gather(*(runner.run("q", None, None, options) for _ in range(3)))
    assert all(output == outputs[0] for output in outputs)
    assert calls(first, second) == [1, 1]
    assert (await runner.run("q", None, None, options)).metadata["silent_tools"] == ["first"]


async def test_silence_and_replay__a_leader_who_leaves_during_the_silence_does_not_end_the_race() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", OK("x", after=1))
    runner = reliable(first, second)
    leader = asyncio.create_task(runner.run("q", None, None, {"idempotency_key": "k", "timeout_ms": 5000}))
    await asyncio.sleep(1)
    joined = asyncio.create_task(runner.run("q", None, None, {"idempotency_key": "k", "timeout_ms": 60_000}))
    assert isinstance((await asyncio.gather(leader, return_exceptions=True))[0], BudgetExceeded)
    assert (await joined).content == "x"
    assert (calls(first, second), now()) == ([1, 1], 11)


async def test_silence_and_retry__the_time_between_two_attempts_is_no_silence() -> None:
    first = ScriptedTool("first", err(503, after=9), err(503, after=9), OK("x", after=9))
    second = ScriptedTool("second")
    slow = STEADY.model_copy(update={"initial_delay": 30.0})
    assert (await reliable(first, second, retry=slow).run("q")).content == "x"
    assert calls(second) == [0]


async def test_silence_and_retry__attempts_of_the_silent_one_count_among_those_of_the_run() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", err(503))
    runner = reliable(first, second, max_total_attempts=3)
    with pytest.raises(BudgetExceeded):
        await runner.run("q", None, None, {"timeout_ms": 60_000})
    assert calls(first, second) == [1, 2]


async def test_silence_and_hedge__a_hedge_does_not_hide_a_silence() -> None:
    first, second = ScriptedTool("first", *WARM, HANG), ScriptedTool("second", OK("x"))
    runner = await hedging(first, second)
    began = now()
    output = await runner.run("q")
    assert (output.content, now() - began, calls(first, second)) == ("x", 10, [2, 1])
    assert outcomes(output) == [("first", "cancelled"), ("first", "cancelled"), ("second", "succeeded")]


async def test_silence_and_breaker__one_that_was_silent_until_another_answered_counts_as_a_timeout() -> None:
    """Or each run would wait for it anew."""
    first, second = ScriptedTool("first", HANG), ScriptedTool("second")
    runner = reliable(first, second, breaker=CircuitBreakerConfig(failure_threshold=2))
    took = []
    for _ in range(4):
        began = now()
        assert (await runner.run("q")).content == "ok"
        took.append(now() - began)
    assert (took, calls(first, second)) == ([10, 10, 0, 0], [2, 4])
    assert runner.breakers["second"]["failures"] == 0


async def test_silence_and_breaker__one_that_was_only_slower_counts_for_nothing() -> None:
    first, second = ScriptedTool("first", OK(after=11)), ScriptedTool("second", HANG)
    runner = reliable(first, second, breaker=ONE)
    await runner.run("q")
    assert {stats["state"] for stats in runner.breakers.values()} == {"closed"}
    assert {stats["failures"] for stats in runner.breakers.values()} == {0}


async def test_silence_and_breaker__a_caller_who_leaves_during_a_silence_moves_no_circuit() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", HANG)
    runner = reliable(first, second, breaker=ONE)
    for ms in (9_000, 15_000):
        with pytest.raises(BudgetExceeded):
            await runner.run("q", None, None, {"timeout_ms": ms})
    assert {stats["state"] for stats in runner.breakers.values()} == {"closed"}


async def test_silence_and_reserve__the_silent_one_is_charged_its_worst_case_and_the_other_must_fit_beside_it() -> None:
    first, second = Priced("first", HANG), Priced("second", OK("x", usage={"total_tokens": 5}, cost_usd=0.1))
    output = await reliable(first, second).run("q", None, None, {"budget": {"tokens": 300, "cost_usd": 1.0}})
    assert (output.content, output.usage, output.cost_usd) == ("x", {"total_tokens": 105}, 0.6)
    assert output.per_agent["first"]["cost_usd"] == 0.5
    assert settled(second.ledgers[0]) == (0, 0, 105, 0.6)


async def test_silence_and_reserve__one_that_does_not_fit_beside_it_leaves_the_silent_one_to_answer() -> None:
    first, second = Priced("first", OK("x", after=60)), Priced("second")
    output = await reliable(first, second).run("q", None, None, {"budget": {"cost_usd": 0.9}})
    assert (output.content, calls(first, second)) == ("x", [1, 0])
    assert list(kinds(output.errors)) == [("second", "BudgetExceeded")]


async def test_silence_and_attempt_timeout__each_attempt_is_silent_by_itself() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", OK("x"))
    output = await reliable(first, second).run("q", None, None, {"per_agent_timeout_ms": 9000, "max_retries": 1})
    assert (output.content, now()) == ("x", 19)
    assert outcomes(output) == [("first", "failed"), ("first", "failed"), ("second", "succeeded")]
    assert "silent_tools" not in output.metadata


# ── the models of one tool ───────────────────────────────────────────────────────────────────────────────────────────


def model(name: str, *steps: Any, after: float = 0.0) -> Model:
    return Model(*steps, name=f"test:{name}", target=name, after=after)


async def test_beside_a_silent_model_the_next_is_asked_before_any_other_tool() -> None:
    a, b, c = model("a", after=1000), model("b", after=1000), model("c", "from c", after=1)
    first, second = LLMTool("first", [a, b]), LLMTool("second", c)
    events = RecordedEvents()
    output = await reliable(first, second).run("q", None, None, None, events)
    assert (output.content, now()) == ("from c", 21)
    assert events.types == ["start", "silence", "silence", "usage", "complete"]
    assert [len(each.requests) for each in (a, b, c)] == [1, 1, 1]
    assert (a.cancelled, b.cancelled) == (1, 1)
    assert output.metadata["silent_tools"] == ["first"]


async def test_a_silent_model_is_answered_by_the_next_and_is_charged() -> None:
    a, b = model("a", after=1000), model("b", "from b", after=1)
    output = await reliable(LLMTool("t", [a, b])).run("q", "t", None, {"budget": {"cost_usd": 1.0}})
    assert (output.content, output.metadata["model"], now()) == ("from b", "test:b", 11)
    assert output.metadata["silent_models"] == ["test:a"]
    assert output.metadata["failed_models"] == {"test:a": "no byte for 10 s (silence_timeout); test:b answered"}
    assert output.cost_usd == pytest.approx(0.01 + 0.02)
    assert [(line["model"], line["outcome"]) for line in output.attempts] == [
        ("test:a", "cancelled"),
        ("test:b", "succeeded"),
    ]


async def test_each_answer_of_a_bundle_is_asked_of_the_next_model_beside_a_silent_one() -> None:
    a, b = model("a", after=1000), model("b", "yes", after=1)
    output = await reliable(LLMBundleTool("t", [a, b], k=5, options={"latency": "min"})).run("q", "t")
    assert output.evidence is not None
    assert [replicate.model for replicate in output.evidence.replicates] == ["test:b"] * 5
    assert (output.status, len(a.requests), len(b.requests), now()) == ("succeeded", 5, 5, 11)


async def test_what_a_bundle_may_call_is_enough_for_a_next_model() -> None:
    a, b = model("a", after=1000), model("b", "yes", after=1)
    output = await reliable(LLMBundleTool("t", [a, b], k=10, options={"latency": "min"})).run("q", "t")
    assert (output.status, len(a.requests), len(b.requests)) == ("succeeded", 10, 10)


async def test_a_model_that_begins_in_time_is_left_to_finish() -> None:
    class Begins(Model):
        async def request(self, request: Any, on_text: Any = None) -> Any:
            await asyncio.sleep(9)
            request.on_first_byte()
            return await super().request(request, on_text)

    a, b = Begins("from a", name="test:a", target="a", after=500), model("b")
    output = await reliable(LLMTool("t", [a, b])).run("q", "t")
    assert (output.content, len(b.requests)) == ("from a", 0)


# ── a rate limit between ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_hedge_and_rate_limit__the_time_in_the_queue_is_not_counted() -> None:
    tool = ScriptedTool("t", *WARM, OK("first", after=3), OK("x", after=0.9))
    runner = await hedging(tool, rate_limits={"t": RateLimit(max_concurrent=1)}, hedging=HEDGED)
    slow = asyncio.create_task(runner.run("q", "t", None, {"max_retries": 0}))
    await asyncio.sleep(0)
    output = await runner.run("another", "t")
    assert (await slow).content == "first"
    assert (output.content, len(tool.calls), output.per_agent["t"]["attempts"]) == ("x", 2, 1)
    assert output.attempts[0]["queued_ms"] == 3000


async def test_silence_and_rate_limit__the_time_in_the_queue_is_no_silence() -> None:
    first, second = ScriptedTool("first", OK("slow", after=30), OK("x", after=9)), ScriptedTool("second", OK("y"))
    runner = reliable(first, second, rate_limits={"first": RateLimit(max_concurrent=1, max_wait=60)})
    slow = asyncio.create_task(runner.run("q", "first"))
    await asyncio.sleep(0)
    output = await runner.run("another")
    assert ((await slow).content, output.content, calls(second)) == ("slow", "x", [0])


@pytest.mark.parametrize("options", [{}, {"per_agent_timeout_ms": 60_000}])
async def test_silence_and_rate_limit__who_gets_the_place_of_the_winner_is_not_sent(options: dict[str, Any]) -> None:
    first, second = (ScriptedTool(name, OK(name, after=12), OK("x"), provider="p") for name in ("first", "second"))
    runner = reliable(first, second, rate_limits={"p": RateLimit(max_concurrent=1)})
    output = await runner.run("q", options=options)
    assert (output.content, outcomes(output), second.calls) == ("first", [("first", "succeeded")], [])
    began = now()
    assert (await runner.run("q", "first")).status == "succeeded"
    assert now() == began


async def test_who_has_lost_is_cancelled_once_and_may_tidy_up() -> None:
    tidied = []

    class Tidy(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            try:
                return await super().execute(request, options, event_manager)
            finally:
                await asyncio.sleep(0.001)
                tidied.append(self.name)

    output = await reliable(Tidy("first", HANG), ScriptedTool("second", OK("y"))).run("q")
    assert (output.content, tidied) == ("y", ["first"])


async def test_calls_that_wait_in_one_queue_do_not_pass_the_limit_of_the_run_together() -> None:
    slow = model("a", *["yes"] * 20, after=1)
    limits = {"a": RateLimit(max_concurrent=1, max_wait=60)}
    output = await reliable(
        LLMBundleTool("t", slow, k=3, options={"latency": "min"}), rate_limits=limits, max_total_attempts=1
    ).run("q", "t")
    assert (output.status, len(slow.requests)) == ("succeeded", 3)
    down = model("b", ConnectionResetError(), after=1)
    limits = {"b": RateLimit(max_concurrent=1, max_wait=60)}
    runner = reliable(
        LLMBundleTool("t", down, k=3, options={"latency": "min"}), rate_limits=limits, max_total_attempts=4
    )
    await runner.run("q", "t", None, {"enable_circuit_breaker": False})
    assert len(down.requests) == 4
