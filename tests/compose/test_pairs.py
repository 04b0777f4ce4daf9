"""What each two policies do together. The order: deadline, replay, plan, fallback, retry, rate limit, breaker, reserve,
attempt timeout, from the outside in. What stands further in, and what is sent beside, have files of their own."""

from __future__ import annotations

import asyncio
from itertools import combinations
from typing import Any

import pytest

from contract.kit import STEADY, Fixed, calls, failed, kinds, now, reliable, tasks
from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import BudgetExceeded, PlanDecision, ReliableOrchestrator
from steer_llm_sdk.orchestration._call import current_scope
from steer_llm_sdk.reliability import CircuitBreakerConfig, RateLimit, RetryPolicy
from steer_llm_sdk.reliability.budget import Budget, BudgetAccounts, Ledger
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err, stubborn

POLICIES = ("deadline", "replay", "plan", "fallback", "retry", "rate_limit", "breaker", "reserve", "attempt_timeout")
ONE = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, half_open_requests=1, timeout=10)
NO_RETRY = {"max_retries": 0}
PER_SECOND = RateLimit(requests_per_minute=60)
ALONE = RateLimit(max_concurrent=1)


def test_there_is_a_test_for_every_pair() -> None:
    pairs = [f"test_{one}_and_{other}__" for one, other in combinations(POLICIES, 2)]
    assert [pair for pair in pairs if not any(name.startswith(pair) for name in globals())] == []


def keyed(**options: Any) -> dict[str, Any]:
    return {"idempotency_key": "k", **options}


class Priced(ScriptedTool):
    """Takes at most 100 tokens and half a dollar. `ledgers` are the accounts of the runs that asked it."""

    def __init__(self, name: str, *steps: Any, cost: float = 0.5, **kwargs: Any) -> None:
        super().__init__(name, *steps, **kwargs)
        self.cost = cost
        self.ledgers: list[Ledger] = []

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(100, self.cost * options.get("k", 1))

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        scope = current_scope()
        assert scope is not None
        if scope.run.ledger is not None:
            self.ledgers.append(scope.run.ledger)
        return await super().execute(request, options, event_manager)


class SlowPlan(Fixed):
    """Takes a while to decide."""

    def __init__(self, seconds: float, *tools: str) -> None:
        super().__init__(*tools)
        self.seconds = seconds

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        await asyncio.sleep(self.seconds)
        return await super().plan(request, available_tools, context)


async def opened(runner: ReliableOrchestrator, tool: str) -> None:
    """Let the tool's circuit open; the tool fails at its first call."""
    await runner.run("q", tool, None, NO_RETRY)
    assert "open" in {stats["state"] for stats in runner.breakers.values()}


def settled(ledger: Ledger) -> tuple[float, float, float, float]:
    return ledger.reserved_tokens, round(ledger.reserved_cost, 9), ledger.spent_tokens, round(ledger.spent_cost, 9)


# ── deadline ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_deadline_and_replay__each_caller_keeps_his_own_and_the_work_the_latest() -> None:
    tool = ScriptedTool("t", OK("x", after=3))
    runner = reliable(tool)
    callers = [asyncio.create_task(runner.run("q", "t", None, keyed(timeout_ms=ms))) for ms in (1000, 2000, 9000)]
    ends = []
    for caller in callers:
        (end,) = await asyncio.gather(caller, return_exceptions=True)
        ends.append((type(end).__name__, round(now(), 2)))
    assert ends == [("BudgetExceeded", 1), ("BudgetExceeded", 2), ("OrchestrationOutput", 3)]
    assert (len(tool.calls), tool.cancelled) == (1, 0)


async def test_deadline_and_replay__a_replay_is_in_time_for_any_deadline() -> None:
    runner = reliable(ScriptedTool("t", OK("x", after=60)))
    await runner.run("q", "t", None, keyed())
    assert (await runner.run("q", "t", None, keyed(timeout_ms=100))).replayed


async def test_deadline_and_plan__a_plan_that_comes_too_late_calls_nobody() -> None:
    tool = ScriptedTool("t")
    with pytest.raises(BudgetExceeded) as caught:
        await reliable(tool, planner=SlowPlan(5, "t")).run("q", None, None, {"timeout_ms": 1000})
    assert (caught.value.budget_type, caught.value.affected_agents, tool.calls, now()) == ("time", [], [], 1)


async def test_retry_and_breaker__a_circuit_that_is_open_for_longer_than_the_wait_is_not_waited_for() -> None:
    first, second, events = ScriptedTool("first", err(503)), ScriptedTool("second"), RecordedEvents()
    output = await reliable(first, second, breaker=ONE).run("q", event_manager=events)
    assert (output.content, calls(first, second), now(), events.data("retry_attempt")) == ("ok", [1, 1], 0, [])
    assert output.errors is not None
    assert output.errors["first"]["status_code"] == 503


async def test_retry_and_breaker__a_circuit_that_lets_a_probe_through_before_the_wait_is_over_is_waited_for() -> None:
    tool = ScriptedTool("t", err(503, retry_after=20), OK("x"))
    output = await reliable(tool, breaker=ONE).run("q")
    assert (output.content, len(tool.calls), now() >= 20) == ("x", 2, True)


async def test_fallback_and_retry__a_retry_leaves_the_fallback_a_call_and_the_last_tool_may_use_them_all() -> None:
    first, second = ScriptedTool("first", err(503)), ScriptedTool("second", err(503), err(503), OK("x"))
    output = await reliable(first, second, max_total_attempts=4, retry=RetryPolicy(max_attempts=9)).run("q")
    assert (output.status, calls(first, second)) == ("failed", [3, 1])
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second", err(503), err(503), OK("x"))
    output = await reliable(first, second, max_total_attempts=4, retry=RetryPolicy(max_attempts=9)).run("q")
    assert (output.content, calls(first, second)) == ("x", [1, 3])


@pytest.mark.parametrize("silence_timeout", [None, 10.0], ids=["in turn", "beside"])
async def test_fallback_and_retry__a_tool_beside_which_another_may_be_asked_leaves_it_a_call(
    silence_timeout: float | None,
) -> None:
    first, second = ScriptedTool("first", err(503)), ScriptedTool("second", OK("x"))
    runner = reliable(first, second, max_total_attempts=2, silence_timeout=silence_timeout)
    assert ((await runner.run("q")).content, calls(first, second)) == ("x", [1, 1])


