"""Hedging: when a second attempt is sent, when it is not, and what is known of latencies."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_policies_alone import Call, now

from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.reliability.hedging import FORGET, KEPT, STEP, Hedge, HedgingPolicy, Latencies
from steer_llm_sdk.reliability.retry import AttemptLimit
from steer_llm_sdk.reliability.retry_budget import RetryBudget, RetryBudgetConfig
from steer_llm_sdk.reliability.silence import Life


def of(*seconds: float) -> Latencies:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    return latencies


# ── the quantile ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(0, 100), min_size=1, max_size=KEPT + 50), st.floats(0.01, 1))
def test_it_is_the_smallest_that_so_many_of_the_last_do_not_exceed(seconds: list[float], share: float) -> None:
    latencies, recent = of(*seconds), seconds[-KEPT:]
    found = latencies.quantile(share)
    assert list(latencies.recent) == recent
    assert found == sorted(recent)[math.ceil(share * len(recent)) - 1]


def test_old_latencies_make_room_for_new_ones() -> None:
    latencies = of(*[9.0] * KEPT, *[1.0] * KEPT)
    assert (len(latencies.ordered), latencies.quantile(0.99)) == (KEPT, 1.0)


def test_the_oldest_goes_and_the_lowest_median_is_forgotten_slowly() -> None:
    seconds = [float(number % 97 + number / 1000 + 5) for number in range(KEPT + 50)]
    lowest = math.inf
    for count in range(STEP, len(seconds) + 1, STEP):
        recent = sorted(seconds[max(0, count - KEPT) : count])
        lowest = min(lowest * FORGET, recent[len(recent) // 2])
    last = seconds[-KEPT:]
    known = of(*seconds)
    assert (list(known.recent), known.ordered) == (last, sorted(last))
    assert (known.lowest, known.seen) == (lowest, len(seconds))
    assert of(*[3.0] * STEP, *[9.0] * STEP * 4).lowest == pytest.approx(3.0 * FORGET**4)


def test_a_median_at_the_busy_factor_is_still_no_queue() -> None:
    for median, delay in ((2.0, 2.0), (2.001, None)):
        latencies = of(*[median] * 20)
        latencies.lowest = 1.0
        assert HedgingPolicy(busy_factor=2).delay(latencies) == delay


def test_it_is_the_quantile_beside_the_median() -> None:
    """Of 1 to 20 s the 19th by size is the quantile, and the 10th the median."""
    latencies = of(*map(float, range(1, 21)))
    assert HedgingPolicy(quantile=0.95, slow_factor=1.9, busy_factor=1e9).delay(latencies) == 19.0
    assert HedgingPolicy(quantile=0.95, slow_factor=1.89, busy_factor=1e9).delay(latencies) is None


def test_there_is_no_hedge_with_too_few_samples() -> None:
    assert HedgingPolicy(min_samples=20).delay(of(*[1.0] * 19)) is None
    assert HedgingPolicy(min_samples=20).delay(of(*[1.0] * 20)) == 1.0


@pytest.mark.parametrize(("slow", "delay"), [(2, 1.0), (10, None)])
def test_there_is_no_hedge_where_the_quantile_lies_among_the_slow_ones(slow: int, delay: float | None) -> None:
    """Of 100, so many take 10 seconds and the others one."""
    assert HedgingPolicy().delay(of(*[1.0] * (100 - slow), *[10.0] * slow)) == delay


@pytest.mark.parametrize(("median", "delay"), [(1.1, 1.1), (1.2, None)])
def test_there_is_no_hedge_while_the_median_is_well_above_the_lowest_there_was(
    median: float, delay: float | None
) -> None:
    latencies = of(*[1.0] * 64, *[median] * KEPT)
    assert HedgingPolicy().delay(latencies) == delay
    assert HedgingPolicy(busy_factor=1.3).delay(latencies) == median


def test_a_provider_that_has_become_slower_for_good_is_hedged_again() -> None:
    """By a fiftieth with each KEPT the lowest median is forgotten: 1.25 / 1.15 is less than five fiftieths."""
    assert HedgingPolicy().delay(of(*[1.0] * 64, *[1.25] * 4 * KEPT)) is None
    assert HedgingPolicy().delay(of(*[1.0] * 64, *[1.25] * 6 * KEPT)) == 1.25


def test_three_times_the_median_is_still_a_hedge() -> None:
    latencies = of(*[1.0] * 60, *[3.0] * 40)
    assert HedgingPolicy().delay(latencies) == 3.0
    assert HedgingPolicy(slow_factor=2.9).delay(latencies) is None


@pytest.mark.parametrize("median", [0.1, 10.0])
def test_slow_is_slow_for_that_median(median: float) -> None:
    for times, hedged in ((2.9, True), (3.1, False)):
        latencies = of(*[median] * 60, *[median * times] * 40)
        assert HedgingPolicy().delay(latencies) == (median * times if hedged else None)


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Answers each call after the next of `takes` seconds; None is an error, at once or after `fails_after`."""

    def __init__(
        self, *takes: float | None, queue: float = 0, begins: float | None = None, fails_after: float = 0
    ) -> None:
        self.takes, self.queue, self.begins, self.fails_after = list(takes), queue, begins, fails_after
        self.at: list[float] = []
        self.stopped = 0
        self.attempts: list[int] = []

    async def __call__(self, call: Call) -> Any:
        number = len(self.at)
        takes = self.takes.pop(0) if self.takes else 1.0
        await asyncio.sleep(self.queue)
        call.attempts += 1
        self.attempts.append(call.attempts)
        self.at.append(now())
        assert call.life is not None
        pulse = call.life.sent()
        try:
            if takes is None:
                await asyncio.sleep(self.fails_after)
                raise ProviderError("down", "p", 503)
            if self.begins is not None:
                await asyncio.sleep(self.begins)
                pulse.alive()
            await asyncio.sleep(takes - (self.begins or 0))
            return number
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            pulse.ended()


