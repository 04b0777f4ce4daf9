"""Rate limits as calls meet them: the account of each provider kept in time, and those who wait woken.

What an account comes to, `rate_limit` says. Here is one future for each who waits, and one timer for all.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from steer_llm_sdk.errors import CircuitOpen, ErrorCategory, QueueFull, WaitTooLong
from steer_llm_sdk.reliability import rate_limit
from steer_llm_sdk.reliability._kept import Kept
from steer_llm_sdk.reliability.budget import charge_of_failure
from steer_llm_sdk.reliability.classify import classify
from steer_llm_sdk.reliability.rate_limit import RateLimit, State, Waiter

if TYPE_CHECKING:
    from steer_llm_sdk.models.quota import RateLimitStatus
    from steer_llm_sdk.models.usage import Amount
    from steer_llm_sdk.reliability._pipeline import Call, Next
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerManager

LONGEST_BLOCK = 86_400.0
"""Seconds. A server that asks for more than a day of silence is asked again after one."""

_AFTER = 0.001
"""Seconds by which a run's own end comes before that of its waiting, for it is the one that tells why."""

_MOST_TOKENS = 10**12
"""More are no count of anything: a bucket that owed them would be closed for ever."""


class _Place:
    """A place in a queue. `outcome` is None while it waits; then True, or why the call is not sent."""

    __slots__ = ("call", "future", "outcome", "waiter")

    def __init__(self, waiter: Waiter, call: Call, future: asyncio.Future[None]) -> None:
        self.waiter, self.call, self.future = waiter, call, future
        self.outcome: Literal[True] | Exception | None = None


class Gate:
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

    def tokens_of(self, call: Call) -> float:
        """What it is to take: an estimate, where tokens are limited."""
        return 0 if self.state.tokens is None else _counted(call.worst_case.tokens, 0)

    def used_by(self, spent: Amount, tokens: float) -> float:
        """Of a call that took `tokens`. An answer of none is one whose usage nobody counted."""
        return tokens if self.state.tokens is None else _counted(spent.tokens, 0) or tokens

    def enter(self, tokens: float, now: float) -> bool:
        """Take what a call needs, if it is there and nobody waits."""
        with self._lock:
            state = rate_limit.admit(self.state, tokens, now)
            if state is None:
                return False
            self.state = state
            return True

    def leave(
        self, reserved: float, used: float, sent: bool, clock: Callable[[], float], told: RateLimitStatus | None
    ) -> None:
        with self._lock:
            state = rate_limit.finish(self.state, reserved, used, sent)
            if told is None and not state.line.waiters and not self._timers:
                self.state = state
                return
            now = clock()
            self._move(state if told is None else rate_limit.heed(state, told, now), now)

    def queue(self, call: Call, tokens: float, now: float) -> tuple[_Place, float]:
        """A place, and when its turn comes as far as is known. Raises QueueFull or WaitTooLong."""
        latest, deadline = now + self._limit.max_wait, call.deadline
        if deadline is not None and deadline.firm:
            latest = min(latest, deadline.at + _AFTER)
        with self._lock:
            state, answer = rate_limit.enqueue(self.state, call.tenant, tokens, latest, now, self._limit)
            if isinstance(answer, rate_limit.Refusal):
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
                self._move(rate_limit.withdraw(self.state, place.waiter.serial), now)
            elif place.outcome is True:
                self._move(rate_limit.finish(self.state, place.waiter.tokens, 0.0, False), now)

    def block(self, seconds: float, now: float) -> None:
        with self._lock:
            self._move(rate_limit.block(self.state, now + min(seconds, LONGEST_BLOCK)), now)

    def send_away(self, check: Callable[[Call], None], now: float) -> None:
        """Wake those whom the breaker refuses: waiting would not change it."""
        with self._lock:
            state = self.state
            for place in list(self._places.values()):
                try:
                    check(place.call)
                except CircuitOpen as refusal:
                    state = rate_limit.withdraw(state, place.waiter.serial)
                    self._wake(place, refusal)
            self._move(state, now)

    def _move(self, state: State, now: float) -> None:
        if state.line.waiters:
            state = self._let_go(state, now)
        self.state = state
        if state.line.waiters or self._timers:
            self._arm(state, now)

    def _let_go(self, state: State, now: float) -> State:
        state, granted, refused = rate_limit.advance(state, now)
        for waiter in granted:
            if not self._wake(self._places[waiter.serial], True):
                state = self._let_go(rate_limit.finish(state, waiter.tokens, 0.0, False), now)
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
                    self._move(rate_limit.withdraw(state, first.waiter.serial), now)
                return
        if here is None:
            return
        at = rate_limit.wake_at(state, now)
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
        self.gates: dict[Any, Gate | None] = Kept(lambda gate: gate is None or gate.idle)

    def open(self, key: Any, target: str) -> Gate | None:
        limit = self.limit_for(target)
        if limit is not None and self.learn:
            limit = RateLimit(max_queue=limit.max_queue, max_wait=limit.max_wait)
        # Another thread may have been faster; then its gate is everybody's.
        return self.gates.setdefault(key, None if limit is None else self._made(target, limit))

    def policy(self, breakers: CircuitBreakerManager | None = None) -> RateLimiter:
        """What puts them round a call."""
        return RateLimiter(self, breakers)

    def _made(self, target: str, limit: RateLimit) -> Gate:
        return Gate(target, limit)

    def waiting(self) -> dict[str, int]:
        """How many calls wait in the queue of each target."""
        gates = list(self.gates.items())
        return {str(key): len(gate.state.line.waiters) for key, gate in gates if gate is not None}