async def test_deadline_and_fallback__a_tool_that_is_stopped_by_it_is_not_answered_by_another() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second")
    with pytest.raises(BudgetExceeded):
        await reliable(first, second).run("q", None, None, {"timeout_ms": 1000})
    assert calls(first, second) == [1, 0]


@pytest.mark.parametrize("key", [None, "k"], ids=["without key", "keyed"])
async def test_deadline_and_fallback__a_tool_that_is_deaf_to_it_and_fails_later_is_not_answered_by_another(
    key: str | None,
) -> None:
    first, second = ScriptedTool("first", stubborn(5, err(400))), ScriptedTool("second")
    with pytest.raises(BudgetExceeded):
        await reliable(first, second).run("q", None, None, {"timeout_ms": 1000, "idempotency_key": key})
    await asyncio.sleep(60)
    assert calls(first, second) == [1, 0]


@pytest.mark.parametrize("composite", [True, False])
async def test_deadline_and_fallback__a_tool_that_makes_an_error_of_its_cancellation_is_not_answered_by_another(
    composite: bool,
) -> None:
    class Spiteful(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            try:
                return await super().execute(request, options, event_manager)
            except asyncio.CancelledError:
                raise ValueError("instead") from None

    first, second = Spiteful("first", HANG), ScriptedTool("second")
    first.composite = composite
    with pytest.raises(BudgetExceeded):
        await reliable(first, second).run("q", None, None, {"timeout_ms": 1000})
    await asyncio.sleep(60)
    assert calls(first, second) == [1, 0]


async def test_deadline_and_fallback__a_fallback_has_what_the_first_has_left() -> None:
    first, second = ScriptedTool("first", err(400, after=0.7)), ScriptedTool("second", OK("x", after=0.2))
    runner = reliable(first, second)
    assert (await runner.run("q", None, None, {"timeout_ms": 1000})).content == "x"
    with pytest.raises(BudgetExceeded):
        await runner.run("q", None, None, {"timeout_ms": 800})


async def test_deadline_and_retry__the_last_attempt_is_the_last_whose_wait_ends_before_it() -> None:
    tool = ScriptedTool("t", err(503))
    output = await reliable(tool, retry=STEADY.model_copy(update={"max_attempts": 9})).run(
        "q", "t", None, {"timeout_ms": 5000}
    )
    assert ([call.at for call in tool.calls], now()) == ([0, 1, 3], 3)
    assert failed(output)["status_code"] == 503


async def test_deadline_and_retry__a_shared_deadline_that_moves_gives_retries_more_time() -> None:
    tool = ScriptedTool("t", err(503, after=0.5), OK("x"))
    runner = reliable(tool)
    first = asyncio.create_task(runner.run("q", "t", None, keyed(timeout_ms=1000)))
    await asyncio.sleep(0.1)
    joined = asyncio.create_task(runner.run("q", "t", None, keyed(timeout_ms=60_000)))
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], BudgetExceeded)
    assert (await joined).content == "x"
    assert [call.at for call in tool.calls] == [0, 1.5]


async def test_deadline_and_breaker__a_call_that_is_stopped_by_it_speaks_of_nobody() -> None:
    runner = reliable(ScriptedTool("t", HANG), breaker=ONE)
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await runner.run("q", "t", None, {"timeout_ms": 200})
    assert runner.breakers["t"]["state"] == "closed"
    assert runner.breakers["t"]["failures"] == 0


async def test_deadline_and_breaker__a_probe_that_is_stopped_by_it_frees_its_place() -> None:
    tool = ScriptedTool("t", err(503), HANG, OK("x"))
    runner = reliable(tool, breaker=ONE)
    await opened(runner, "t")
    await asyncio.sleep(10)
    with pytest.raises(BudgetExceeded):
        await runner.run("q", "t", None, {"timeout_ms": 200})
    assert (await runner.run("q", "t")).content == "x"


async def test_deadline_and_breaker__a_probe_that_is_deaf_to_it_frees_its_place_when_its_run_ends() -> None:
    tool = ScriptedTool("t", err(503), stubborn(3600), OK("x"))
    runner = reliable(tool, breaker=ONE.model_copy(update={"probe_lease": 3000.0}))
    await opened(runner, "t")
    await asyncio.sleep(10)
    probe = asyncio.create_task(runner.run("q", "t", None, {"timeout_ms": 200}))
    await asyncio.sleep(0.1)
    assert failed(await runner.run("q", "t"))["type"] == "CircuitOpen"
    with pytest.raises(BudgetExceeded):
        await probe
    assert (await runner.run("q", "t")).content == "x"


@pytest.mark.parametrize(
    ("step", "spent"),
    [(HANG, (100, 0.5)), (stubborn(60, OK("late", usage={"total_tokens": 7}, cost_usd=0.1)), (7, 0.1))],
    ids=["listens", "deaf"],
)
async def test_deadline_and_reserve__what_a_stopped_call_may_have_cost_is_charged_once(
    step: Any, spent: tuple[int, float]
) -> None:
    """Work that was left behind keeps its reservation until it ends, and is then charged what it took."""
    tool = Priced("t", step)
    with pytest.raises(BudgetExceeded, match="time"):
        await reliable(tool).run("q", "t", None, {"timeout_ms": 200, "budget": {"cost_usd": 1.0, "tokens": 500}})
    (ledger,) = tool.ledgers
    await asyncio.sleep(100)
    assert settled(ledger) == (0, 0, *spent)


async def test_deadline_and_reserve__a_run_that_is_left_behind_keeps_its_share_of_a_shared_budget() -> None:
    tool = Priced("t", stubborn(60, OK("late", usage={"total_tokens": 7}, cost_usd=0.1)))
    runner = reliable(tool)
    options = {"budgets": [Budget("team", usd=0.6)]}
    with pytest.raises(BudgetExceeded, match="time"):
        await runner.run("q", "t", None, {"timeout_ms": 200, **options})
    assert runner.budgets["team"]["reserved"] == {"tokens": 100, "usd": 0.5}
    with pytest.raises(BudgetExceeded, match=r"cost budget 'team' exceeded: 1 > 0\.6"):
        await runner.run("q", "t", None, options)
    await asyncio.sleep(100)
    assert runner.budgets["team"]["spent"] == {"tokens": 7, "usd": 0.1}
    assert runner.budgets["team"]["reserved"] == {"tokens": 0, "usd": 0}


