"""The account of a rate limit: buckets and queue as values, moved by pure functions."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_llm_sdk.models.quota import Quota, RateLimitStatus
from steer_llm_sdk.reliability import RateLimit
from steer_llm_sdk.reliability.rate_limit import (
    Bucket,
    Line,
    Queued,
    Refusal,
    State,
    Waiter,
    admit,
    advance,
    block,
    due_at,
    enqueue,
    finish,
    heed,
    wake_at,
    withdraw,
)

SLACK = 1e-6
ONE_A_SECOND = RateLimit(requests_per_minute=60)


def drained(limit: RateLimit, now: float = 0.0) -> State:
    """All requests of the first minute taken, and given nothing back."""
    state = State.of(limit)
    while (taken := admit(state, 0.0, now)) is not None:
        state = finish(taken, 0.0, 0.0, True)
    return state


def queued(state: State, tenant: str = "t", tokens: float = 0.0, latest: float = math.inf, now: float = 0.0) -> State:
    state, answer = enqueue(state, tenant, tokens, latest, now, RateLimit())
    assert isinstance(answer, Queued)
    return state


# ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("taken", "after", "level"),
    [(0, 0, 60), (10, 0, 50), (60, 0, 0), (60, 15, 15), (60, 600, 60), (90, 0, -30), (90, 30, 0), (90, 45, 15)],
)
def test_a_bucket_fills_evenly_up_to_its_capacity_and_can_owe(taken: float, after: float, level: float) -> None:
    bucket = Bucket(60, 1.0).less(taken, 100.0)
    assert bucket.level(100.0 + after) == pytest.approx(level)


@pytest.mark.parametrize(
    ("level", "amount", "wait"), [(60, 60, 0), (10, 5, 0), (10, 11, 1), (0, 1, 1), (-30, 1, 31), (0, 100, 60)]
)
def test_an_amount_is_there_when_the_bucket_has_filled_so_far_and_one_that_never_fits_when_it_is_full(
    level: float, amount: float, wait: float
) -> None:
    bucket = Bucket(60, 1.0).at_level(level, 100.0)
    assert max(0.0, bucket.ready_at(amount, 100.0) - 100.0) == pytest.approx(wait)


def test_what_comes_back_to_a_full_bucket_runs_over() -> None:
    assert Bucket(60, 1.0).less(10, 0.0).plus(50).level(0.0) == 60


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_minutes_worth_of_requests_may_go_at_once_and_then_one_whenever_one_is_there_again() -> None:
    state = drained(ONE_A_SECOND)
    assert state.requests is not None
    assert state.requests.level(0.0) == pytest.approx(0)
    assert admit(state, 0.0, 0.9) is None
    assert admit(state, 0.0, 1.0) is not None


@pytest.mark.parametrize(
    ("used", "sent", "level"),
    [(100, True, 900), (40, True, 960), (0, True, 1000), (400, True, 600), (100, False, 1000)],
    ids=["as reserved", "less", "nothing", "more", "never sent"],
)
def test_a_reservation_becomes_what_was_used(used: float, sent: bool, level: float) -> None:
    state = admit(State.of(RateLimit(tokens_per_minute=1000, requests_per_minute=10)), 100.0, 0.0)
    assert state is not None
    assert state.tokens is not None
    assert (state.tokens.level(0.0), state.reserved) == (pytest.approx(900), 100)
    state = finish(state, 100.0, used, sent)
    assert state.tokens is not None
    assert state.requests is not None
    assert (state.tokens.level(0.0), state.reserved, state.running) == (pytest.approx(level), 0, 0)
    assert state.requests.level(0.0) == pytest.approx(9 if sent else 10)


def test_a_call_that_is_larger_than_the_limit_goes_when_the_bucket_is_full_and_the_rest_is_owed() -> None:
    state = admit(State.of(RateLimit(tokens_per_minute=60)), 90.0, 0.0)
    assert state is not None
    assert admit(state, 1.0, 30.9) is None
    assert admit(state, 1.0, 31.0) is not None


def test_no_more_calls_run_than_there_are_places() -> None:
    state = State.of(RateLimit(max_concurrent=2))
    for _ in range(2):
        taken = admit(state, 0.0, 0.0)
        assert taken is not None
        state = taken
    assert admit(state, 0.0, 1e9) is None
    assert admit(finish(state, 0.0, 0.0, True), 0.0, 0.0) is not None


def test_nothing_is_admitted_before_the_servers_delay_ends_and_a_shorter_one_does_not_end_it() -> None:
    state = block(block(State(), 30.0), 10.0)
    assert admit(state, 0.0, 29.9) is None
    assert admit(state, 0.0, 30.0) is not None


# ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_overtakes_one_who_waits() -> None:
    state = State.of(RateLimit(tokens_per_minute=60)).tokens
    assert state is not None
    held = State(tokens=state.at_level(10, 0.0))
    held = queued(held, tokens=20.0)
    assert admit(held, 1.0, 0.0) is None


def test_tenants_take_turns_and_each_goes_in_order_of_arrival() -> None:
    state = drained(ONE_A_SECOND)
    for tenant in ("a", "a", "a", "b", "a", "b", "c"):
        state = queued(state, tenant)
    order = advance(state, 60.0).granted
    assert [waiter.tenant for waiter in order] == ["a", "b", "c", "a", "b", "a", "a"]
    for tenant in "abc":
        serials = [waiter.serial for waiter in order if waiter.tenant == tenant]
        assert serials == sorted(serials)


@pytest.mark.parametrize(("ahead", "latest", "wait"), [(0, 1.0, None), (0, 0.9, 1.0), (4, 5.0, None), (4, 4.9, 5.0)])
def test_a_wait_that_would_end_after_the_latest_time_is_refused_at_once(
    ahead: int, latest: float, wait: float | None
) -> None:
    state = drained(ONE_A_SECOND)
    for _ in range(ahead):
        state = queued(state)
    _, answer = enqueue(state, "t", 0.0, latest, 0.0, RateLimit())
    if wait is None:
        assert isinstance(answer, Queued)
    else:
        assert answer == Refusal(False, pytest.approx(wait))


def test_one_who_comes_later_has_no_claim_on_turns_that_are_over() -> None:
    state = drained(ONE_A_SECOND)
    for _ in range(4):
        state = queued(state, "a")
    state = advance(state, 2.0).state
    for _ in range(3):
        state = queued(state, "b", now=2.0)
    assert [waiter.tenant for waiter in advance(state, 60.0).granted] == ["a", "b", "a", "b", "b"]


def test_those_ahead_count_with_their_tokens() -> None:
    bucket = Bucket(60, 1.0).at_level(0.0, 0.0)
    state = queued(queued(State(tokens=bucket), "a", 10.0), "a", 20.0)
    _, last = enqueue(state, "a", 5.0, math.inf, 0.0, RateLimit())
    assert isinstance(last, Queued)
    assert last.due == pytest.approx(35)
    _, in_turn = enqueue(state, "b", 5.0, math.inf, 0.0, RateLimit())
    assert isinstance(in_turn, Queued)
    assert in_turn.due == pytest.approx(15)


def test_a_queue_that_is_full_lets_nobody_in() -> None:
    state = queued(queued(drained(ONE_A_SECOND)))
    same, answer = enqueue(state, "t", 0.0, math.inf, 0.0, RateLimit(max_queue=2))
    assert answer == Refusal(True, pytest.approx(3))
    assert same is state


def test_who_waits_for_a_place_is_sent_away_at_his_latest_time_and_not_before() -> None:
    state = admit(State.of(RateLimit(max_concurrent=1)), 0.0, 0.0)
    assert state is not None
    state = queued(queued(state, latest=9.0), latest=5.0)
    assert wake_at(state, 0.0) == 5.0
    assert advance(state, 4.9).refused == ()
    moved = advance(state, 5.0)
    assert [waiter.latest for waiter in moved.refused] == [5.0]
    assert wake_at(moved.state, 5.0) == 9.0


def test_a_delay_of_the_server_sends_away_at_once_who_cannot_outwait_it() -> None:
    state = queued(queued(drained(ONE_A_SECOND), latest=20.0), latest=40.0)
    moved = advance(block(state, 30.0), 0.0)
    assert [waiter.latest for waiter in moved.refused] == [20.0]
    assert wake_at(moved.state, 0.0) == 30.0


def test_when_one_leaves_the_next_is_first() -> None:
    bucket = Bucket(60, 1.0).at_level(10.0, 0.0)
    state = queued(queued(State(tokens=bucket), tokens=50.0), tokens=5.0)
    assert advance(state, 0.0).granted == ()
    assert [waiter.tokens for waiter in advance(withdraw(state, 1), 0.0).granted] == [5.0]
    assert withdraw(state, 99) is state


# ── what the provider says ───────────────────────────────────────────────────────────────────────────────────────────


def told(limit: float, remaining: float, reset: float | None = None, at: float = 0.0) -> RateLimitStatus:
    return RateLimitStatus(at, requests=Quota(limit, remaining, reset))


def requests_after(state: State, status: RateLimitStatus, now: float) -> Bucket:
    bucket = heed(state, status, now).requests
    assert bucket is not None
    return bucket


def test_an_account_is_opened_with_what_the_provider_says_less_what_it_may_not_have_seen() -> None:
    bucket = requests_after(State(running=10), told(60, 40), 0.0)
    assert (bucket.capacity, bucket.per_second, bucket.level(0.0)) == (60, 1.0, pytest.approx(30))


@pytest.mark.parametrize(
    ("own", "running", "remaining", "level"),
    [(50, 0, 10, 10), (5, 0, 10, 10), (5, 10, 10, 5), (0, 4, 10, 6), (9, 4, 10, 9)],
    ids=["others use it too", "own was too strict", "own is within", "raised to the least", "own is within, below"],
)
def test_the_own_account_is_held_between_what_is_left_with_and_without_the_calls_under_way(
    own: float, running: int, remaining: float, level: float
) -> None:
    state = State(requests=Bucket(60, 1.0).at_level(own, 0.0), running=running)
    assert requests_after(state, told(60, remaining), 0.0).level(0.0) == pytest.approx(level)


def test_what_was_said_when_a_long_answer_began_has_grown_since() -> None:
    assert requests_after(State(), told(60, 0, at=0.0), 20.0).level(20.0) == pytest.approx(20)


def test_what_an_earlier_answer_said_is_not_news() -> None:
    state = heed(State(), told(60, 10, at=5.0), 5.0)
    assert heed(state, told(60, 50, at=4.0), 6.0) is state


def test_a_limit_per_day_fills_as_slowly_as_the_provider_says() -> None:
    bucket = requests_after(State(), told(200, 199, reset=432.0), 0.0)
    assert bucket.per_second == pytest.approx(200 / 86_400)
    assert requests_after(State(), told(200, 200, reset=432.0), 0.0).per_second == pytest.approx(200 / 60)


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Model:
    """Drives the reducer as the thin part does, and keeps an account of its own."""

    limit: RateLimit
    state: State = field(init=False)
    now: float = 0.0
    running: list[tuple[float, int]] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)
    went: list[tuple[float, float]] = field(default_factory=list)
    order: list[tuple[str, int]] = field(default_factory=list)
    ended: int = 0
    owed: float = 0.0

    def __post_init__(self) -> None:
        self.state = State.of(self.limit)

    def arrive(self, tenant: str, tokens: float, patience: float) -> None:
        taken = admit(self.state, tokens, self.now)
        if taken is not None:
            assert not self.waiting
            self.state = taken
            self._go(tokens)
            return
        self.state, answer = enqueue(self.state, tenant, tokens, self.now + patience, self.now, self.limit)
        if isinstance(answer, Queued):
            self.waiting[answer.waiter.serial] = tokens
        self.pump()

    def end(self, which: int, share: float, sent: bool) -> None:
        if self.running:
            tokens, index = self.running.pop(which % len(self.running))
            used = tokens * share if sent else 0.0
            # A refund belongs to when it was taken; what was taken in that minute is then less.
            self.went[index] = (self.went[index][0], used)
            self.state = finish(self.state, tokens, used, sent)
            self.pump()

    def leave(self, which: int) -> None:
        if self.waiting:
            serial = list(self.waiting)[which % len(self.waiting)]
            del self.waiting[serial]
            self.state = withdraw(self.state, serial)
            self.pump()

    def pass_time(self, seconds: float) -> None:
        """As the one timer does: whenever it is due, however often that is."""
        end = self.now + seconds
        for _ in range(10_000):
            at = wake_at(self.state, self.now)
            if at > end:
                break
            self.now = max(self.now, at)
            self.pump()
        else:
            raise AssertionError("the timer never comes to rest")
        self.now = end

    def pump(self) -> None:
        self.state, granted, refused = advance(self.state, self.now)
        for waiter in granted:
            del self.waiting[waiter.serial]
            self.order.append((waiter.tenant, waiter.serial))
            self._go(waiter.tokens)
        for waiter in refused:
            assert waiter.latest <= max(self.now, self.state.blocked_until)
            del self.waiting[waiter.serial]

    def _go(self, tokens: float) -> None:
        self.running.append((tokens, len(self.went)))
        self.went.append((self.now, tokens))

    def check(self) -> None:
        state, limit = self.state, self.limit
        assert state.running == len(self.running)
        assert limit.max_concurrent is None or state.running <= limit.max_concurrent
        assert state.reserved == pytest.approx(math.fsum(tokens for tokens, _ in self.running), abs=SLACK)
        assert {waiter.serial for waiter in state.line.waiters} == set(self.waiting)
        assert len(state.line.waiters) <= limit.max_queue
        assert state.line.tokens == pytest.approx(math.fsum(self.waiting.values()), abs=SLACK)
        assert list(state.line.waiters) == sorted(state.line.waiters)
        if state.line.waiters and state.running == 0:
            assert wake_at(state, self.now) < math.inf, "somebody waits, nobody runs, and no timer is set"


LIMITS = st.builds(
    RateLimit,
    requests_per_minute=st.none() | st.sampled_from([3.0, 60.0, 600.0]),
    tokens_per_minute=st.none() | st.sampled_from([100.0, 1000.0]),
    max_concurrent=st.none() | st.integers(1, 4),
    max_queue=st.integers(0, 8),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from("abc"), st.floats(0, 100), st.sampled_from([0.5, 30.0, 1e6])),
        st.tuples(st.just("end"), st.integers(0, 9), st.floats(0, 1), st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("pass_time"), st.floats(0, 40)),
    ),
    max_size=60,
)


def played(limit: RateLimit, steps: list[tuple[Any, ...]]) -> Model:
    model = Model(limit)
    for name, *given_ in steps:
        getattr(model, name)(*given_)
        model.check()
    return model


@given(LIMITS, STEPS)
@settings(max_examples=300)
def test_the_account_agrees_with_what_runs_and_waits_after_every_event(
    limit: RateLimit, steps: list[tuple[Any, ...]]
) -> None:
    played(limit, steps)


@given(LIMITS, STEPS)
@settings(max_examples=300)
def test_in_no_minute_more_goes_than_a_full_bucket_and_what_fills_it_meanwhile(
    limit: RateLimit, steps: list[tuple[Any, ...]]
) -> None:
    """A full bucket at its begin and a minute's fill: with settlement by what was used, never by less than that."""
    went = played(limit, [step for step in steps if step[0] != "end" or step[3]]).went
    for index, (begin, _) in enumerate(went):
        minute = [tokens for at, tokens in went[index:] if at < begin + 60]
        if limit.requests_per_minute is not None:
            assert len(minute) <= 2 * limit.requests_per_minute + SLACK
        if limit.tokens_per_minute is not None:
            assert math.fsum(minute) <= 2 * limit.tokens_per_minute + SLACK


