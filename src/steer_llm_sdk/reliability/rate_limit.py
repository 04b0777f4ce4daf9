"""Rate limits and a bulkhead per provider, with a fair queue in front.

    arrives --(room)--> running --(ends)--> settled by what it used
       |                   ^
       +--(no room)--> queue --(full, or the wait would be too long)--> refused: a fallback is tried

A bucket holds a minute's worth and fills evenly, as the providers' own do: what is reserved leaves it at once, and
when the call ends the difference to what it used comes back, or is owed. Each bucket is one number, the time at which
it is empty (the generic cell rate algorithm, ATM Forum TM 4.0, with the whole minute as its tolerance).

All of it is pure: a state and an event make the next state, and say who may go and who must leave. `rate_limiter` keeps
time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from steer_llm_sdk.models.quota import Quota, RateLimitStatus

MINUTE = 60.0

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; for the two steps of every call."""

_EARLY = 1e-9
"""Seconds by which a timer may fire before its time: the resolution of the clock."""


class RateLimit(BaseModel):
    """What one provider may be asked; None is no such limit.

    `requests_per_minute` and `tokens_per_minute` (input plus output): at most one minute's worth at once, then evenly.
    `max_concurrent`: calls under way at the same time. A call that finds no room waits, if fewer than `max_queue` wait
    already and if neither its run's deadline nor `max_wait` (seconds) comes first; else it is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tokens_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_queue: int = Field(default=1000, ge=0)
    max_wait: float = Field(default=60.0, ge=0, allow_inf_nan=False)


# ── the account ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Bucket(NamedTuple):
    """Holds `capacity`, gains `per_second`; `empty_at` is when it was, or will be, empty: later than now is a debt."""

    capacity: float
    per_second: float
    empty_at: float = -math.inf

    @classmethod
    def per_minute(cls, limit: float | None) -> Bucket | None:
        return None if limit is None else cls(limit, limit / MINUTE)

    def level(self, now: float) -> float:
        return min(self.capacity, (now - self.empty_at) * self.per_second)

    def at_level(self, level: float, now: float) -> Bucket:
        return self._replace(empty_at=now - level / self.per_second)

    def since(self, now: float) -> float:
        """When it was empty, had it been filling ever since without running over."""
        full = now - self.capacity / self.per_second
        return full if full > self.empty_at else self.empty_at

    def ready_at(self, amount: float, now: float, ahead: float = 0.0) -> float:
        """When `amount` is there, after `ahead` was taken. More than it ever holds is given when it is full."""
        return self.since(now) + (ahead + min(amount, self.capacity)) / self.per_second

    def less(self, amount: float, now: float) -> Bucket | None:
        """The bucket after `amount` was taken; None where it is not there yet."""
        capacity, per_second, since = self
        full = now - capacity / per_second
        if full > since:
            since = full
        if since + (amount if amount < capacity else capacity) / per_second > now + _EARLY:
            return None
        return _new(Bucket, (capacity, per_second, since + amount / per_second))

    def plus(self, amount: float) -> Bucket:
        """`amount` comes back; where it is negative, it is owed."""
        capacity, per_second, empty_at = self
        return _new(Bucket, (capacity, per_second, empty_at - amount / per_second))


class Waiter(NamedTuple):
    """One who waits. Ordered by turn, then by arrival. `latest`: when waiting makes no sense any more."""

    turn: int
    serial: int
    tenant: str = ""
    tokens: float = 0.0
    latest: float = math.inf


class Line(NamedTuple):
    """Those who wait, in the order in which they will go: tenants take turns, each its own in order of arrival.

    `round` is the turn of the last who went, `tokens` the sum of what they ask for, `soonest` no later than the
    earliest `latest`.
    """

    waiters: tuple[Waiter, ...] = ()
    round: int = 0
    serial: int = 0
    tokens: float = 0.0
    soonest: float = math.inf


class State(NamedTuple):
    """The account of one provider. `reserved` are the tokens of the calls under way; `heard_at` is when the last answer
    began that told of limits."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    max_concurrent: int | None = None
    running: int = 0
    reserved: float = 0.0
    blocked_until: float = -math.inf
    heard_at: float = -math.inf
    line: Line = Line()

    @classmethod
    def of(cls, limit: RateLimit) -> State:
        buckets = Bucket.per_minute(limit.requests_per_minute), Bucket.per_minute(limit.tokens_per_minute)
        return cls(*buckets, limit.max_concurrent)


class Queued(NamedTuple):
    """A place in the queue, and when its turn comes, as far as is known."""

    waiter: Waiter
    due: float


class Refusal(NamedTuple):
    """`full`: the queue is; else the wait is too long. `retry_after` in seconds, None where nobody knows."""

    full: bool
    retry_after: float | None


class Moved(NamedTuple):
    """What an event came to: the next state, who may go now, and who has to leave without."""

    state: State
    granted: tuple[Waiter, ...] = ()
    refused: tuple[Waiter, ...] = ()


def admit(state: State, tokens: float, now: float) -> State | None:
    """Take a request and `tokens` for a call that starts now; None where there is no room, or others were first."""
    requests, held, most, running, reserved, blocked_until, heard_at, line = state
    if line.waiters or now < blocked_until or (most is not None and running >= most):
        return None
    if requests is not None and (requests := requests.less(1.0, now)) is None:
        return None
    if held is not None and (held := held.less(tokens, now)) is None:
        return None
    return _new(State, (requests, held, most, running + 1, reserved + tokens, blocked_until, heard_at, line))