@pytest.mark.parametrize(("timeout_ms", "ms"), [(300, 900), (900, 300)])
async def test_deadline_and_reserve__of_the_budgets_milliseconds_and_the_timeout_the_earlier_ends_the_run(
    timeout_ms: int, ms: int
) -> None:
    tool = Priced("t", HANG)
    with pytest.raises(BudgetExceeded) as caught:
        await reliable(tool).run("q", "t", None, {"timeout_ms": timeout_ms, "budget": {"ms": ms, "tokens": 500}})
    assert (caught.value.budget_type, caught.value.limit, now()) == ("time", 300, 0.3)


async def test_deadline_and_attempt_timeout__the_earlier_decides_what_it_is() -> None:
    runner = reliable(ScriptedTool("t", HANG))
    with pytest.raises(BudgetExceeded):
        await runner.run("q", "t", None, {"timeout_ms": 400, "per_agent_timeout_ms": 500})
    output = await runner.run("q", "t", None, {"timeout_ms": 600, "per_agent_timeout_ms": 500, **NO_RETRY})
    assert failed(output)["type"] == "ProviderTimeout"


async def test_deadline_and_attempt_timeout__at_the_same_instant_it_is_the_deadline() -> None:
    with pytest.raises(BudgetExceeded):
        await reliable(ScriptedTool("t", HANG)).run(
            "q", "t", None, {"timeout_ms": 500, "per_agent_timeout_ms": 500, **NO_RETRY}
        )


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_replay_and_plan__duplicates_are_planned_once_under_the_claim() -> None:
    planner = SlowPlan(1, "t")
    runner = reliable(ScriptedTool("t"), planner=planner)
    outputs = await asyncio.gather(*(runner.run("q", None, None, keyed()) for _ in range(4)))
    assert len(planner.asked) == 1
    assert all(output == outputs[0] for output in outputs)


async def test_replay_and_plan__a_plan_that_fails_frees_the_key() -> None:
    class Moody(Fixed):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            decision = await super().plan(request, available_tools, context)
            if len(self.asked) == 1:
                raise RuntimeError("no idea")
            return decision

    runner = reliable(ScriptedTool("t"), planner=Moody("t"))
    with pytest.raises(RuntimeError, match="no idea"):
        await runner.run("q", None, None, keyed())
    assert (await runner.run("another", None, None, keyed())).content == "ok"


async def test_replay_and_fallback__what_a_fallback_answered_is_replayed_with_the_failures_before_it() -> None:
    first, second = ScriptedTool("first", err(503), OK("well again")), ScriptedTool("second", OK("stand-in"))
    runner = reliable(first, second)
    outputs = [await runner.run("q", None, None, keyed(**NO_RETRY)) for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert outputs[1].content == "stand-in"
    assert list(kinds(outputs[1].errors)) == [("first", "ProviderError")]
    assert calls(first, second) == [1, 1]


async def test_replay_and_fallback__if_one_of_them_may_be_retried_the_failure_of_all_is_not_remembered() -> None:
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second", err(503), OK("x"))
    runner = reliable(first, second)
    assert failed(await runner.run("q", None, None, keyed(**NO_RETRY)))
    assert (await runner.run("q", None, None, keyed(**NO_RETRY))).content == "x"


async def test_replay_and_retry__retries_belong_to_the_key_and_joining_makes_none() -> None:
    tool = ScriptedTool("t", err(503), err(503), OK("x"))
    runner = reliable(tool)
    first = asyncio.create_task(runner.run("q", "t", None, keyed()))
    await asyncio.sleep(0.5)  # in the first wait
    joined = await runner.run("q", "t", None, keyed())
    assert (await first) == joined
    assert [call.at for call in tool.calls] == [0, 1, 3]


async def test_replay_and_retry__a_leader_who_leaves_during_a_wait_does_not_end_it() -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    runner = reliable(tool)
    leader = asyncio.create_task(runner.run("q", "t", None, keyed()))
    await asyncio.sleep(0.5)
    joined = asyncio.create_task(runner.run("q", "t", None, keyed()))
    await asyncio.sleep(0)
    leader.cancel()
    assert (await joined).content == "x"
    assert [call.at for call in tool.calls] == [0, 1]


async def test_replay_and_breaker__a_replay_is_given_while_the_circuit_is_open() -> None:
    tool = ScriptedTool("t", OK("x"), err(503))
    runner = reliable(tool, breaker=ONE)
    await runner.run("q", "t", None, keyed())
    await opened(runner, "t")
    assert (await runner.run("q", "t", None, keyed())).content == "x"


async def test_replay_and_breaker__a_refusal_is_not_remembered() -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    runner = reliable(tool, breaker=ONE)
    await opened(runner, "t")
    assert failed(await runner.run("q", "t", None, keyed()))["type"] == "CircuitOpen"
    await asyncio.sleep(10)
    assert (await runner.run("q", "t", None, keyed())).content == "x"


async def test_replay_and_reserve__a_replay_reserves_nothing_and_is_held_to_the_callers_own_limit() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 50}, cost_usd=0.1))
    runner = reliable(tool)
    await runner.run("q", "t", None, keyed(budget={"tokens": 500}))
    assert (await runner.run("q", "t", None, keyed(budget={"tokens": 60}))).replayed
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", "t", None, keyed(budget={"tokens": 40}))
    assert caught.value.output.content == "x"
    assert len(tool.calls) == 1


async def test_replay_and_reserve__one_who_joins_is_held_to_his_own_limit_and_the_first_to_his() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 50}, after=1))
    runner = reliable(tool)
    ends = await asyncio.gather(
        *(runner.run("q", "t", None, keyed(budget={"tokens": limit})) for limit in (500, 40)), return_exceptions=True
    )
    assert [type(end).__name__ for end in ends] == ["OrchestrationOutput", "BudgetExceeded"]


