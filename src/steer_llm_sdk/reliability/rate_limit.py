"""Rate limits and a bulkhead per provider, with a fair queue in front.

    arrives --(room)--> running --(ends)--> settled by what it used
       |                   ^
       +--(no room)--> queue --(full, or the wait would be too long)--> refused: a fallback is tried

A bucket holds a minute's worth and fills evenly, as the providers' own do: what is reserved leaves it at once, and
when the call ends the difference to what it used comes back, or is owed. Each bucket is one number, the time at which
it is empty (the generic cell rate algorithm, ATM Forum TM 4.0, with the whole minute as its tolerance).

The first half is pure: a state and an event make the next state, and say who may go and who must leave. The second
half keeps time and wakes those who wait: one future for each, one timer for all.
"""

from __future__ import annotations

import asyncio
import math
import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.errors import CircuitOpen, ErrorCategory, QueueFull, WaitTooLong
from steer_llm_sdk.reliability._kept import Kept
from steer_llm_sdk.reliability.budget import charge_of_failure
from steer_llm_sdk.reliability.classify import classify

if TYPE_CHECKING:
    from steer_llm_sdk.models.quota import Quota, RateLimitStatus
    from steer_llm_sdk.reliability._pipeline import Call, Next
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerManager

MINUTE = 60.0

_AFTER = 0.001
"""Seconds by which a run's own end comes before that of its waiting, for it is the one that tells why."""