def hedge(limit: int = 1000, budget: RetryBudget | None = None, **policy: Any) -> Hedge:
    return Hedge(HedgingPolicy(**{"max_ratio": 1.0, **policy}), limit=AttemptLimit(limit), budget=budget)


async def warm(policy: Hedge, seconds: float = 1.0, **server: Any) -> None:
    quick = Server(*[seconds] * 20, **server)
    for _ in range(20):
        await policy(Call(), quick)


async def begun(policy: Hedge, server: Any, call: Call | None = None) -> tuple[Any, float, Call]:
    call, began = call or Call(), now()
    before = asyncio.all_tasks()
    try:
        return await policy(call, server), now() - began, call
    finally:
        if isinstance(server, Server):
            server.at = [at - began for at in server.at]
        assert asyncio.all_tasks() == before


async def test_beside_one_that_is_slower_than_the_quantile_a_second_is_sent_and_the_first_answer_wins() -> None:
    policy, server = hedge(), Server(60, 1)
    await warm(policy)
    answer, took, call = await begun(policy, server)
    assert (answer, took, server.at, server.stopped) == (1, 2, [0, 1], 1)
    assert (server.attempts, call.attempts) == ([1, 2], 2)
    assert [kind for kind, _ in call.events] == ["hedge"]
    assert call.events[0][1] == {"provider": "p", "part": "a", "attempt": 2}


async def test_the_first_may_win_after_all_and_the_second_is_stopped() -> None:
    policy, server = hedge(), Server(1.5, 60)
    await warm(policy)
    answer, took, call = await begun(policy, server)
    assert (answer, took, server.stopped, call.attempts) == (0, 1.5, 1, 2)


async def test_one_in_time_is_not_hedged() -> None:
    policy, server = hedge(), Server(0.9)
    await warm(policy)
    _, _, call = await begun(policy, server)
    assert (server.at, call.attempts, call.events) == ([0], 1, [])


async def test_before_enough_is_known_no_call_is_hedged() -> None:
    policy, server = hedge(), Server(60)
    for _ in range(3):
        await begun(policy, Server(1))
    assert (await begun(policy, server))[1] == 60


async def test_the_time_in_a_queue_is_not_counted() -> None:
    policy, server = hedge(), Server(0.9, queue=50)
    await warm(policy, queue=50)
    await begun(policy, server)
    assert server.at == [50]


async def test_one_that_has_begun_to_answer_is_not_hedged_and_counts_with_the_time_to_its_first_byte() -> None:
    policy = hedge()
    await warm(policy, 5.0, begins=1)
    server = Server(60, begins=0.9)
    assert (await begun(policy, server))[1] == 60
    silent = Server(60, 5, begins=None)
    assert (await begun(policy, silent))[1] == 6
    assert silent.at == [0, 1]


async def test_how_long_the_first_took_to_fail_is_no_latency() -> None:
    policy, server = hedge(), Server(60, 1)
    await warm(policy)
    for _ in range(4):  # A sixth of those that are known: the quantile would be 2.
        await begun(policy, Server(None, 5, fails_after=2))
    await begun(policy, server)
    assert server.at == [0, 1]


async def test_one_that_fails_before_its_time_is_not_hedged() -> None:
    policy, server = hedge(), Server(None, 1)
    await warm(policy)
    with pytest.raises(ProviderError):
        await begun(policy, server)
    assert server.at == [0]


async def test_if_one_of_two_fails_the_other_is_waited_for() -> None:
    for server, answer in ((Server(None, 5, fails_after=2), 1), (Server(5, None), 0)):
        policy = hedge()
        await warm(policy)
        assert (await begun(policy, server))[0] == answer


async def test_if_both_fail_the_error_is_that_of_the_first() -> None:
    policy = hedge()
    await warm(policy)
    server = Server(None, None, fails_after=2)
    with pytest.raises(ProviderError):
        await begun(policy, server)
    assert server.at == [0, 1]