async def test_replay_and_reserve__the_work_is_charged_once_to_the_budget_of_who_led() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 50}, cost_usd=0.1, after=1))
    runner = reliable(tool)
    options = keyed(budgets=[Budget("team", usd=0.5)])
    outputs = await asyncio.gather(*(runner.run("q", "t", None, options) for _ in range(5)))
    assert [output.content for output in outputs] == ["x"] * 5
    assert (await runner.run("q", "t", None, options)).replayed
    assert runner.budgets["team"]["spent"] == {"tokens": 50, "usd": 0.1}


async def test_replay_and_reserve__one_who_joins_is_not_ended_by_the_shared_budget_of_who_led() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 50}, after=1))
    runner = reliable(tool, planner=SlowPlan(1, "t"))
    poor = asyncio.create_task(runner.run("q", None, None, keyed(budgets=[Budget("poor", usd=0.1)])))
    await asyncio.sleep(0.5)
    rich = asyncio.create_task(runner.run("q", None, None, keyed(budgets=[Budget("rich", usd=10)])))
    assert (await rich).content == "x"
    with pytest.raises(BudgetExceeded, match="'poor'"):
        await poor
    assert len(tool.calls) == 1


async def test_replay_and_reserve__one_who_joins_is_not_ended_by_the_limit_by_the_limit_of_who_led() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 50}))
    runner = reliable(tool, planner=SlowPlan(1, "t"))
    budgets: list[Any] = [{"cost_usd": 0.1}, {"cost_usd": 0.1}, {"cost_usd": 1.0}, None]
    ends = await asyncio.gather(
        *(runner.run("q", None, None, keyed(budget=budget)) for budget in budgets), return_exceptions=True
    )
    assert [getattr(end, "content", type(end).__name__) for end in ends] == ["BudgetExceeded"] * 2 + ["x"] * 2
    assert len(tool.calls) == 1


async def test_replay_and_attempt_timeout__an_attempt_that_was_left_behind_cannot_write_later() -> None:
    tool = ScriptedTool("t", stubborn(5, OK("too late")), OK("in time"))
    runner = reliable(tool)
    options = keyed(per_agent_timeout_ms=500)
    first = await runner.run("q", "t", None, options)
    await asyncio.sleep(60)
    assert first.content == "in time"
    assert await runner.run("q", "t", None, options) == first


async def test_replay_and_attempt_timeout__a_run_whose_attempts_all_took_too_long_is_not_remembered() -> None:
    tool = ScriptedTool("t", HANG, OK("x"))
    runner = reliable(tool)
    options = keyed(per_agent_timeout_ms=500, **NO_RETRY)
    assert failed(await runner.run("q", "t", None, options))["is_retryable"]
    assert (await runner.run("q", "t", None, options)).content == "x"


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_plan_and_fallback__fallbacks_are_tried_in_the_order_of_the_plan() -> None:
    tools = [ScriptedTool(name, err(400)) for name in ("a", "b", "c")]
    output = await reliable(*tools, planner=Fixed("b", "c", "a")).run("q")
    assert list(output.per_agent) == ["b", "c", "a"]


async def test_plan_and_retry__a_run_is_planned_once_however_often_it_is_tried() -> None:
    planner = Fixed("t")
    tool = ScriptedTool("t", err(503), err(503), OK("x"))
    await reliable(tool, planner=planner).run("q")
    assert (len(planner.asked), len(tool.calls)) == (1, 3)


async def test_plan_and_breaker__a_circuit_that_opens_after_the_plan_was_made_is_answered_by_the_plans_fallback() -> (
    None
):
    a, b = ScriptedTool("a", err(503, after=1)), ScriptedTool("b", OK("stand-in"))
    planner = SlowPlan(0.5, "a", "b")
    runner = reliable(a, b, planner=planner, breaker=ONE)
    slow = asyncio.create_task(runner.run("q", "a", None, NO_RETRY))  # opens the circuit at 1
    await asyncio.sleep(0.7)
    output = await runner.run("q")  # planned until 1.2
    await slow
    assert (output.content, list(kinds(output.errors))) == ("stand-in", [("a", "CircuitOpen")])


async def test_plan_and_breaker__the_planner_is_told_what_the_breaker_knows() -> None:
    planner = Fixed("b")
    runner = reliable(ScriptedTool("a", err(503)), ScriptedTool("b"), planner=planner, breaker=ONE)
    await opened(runner, "a")
    await runner.run("q")
    (context,) = planner.asked
    assert context is not None
    assert context.circuit_breaker_states["a"] == "open"


async def test_plan_and_reserve__what_is_reserved_follows_from_the_options_of_the_plan() -> None:
    tool = Priced("t")
    for k, admitted in ((1, True), (3, False)):
        runner = reliable(tool, planner=Fixed("t", options={"k": k}))
        (end,) = await asyncio.gather(
            runner.run("q", None, None, {"budget": {"cost_usd": 1.0}}), return_exceptions=True
        )
        assert isinstance(end, BudgetExceeded) is not admitted
    assert len(tool.calls) == 1


async def test_plan_and_attempt_timeout__planning_is_no_attempt() -> None:
    tool = ScriptedTool("t", OK("x", after=0.4))
    output = await reliable(tool, planner=SlowPlan(5, "t")).run("q", None, None, {"per_agent_timeout_ms": 500})
    assert (output.content, now()) == ("x", 5.4)


# ── fallback ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_fallback_and_retry__each_tool_has_its_attempts_and_the_run_its_total() -> None:
    tools = [ScriptedTool(name, err(503)) for name in ("a", "b", "c")]
    await reliable(*tools, retry=RetryPolicy(initial_delay=0), max_total_attempts=8).run("q")
    assert calls(*tools) == [3, 3, 2]


async def test_fallback_and_retry__what_is_not_worth_another_try_is_worth_another_tool_at_once() -> None:
    first, second = ScriptedTool("first", err(401)), ScriptedTool("second")
    await reliable(first, second).run("q")
    assert (calls(first, second), now()) == ([1, 1], 0)


async def test_fallback_and_breaker__a_circuit_that_opens_in_the_middle_of_the_retries_leads_to_the_fallback() -> None:
    first, second = ScriptedTool("first", err(503)), ScriptedTool("second", OK("x"))
    runner = reliable(first, second, breaker=ONE.model_copy(update={"failure_threshold": 2}))
    output = await runner.run("q", None, None, {"max_retries": 5})
    assert (output.content, calls(first, second)) == ("x", [2, 1])
    assert list(kinds(output.errors)) == [("first", "ProviderError")]