LONGEST_BLOCK = 86_400.0
"""Seconds. A server that asks for more than a day of silence is asked again after one."""

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; for the two steps of every call."""

_MOST_TOKENS = 10**12
"""More are no count of anything: a bucket that owed them would be closed for ever."""

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


# ── the thin part ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Place:
    """A place in a queue. `outcome` is None while it waits; then True, or why the call is not sent."""

    __slots__ = ("call", "future", "outcome", "waiter")

    def __init__(self, waiter: Waiter, call: Call, future: asyncio.Future[None]) -> None:
        self.waiter, self.call, self.future = waiter, call, future
        self.outcome: Literal[True] | Exception | None = None


class _Gate:
    """The account of one provider, or of one model of it, and the futures of those who wait.

    Orchestrators may be shared by threads, each with a loop of its own: states move under the lock, and everybody is
    woken in his own loop.
    """

    def __init__(self, target: str, limit: RateLimit) -> None:
        self.state = State.of(limit)
        self._target = target
        self._limit = limit
        # A call that is thrown away with its loop ends wherever it is collected, be it under the lock.
        self._lock = threading.RLock()
        self._places: dict[int, _Place] = {}
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}

    @property
    def idle(self) -> bool:
        """It is as good as new: nobody runs or waits, and all that it may hold is there."""
        state, now = self.state, asyncio.get_running_loop().time()
        return (
            not state.running
            and not state.line.waiters
            and now >= state.blocked_until
            and all(bucket is None or bucket.level(now) >= bucket.capacity for bucket in (state.requests, state.tokens))
        )

    def enter(self, tokens: float, now: float) -> bool:
        """Take what a call needs, if it is there and nobody waits."""
        with self._lock:
            state = admit(self.state, tokens, now)
            if state is None:
                return False
            self.state = state
            return True

    def leave(
        self, reserved: float, used: float, sent: bool, clock: Callable[[], float], told: RateLimitStatus | None
    ) -> None:
        with self._lock:
            state = finish(self.state, reserved, used, sent)
            if told is None and not state.line.waiters and not self._timers:
                self.state = state
                return
            now = clock()
            self._move(state if told is None else heed(state, told, now), now)

    def queue(self, call: Call, tokens: float, now: float) -> tuple[_Place, float]:
        """A place, and when its turn comes as far as is known. Raises QueueFull or WaitTooLong."""
        latest, deadline = now + self._limit.max_wait, call.deadline
        if deadline is not None and deadline.firm:
            latest = min(latest, deadline.at + _AFTER)
        with self._lock:
            state, answer = enqueue(self.state, call.tenant, tokens, latest, now, self._limit)
            if isinstance(answer, Refusal):
                if answer.full:
                    raise QueueFull(self._target, self._limit.max_queue, answer.retry_after)
                raise WaitTooLong(self._target, answer.retry_after)
            # One that may yet move ends no waiting: who joins with more time would be refused by that of another.
            if deadline is not None and answer.due > deadline.at:
                raise WaitTooLong(self._target, answer.due - now)
            place = _Place(answer.waiter, call, asyncio.get_running_loop().create_future())
            self._places[answer.waiter.serial] = place
            self._move(state, now)
            return place, answer.due

    def give_up(self, place: _Place, now: float) -> None:
        """He who had the place was cancelled. If his turn had come in the same moment, it is the next one's."""
        with self._lock:
            if place.outcome is None:
                del self._places[place.waiter.serial]
                self._move(withdraw(self.state, place.waiter.serial), now)
            elif place.outcome is True:
                self._move(finish(self.state, place.waiter.tokens, 0.0, False), now)

    def block(self, seconds: float, now: float) -> None:
        with self._lock:
            self._move(block(self.state, now + min(seconds, LONGEST_BLOCK)), now)

    def send_away(self, check: Callable[[Call], None], now: float) -> None:
        """Wake those whom the breaker refuses: waiting would not change it."""
        with self._lock:
            state = self.state
            for place in list(self._places.values()):
                try:
                    check(place.call)
                except CircuitOpen as refusal:
                    state = withdraw(state, place.waiter.serial)
                    self._wake(place, refusal)
            self._move(state, now)

    def _move(self, state: State, now: float) -> None:
        if state.line.waiters:
            state = self._let_go(state, now)
        self.state = state
        if state.line.waiters or self._timers:
            self._arm(state, now)

    def _let_go(self, state: State, now: float) -> State:
        state, granted, refused = advance(state, now)
        for waiter in granted:
            if not self._wake(self._places[waiter.serial], True):
                state = self._let_go(finish(state, waiter.tokens, 0.0, False), now)
        for waiter in refused:
            blocked = state.blocked_until - now
            self._wake(self._places[waiter.serial], WaitTooLong(self._target, blocked if blocked > 0 else None))
        return state

    def _wake(self, place: _Place, outcome: Literal[True] | Exception) -> bool:
        """False where his loop was closed while he waited: nobody is there to be woken."""
        del self._places[place.waiter.serial]
        place.outcome = outcome
        loop = place.future.get_loop()
        if loop is _here():
            _set(place.future)
            return True
        try:
            loop.call_soon_threadsafe(_set, place.future)
        except RuntimeError as gone:
            place.outcome = gone
            return False
        return True

    def _arm(self, state: State, now: float) -> None:
        """One timer, in the loop of whoever is next."""
        here = _here()
        if state.line.waiters:
            first = self._places[state.line.waiters[0].serial]
            loop = first.future.get_loop()
            if loop is not here:
                try:
                    loop.call_soon_threadsafe(self._tick)
                except RuntimeError as gone:
                    self._wake(first, gone)
                    self._move(withdraw(state, first.waiter.serial), now)
                return
        if here is None:
            return
        at = wake_at(state, now)
        timer = self._timers.get(here)
        if timer is not None:
            if timer.when() <= at < math.inf:
                return
            timer.cancel()
            del self._timers[here]
        if at < math.inf:
            self._timers[here] = here.call_at(at, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            timer = self._timers.pop(loop, None)
            if timer is not None:
                timer.cancel()
            self._move(self.state, loop.time())


def _here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _counted(tokens: float, otherwise: float) -> float:
    """What a tool estimated or a provider counted, where it is a count."""
    return tokens if 0 <= tokens <= _MOST_TOKENS else otherwise


class RateLimits:
    """The accounts of one orchestrator. `limit_for` a target is what is configured, None: it goes unlimited.

    Each target has one account, which also heeds the Retry-After of a 429. With `learn` each model of a target has one
    of its own, filled in by what the provider's answers say.
    """

    def __init__(self, limit_for: Callable[[str], RateLimit | None], *, learn: bool = False) -> None:
        self.learn = learn
        self.limit_for = limit_for
        self.gates: dict[Any, _Gate | None] = Kept(lambda gate: gate is None or gate.idle)

    def open(self, key: Any, target: str) -> _Gate | None:
        limit = self.limit_for(target)
        if limit is not None and self.learn:
            limit = RateLimit(max_queue=limit.max_queue, max_wait=limit.max_wait)
        # Another thread may have been faster; then its gate is everybody's.
        return self.gates.setdefault(key, None if limit is None else self._made(target, limit))

    def policy(self, breakers: CircuitBreakerManager | None = None) -> RateLimiter:
        """What puts them round a call."""
        return RateLimiter(self, breakers)

    def _made(self, target: str, limit: RateLimit) -> _Gate:
        return _Gate(target, limit)

    def waiting(self) -> dict[str, int]:
        """How many calls wait in the queue of each target."""
        gates = list(self.gates.items())
        return {str(key): len(gate.state.line.waiters) for key, gate in gates if gate is not None}


class RateLimiter:
    """The policy. `breakers` are looked at before a call queues, and when one that was sent has failed."""

    def __init__(self, limits: RateLimits, breakers: CircuitBreakerManager | None = None) -> None:
        self._limits = limits
        self._gates = limits.gates
        self._learn = limits.learn
        self._breakers = breakers

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        target = call.target
        key: Any = (target, call.model or call.part) if self._learn else target
        try:
            gate = self._gates[key]
        except KeyError:
            gate = self._limits.open(key, target)
        if gate is None:
            return await next(call)
        clock = asyncio.get_running_loop().time
        tokens = 0 if gate.state.tokens is None else _counted(call.worst_case.tokens, 0)
        if not gate.enter(tokens, clock()):
            await self._wait(gate, call, tokens, clock)
        attempts, used, told = call.attempts, tokens, None
        try:
            result = await next(call)
            if gate.state.tokens is not None:
                # An answer of no tokens is one whose usage nobody counted.
                used = _counted(call.spent(result).tokens, 0) or tokens
            if self._learn:
                told = call.told(result)
            return result
        except BaseException as error:
            if gate.state.tokens is not None:
                used = _counted(charge_of_failure(error, call.worst_case).tokens, tokens)
            if isinstance(error, Exception):
                told = self._heed(gate, call, error, clock())
            raise
        finally:
            gate.leave(tokens, used, call.attempts > attempts, clock, told)

    async def _wait(self, gate: _Gate, call: Call, tokens: float, clock: Callable[[], float]) -> None:
        """Wait in the queue. Raises CircuitOpen, QueueFull or WaitTooLong; then nothing was taken."""
        if self._breakers is not None:
            self._breakers.check(call)
        began = clock()
        place, due = gate.queue(call, tokens, began)
        try:
            if place.outcome is None:
                wait_ms = round((due - began) * 1000, 1) if due > began else None
                call.emit("rate_limited", {"provider": call.target, "wait_ms": wait_ms})
            await place.future
        except BaseException:
            gate.give_up(place, clock())
            raise
        finally:
            call.queued += clock() - began
        if isinstance(place.outcome, Exception):
            raise place.outcome

    def _heed(self, gate: _Gate, call: Call, error: Exception, now: float) -> RateLimitStatus | None:
        """What a failure says of limits, and of the breaker: those whom it is going to refuse need not wait."""
        means = classify(error)
        limited = means.category is ErrorCategory.RATE_LIMIT and not means.refused
        if limited and means.retry_after is not None and not self._learn:
            gate.block(means.retry_after, now)
        breakers = self._breakers
        if breakers is not None and not breakers.all_closed and gate.state.line.waiters:
            gate.send_away(breakers.check, now)
        return call.told(error) if self._learn else None
