"""A whole system from one seed: orchestrators, a shared store, providers at fault and callers, on virtual time.

Each seed is a scenario and an order of events. While it plays, every permit, reservation and claim is watched;
afterwards what the callers got is compared with what the providers saw. Then defects are planted in the library, in
memory, one at a time: some seed must notice each.

    sh scripts/prove simulate [--seeds N] [--first N]     that many seeds, and the planted defects
    sh scripts/prove simulate --seed N                    replay one, and print its log
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from invariants import defects
from invariants.defects import (
    a_key_that_is_held_is_taken,
    a_retry_budget_never_refuses,
    half_open_admits_everybody,
    the_bound_on_all_attempts_is_forgotten,
    the_end_of_a_call_frees_no_place,
    what_the_server_asked_for_is_ignored,
)
from invariants.watch import Simulated, simulate
from steer_llm_sdk.errors import ErrorCategory
from steer_llm_sdk.orchestration import base
from steer_llm_sdk.reliability import budget, idempotency, rate_limit
from steer_llm_sdk.reliability.budget import Account
from steer_llm_sdk.reliability.circuit import Circuit, HalfOpen, Outcome
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreaker
from steer_llm_sdk.reliability.deadline import AttemptTimeout
from steer_llm_sdk.reliability.idempotency import Flight
from steer_llm_sdk.reliability.retry import Retry, RetryPolicy
from steer_llm_sdk.reliability.stores.memory import MemoryStore

MOST_SEEDS = 300
"""For one planted defect."""

# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────


def a_cancelled_call_keeps_its_permit() -> Any:
    whole = CircuitBreaker.report

    def report(self: CircuitBreaker, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Any:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return None
        return whole(self, permit, part, outcome, *rest)

    return patch.object(CircuitBreaker, "report", report)


def a_cancelled_call_counts_as_a_success() -> Any:
    whole = CircuitBreaker.report

    def report(self: CircuitBreaker, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Any:
        return whole(self, permit, part, Outcome.SUCCESS if outcome is Outcome.NEUTRAL else outcome, *rest)

    return patch.object(CircuitBreaker, "report", report)


def a_stale_report_counts() -> Any:
    whole = Circuit.record

    def record(self: Circuit, permit: Any, *rest: Any) -> Circuit:
        if permit.part is None:
            permit = replace(permit, generation=self.whole.generation)
        return whole(self, permit, *rest)

    return patch.object(Circuit, "record", record)


def a_lost_probe_blocks_for_ever() -> Any:
    """A probe that was cancelled keeps its place, and leases do not end."""
    whole = HalfOpen.reported

    def reported(self: HalfOpen, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Any:
        return self if outcome is Outcome.NEUTRAL else whole(self, permit, part, outcome, *rest)

    return Both(
        patch.object(HalfOpen, "live", lambda self, now: self.probes), patch.object(HalfOpen, "reported", reported)
    )


class Both:
    def __init__(self, *defects: Any) -> None:
        self._defects = defects

    def __enter__(self) -> None:
        for defect in self._defects:
            defect.__enter__()

    def __exit__(self, *given: Any) -> None:
        for defect in self._defects:
            defect.__exit__(*given)


def a_rate_limit_counts_as_a_failure() -> Any:
    whole = CircuitBreaker.verdict

    def verdict(self: CircuitBreaker, means: Any) -> Any:
        return (Outcome.FAILURE, 0.0) if means.status_code == 429 else whole(self, means)

    return patch.object(CircuitBreaker, "verdict", verdict)


def a_cancelled_reservation_is_not_settled() -> Any:
    whole = budget.Reservation.settle

    def settle(self: budget.Reservation, actual: Any) -> Any:
        task = asyncio.current_task()
        return {} if task is not None and task.cancelling() else whole(self, actual)

    return patch.object(budget.Reservation, "settle", settle)


def check_then_spend() -> Any:
    """Only what is spent is looked at, and not what is under way or about to be."""

    def refusal(self: Account, claim: Any, now: float, limits: Any) -> Any:
        past = self.excess(limits)
        return None if past is None else budget.Refusal(*past, None)

    return patch.object(Account, "_refusal", refusal)


def a_retry_of_a_cancellation() -> Any:
    async def call(self: Retry, call: Any, next: Any, /) -> Any:
        while True:
            try:
                return await next(call)
            except (Exception, asyncio.CancelledError):
                if call.attempts >= call.max_attempts or call.sent >= self.limit.limit:
                    raise
                await asyncio.sleep(0.1)

    return patch.object(Retry, "__call__", call)


def a_long_wait_is_cut_to_the_longest_allowed() -> Any:
    whole = RetryPolicy.wait

    def wait(self: RetryPolicy, error: Any, attempt: int, jitter: float) -> float | None:
        found = whole(self, error, attempt, jitter)
        return self.max_delay if found is None else found

    return patch.object(RetryPolicy, "wait", wait)


def jitter_takes_from_what_the_server_asked_for() -> Any:
    whole = RetryPolicy.wait

    def wait(self: RetryPolicy, error: Any, attempt: int, jitter: float) -> float | None:
        found = whole(self, error, attempt, jitter)
        return None if found is None else found * (1 - 0.3 * jitter)

    return patch.object(RetryPolicy, "wait", wait)


def an_invalid_request_is_retried() -> Any:
    return patch.object(RetryPolicy, "allows", lambda self, error: not error.refused)


def one_attempt_more_than_allowed() -> Any:
    whole = Retry._delay

    def delay(self: Retry, call: Any, error: Any, waited: float) -> float | None:
        found = whole(self, call, error, waited)
        return 0.1 if found is None and call.attempts == call.max_attempts and self._policy.allows(error) else found

    return patch.object(Retry, "_delay", delay)


def a_deadline_waits_for_the_work_to_end() -> Any:
    async def until(at: float, work: Any) -> Any:
        async with asyncio.timeout_at(at):
            return await work

    return patch.object(base, "until", until)


def an_attempt_timeout_is_forgotten_when_the_tool_is_deaf() -> Any:
    async def call(self: AttemptTimeout, call: Any, next: Any, /) -> Any:
        if call.attempt_timeout is None:
            return await next(call)
        async with asyncio.timeout(call.attempt_timeout):
            return await next(call)

    return patch.object(AttemptTimeout, "__call__", call)


def a_reset_says_nothing_about_the_provider() -> Any:
    whole = CircuitBreaker.verdict

    def verdict(self: CircuitBreaker, means: Any) -> Any:
        return (Outcome.NEUTRAL, 0.0) if means.category is ErrorCategory.NETWORK else whole(self, means)

    return patch.object(CircuitBreaker, "verdict", verdict)


def a_zombie_settles() -> Any:
    return Both(defects.a_zombie_settles(), leases_end_under_the_work())


def leases_end_under_the_work() -> Any:
    return Both(patch.object(idempotency, "LEASE", 0.3), patch.object(idempotency.Heart, "keep", lambda *_: None))


def a_result_is_not_remembered() -> Any:
    async def settle(self: MemoryStore, key: str, token: int, result: bytes) -> bool:
        self._claimed.pop(key, None)
        return True

    return patch.object(MemoryStore, "settle", settle)


def another_request_joins_the_work() -> Any:
    whole = Flight.__init__

    class Anything(str):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    def init(self: Flight[Any], work: Any, *rest: Any) -> None:
        whole(self, work, *rest)
        mark = work.mark
        self.work.mark = Anything(mark if isinstance(mark, str) else mark.decode())

    return patch.object(Flight, "__init__", init)


def the_key_is_not_given_back_when_the_work_is_cancelled() -> Any:
    async def release(self: MemoryStore, key: str, token: int) -> bool:
        return True

    return Both(patch.object(MemoryStore, "release", release), patch.object(idempotency, "LEASE", 1e9))


def work_goes_on_when_nobody_waits() -> Any:
    async def left(self: Flight[Any]) -> None:
        pass

    return patch.object(Flight, "left", left)


def any_number_of_calls_at_once() -> Any:
    whole = rate_limit.State.of
    return patch.object(rate_limit.State, "of", lambda limit: whole(limit)._replace(max_concurrent=None))


def a_shared_budget_is_never_asked() -> Any:
    return patch.object(budget.BudgetAccounts, "reserve", lambda self, held, claim: None)


DEFECTS: tuple[Callable[[], Any], ...] = (
    a_cancelled_call_keeps_its_permit,
    a_cancelled_call_counts_as_a_success,
    a_stale_report_counts,
    half_open_admits_everybody,
    a_lost_probe_blocks_for_ever,
    a_rate_limit_counts_as_a_failure,
    a_cancelled_reservation_is_not_settled,
    check_then_spend,
    a_retry_of_a_cancellation,
    what_the_server_asked_for_is_ignored,
    a_long_wait_is_cut_to_the_longest_allowed,
    jitter_takes_from_what_the_server_asked_for,
    an_invalid_request_is_retried,
    the_bound_on_all_attempts_is_forgotten,
    one_attempt_more_than_allowed,
    a_deadline_waits_for_the_work_to_end,
    an_attempt_timeout_is_forgotten_when_the_tool_is_deaf,
    a_reset_says_nothing_about_the_provider,
    a_key_that_is_held_is_taken,
    a_zombie_settles,
    a_result_is_not_remembered,
    another_request_joins_the_work,
    the_key_is_not_given_back_when_the_work_is_cancelled,
    work_goes_on_when_nobody_waits,
    the_end_of_a_call_frees_no_place,
    any_number_of_calls_at_once,
    a_shared_budget_is_never_asked,
    a_retry_budget_never_refuses,
)

# ── the seeds ────────────────────────────────────────────────────────────────────────────────────────────────────────


def first_broken(seeds: range) -> Simulated | None:
    return next((found for seed in seeds if (found := simulate(seed)).broken), None)


def replay(seed: int) -> int:
    found = simulate(seed)
    print(*found.log, "", *(found.broken or ("every promise holds",)), sep="\n")
    return 1 if found.broken else 0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=1000)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--seed", type=int, help="replay this one only, and print its log")
    given = options.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    if given.seed is not None:
        return replay(given.seed)
    started = time.monotonic()
    runs = calls = wrong = 0
    for seed in range(given.first, given.first + given.seeds):
        found = simulate(seed)
        runs, calls, wrong = runs + found.runs, calls + found.calls, wrong + bool(found.broken)
        for what in found.broken:
            print(f"seed {seed}: {what}")
    seconds = time.monotonic() - started
    print(f"{given.seeds} seeds, {runs} runs, {calls} calls in {seconds:.0f} s; {wrong} seeds broke a promise\n")
    caught = 0
    for defect in DEFECTS:
        with defect():
            noticed = first_broken(range(MOST_SEEDS))
        caught += noticed is not None
        said = "NOT NOTICED" if noticed is None else f"seed {noticed.seed}: {noticed.broken[0]}"
        print(f"planted: {defect.__name__.replace('_', ' ')}: {said}")
    print(f"caught/planted: {caught}/{len(DEFECTS)}")
    return 0 if not wrong and caught == len(DEFECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