@given(st.lists(st.floats(1, 100), min_size=1, max_size=40), st.floats(100, 1000))
def test_over_any_time_what_goes_is_what_the_limit_gives(sizes: list[float], per_minute: float) -> None:
    """The long run: from an empty bucket all of a queue goes in exactly the time that its tokens take to come in."""
    model = Model(RateLimit(tokens_per_minute=per_minute, max_queue=100))
    assert model.state.tokens is not None
    model.state = model.state._replace(tokens=model.state.tokens.at_level(0.0, 0.0))
    for size in sizes:
        model.arrive("t", size, 1e9)
    model.pass_time(1e5)
    assert model.waiting == {}
    assert model.went[-1][0] == pytest.approx(math.fsum(sizes) / per_minute * 60)
    assert [tokens for _, tokens in model.went] == sizes


@given(LIMITS, STEPS)
@settings(max_examples=200)
def test_whoever_is_patient_goes_in_the_end_and_each_tenants_in_order(
    limit: RateLimit, steps: list[tuple[Any, ...]]
) -> None:
    patient = [("arrive", step[1], step[2], 1e12) if step[0] == "arrive" else step for step in steps]
    model = played(limit, patient)
    for _ in range(200):
        if not model.waiting:
            break
        while model.running:
            model.end(0, 1.0, True)
        model.pass_time(60.0)
    assert model.waiting == {}
    for tenant in "abc":
        serials = [serial for other, serial in model.order if other == tenant]
        assert all(one < other for one, other in pairwise(serials))


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_the_queue_is_round_robin(tenants: list[str]) -> None:
    """Against the plain way to do it: one queue for each tenant, visited in turn."""
    state = drained(RateLimit(requests_per_minute=1e-3, max_queue=100))
    for tenant in tenants:
        state = queued(state, tenant)
    order = [waiter.tenant for waiter in state.line.waiters]
    queues = {tenant: deque([tenant] * tenants.count(tenant)) for tenant in dict.fromkeys(tenants)}
    expected = []
    while any(queues.values()):
        expected += [queue.popleft() for queue in queues.values() if queue]
    assert sorted(order) == sorted(expected)
    for round_ in range(max(tenants.count(tenant) for tenant in set(tenants))):
        first = sum(min(round_, tenants.count(tenant)) for tenant in set(tenants))
        last = sum(min(round_ + 1, tenants.count(tenant)) for tenant in set(tenants))
        assert sorted(order[first:last]) == sorted(expected[first:last])