class RateLimiter:
    """The policy. `breakers` are looked at before a call queues, and when one that was sent has failed."""

    def __init__(self, limits: RateLimits, breakers: CircuitBreakerManager | None = None) -> None:
        self._limits = limits
        self._gates = limits.gates
        self.learns = limits.learn
        self._breakers = breakers

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        gate = self.gate(call)
        if gate is None:
            return await next(call)
        clock = asyncio.get_running_loop().time
        tokens = gate.tokens_of(call)
        if not gate.enter(tokens, clock()):
            await self._wait(gate, call, tokens, clock)
        attempts, used, told = call.attempts, tokens, None
        try:
            result = await next(call)
            if gate.state.tokens is not None:
                used = gate.used_by(call.spent(result), tokens)
            if self.learns:
                told = call.told(result)
            return result
        except BaseException as error:
            used, told = self.failed(gate, call, error, tokens, clock)
            raise
        finally:
            gate.leave(tokens, used, call.attempts > attempts, clock, told)

    def gate(self, call: Call) -> Gate | None:
        """What the call has to pass; None: it goes unlimited."""
        target = call.target
        key: Any = (target, call.model or call.part) if self.learns else target
        try:
            return self._gates[key]
        except KeyError:
            return self._limits.open(key, target)

    def failed(
        self, gate: Gate, call: Call, error: BaseException, tokens: float, clock: Callable[[], float]
    ) -> tuple[float, RateLimitStatus | None]:
        """The tokens that a call has used which ended with `error`, and what was told of limits."""
        used = tokens
        if gate.state.tokens is not None:
            used = _counted(charge_of_failure(error, call.worst_case).tokens, tokens)
        return used, self._heed(gate, call, error, clock()) if isinstance(error, Exception) else None

    async def _wait(self, gate: Gate, call: Call, tokens: float, clock: Callable[[], float]) -> None:
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

    def _heed(self, gate: Gate, call: Call, error: Exception, now: float) -> RateLimitStatus | None:
        """What a failure says of limits, and of the breaker: those whom it is going to refuse need not wait."""
        means = classify(error)
        limited = means.category is ErrorCategory.RATE_LIMIT and not means.refused
        if limited and means.retry_after is not None and not self.learns:
            gate.block(means.retry_after, now)
        breakers = self._breakers
        if breakers is not None and not breakers.all_closed and gate.state.line.waiters:
            gate.send_away(breakers.check, now)
        return call.told(error) if self.learns else None