async def test_plan_and_reserve__the_fallback_of_a_plan_may_fit_where_the_first_does_not() -> None:
    dear, cheap = Priced("dear", cost=5.0), Priced("cheap", OK("x"), cost=0.3)
    output = await reliable(dear, cheap).run("q", None, None, {"budgets": [Budget("team", usd=1)]})
    assert (output.content, calls(dear, cheap)) == ("x", [0, 1])


async def test_fallback_and_breaker__where_every_circuit_is_open_the_run_fails_at_once_and_calls_nobody() -> None:
    first, second = ScriptedTool("first", err(503)), ScriptedTool("second", err(503))
    runner = reliable(first, second, breaker=ONE)
    await runner.run("q", None, None, NO_RETRY)
    began = now()
    output = await runner.run("q")
    assert failed(output)["is_retryable"]
    assert list(kinds(output.errors)) == [("first", "CircuitOpen"), ("second", "CircuitOpen")]
    assert (calls(first, second), now()) == ([1, 1], began)


async def test_fallback_and_reserve__the_fallback_has_what_the_first_has_left() -> None:
    first = Priced("first", err(TimeoutError), cost=0.6)
    dear, cheap = Priced("dear", cost=0.5), Priced("cheap", OK("x"), cost=0.3)
    output = await reliable(first, dear, cheap).run("q", None, None, {"budget": {"cost_usd": 1.0}, **NO_RETRY})
    assert (output.content, calls(first, dear, cheap)) == ("x", [1, 0, 1])
    assert list(kinds(output.errors)) == [("first", "TimeoutError"), ("dear", "BudgetExceeded")]
    # What nobody counted, or may have been billed, is charged at its worst.
    assert settled(cheap.ledgers[0]) == (0, 0, 200, 0.9)


async def test_fallback_and_reserve__a_budget_that_is_closed_is_closed_for_the_fallback() -> None:
    first, second = Priced("first", err(400, usage={"total_tokens": 101})), Priced("second")
    with pytest.raises(BudgetExceeded, match="closed"):
        await reliable(first, second).run("q", None, None, {"budgets": [Budget("team", tokens=1000)]})
    assert calls(first, second) == [1, 0]


async def test_fallback_and_attempt_timeout__each_tool_has_the_whole_time_for_an_attempt() -> None:
    first, second = ScriptedTool("first", HANG), ScriptedTool("second", OK("x", after=0.4))
    output = await reliable(first, second).run("q", None, None, {"per_agent_timeout_ms": 500, **NO_RETRY})
    assert (output.content, now()) == ("x", 0.9)


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_retry_and_breaker__every_attempt_is_counted_and_the_failure_is_the_news_not_the_refusal() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, breaker=ONE.model_copy(update={"failure_threshold": 2}))
    output = await runner.run("q", "t", None, {"max_retries": 5})
    assert (failed(output)["type"], len(tool.calls)) == ("ProviderError", 2)
    assert (runner.breakers["t"]["failures"], runner.breakers["t"]["refusals"]) == (2, 1)


async def test_retry_and_breaker__a_run_that_is_refused_at_once_waits_for_nothing() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, breaker=ONE)
    await opened(runner, "t")
    events = RecordedEvents()
    output = await runner.run("q", "t", None, {"max_retries": 5}, events)
    assert (failed(output)["type"], len(tool.calls), now()) == ("CircuitOpen", 1, 0)
    assert "retry_attempt" not in events.types


async def test_retry_and_breaker__a_wait_that_outlasts_the_open_time_ends_in_a_probe() -> None:
    tool = ScriptedTool("t", err(503, retry_after=15), OK("x"))
    runner = reliable(tool, breaker=ONE)
    assert (await runner.run("q", "t")).content == "x"
    assert runner.breakers["t"]["state"] == "closed"


async def test_retry_and_reserve__each_attempt_is_reserved_and_settled_by_itself() -> None:
    tool = Priced("t", err(503), err(TimeoutError), OK("x", usage={"total_tokens": 30}, cost_usd=0.2))
    output = await reliable(tool).run("q", "t", None, {"budget": {"tokens": 200, "cost_usd": 1.0}})
    assert output.content == "x"
    # Nothing for the 503, everything for the silence, what it was for the answer.
    assert settled(tool.ledgers[0]) == (0, 0, 130, 0.7)


async def test_retry_and_reserve__an_attempt_that_took_more_than_was_reserved_is_the_last() -> None:
    tool, events = Priced("t", err(503, usage={"total_tokens": 101})), RecordedEvents()
    with pytest.raises(BudgetExceeded, match="tokens budget closed: a call took more than was reserved"):
        await reliable(tool).run("q", "t", None, {"budget": {"tokens": 1000}}, events)
    assert len(tool.calls) == 1
    assert [(data["reserved"], data["actual"]) for data in events.data("budget_overrun")] == [(100, 101)]


async def test_retry_and_reserve__a_shared_budget_that_is_used_up_is_not_waited_for() -> None:
    """However soon it starts anew: the caller is told when."""
    tool = Priced("t", err(TimeoutError))
    runner = reliable(tool)
    runner.budget_accounts = BudgetAccounts(now)
    with pytest.raises(
        BudgetExceeded, match=r"cost budget 'team' exceeded: 1 > 0\.9; it starts anew in 59 s"
    ) as caught:
        await runner.run("q", "t", None, {"budgets": [Budget("team", usd=0.9, per="minute")]})
    assert (len(tool.calls), now(), caught.value.resets_in, caught.value.retry_after) == (1, 1, 59, 59)


async def test_retry_and_reserve__an_attempt_that_no_longer_fits_ends_the_retries() -> None:
    tool = Priced("t", err(TimeoutError))
    with pytest.raises(BudgetExceeded, match=r"cost budget exceeded: 1 > 0\.9"):
        await reliable(tool).run("q", "t", None, {"budget": {"cost_usd": 0.9}})
    assert len(tool.calls) == 1


