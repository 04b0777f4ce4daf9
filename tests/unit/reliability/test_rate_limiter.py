"""The policy: who waits, who is woken, who is refused, and that nothing is ever left behind."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from contract.fake_call import FakeCall
from steer_llm_sdk.errors import CircuitOpen, ProviderError, QueueFull, RateLimited, WaitTooLong
from steer_llm_sdk.models.quota import Quota, RateLimitStatus
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability import CircuitBreakerConfig, CircuitBreakerManager, RateLimit
from steer_llm_sdk.reliability._pipeline import Next, compose
from steer_llm_sdk.reliability.circuit_breaker import Breaker
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.reliability.rate_limiter import RateLimiter, RateLimits
from steer_llm_sdk.testing import run_in_virtual_time

PER_SECOND = RateLimit(requests_per_minute=60)
ALONE = RateLimit(max_concurrent=1)
FREE = Amount()


@dataclass
class Call(FakeCall):
    """`what` it comes to after `takes` seconds."""

    what: Any = "answer"
    takes: float = 0.0
    sent_at: float | None = field(default=None, kw_only=True)


def now() -> float:
    return asyncio.get_running_loop().time()


async def send(call: Call) -> Any:
    call.attempts += 1
    call.sent_at = now()
    await asyncio.sleep(call.takes)
    if isinstance(call.what, BaseException):
        raise call.what
    return call.what


def limited(limit: RateLimit | dict[str, RateLimit], *, learn: bool = False) -> Next[Any, Any]:
    find: Callable[[str], RateLimit | None] = (lambda target: limit) if isinstance(limit, RateLimit) else limit.get
    return compose([RateLimiter(RateLimits(find, learn=learn))], send)


async def ends(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    return [
        end if not isinstance(end, BaseException) else type(end)
        for end in await asyncio.gather(*work, return_exceptions=True)
    ]


async def spend(go: Next[Any, Any], count: int, **fields: Any) -> None:
    for _ in range(count):
        await go(Call(**fields))


# ── who waits ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_calls_beyond_the_limit_go_one_after_the_other_as_the_bucket_fills() -> None:
    go = limited(PER_SECOND)
    calls = [Call() for _ in range(63)]
    await asyncio.gather(*(go(call) for call in calls))
    assert [call.sent_at for call in calls] == [0.0] * 60 + [pytest.approx(n) for n in (1, 2, 3)]
    assert [call.queued for call in calls[60:]] == [pytest.approx(n) for n in (1, 2, 3)]


async def test_a_target_without_a_limit_goes_at_once() -> None:
    go = limited({"other": RateLimit(requests_per_minute=1, max_queue=0)})
    await spend(go, 5)
    assert now() == 0


async def test_each_target_has_an_account_of_its_own() -> None:
    go = limited(RateLimit(requests_per_minute=1, max_queue=0))
    assert await ends(*(go(Call(target=target)) for target in "abab")) == ["answer", "answer", QueueFull, QueueFull]


async def test_tokens_are_reserved_by_estimate_and_settled_by_what_was_used() -> None:
    go = limited(RateLimit(tokens_per_minute=60))
    first, second, third = (
        Call(worst_case=Amount(n), used=Amount(used), takes=10) for n, used in ((60, 30), (40, 40), (1, 1))
    )
    await asyncio.gather(*(go(call) for call in (first, second, third)))
    # At 10 the bucket has got 10 from time and 30 back, so 40 are there at once and 1 a second later.
    assert [call.sent_at for call in (first, second, third)] == [0, 10, pytest.approx(11)]


async def test_usage_that_nobody_counted_is_charged_as_it_was_reserved() -> None:
    go = limited(RateLimit(tokens_per_minute=60))
    await go(Call(worst_case=Amount(60), used=Amount(0)))
    late = Call(worst_case=Amount(6))
    await go(late)
    assert late.sent_at == pytest.approx(6)


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (ProviderError("refused", "p", 400), 0),
        (ProviderError("down", "p", 503), 0),
        (TimeoutError(), 60),
        (ProviderError("cut", "p", usage={"total_tokens": 20}), 20),
    ],
    ids=["an answer that nobody bills", "an outage", "silence that may be billed", "known usage"],
)
async def test_a_call_that_fails_is_charged_what_it_is_known_or_may_have_used(error: Exception, wait: float) -> None:
    go = limited(RateLimit(tokens_per_minute=60))
    await ends(go(Call(error, worst_case=Amount(60))))
    late = Call(worst_case=Amount(60))
    await go(late)
    assert late.sent_at == pytest.approx(wait)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 10**400, -(10**400), 1e308])
async def test_what_is_no_count_costs_no_answer_and_leaves_the_limit_in_force(odd: Any) -> None:
    call = limited(RateLimit(tokens_per_minute=60, max_concurrent=1))
    assert await call(Call(worst_case=Amount(30), used=Amount(odd))) == "answer"
    assert await call(Call(worst_case=Amount(odd))) == "answer"
    assert await call(Call(worst_case=Amount(60))) == "answer"
    assert now() == 30


async def test_no_more_than_max_concurrent_run_at_once_and_an_error_frees_the_place() -> None:
    go = limited(RateLimit(max_concurrent=2))
    calls = [Call(ValueError(), 1.0), Call(takes=2.0), Call(takes=2.0), Call(takes=1.0)]
    await ends(*(go(call) for call in calls))
    assert [call.sent_at for call in calls] == [0, 0, 1, 2]


async def test_a_429_holds_back_everybody_until_its_delay_ends() -> None:
    go = limited(RateLimit())
    await ends(go(Call(RateLimited("slow down", "p", 429, retry_after=7.5), 1.0)))
    call, other = Call(), Call(target="q")
    await asyncio.gather(go(call), go(other))
    assert (call.sent_at, other.sent_at) == (8.5, 1.0)


async def test_a_503_and_an_exhausted_quota_hold_back_nobody() -> None:
    go = limited(RateLimit())
    await ends(go(Call(ProviderError("down", "p", 503, retry_after=9))))
    await ends(go(Call(ProviderError("no credit", "p", 402, retry_after=9))))
    assert await go(Call()) == "answer"
    assert now() == 0


async def test_one_run_is_told_that_it_waits_and_how_long() -> None:
    go = limited(RateLimit(requests_per_minute=60, max_concurrent=61))
    await spend(go, 60)
    call = Call()
    await go(call)
    assert call.events == [("rate_limited", {"provider": "p", "wait_ms": 1000.0})]


async def test_how_long_the_calls_of_others_take_is_not_guessed() -> None:
    go = limited(ALONE)
    first, call = Call(takes=5), Call()
    await asyncio.gather(go(first), go(call))
    assert first.events == []
    assert call.events == [("rate_limited", {"provider": "p", "wait_ms": None})]


async def test_a_tenant_with_many_calls_does_not_keep_one_with_few_from_his_turn() -> None:
    go = limited(ALONE)
    calls = [Call(takes=1, tenant=tenant) for tenant in ("big", "big", "big", "big", "small")]
    await asyncio.gather(*(go(call) for call in calls))
    assert [call.sent_at for call in calls] == [0, 1, 3, 4, 2]


# ── who is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_wait_beyond_the_deadline_is_refused_at_once_with_the_time_that_would_do() -> None:
    go = limited(PER_SECOND)
    await spend(go, 60)
    with pytest.raises(WaitTooLong, match="the next call may go in 1 s") as caught:
        await go(Call(deadline=Deadline(0.9, 900)))
    assert (now(), caught.value.retry_after, caught.value.target) == (0, pytest.approx(1), "p")
    assert await go(Call(deadline=Deadline(1.1, 1100))) == "answer"


async def test_a_wait_beyond_max_wait_is_refused_without_a_deadline_too() -> None:
    go = limited(RateLimit(requests_per_minute=1, max_wait=59))
    await spend(go, 1)
    assert await ends(go(Call())) == [WaitTooLong]
    assert now() == 0


async def test_who_waits_for_a_place_is_refused_when_his_time_is_up() -> None:
    go = limited(RateLimit(max_concurrent=1, max_wait=5))
    first = asyncio.create_task(go(Call(takes=60)))
    await asyncio.sleep(0)
    with pytest.raises(WaitTooLong, match="no place came free in time") as caught:
        await go(Call())
    assert (now(), caught.value.retry_after) == (5, None)
    await first


async def test_a_deadline_that_may_yet_move_ends_no_waiting() -> None:
    call = limited(ALONE)
    shared = Deadline(1.0, 1000, firm=False)
    assert await ends(call(Call(takes=5)), call(Call(deadline=shared))) == ["answer", "answer"]
    assert now() == 5
    slow = limited(PER_SECOND)
    await slow(Call())
    for _ in range(59):
        await slow(Call())
    assert await ends(slow(Call(deadline=Deadline(now() + 0.5, 500, firm=False)))) == [WaitTooLong]
    assert await ends(slow(Call())) == ["answer"]


async def test_more_than_max_queue_do_not_wait() -> None:
    go = limited(RateLimit(max_concurrent=1, max_queue=2))
    calls = [Call(takes=1) for _ in range(4)]
    assert await ends(*(go(call) for call in calls)) == ["answer", "answer", "answer", QueueFull]


async def test_a_delay_that_the_server_asks_for_refuses_at_once_those_who_wait_and_cannot_outwait_it() -> None:
    go = limited(RateLimit(max_concurrent=1, max_wait=10))
    first, second = Call(RateLimited("slow down", "p", 429, retry_after=30), 1.0), Call()
    assert await ends(go(first), go(second)) == [RateLimited, WaitTooLong]
    assert now() == 1


async def test_a_server_that_asks_for_years_is_asked_again_after_a_day() -> None:
    go = limited(RateLimit(max_wait=1e9))
    await ends(go(Call(RateLimited("slow down", "p", 429, retry_after=1e9))))
    await go(Call())
    assert now() == 86_400


# ── the breaker ──────────────────────────────────────────────────────────────────────────────────────────────────────


def behind_breaker(limit: RateLimit, **config: Any) -> tuple[Next[Any, Any], CircuitBreakerManager]:
    breakers = CircuitBreakerManager(lambda name: CircuitBreakerConfig(failure_threshold=1, **config))
    limiter = RateLimiter(RateLimits(lambda target: limit), breakers)
    return compose([limiter, Breaker(breakers)], send), breakers


async def test_an_open_breaker_is_noticed_before_queueing() -> None:
    go, _ = behind_breaker(RateLimit(requests_per_minute=1))
    assert await ends(go(Call(ProviderError("down", "p", 503)))) == [ProviderError]
    call = Call()
    assert await ends(go(call)) == [CircuitOpen]
    assert (now(), call.events, call.sent_at) == (0, [], None)


async def test_a_breaker_that_opens_sends_away_those_who_wait() -> None:
    go, _ = behind_breaker(RateLimit(max_concurrent=1))
    down = Call(ProviderError("down", "p", 503), takes=2)
    waiting = [Call(takes=5) for _ in range(3)]
    assert await ends(go(down), *(go(call) for call in waiting)) == [ProviderError, *[CircuitOpen] * 3]
    assert now() == 2
    assert [call.attempts for call in waiting] == [0, 0, 0]


async def test_those_whose_turn_is_far_off_are_sent_away_by_it_too() -> None:
    go, _ = behind_breaker(RateLimit(requests_per_minute=2))
    down = Call(ProviderError("down", "p", 503), takes=2)
    waiting = [Call() for _ in range(2)]
    assert await ends(go(down), go(Call(takes=0)), *(go(call) for call in waiting)) == [
        ProviderError,
        "answer",
        *[CircuitOpen] * 2,
    ]
    assert now() == 2


async def test_the_part_that_an_open_breaker_would_admit_keeps_waiting() -> None:
    go, _ = behind_breaker(RateLimit(max_concurrent=1))
    down = Call(ProviderError("down", "p", 503), takes=2, part="x")
    assert await ends(go(down), go(Call(part="x")), go(Call(part="y"))) == [ProviderError, CircuitOpen, "answer"]


async def test_a_call_that_the_breaker_refuses_gives_back_what_it_took() -> None:
    go, _ = behind_breaker(RateLimit(requests_per_minute=3, tokens_per_minute=60), timeout=1)
    await ends(go(Call(ProviderError("down", "p", 503), part="x", worst_case=Amount(20))))
    refused = [Call(part="x", worst_case=Amount(20)) for _ in range(9)]
    assert await ends(*(go(call) for call in refused)) == [CircuitOpen] * 9
    await asyncio.sleep(1)
    await asyncio.gather(*(go(Call(part="x", worst_case=Amount(20))) for _ in range(2)))
    assert now() == 1


# ── what the provider says ───────────────────────────────────────────────────────────────────────────────────────────


def saying(remaining: float, limit: float = 60, at: float = 0.0) -> RateLimitStatus:
    return RateLimitStatus(at, requests=Quota(limit, remaining, None))


async def test_a_limit_is_learned_from_an_answer_for_its_model_only() -> None:
    go = limited(RateLimit(), learn=True)
    await go(Call(model="m", status=saying(1)))
    calls = [Call(model="m"), Call(model="m"), Call(model="n")]
    await asyncio.gather(*(go(call) for call in calls))
    assert [call.sent_at for call in calls] == [0, pytest.approx(1), 0]


async def test_a_limit_is_learned_from_an_error_too() -> None:
    go = limited(RateLimit(), learn=True)
    await ends(go(Call(RateLimited("slow down", "p", 429), status=saying(0))))
    call = Call()
    await go(call)
    assert call.sent_at == pytest.approx(1)


async def test_without_learning_what_answers_say_changes_nothing() -> None:
    go = limited(PER_SECOND)
    await go(Call(status=saying(0)))
    await go(Call())
    assert now() == 0


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def nothing_is_left(go: Next[Any, Any], places: int) -> None:
    """All places are free, and no wake-up was lost: so many run at once, at once."""
    calls = [Call(takes=1) for _ in range(places)]
    began = now()
    await asyncio.gather(*(go(call) for call in calls))
    assert [call.sent_at for call in calls] == [began] * places


async def test_one_who_is_cancelled_while_he_waits_leaves_the_queue() -> None:
    go = limited(ALONE)
    first, second, third = (asyncio.create_task(go(Call(takes=1))) for _ in range(3))
    await asyncio.sleep(0.5)
    second.cancel()
    await third
    assert now() == 2
    assert (first.done(), second.cancelled()) == (True, True)
    await nothing_is_left(go, 1)


async def test_one_who_is_cancelled_in_the_moment_of_his_turn_hands_it_on() -> None:
    go = limited(ALONE)
    first, second, third = (asyncio.create_task(go(Call(takes=1))) for _ in range(3))
    await first
    second.cancel()
    await third
    assert (second.cancelled(), now()) == (True, 2)
    await nothing_is_left(go, 1)


async def test_a_call_that_is_cancelled_frees_its_place_and_is_charged_its_estimate() -> None:
    go = limited(RateLimit(max_concurrent=1, tokens_per_minute=60))
    first = asyncio.create_task(go(Call(takes=60, worst_case=Amount(60))))
    await asyncio.sleep(0)
    first.cancel()
    call = Call(worst_case=Amount(6), used=Amount(6))
    await asyncio.gather(first, go(call), return_exceptions=True)
    assert call.sent_at == pytest.approx(6)


@pytest.mark.parametrize("seed", range(60))
def test_under_any_schedule_of_cancellations_everybody_else_goes_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    limit = RateLimit(
        max_concurrent=chance.choice([1, 2, 3]),
        requests_per_minute=chance.choice([None, 30, 600]),
        tokens_per_minute=chance.choice([None, 600]),
        max_wait=1e6,
    )

    async def play() -> None:
        go = limited(limit)
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(60):
            call = Call(
                chance.choice(["answer", "answer", ProviderError("down", "p", 503)]),
                takes=chance.choice([0.0, 0.5, 1.0]),
                tenant=chance.choice("ab"),
                worst_case=Amount(chance.randrange(50)),
                used=Amount(chance.randrange(50)),
            )
            tasks.append(asyncio.create_task(go(call)))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.25]))
            for task in chance.sample(tasks, min(len(tasks), chance.randrange(3))):
                task.cancel()
        async with asyncio.timeout(36_000):
            await asyncio.wait(tasks)
        await asyncio.sleep(3600)
        await nothing_is_left(go, limit.max_concurrent or 1)

    run_in_virtual_time(play())


# ── several loops ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real_time
def test_calls_on_the_loops_of_several_threads_share_one_limit_and_wake_each_other() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    async def work(call: Call) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        await asyncio.sleep(0.002)
        with lock:
            running -= 1
        return "answer"

    go = compose([RateLimiter(RateLimits(lambda target: RateLimit(max_concurrent=2)))], work)
    answers: list[str] = []

    def thread() -> None:
        async def many() -> list[str]:
            return await asyncio.gather(*(go(Call()) for _ in range(20)))

        answers.extend(asyncio.run(many()))

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert (answers, most) == (["answer"] * 80, 2)


@pytest.mark.real_time
def test_one_whose_loop_was_closed_while_he_waited_does_not_keep_the_place() -> None:
    go = limited(ALONE)
    dead = asyncio.new_event_loop()
    kept = []

    async def hold_and_wait() -> None:
        kept.append(asyncio.ensure_future(go(Call(takes=0.01))))
        kept.append(asyncio.ensure_future(go(Call())))
        await asyncio.sleep(0)

    async def main() -> list[Any]:
        first = asyncio.ensure_future(go(Call(takes=0.05)))
        await asyncio.sleep(0)
        loop_of_its_own = threading.Thread(target=dead.run_until_complete, args=(hold_and_wait(),))
        loop_of_its_own.start()
        loop_of_its_own.join()
        dead.close()
        return await asyncio.gather(first, asyncio.wait_for(go(Call()), 5))

    assert asyncio.run(main()) == ["answer", "answer"]
    for task in kept:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
