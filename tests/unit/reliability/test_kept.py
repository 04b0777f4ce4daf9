"""What is kept by a name that callers make up does not grow for ever, and what is in use is never forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.fake_call import FakeCall as Call
from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability import CircuitBreakerConfig, CircuitBreakerManager, HedgingPolicy, RateLimit
from steer_llm_sdk.reliability._kept import MOST, Kept
from steer_llm_sdk.reliability.budget import Budget, BudgetAccounts, Ledger
from steer_llm_sdk.reliability.circuit import Outcome
from steer_llm_sdk.reliability.circuit_breaker import BreakerMode
from steer_llm_sdk.reliability.hedging import Hedge
from steer_llm_sdk.reliability.rate_limiter import RateLimiter, RateLimits
from steer_llm_sdk.reliability.retry import AttemptLimit
from steer_llm_sdk.reliability.retry_budget import RetryBudget, RetryBudgetConfig

MANY = 5 * MOST


async def answer(call: Any) -> str:
    call.attempts += 1
    if call.life is not None:
        call.life.sent().ended()
    return "x"


def test_the_oldest_that_are_idle_go_when_it_is_full() -> None:
    swept: list[int] = []
    kept: Kept[int, int] = Kept(lambda value: value % 2 == 0, lambda: swept.append(len(kept)))
    for n in range(MOST):
        kept.setdefault(n, n)
    assert (len(kept), swept) == (MOST, [])
    kept[3] = 3  # It is there already.
    kept[MOST] = MOST
    assert [n for n in range(20) if n in kept] == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert (len(kept), swept) == (MOST // 2 + 1, [MOST // 2])


def test_where_all_are_in_use_it_grows_and_looks_again_when_it_has_doubled() -> None:
    asked: list[int] = []
    kept: Kept[int, int] = Kept(lambda value: bool(asked.append(value)))
    for n in range(4 * MOST):
        kept[n] = n
    assert len(kept) == 4 * MOST
    assert len(asked) == MOST + 2 * MOST


def breakers(mode: BreakerMode = BreakerMode.AUTO, **fields: Any) -> CircuitBreakerManager:
    config = CircuitBreakerConfig(failure_threshold=2, window_size=60, timeout=1000, mode=mode, **fields)
    return CircuitBreakerManager(lambda name: config)


async def test_breakers_that_are_as_good_as_new_are_forgotten() -> None:
    manager = breakers()
    for n in range(MANY):
        manager.of_call(Call(target=f"p{n}"))
    assert len(manager.get_all_stats()) <= MOST


async def test_a_breaker_with_a_failure_that_counts_or_that_somebody_has_set_is_not_forgotten() -> None:
    manager = breakers()
    for name, failures in (("open", 2), ("failed", 1)):
        breaker = manager.get_or_create(name)
        for _ in range(failures):
            breaker.report(breaker.admit("x"), "x", Outcome.FAILURE)
    manager.get_or_create("set").set_mode(BreakerMode.FORCED_CLOSED)
    for n in range(MANY):
        manager.get_or_create(f"p{n}")
    assert {"open", "failed", "set"} <= manager.get_all_stats().keys()
    await asyncio.sleep(61)
    for n in range(MANY):
        manager.get_or_create(f"q{n}")
    assert {"open", "failed", "set"} & manager.get_all_stats().keys() == {"open", "set"}


async def test_a_model_whose_breaker_was_forgotten_gets_the_one_that_is_known() -> None:
    manager = breakers(scope="model")
    for n in range(MANY):
        manager.of_call(Call(target="p", model=f"m{n}", part=f"t{n}"))
    again = manager.of_call(Call(target="p", model="m0", part="t0"))
    assert again is manager.get("p/m0") is manager.of_part("p", "t0")
    assert manager.of_part("p", "t1") is None


async def test_the_windows_of_a_retry_budget_are_forgotten_when_they_are_over() -> None:
    budget = RetryBudget(RetryBudgetConfig(ratio=0, minimum=1, window=10))
    assert (budget.draw("spent"), budget.draw("spent")) == (True, False)
    for n in range(MANY):
        budget.first(f"p{n}", asyncio.get_running_loop().time())
        budget.draw(f"p{n}")
    assert budget.draw("spent") is False
    await asyncio.sleep(11)
    for n in range(MANY):
        budget.first(f"q{n}", asyncio.get_running_loop().time())
        budget.draw(f"q{n}")
        await asyncio.sleep(0.02)
    assert len(budget._windows) + len(budget._counts) <= 2 * MOST


async def test_the_accounts_of_rate_limits_are_forgotten_when_nothing_is_taken() -> None:
    limits = RateLimits(lambda target: RateLimit(requests_per_minute=1, max_concurrent=1, max_queue=0))
    limiter = RateLimiter(limits)
    await limiter(Call(target="taken"), answer)
    for n in range(MANY):
        limits.open(f"p{n}", f"p{n}")
    assert len(limits.gates) <= MOST
    assert limits.gates["taken"] is not None
    await asyncio.sleep(60)
    held = asyncio.create_task(limiter(Call(target="running"), lambda call: asyncio.sleep(1000)))
    await asyncio.sleep(500)
    for n in range(MANY):
        limits.open(f"q{n}", f"q{n}")
    assert ("taken" in limits.gates, "running" in limits.gates) == (False, True)
    held.cancel()


async def test_latencies_that_are_asked_for_are_remembered() -> None:
    hedge = Hedge(HedgingPolicy(), limit=AttemptLimit(10))
    for n in range(MANY):
        await hedge(Call(target="p", part=f"x{n}"), answer)
        await hedge(Call(target="p", part="busy"), answer)
    assert len(hedge._latencies) <= MOST
    assert hedge._latencies["p", "busy"].seen == MANY


def test_accounts_of_budgets_are_forgotten_when_nothing_is_spent() -> None:
    now = [0.0]
    accounts = BudgetAccounts(clock=lambda: now[0])

    def run(name: str, per: Any, tokens: int) -> None:
        budgets = (Budget(name, tokens=100, per=per),)
        Ledger(None, None, accounts, accounts.open(budgets)).reserve(Amount(tokens)).settle(Amount(tokens))

    run("for ever", None, 100)
    for n in range(MANY):
        run(f"p{n}", "minute", 5)
        now[0] += 1
    assert len(accounts.view()) <= MOST + 60
    with pytest.raises(BudgetExceeded):
        run("for ever", None, 1)
    with pytest.raises(InvalidRequest, match="taken by"):
        run("for ever", "day", 1)


def test_a_run_whose_account_was_forgotten_before_it_spent_anything_still_shares_it() -> None:
    accounts = BudgetAccounts(clock=lambda: 0.0)
    own = Budget("own", tokens=100)

    def ledger() -> Ledger:
        return Ledger(None, None, accounts, accounts.open((own,)))

    slow = ledger()
    for n in range(MANY):
        accounts.open((Budget(f"p{n}", tokens=1),))
    assert "own" not in accounts.view()
    slow.reserve(Amount(100))
    assert accounts.view()["own"]["reserved"]["tokens"] == 100
    with pytest.raises(BudgetExceeded):
        ledger().reserve(Amount(1))