async def test_retry_and_attempt_timeout__an_attempt_that_took_too_long_is_tried_again() -> None:
    tool = ScriptedTool("t", HANG, stubborn(60), OK("x"))
    output = await reliable(tool).run("q", "t", None, {"per_agent_timeout_ms": 500})
    assert output.content == "x"
    assert [call.at for call in tool.calls] == pytest.approx([0, 1.5, 4.02], abs=0.001)
    assert [line["outcome"] for line in output.attempts][-1] == "succeeded"


async def test_retry_and_attempt_timeout__it_is_not_where_timeouts_are_not_retried() -> None:
    tool = ScriptedTool("t", HANG)
    runner = reliable(tool, retry=RetryPolicy(retry_on_timeout=False))
    assert failed(await runner.run("q", "t", None, {"per_agent_timeout_ms": 500}))["code"] == "timeout"
    assert len(tool.calls) == 1


# ── breaker, reserve, attempt timeout ────────────────────────────────────────────────────────────────────────────────


async def test_breaker_and_reserve__a_refusal_reserves_nothing() -> None:
    tool, other = Priced("t", err(503)), Priced("other", OK("x"), cost=1.0)
    runner = reliable(tool, other, breaker=ONE)
    await opened(runner, "t")
    output = await runner.run("q", None, None, {"budget": {"cost_usd": 1.0}})
    assert output.content == "x"
    assert settled(other.ledgers[0]) == (0, 0, 100, 1.0)


async def test_breaker_and_reserve__a_call_that_does_not_fit_speaks_of_nobody_and_frees_its_place() -> None:
    tool = Priced("t", err(503), OK("x"))
    runner = reliable(tool, breaker=ONE)
    await opened(runner, "t")
    await asyncio.sleep(10)
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await runner.run("q", "t", None, {"budget": {"cost_usd": 0.1}})
    assert runner.breakers["t"]["state"] == "half_open"
    assert (await runner.run("q", "t", None, {"budget": {"cost_usd": 1.0}})).content == "x"


async def test_breaker_and_reserve__a_shared_budget_that_is_used_up_opens_no_circuit() -> None:
    tool = Priced("t", OK("x"))
    runner = reliable(tool, breaker=ONE)
    options = {"budgets": [Budget("team", usd=0.6)]}
    assert (await runner.run("q", "t", None, options)).content == "x"
    for _ in range(5):
        with pytest.raises(BudgetExceeded, match="'team'"):
            await runner.run("q", "t", None, options)
    assert (runner.breakers["t"]["state"], len(tool.calls)) == ("closed", 1)


@pytest.mark.parametrize("step", [HANG, stubborn(60)], ids=["listens", "deaf"])
async def test_breaker_and_attempt_timeout__an_attempt_that_took_too_long_counts(step: Any) -> None:
    runner = reliable(ScriptedTool("t", step), breaker=ONE)
    await runner.run("q", "t", None, {"per_agent_timeout_ms": 500, **NO_RETRY})
    assert runner.breakers["t"]["state"] == "open"


async def test_breaker_and_attempt_timeout__what_a_left_behind_attempt_says_later_is_heard_by_nobody() -> None:
    tool = ScriptedTool("t", stubborn(5, OK("late")), err(503))
    runner = reliable(tool, breaker=ONE.model_copy(update={"failure_threshold": 2}))
    await runner.run("q", "t", None, {"per_agent_timeout_ms": 500, **NO_RETRY})
    await asyncio.sleep(60)
    await runner.run("q", "t", None, NO_RETRY)
    assert runner.breakers["t"]["state"] == "open"
    assert not tasks()


@pytest.mark.parametrize("step", [HANG, stubborn(60)], ids=["listens", "deaf"])
async def test_reserve_and_attempt_timeout__an_attempt_that_took_too_long_is_charged_once_at_its_worst(
    step: Any,
) -> None:
    tool = Priced("t", step, OK("x", usage={"total_tokens": 10}, cost_usd=0.1))
    output = await reliable(tool).run(
        "q", "t", None, {"per_agent_timeout_ms": 500, "budget": {"tokens": 200, "cost_usd": 1.0}}
    )
    assert output.content == "x"
    await asyncio.sleep(100)
    assert settled(tool.ledgers[0]) == (0, 0, 110, 0.6)


async def test_reserve_and_attempt_timeout__an_attempt_that_is_left_behind_keeps_its_reservation_until_it_ends() -> (
    None
):
    late = OK("late", usage={"total_tokens": 7}, cost_usd=0.1)
    tool = Priced("t", stubborn(60, late), OK("x", usage={"total_tokens": 10}, cost_usd=0.2))
    runner = reliable(tool)
    team = Budget("team", tokens=500, usd=1.0)
    output = await runner.run("q", "t", None, {"per_agent_timeout_ms": 500, "budgets": [team]})
    assert output.content == "x"
    (ledger,) = {id(ledger): ledger for ledger in tool.ledgers}.values()
    assert settled(ledger) == (100, 0.5, 10, 0.2)
    assert (ledger.tokens_left, ledger.cost_left) == (390, 0.3)
    await asyncio.sleep(100)
    assert settled(ledger) == (0, 0, 17, 0.3)
    assert (ledger.tokens_left, ledger.cost_left) == (483, 0.7)


@pytest.mark.parametrize(
    ("step", "charged"),
    [
        (stubborn(60, err(503, usage={"total_tokens": 7})), (7, 0.5)),
        (stubborn(60, err(503)), (100, 0.5)),
        (stubborn(60, err(asyncio.CancelledError)), (100, 0.5)),
    ],
    ids=["counted", "failed", "cancelled"],
)
async def test_reserve_and_attempt_timeout__a_left_behind_attempt_that_fails_is_charged_what_it_may_have_cost(
    step: Any, charged: tuple[int, float]
) -> None:
    tool = Priced("t", step)
    options = {"per_agent_timeout_ms": 500, "budget": {"tokens": 500}, **NO_RETRY}
    failed(await reliable(tool).run("q", "t", None, options))
    assert settled(tool.ledgers[0]) == (100, 0.5, 0, 0)
    await asyncio.sleep(100)
    assert settled(tool.ledgers[0]) == (0, 0, *charged)


