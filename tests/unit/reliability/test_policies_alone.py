"""Each policy by itself, round a call that has never heard of tools."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from contract.fake_call import FakeCall
from steer_llm_sdk.errors import AttemptsUsedUp, BudgetExceeded, CircuitOpen, ProviderError, ProviderTimeout
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability import CircuitBreakerConfig, CircuitBreakerManager, RetryPolicy
from steer_llm_sdk.reliability._pipeline import compose
from steer_llm_sdk.reliability.budget import Ledger, Reserve
from steer_llm_sdk.reliability.circuit_breaker import Breaker
from steer_llm_sdk.reliability.deadline import AttemptTimeout, Deadline, Late, stop, until, watch
from steer_llm_sdk.reliability.retry import AttemptLimit, Retry
from steer_llm_sdk.reliability.retry_budget import RetryBudget, RetryBudgetConfig

WORST, TOOK = Amount(10, 0.1), Amount(4, 0.04)


@dataclass
class Call(FakeCall):
    """`steps` is what comes of it, one for each time it is made."""

    steps: list[Any] = field(default_factory=list)
    worst_case: Amount = field(default=WORST, kw_only=True)
    used: Amount = field(default=TOOK, kw_only=True)


async def make(call: Call) -> Any:
    """The innermost step."""
    call.attempts += 1
    call.sent += 1
    call.ended = now()
    step = call.steps.pop(0) if call.steps else "answer"
    if isinstance(step, BaseException):
        raise step
    return await step if asyncio.iscoroutine(step) else step


def now() -> float:
    return asyncio.get_running_loop().time()


def down(status: int = 503, **fields: Any) -> ProviderError:
    return ProviderError("down", "p", status, **fields)


# ── the fold ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_policy_of_a_list_is_outermost() -> None:
    order: list[str] = []

    def policy(name: str) -> Any:
        async def wrap(call: Any, next: Any, /) -> Any:
            order.append(f"{name} in")
            result = await next(call)
            order.append(f"{name} out")
            return result

        return wrap

    assert await compose([policy("a"), policy("b")], make)(Call()) == "answer"
    assert order == ["a in", "b in", "b out", "a out"]
    assert await compose([], make)(Call()) == "answer"


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def retry(jitter: float = 0.0, **fields: Any) -> Retry:
    limits = {name: fields.pop(name) for name in ("max_total_time", "limit", "budget") if name in fields}
    return Retry(RetryPolicy(**fields), jitter=lambda: jitter, **limits)


async def test_retry_waits_and_tries_again_and_tells_so() -> None:
    call = Call([down(), down(429, retry_after=5)])
    assert await retry(jitter=0.5)(call, make) == "answer"
    assert now() == 0.75 + 5.25
    assert [data["delay_ms"] for _, data in call.events] == [750, 5250]
    assert [(kind, data["attempt"], data["provider"]) for kind, data in call.events] == [
        ("retry_attempt", 1, "p"),
        ("retry_attempt", 2, "p"),
    ]


async def test_retry_raises_the_last_error_when_the_attempts_are_over() -> None:
    errors = [down(500), down(502), down(504)]
    with pytest.raises(ProviderError) as caught:
        await retry()(Call(list(errors)), make)
    assert caught.value is errors[2]


async def test_retry_lets_a_refusal_through_at_once_and_after_a_failure_raises_the_failure_from_it() -> None:
    with pytest.raises(CircuitOpen):
        await retry()(Call([CircuitOpen("p")]), make)
    assert now() == 0
    failure, refusal = down(), CircuitOpen("p")
    with pytest.raises(ProviderError) as caught:
        await retry()(Call([failure, refusal]), make)
    assert caught.value is failure
    assert caught.value.__cause__ is refusal


async def test_a_refusal_does_not_take_the_place_of_what_a_failure_came_from() -> None:
    failure, cause = down(), OSError("reset")
    failure.__cause__ = cause
    with pytest.raises(ProviderError) as caught:
        await retry()(Call([failure, CircuitOpen("p")]), make)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    ("sent", "answers", "admitted"),
    [(3, 1, True), (4, 1, False), (4, 2, False), (4, 3, True), (5, 3, True), (6, 3, False)],
)
async def test_no_call_is_made_past_the_total_of_the_run(sent: int, answers: int, admitted: bool) -> None:
    for policy in (retry(limit=AttemptLimit(4, 2)), AttemptLimit(4, 2)):
        call = Call(sent=sent, answers=answers)
        if admitted:
            assert await policy(call, make) == "answer"
        else:
            with pytest.raises(AttemptsUsedUp, match=f"all {sent} upstream calls"):
                await policy(call, make)
            assert call.attempts == 0


@pytest.mark.parametrize(("sent", "left"), [(4, True), (5, False)])
def test_more_answers_need_one_attempt_each_if_nothing_else_is_said(sent: int, left: bool) -> None:
    assert AttemptLimit(3).left(Call(sent=sent, answers=5)) is left


@pytest.mark.parametrize(("sent", "left"), [(5, True), (6, False)])
def test_each_of_several_answers_may_take_so_many_attempts_again(sent: int, left: bool) -> None:
    assert AttemptLimit(3, 2).left_for_another(Call(sent=sent, answers=3)) is left


@pytest.mark.parametrize(("kept", "made"), [(0, 4), (1, 3), (2, 2), (3, 1), (5, 1)])
async def test_a_retry_leaves_the_calls_that_others_need_for_what_is_missing(kept: int, made: int) -> None:
    call = Call([down() for _ in range(9)], kept_for_others=kept, max_attempts=9)
    with pytest.raises(ProviderError):
        await retry(limit=AttemptLimit(4))(call, make)
    assert call.sent == made


async def test_a_call_that_others_came_to_need_during_the_wait_is_left_to_them() -> None:
    call = Call([down()], kept_for_others=2)
    work = asyncio.create_task(retry(limit=AttemptLimit(4), jitter_factor=0)(call, make))
    await asyncio.sleep(0.5)
    call.sent += 1
    with pytest.raises(ProviderError) as caught:
        await work
    assert (call.attempts, type(caught.value.__cause__)) == (1, AttemptsUsedUp)


@pytest.mark.parametrize(("attempts", "sent"), [(0, True), (1, False)], ids=["first attempt", "another one"])
async def test_next_to_what_counts_only_another_attempt_leaves_a_call_to_others(attempts: int, sent: bool) -> None:
    call = Call(sent=3, attempts=attempts, kept_for_others=1)
    if sent:
        assert await AttemptLimit(4)(call, make) == "answer"
    else:
        with pytest.raises(AttemptsUsedUp):
            await AttemptLimit(4)(call, make)


async def test_retry_waits_for_nothing_that_the_total_would_then_refuse() -> None:
    with pytest.raises(ProviderError):
        await retry(limit=AttemptLimit(4))(Call([down()], sent=3), make)
    assert now() == 0


@pytest.mark.parametrize(("at", "waits"), [(1.0, False), (1.001, True)])
async def test_retry_begins_no_wait_that_does_not_end_before_the_deadline(at: float, waits: bool) -> None:
    call = Call([down()], deadline=Deadline(at, at * 1000))
    if waits:
        assert await retry()(call, make) == "answer"
    else:
        with pytest.raises(ProviderError):
            await retry()(call, make)
        assert now() == 0


@pytest.mark.parametrize(("limit", "waits"), [(1.0, True), (0.999, False)])
async def test_retry_begins_no_wait_past_the_total_time_or_the_total_delay(limit: float, waits: bool) -> None:
    for fields in ({"max_total_time": limit}, {"max_total_delay": limit}):
        call = Call([down()], started=now())
        (end,) = await asyncio.gather(retry(**fields)(call, make), return_exceptions=True)
        assert (end == "answer") is waits


@pytest.mark.parametrize(("own", "made"), [(None, 3), (1, 1), (2, 2)])
async def test_retry_tries_errors_of_a_category_as_often_as_the_policy_says_for_it(own: int | None, made: int) -> None:
    policy = retry(by_category={"rate_limit": {"max_attempts": own, "initial_delay": 7}}, jitter=0)
    call = Call([down(429)] * 9)
    with pytest.raises(ProviderError):
        await policy(call, make)
    assert (call.attempts, now()) == (made, {1: 0, 2: 7, 3: 21}[made])
    other = Call([down()] * 9)
    with pytest.raises(ProviderError):
        await policy(other, make)
    assert other.attempts == 3


async def test_a_category_gives_a_call_no_more_attempts_than_the_caller_allows() -> None:
    call = Call([down(429)] * 9, max_attempts=2)
    with pytest.raises(ProviderError):
        await retry(by_category={"rate_limit": {"max_attempts": 3}})(call, make)
    assert call.attempts == 2


async def test_where_the_retry_budget_refuses_the_failure_is_raised_at_once_and_says_so() -> None:
    policy = retry(budget=RetryBudget(RetryBudgetConfig(ratio=0, minimum=1)))
    first, second = down(500), down(502)
    call = Call([first, second])
    with pytest.raises(ProviderError) as caught:
        await policy(call, make)
    assert (caught.value, call.attempts, now()) == (second, 2, 1)
    assert second.__notes__ == ["not tried again: the retry budget of p is used up"]
    assert [kind for kind, _ in call.events] == ["retry_attempt", "retry_refused"]
    assert (call.events[1][1]["reason"], call.events[1][1]["provider"]) == ("retry_budget", "p")
    again = Call([second])
    with pytest.raises(ProviderError):
        await policy(again, make)
    assert len(second.__notes__) == 1


async def test_a_quiet_provider_is_asked_again_for_a_lone_run() -> None:
    policy = retry(budget=RetryBudget(RetryBudgetConfig()))
    assert await policy(Call([down(), down()]), make) == "answer"


async def test_first_attempts_that_end_well_or_not_earn_the_budget_and_refusals_do_not() -> None:
    policy = retry(budget=RetryBudget(RetryBudgetConfig(ratio=0.4, minimum=0, window=1000)))
    for steps, error in (([], None), ([down(400)], ProviderError), ([CircuitOpen("p")], CircuitOpen)):
        if error is None:
            await policy(Call(steps), make)
        else:
            with pytest.raises(error):
                await policy(Call(steps), make)
    assert await policy(Call([down()]), make) == "answer"
    with pytest.raises(ProviderError, match="down"):
        await policy(Call([down()]), make)


async def test_retry_does_not_touch_a_cancellation() -> None:
    call = Call([asyncio.CancelledError()])
    with pytest.raises(asyncio.CancelledError):
        await retry()(call, make)
    assert call.attempts == 1


# ── attempt timeout ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_attempt_without_a_limit_takes_as_long_as_it_takes() -> None:
    assert await AttemptTimeout()(Call([asyncio.sleep(3600, "late")]), make) == "late"


async def test_an_attempt_that_takes_too_long_is_a_timeout_of_the_provider() -> None:
    with pytest.raises(ProviderTimeout, match=r"no answer from p within 0\.5 s"):
        await AttemptTimeout()(Call([asyncio.sleep(3600)], attempt_timeout=0.5), make)
    assert now() == 0.5


async def test_an_attempt_that_fails_in_time_fails_as_it_did() -> None:
    with pytest.raises(KeyError):
        await AttemptTimeout()(Call([KeyError("x")], attempt_timeout=0.5), make)


async def test_watching_and_stopping_what_has_ended_waits_for_nothing() -> None:
    done = asyncio.create_task(asyncio.sleep(0, "done"))
    await done
    await watch(done, now() + 10)
    await stop(done)
    assert (now(), done.result()) == (0, "done")


async def test_what_is_late_says_so() -> None:
    with pytest.raises(Late, match="the time was up"):
        await until(1, asyncio.sleep(3600))


# ── reserve ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_reserve_sets_the_worst_aside_and_charges_what_it_was() -> None:
    ledger = Ledger(tokens=100, cost_usd=1.0)
    seen: list[tuple[int, float]] = []

    async def watching(call: Call) -> str:
        seen.append((ledger.reserved_tokens, ledger.reserved_cost))
        return "answer"

    assert await Reserve()(Call(ledger=ledger), watching) == "answer"
    assert seen == [(10, 0.1)]
    assert (ledger.tokens_left, round(ledger.cost_left, 9)) == (96, 0.96)


async def test_reserve_calls_nobody_where_the_worst_does_not_fit() -> None:
    call = Call(ledger=Ledger(tokens=9))
    with pytest.raises(BudgetExceeded):
        await Reserve()(call, make)
    assert call.attempts == 0


@pytest.mark.parametrize(
    ("step", "left"), [(down(), 100), (TimeoutError(), 90), (asyncio.CancelledError(), 90), (KeyError("x"), 100)]
)
async def test_reserve_charges_a_call_that_fails_once_by_what_it_may_have_cost(step: BaseException, left: int) -> None:
    ledger = Ledger(tokens=100)
    with pytest.raises(type(step)):
        await Reserve()(Call([step], ledger=ledger), make)
    assert (ledger.tokens_left, ledger.reserved_tokens) == (left, 0)


async def test_without_a_ledger_nothing_is_reserved() -> None:
    assert await Reserve()(Call(worst_case=Amount(10**9, None)), make) == "answer"


# ── breaker ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_breaker_of_a_target_is_made_when_it_is_first_called_and_tells_when_it_changes() -> None:
    manager = CircuitBreakerManager(lambda _: CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=5))
    policy = Breaker(manager)
    call = Call([down(), "well"])
    with pytest.raises(ProviderError):
        await policy(call, make)
    with pytest.raises(CircuitOpen, match="Circuit breaker p is OPEN"):
        await policy(call, make)
    await asyncio.sleep(5)
    assert await policy(call, make) == "well"
    assert call.attempts == 2
    assert [data["state"] for _, data in call.events] == ["open", "closed"]
    assert list(manager.get_all_stats()) == ["p"]