@pytest.mark.parametrize(
    ("policy", "call", "reason"),
    [
        (hedge(), Call(max_attempts=1), "attempts"),
        (hedge(limit=7), Call(sent=7), "attempts"),
        (hedge(limit=7), Call(sent=4, kept_for_others=3), "attempts"),
        (hedge(limit=8), Call(sent=4, kept_for_others=3), None),
        (hedge(max_ratio=0.0), Call(), None),
        (hedge(budget=RetryBudget(RetryBudgetConfig(minimum=0, ratio=0))), Call(), "retry_budget"),
    ],
    ids=[
        "max_attempts",
        "max_total_attempts",
        "kept for another model",
        "one more than is kept",
        "the one of a quiet minute",
        "retry budget",
    ],
)
async def test_a_second_is_sent_within_every_limit_only(policy: Hedge, call: Call, reason: str | None) -> None:
    await warm(policy)
    server = Server(60, 1)
    await begun(policy, server, call)
    assert len(server.at) == (1 if reason else 2)
    assert [(kind, data.get("reason")) for kind, data in call.events] == [
        ("hedge_refused" if reason else "hedge", reason)
    ]


async def test_hedges_are_a_share_of_the_calls_of_a_minute_and_one() -> None:
    """Each call is slower than all before it, so each would be hedged."""
    policy = hedge(max_ratio=0.05, busy_factor=1e9)
    await warm(policy, 0.01)
    sent, count = 0, 200
    for number in range(count):
        server = Server(0.02 * 1.003**number, 9)
        await begun(policy, server)
        sent += len(server.at) - 1
    assert sent == 0.05 * (count + 20) + 1


async def test_one_that_was_stopped_counts_as_slow_so_that_the_quantile_does_not_sink() -> None:
    """A twentieth is slow. If the stopped ones were forgotten, soon the quick ones would be hedged."""
    policy, chance = hedge(), random.Random(3)
    sent, count = 0, 2000
    for _ in range(count):
        server = Server(10.0 if chance.random() < 0.03 else chance.uniform(0.8, 1.2), chance.uniform(0.8, 1.2))
        await begun(policy, server)
        sent += len(server.at) - 1
    assert 0.03 <= sent / count <= 0.075


async def test_a_failure_says_nothing_about_latency() -> None:
    policy = hedge(min_samples=2)
    for _ in range(5):
        with pytest.raises(ProviderError):
            await begun(policy, Server(None))
    assert (await begun(policy, Server(60)))[1] == 60


async def test_a_call_that_was_answered_and_never_sent_says_nothing_about_latency() -> None:
    async def known(call: Call) -> str:
        return "known"

    policy = hedge()
    for _ in range(20):
        assert await policy(Call(), known) == "known"
    assert (await begun(policy, Server(60)))[1] == 60


async def test_each_part_of_a_provider_has_latencies_of_its_own() -> None:
    policy, server = hedge(), Server(60)
    await warm(policy)
    assert (await begun(policy, server, Call(part="another")))[1] == 60


@pytest.mark.parametrize("at", [0, 0.5, 1, 1.5, 2])
async def test_a_hedged_call_that_is_cancelled_leaves_nothing_running(at: float) -> None:
    policy, server = hedge(), Server(60, 60)
    await warm(policy)
    before = asyncio.all_tasks()
    task = asyncio.create_task(policy(Call(), server))
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert server.stopped == len(server.at)


async def test_one_that_answers_without_waiting_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def quick(call: Call) -> str:
        assert call.life is not None
        call.life.sent().ended()
        return "quick"

    policy, timers = hedge(), []
    await warm(policy)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", lambda *timer: timers.append(timer))
    assert (await begun(policy, quick))[0] == "quick"
    assert timers == []


@pytest.mark.parametrize("at", [0, 0.5, 1.5])
async def test_one_that_ignores_its_end_and_answers_has_been_paid_for(at: float) -> None:
    async def deaf(call: Call) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "just in time"
        return "never"

    policy = hedge()
    await warm(policy)
    task = asyncio.create_task(policy(Call(), deaf))
    await asyncio.sleep(0)
    await asyncio.sleep(at)
    task.cancel()
    assert await task == "just in time"


async def test_so_has_one_that_ends_its_caller_with_its_first_step() -> None:
    async def deaf(call: Call) -> str:
        task.cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "just in time"
        return "never"

    policy = hedge()
    await warm(policy)
    call = Call()
    task = asyncio.create_task(policy(call, deaf))
    assert await task == "just in time"
    assert call.life is None


async def test_one_that_calls_exit_ends_neither_the_loop_nor_another_run() -> None:
    async def leaves(call: Call) -> None:
        raise SystemExit(3)

    policy = hedge()
    await warm(policy)
    with pytest.raises(SystemExit):
        await policy(Call(), leaves)
    assert (await begun(policy, Server(1)))[0] == 0


async def test_a_silence_is_seen_through_the_hedge() -> None:
    told: list[float] = []
    policy, began = hedge(), now()
    await warm(policy)
    life = Life(10, lambda _: told.append(now() - began))
    began = now()
    await begun(policy, Server(60, 60), Call(life=life))
    assert told == [10]


@pytest.mark.parametrize(
    "fields",
    [{"quantile": 0.5}, {"quantile": 1}, {"min_samples": 1}, {"slow_factor": 0.5}, {"max_ratio": 2}, {"after": 1}],
)
def test_a_policy_that_cannot_be_used_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        HedgingPolicy(**fields)  # type: ignore[arg-type]