async def test_reserve_and_attempt_timeout__a_deaf_attempt_whose_caller_gave_up_keeps_its_reservation_too() -> None:
    tool = Priced("t", stubborn(60, OK("late", usage={"total_tokens": 7}, cost_usd=0.1)))
    runner = reliable(tool)
    options = {"per_agent_timeout_ms": 5000, "budgets": [Budget("team", tokens=500)]}
    caller = asyncio.create_task(runner.run("q", "t", None, options))
    await asyncio.sleep(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert runner.budgets["team"]["reserved"]["tokens"] == 100
    await asyncio.sleep(100)
    assert (runner.budgets["team"]["reserved"]["tokens"], runner.budgets["team"]["spent"]["tokens"]) == (0, 7)


async def test_reserve_and_attempt_timeout__a_run_within_a_tool_settles_nothing_of_the_run_around_it() -> None:
    inner = reliable(ScriptedTool("inner", stubborn(60)))

    class Outer(Priced):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            await inner.run("q", "inner", None, {"per_agent_timeout_ms": 500, **NO_RETRY})
            return await super().execute(request, options, event_manager)

    tool = Outer("outer", err(ProviderError("broken", "p", usage={"total_tokens": 3})))
    failed(await reliable(tool).run("q", "outer", None, {"budget": {"tokens": 500}, **NO_RETRY}))
    assert settled(tool.ledgers[0]) == (0, 0, 3, 0.5)


async def test_reserve_and_attempt_timeout__an_answer_within_the_grace_is_charged_as_it_was() -> None:
    tool = Priced("t", stubborn(0.51, OK("just", usage={"total_tokens": 10}, cost_usd=0.1)))
    output = await reliable(tool).run("q", "t", None, {"per_agent_timeout_ms": 500, "budget": {"cost_usd": 1.0}})
    assert output.content == "just"
    assert settled(tool.ledgers[0]) == (0, 0, 10, 0.1)


# ── rate limit ───────────────────────────────────────────────────────────────────────────────────────────────────────


def limited(*tools: ScriptedTool, limit: RateLimit = PER_SECOND, **fields: Any) -> ReliableOrchestrator:
    return reliable(*tools, rate_limits={tools[0].provider or tools[0].name: limit}, **fields)


async def used_up(runner: ReliableOrchestrator, tool: str = "t", calls: int = 60) -> None:
    """Take what the bucket holds."""
    await asyncio.gather(*(runner.run("q", tool, None, NO_RETRY) for _ in range(calls)))


def queued(output: Any) -> list[float]:
    """How long each attempt of a run waited before it was sent, in ms."""
    return [line.get("queued_ms", 0.0) for line in output.attempts]


async def test_deadline_and_rate_limit__a_wait_that_ends_before_it_is_waited_and_a_longer_one_refused_at_once() -> None:
    tool = ScriptedTool("t")
    runner = limited(tool)
    await used_up(runner)
    output = await runner.run("q", "t", None, {"timeout_ms": 900})
    assert (failed(output)["type"], failed(output)["retry_after"], now()) == ("WaitTooLong", pytest.approx(1), 0)
    output = await runner.run("q", "t", None, {"timeout_ms": 1100})
    assert (output.content, queued(output)) == ("ok", [1000.0])


async def test_deadline_and_rate_limit__a_run_that_is_stopped_while_it_waits_leaves_the_queue() -> None:
    tool = ScriptedTool("t", OK("x", after=5))
    runner = limited(tool, limit=ALONE)
    first = asyncio.create_task(runner.run("q", "t"))
    await asyncio.sleep(0)
    second = asyncio.create_task(runner.run("q", "t", None, {"timeout_ms": 1000}))
    third = asyncio.create_task(runner.run("q", "t"))
    with pytest.raises(BudgetExceeded, match="time"):
        await second
    assert now() == 1
    await asyncio.gather(first, third)
    assert (now(), len(tool.calls)) == (10, 2)


async def test_replay_and_rate_limit__duplicates_take_one_place_and_a_replay_none() -> None:
    tool = ScriptedTool("t", OK("x", after=1))
    runner = limited(tool, limit=RateLimit(requests_per_minute=1, max_queue=0))
    outputs = await asyncio.gather(*(runner.run("q", "t", None, keyed()) for _ in range(3)))
    assert [output.content for output in outputs] == ["x"] * 3
    assert (await runner.run("q", "t", None, keyed())).replayed
    assert len(tool.calls) == 1


async def test_replay_and_rate_limit__a_refusal_is_not_remembered() -> None:
    runner = limited(ScriptedTool("t"), limit=RateLimit(requests_per_minute=60, max_queue=0))
    await used_up(runner)
    assert failed(await runner.run("q", "t", None, keyed()))["type"] == "QueueFull"
    await asyncio.sleep(1)
    assert (await runner.run("q", "t", None, keyed())).content == "ok"


async def test_plan_and_rate_limit__planning_holds_no_place() -> None:
    tool = ScriptedTool("t", OK("x", after=1))
    runner = limited(tool, limit=ALONE, planner=SlowPlan(5, "t"))
    await asyncio.gather(runner.run("q"), runner.run("q"))
    assert [call.at for call in tool.calls] == [5, 6]


async def test_fallback_and_rate_limit__a_provider_that_has_no_room_in_time_is_answered_by_another_at_once() -> None:
    first, second = ScriptedTool("first"), ScriptedTool("second", OK("stand-in"))
    runner = limited(first, second, limit=RateLimit(requests_per_minute=60, max_wait=0.5))
    await used_up(runner, "first")
    output = await runner.run("q")
    assert (output.content, list(kinds(output.errors)), now()) == ("stand-in", [("first", "WaitTooLong")], 0)


async def test_fallback_and_rate_limit__a_queue_that_is_full_is_answered_by_another_at_once() -> None:
    first, second = ScriptedTool("first", OK("x", after=9)), ScriptedTool("second", OK("stand-in"))
    runner = limited(first, second, limit=RateLimit(max_concurrent=1, max_queue=1))
    busy = [asyncio.create_task(runner.run("q")) for _ in range(2)]
    await asyncio.sleep(0)
    output = await runner.run("q")
    assert (output.content, list(kinds(output.errors)), now()) == ("stand-in", [("first", "QueueFull")], 0)
    await asyncio.gather(*busy)


async def test_retry_and_rate_limit__every_attempt_takes_a_request_and_waiting_between_them_holds_no_place() -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    other = ScriptedTool("other", OK("y"), provider="t")
    runner = limited(tool, other, limit=ALONE)
    first = asyncio.create_task(runner.run("q", "t"))
    await asyncio.sleep(0.5)
    assert (await runner.run("q", "other")).content == "y"
    assert now() == 0.5
    assert (await first).content == "x"
    runner = limited(ScriptedTool("t", err(503)), limit=RateLimit(requests_per_minute=2, max_wait=10))
    output = await runner.run("q", "t", None, {"max_retries": 5})
    assert len(output.attempts) == 2


async def test_retry_and_rate_limit__a_refusal_is_not_retried() -> None:
    runner = limited(ScriptedTool("t"), limit=RateLimit(requests_per_minute=1, max_queue=0))
    await used_up(runner, calls=1)
    output = await runner.run("q", "t")
    assert (failed(output)["type"], failed(output)["is_retryable"], now()) == ("QueueFull", True, 0)


async def test_retry_and_rate_limit__a_429_is_retried_when_its_delay_ends_and_the_others_wait_for_that_too() -> None:
    tool = ScriptedTool("t", err(429, retry_after=4), OK("x"))
    runner = limited(tool)
    first = asyncio.create_task(runner.run("q", "t"))
    await asyncio.sleep(0.5)
    other = await runner.run("q", "t")
    output = await first
    assert [call.at for call in tool.calls] == [0, 4, pytest.approx(4, abs=0.5)]
    assert queued(other) == [3500.0]
    assert queued(output) == [0.0, 0.0]


async def test_rate_limit_and_breaker__an_open_breaker_is_noticed_before_queueing() -> None:
    tool = ScriptedTool("t", err(503))
    runner = limited(tool, limit=RateLimit(requests_per_minute=1), breaker=ONE)
    await opened(runner, "t")
    events = RecordedEvents()
    output = await runner.run("q", "t", None, NO_RETRY, events)
    assert (failed(output)["type"], now(), events.data("rate_limited")) == ("CircuitOpen", 0, [])


async def test_rate_limit_and_breaker__a_breaker_that_opens_sends_away_those_who_wait() -> None:
    tool = ScriptedTool("t", err(503, after=3))
    runner = limited(tool, limit=ALONE, breaker=ONE)
    outputs = await asyncio.gather(*(runner.run("q", "t", None, NO_RETRY) for _ in range(3)))
    assert [failed(output)["type"] for output in outputs] == ["ProviderError", "CircuitOpen", "CircuitOpen"]
    assert (now(), len(tool.calls)) == (3, 1)


async def test_rate_limit_and_breaker__refusals_of_the_limit_speak_of_nobody() -> None:
    runner = limited(ScriptedTool("t"), limit=RateLimit(requests_per_minute=1, max_queue=0), breaker=ONE)
    await used_up(runner, calls=4)
    assert (runner.breakers["t"]["state"], runner.breakers["t"]["failures"]) == ("closed", 0)


async def test_rate_limit_and_breaker__a_probe_that_has_to_wait_holds_no_permit_meanwhile() -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    runner = limited(tool, limit=RateLimit(requests_per_minute=4), breaker=ONE)
    await opened(runner, "t")
    for _ in range(3):
        await runner.run("q", "t", None, NO_RETRY)
    await asyncio.sleep(10)
    outputs = await asyncio.gather(*(runner.run("q", "t", None, NO_RETRY) for _ in range(6)))
    assert [output.status for output in outputs].count("succeeded") >= 5
    assert runner.breakers["t"]["state"] == "closed"


async def test_rate_limit_and_breaker__a_run_without_breaker_waits_although_the_breaker_is_open() -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    runner = limited(tool, limit=RateLimit(requests_per_minute=1), breaker=ONE)
    await opened(runner, "t")
    output = await runner.run("q", "t", None, {**NO_RETRY, "enable_circuit_breaker": False})
    assert (output.content, queued(output)) == ("x", [60_000.0])


async def test_rate_limit_and_reserve__one_who_waits_has_reserved_nothing_yet() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 10}, cost_usd=0.1))
    runner = limited(tool)
    await used_up(runner)
    output = await runner.run("q", "t", None, {"budget": {"cost_usd": 0.5}})
    assert queued(output) == [1000.0]
    assert settled(tool.ledgers[-1]) == (0, 0, 10, 0.1)