def enqueue(
    state: State, tenant: str, tokens: float, latest: float, now: float, cfg: RateLimit
) -> tuple[State, Queued | Refusal]:
    """A place in the queue for a call that `admit` had no room for."""
    line = state.line
    turn = max(line.round, next((other.turn for other in reversed(line.waiters) if other.tenant == tenant), 0)) + 1
    waiter = Waiter(turn, line.serial + 1, tenant, tokens, latest)
    place = bisect_right(line.waiters, waiter)
    due = due_at(state, waiter, place, now)
    if len(line.waiters) >= cfg.max_queue:
        return state, Refusal(True, due - now if due > now else None)
    if due > latest:
        return state, Refusal(False, due - now)
    longer = Line(
        (*line.waiters[:place], waiter, *line.waiters[place:]),
        line.round,
        waiter.serial,
        line.tokens + tokens,
        min(line.soonest, latest),
    )
    return state._replace(line=longer), Queued(waiter, due)


def due_at(state: State, waiter: Waiter, place: int, now: float) -> float:
    """When one at `place` of the queue goes, as far as buckets and the server's wishes decide; never too late.

    How long those who run will take, nobody knows.
    """
    waiters = state.line.waiters
    due = max(now, state.blocked_until)
    if state.requests is not None:
        due = max(due, state.requests.ready_at(1.0, now, float(place)))
    if state.tokens is not None:
        ahead = state.line.tokens if place == len(waiters) else math.fsum(each.tokens for each in waiters[:place])
        due = max(due, state.tokens.ready_at(waiter.tokens, now, ahead))
    return due


def finish(state: State, reserved: float, used: float, sent: bool) -> State:
    """A call has ended. One that was never sent gives everything back."""
    requests, held, most, running, set_aside, blocked_until, heard_at, line = state
    if not sent:
        used = 0.0
        if requests is not None:
            requests = requests.plus(1.0)
    if held is not None and used != reserved:
        held = held.plus(reserved - used)
    return _new(State, (requests, held, most, running - 1, set_aside - reserved, blocked_until, heard_at, line))


def withdraw(state: State, serial: int) -> State:
    """One who waits leaves."""
    line = state.line
    left = next((waiter for waiter in line.waiters if waiter.serial == serial), None)
    if left is None:
        return state
    waiters = tuple(waiter for waiter in line.waiters if waiter.serial != serial)
    return state._replace(line=_shorter(line, waiters, line.round, left.tokens))


def block(state: State, until: float) -> State:
    """The server wants to be asked nothing before `until`."""
    return state._replace(blocked_until=max(state.blocked_until, until))


def heed(state: State, status: RateLimitStatus, now: float) -> State:
    """Believe what the provider says of its own account. What an earlier answer said is not news."""
    if status.at <= state.heard_at:
        return state
    age = max(0.0, now - status.at)
    return state._replace(
        heard_at=status.at,
        requests=_learned(state.requests, status.requests, float(state.running), age, now),
        tokens=_learned(state.tokens, status.tokens, state.reserved, age, now),
    )


def _learned(known: Bucket | None, told: Quota | None, under_way: float, age: float, now: float) -> Bucket | None:
    """Calls under way may or may not be in the provider's account yet, so what is left lies between two bounds."""
    if told is None:
        return known
    # Limits are per minute. One that takes longer to be whole again (per day, say) fills as slowly as it says.
    slow = told.reset is not None and told.reset > MINUTE and told.remaining < told.limit
    per_second = (told.limit - told.remaining) / (told.reset or MINUTE) if slow else told.limit / MINUTE
    bucket = Bucket(told.limit, per_second)
    most = min(told.limit, told.remaining + per_second * age)
    least = most - under_way
    level = least if known is None else min(max(known.level(now), least), most)
    return bucket.at_level(level, now)


def advance(state: State, now: float) -> Moved:
    """Let everybody go for whom there is room, in order, and send away who has waited long enough, or would have to."""
    line = state.line
    if not line.waiters:
        return Moved(state)
    requests, held, most, running, reserved, blocked_until, heard_at, _ = state
    gone = 0
    if now >= blocked_until:
        for waiter in line.waiters:
            taken = admit(State(requests, held, most, running, reserved), waiter.tokens, now)
            if taken is None:
                break
            requests, held, _, running, reserved, *_ = taken
            gone += 1
    granted, waiters = line.waiters[:gone], line.waiters[gone:]
    refused: tuple[Waiter, ...] = ()
    hopeless = max(now, blocked_until)
    if waiters and line.soonest <= hopeless:
        refused = tuple(waiter for waiter in waiters if waiter.latest <= hopeless)
        waiters = tuple(waiter for waiter in waiters if waiter.latest > hopeless)
        line = line._replace(soonest=min((waiter.latest for waiter in waiters), default=math.inf))
    if granted or refused:
        lost = math.fsum(waiter.tokens for waiter in (*granted, *refused))
        line = _shorter(line, waiters, granted[-1].turn if granted else line.round, lost)
    return Moved(State(requests, held, most, running, reserved, blocked_until, heard_at, line), granted, refused)


def wake_at(state: State, now: float) -> float:
    """When `advance` is to be called next if nothing happens before; infinite where nobody waits."""
    line = state.line
    if not line.waiters:
        return math.inf
    if state.max_concurrent is not None and state.running >= state.max_concurrent:
        return line.soonest
    return min(line.soonest, due_at(state, line.waiters[0], 0, now))


def _shorter(line: Line, waiters: tuple[Waiter, ...], round: int, tokens: float) -> Line:
    if not waiters:
        return Line(serial=line.serial)
    return Line(waiters, round, line.serial, line.tokens - tokens, line.soonest)