# ── every move, field by field ───────────────────────────────────────────────────────────────────────────────────────

TWO_A_SECOND = Bucket(120, 2.0, 100.0)
FIRST, SECOND, THIRD = Waiter(1, 1, "t", 10.0, 200.0), Waiter(1, 2, "u", 20.0, 150.0), Waiter(2, 3, "t", 30.0)
WAITING = State(
    requests=Bucket(60, 1.0, 100.0),
    tokens=TWO_A_SECOND,
    max_concurrent=5,
    running=2,
    reserved=40.0,
    blocked_until=90.0,
    heard_at=7.0,
    line=Line((FIRST, SECOND, THIRD), 0, 3, 60.0, 150.0),
)
FREE = WAITING._replace(line=Line(serial=3, round=1))


def test_a_bucket_in_numbers() -> None:
    bucket = TWO_A_SECOND
    assert (Bucket.per_minute(None), Bucket.per_minute(120)) == (None, Bucket(120, 2.0, -math.inf))
    assert [bucket.level(now) for now in (90, 110, 160, 1000)] == [-20, 20, 120, 120]
    assert bucket.at_level(60, 10) == Bucket(120, 2.0, -20.0)
    assert [bucket.since(now) for now in (110, 160, 200)] == [100, 100, 140]
    assert [bucket.ready_at(amount, 110) for amount in (20, 120, 500)] == [110, 160, 160]
    assert [bucket.ready_at(20, 110, 40), bucket.ready_at(20, 200)] == [130, 150]
    assert bucket.less(20, 110) == Bucket(120, 2.0, 110.0)
    assert bucket.less(20.1, 110) is None
    assert bucket.less(20, 200) == Bucket(120, 2.0, 150.0)
    assert (bucket.less(240, 160), bucket.less(240, 159.9)) == (Bucket(120, 2.0, 220.0), None)
    assert (bucket.less(20 + 1e-9, 110) is None, bucket.less(20 + 1e-7, 110) is None) == (False, True)
    assert Bucket(10, 1.0, 0.0).less(1e-9, 0.0) == Bucket(10, 1.0, 1e-9), "a timer may be so early"
    assert bucket.plus(10) == Bucket(120, 2.0, 95.0)