async def test_rate_limit_and_reserve__what_the_budget_refuses_gives_its_request_and_its_tokens_back() -> None:
    tool = Priced("t", OK("x", usage={"total_tokens": 100}))
    runner = limited(tool, limit=RateLimit(requests_per_minute=2, tokens_per_minute=200))
    for _ in range(5):
        with pytest.raises(BudgetExceeded):
            await runner.run("q", "t", None, {"budget": {"cost_usd": 0.1}})
    await used_up(runner, calls=2)
    assert (now(), len(tool.calls)) == (0, 2)


async def test_rate_limit_and_attempt_timeout__time_in_the_queue_is_no_part_of_an_attempt() -> None:
    tool = ScriptedTool("t", OK("x", after=0.4))
    runner = limited(tool, limit=ALONE)
    outputs = await asyncio.gather(
        *(runner.run("q", "t", None, {"per_agent_timeout_ms": 500, **NO_RETRY}) for _ in range(5))
    )
    assert [output.content for output in outputs] == ["x"] * 5
    assert [queued(output) for output in outputs] == [[pytest.approx(400.0 * n)] for n in range(5)]
    assert [line["elapsed_ms"] for output in outputs for line in output.attempts] == [pytest.approx(400.0)] * 5


async def test_rate_limit_and_attempt_timeout__an_attempt_that_took_too_long_frees_its_place_and_is_charged() -> None:
    tool = Priced("t", HANG, OK("x", usage={"total_tokens": 1}))
    runner = limited(tool, limit=RateLimit(max_concurrent=1, tokens_per_minute=120))
    output = await runner.run("q", "t", None, {"per_agent_timeout_ms": 500, **NO_RETRY})
    assert failed(output)["type"] == "ProviderTimeout"
    output = await runner.run("q", "t", None, NO_RETRY)
    # 100 of 120 were charged; 1 came in during the attempt, 79 are missing, at 2 a second.
    assert queued(output) == [pytest.approx(39_500, abs=20)]