def test_a_state_has_the_buckets_and_places_of_its_limit() -> None:
    limit = RateLimit(requests_per_minute=60, tokens_per_minute=120, max_concurrent=4)
    assert State.of(limit) == State(Bucket(60, 1.0), Bucket(120, 2.0), 4)
    assert State.of(RateLimit()) == State()


def test_what_is_admitted_takes_a_request_its_tokens_and_a_place() -> None:
    after = FREE._replace(requests=Bucket(60, 1.0, 101.0), tokens=Bucket(120, 2.0, 105.0), running=3, reserved=50.0)
    assert admit(FREE, 10.0, 105.0) == after
    assert admit(FREE, 10.0, 104.9) is None
    assert admit(WAITING, 10.0, 105.0) is None
    assert admit(FREE._replace(running=5), 10.0, 105.0) is None
    assert admit(FREE._replace(running=5, max_concurrent=None), 10.0, 105.0) is not None
    assert admit(FREE._replace(blocked_until=105.1), 10.0, 105.0) is None
    assert admit(FREE._replace(tokens=None), 0.0, 100.9) is None
    assert admit(State(), 3.0, 0.0) == State(running=1, reserved=3.0)


@pytest.mark.parametrize(
    ("waiter", "place", "changes", "due"),
    [
        (FIRST, 0, {}, 105),
        (SECOND, 1, {}, 115),
        (THIRD, 2, {}, 130),
        (Waiter(3, 4, "t", 40.0), 3, {}, 150),
        (FIRST, 0, {"blocked_until": 140.0}, 140),
        (FIRST, 0, {"requests": Bucket(60, 1.0, 150.0)}, 151),
        (THIRD, 2, {"tokens": None}, 103),
        (THIRD, 2, {"tokens": None, "requests": None}, 100),
        (THIRD, 2, {"requests": None}, 130),
    ],
)
def test_when_one_at_a_place_of_the_queue_goes(waiter: Waiter, place: int, changes: dict[str, Any], due: float) -> None:
    assert due_at(WAITING._replace(**changes), waiter, place, 100.0) == due


@pytest.mark.parametrize(
    ("tenant", "latest", "round_", "place", "waiter", "due"),
    [
        ("u", 160.0, 0, 3, Waiter(2, 4, "u", 40.0, 160.0), 150),
        ("u", 150.0, 0, 3, Waiter(2, 4, "u", 40.0, 150.0), 150),
        ("v", 140.0, 0, 2, Waiter(1, 4, "v", 40.0, 140.0), 135),
        ("t", math.inf, 0, 3, Waiter(3, 4, "t", 40.0, math.inf), 150),
        ("v", 160.0, 5, 3, Waiter(6, 4, "v", 40.0, 160.0), 150),
    ],
)
def test_a_place_in_the_queue_is_that_of_the_next_turn(
    tenant: str, latest: float, round_: int, place: int, waiter: Waiter, due: float
) -> None:
    state = WAITING._replace(line=WAITING.line._replace(round=round_))
    waiters = [FIRST, SECOND, THIRD]
    waiters.insert(place, waiter)
    longer = Line(tuple(waiters), round_, 4, 100.0, min(150.0, latest))
    assert enqueue(state, tenant, 40.0, latest, 100.0, RateLimit()) == (
        state._replace(line=longer),
        Queued(waiter, due),
    )


def test_a_refusal_says_when_there_would_be_room() -> None:
    assert enqueue(WAITING, "u", 40.0, 149.9, 100.0, RateLimit()) == (WAITING, Refusal(False, 50.0))
    assert enqueue(WAITING, "u", 40.0, 149.9, 100.0, RateLimit(max_queue=3)) == (WAITING, Refusal(True, 50.0))
    assert isinstance(enqueue(WAITING, "u", 40.0, 150.0, 100.0, RateLimit(max_queue=4))[1], Queued)
    full = State(max_concurrent=1, running=1)
    assert enqueue(full, "u", 40.0, 150.0, 100.0, RateLimit(max_queue=0)) == (full, Refusal(True, None))
    assert enqueue(State(), "u", 0.0, 0.0, 0.0, RateLimit())[1] == Queued(Waiter(1, 1, "u", 0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("used", "sent", "requests", "tokens"),
    [(4.0, True, 100, 97), (10.0, True, 100, 100), (14.0, True, 100, 102), (4.0, False, 99, 95)],
)
def test_what_has_ended_gives_back_what_it_did_not_use(used: float, sent: bool, requests: float, tokens: float) -> None:
    assert finish(WAITING, 10.0, used, sent) == WAITING._replace(
        requests=Bucket(60, 1.0, requests), tokens=Bucket(120, 2.0, tokens), running=1, reserved=30.0
    )
    assert finish(State(running=2, reserved=10.0), 10.0, used, sent) == State(running=1)


@pytest.mark.parametrize(
    ("serial", "waiters", "tokens"), [(1, (SECOND, THIRD), 50), (2, (FIRST, THIRD), 40), (3, (FIRST, SECOND), 30)]
)
def test_one_who_leaves_takes_his_tokens_along(serial: int, waiters: tuple[Waiter, ...], tokens: float) -> None:
    assert withdraw(WAITING, serial) == WAITING._replace(line=Line(waiters, 0, 3, tokens, 150.0))
    assert withdraw(WAITING, 4) is WAITING
    alone = WAITING._replace(line=Line((FIRST,), 2, 3, 10.0, 200.0))
    assert withdraw(alone, 1) == WAITING._replace(line=Line(serial=3))


@pytest.mark.parametrize(
    ("known", "told", "under_way", "age", "learned"),
    [
        (None, None, 2.0, 0.0, None),
        (TWO_A_SECOND, None, 2.0, 0.0, TWO_A_SECOND),
        (None, Quota(60, 30), 2.0, 0.0, Bucket(60, 1.0, 172.0)),
        (None, Quota(60, 30), 2.0, 4.0, Bucket(60, 1.0, 168.0)),
        (None, Quota(120, 30), 2.0, 4.0, Bucket(120, 2.0, 182.0)),
        (None, Quota(60, 58), 2.0, 4.0, Bucket(60, 1.0, 142.0)),
        (Bucket(60, 1.0, 171.0), Quota(60, 30), 2.0, 0.0, Bucket(60, 1.0, 171.0)),
        (Bucket(60, 1.0, 199.0), Quota(60, 30), 2.0, 0.0, Bucket(60, 1.0, 172.0)),
        (Bucket(60, 1.0, 150.0), Quota(60, 30), 2.0, 0.0, Bucket(60, 1.0, 170.0)),
        (None, Quota(100, 40, 600.0), 0.0, 0.0, Bucket(100, 0.1, -200.0)),
        (None, Quota(60, 30, 60.0), 0.0, 0.0, Bucket(60, 1.0, 170.0)),
        (None, Quota(60, 60, 600.0), 0.0, 0.0, Bucket(60, 1.0, 140.0)),
        (None, Quota(60, 30, 30.0), 0.0, 0.0, Bucket(60, 1.0, 170.0)),
        (None, Quota(60, 59, 61.0), 0.0, 0.0, Bucket(60, 1 / 61, pytest.approx(200 - 59 * 61))),
    ],
)
def test_what_is_learned_lies_between_what_is_left_with_and_without_the_calls_under_way(
    known: Bucket | None, told: Quota | None, under_way: float, age: float, learned: Bucket | None
) -> None:
    state = State(requests=known, running=int(under_way), heard_at=1.0)
    after = heed(state, RateLimitStatus(200.0 - age, told), 200.0)
    assert after == state._replace(requests=learned, heard_at=200.0 - age)
    state = State(tokens=known, reserved=under_way)
    assert heed(state, RateLimitStatus(200.0 - age, None, told), 200.0) == state._replace(
        tokens=learned, heard_at=200.0 - age
    )


def test_only_what_is_newer_is_news_and_it_cannot_come_from_the_future() -> None:
    state = State(heard_at=5.0)
    assert heed(state, RateLimitStatus(5.0, Quota(60, 30)), 10.0) is state
    assert heed(state, RateLimitStatus(12.0, Quota(60, 30)), 10.0).requests == Bucket(60, 1.0, -20.0)


@pytest.mark.parametrize(
    ("now", "changes", "granted", "refused", "line"),
    [
        (104.9, {}, (), (), WAITING.line),
        (105.0, {}, (FIRST,), (), Line((SECOND, THIRD), 1, 3, 50.0, 150.0)),
        (115.0, {}, (FIRST, SECOND), (), Line((THIRD,), 1, 3, 30.0, 150.0)),
        (130.0, {}, (FIRST, SECOND, THIRD), (), Line(serial=3)),
        (130.0, {"max_concurrent": 3}, (FIRST,), (), Line((SECOND, THIRD), 1, 3, 50.0, 150.0)),
        (150.0, {"max_concurrent": 2}, (), (SECOND,), Line((FIRST, THIRD), 0, 3, 40.0, 200.0)),
        (149.9, {"max_concurrent": 2}, (), (), WAITING.line),
        (200.0, {"max_concurrent": 2}, (), (FIRST, SECOND), Line((THIRD,), 0, 3, 30.0, math.inf)),
        (150.0, {"max_concurrent": 3}, (FIRST,), (SECOND,), Line((THIRD,), 1, 3, 30.0, math.inf)),
        (110.0, {"blocked_until": 110.1}, (), (), WAITING.line),
        (110.0, {"blocked_until": 150.0}, (), (SECOND,), Line((FIRST, THIRD), 0, 3, 40.0, 200.0)),
        (110.0, {"blocked_until": 110.0}, (FIRST,), (), Line((SECOND, THIRD), 1, 3, 50.0, 150.0)),
    ],
)
def test_who_may_go_and_who_must_leave(
    now: float, changes: dict[str, Any], granted: tuple[Waiter, ...], refused: tuple[Waiter, ...], line: Line
) -> None:
    before = WAITING._replace(**changes)
    spent = sum(each.tokens for each in granted)
    after = before._replace(
        requests=Bucket(60, 1.0, 100.0 + len(granted)),
        tokens=Bucket(120, 2.0, 100.0 + spent / 2),
        running=2 + len(granted),
        reserved=40.0 + spent,
        line=line,
    )
    assert advance(before, now) == (after, granted, refused)


def test_where_nobody_waits_nothing_moves() -> None:
    assert advance(FREE, 1000.0) == (FREE, (), ())
    gone = WAITING._replace(line=Line((FIRST,), 0, 1, 10.0, 200.0), running=5)
    assert advance(gone, 200.0) == (gone._replace(line=Line(serial=1)), (), (FIRST,))


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, 105),
        ({"running": 5}, 150),
        ({"running": 4}, 105),
        ({"running": 6, "max_concurrent": None}, 105),
        ({"blocked_until": 170.0}, 150),
        ({"line": Line(serial=3)}, math.inf),
    ],
)
def test_when_to_look_again(changes: dict[str, Any], at: float) -> None:
    assert wake_at(WAITING._replace(**changes), 100.0) == at
