"""Rate limits that instances share. A call asks the store for its place; who waits, waits here, in a queue of ours.

The account is that of `reliability.rate_limit`, moved by the same functions, but for the line: of those who wait here
the store knows nothing, and instances are served as they come. Each goes by its own numbers: the store holds when the
buckets are empty, and not how large they are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk.errors import WaitTooLong
from steer_llm_sdk.reliability.rate_limit import (
    Bucket,
    Line,
    RateLimit,
    State,
    Waiter,
    admit,
    advance,
    block,
    finish,
    withdraw,
)
from steer_llm_sdk.reliability.rate_limiter import LONGEST_BLOCK, Gate, RateLimiter, RateLimits
from steer_llm_sdk.reliability.shared.link import Link
from steer_llm_sdk.reliability.shared.owners import Give, Held, Owned, OwnedCell, Term, swept

if TYPE_CHECKING:
    from steer_llm_sdk.models.quota import RateLimitStatus
    from steer_llm_sdk.reliability._pipeline import Call
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerManager


class Ended(NamedTuple):
    """How a call ended that held a place: the tokens that it used, and whether it was sent at all."""

    used: float
    sent: bool


class Used(NamedTuple):
    """Requests sent and tokens used by calls that were admitted and have ended without the store."""

    requests: int = 0
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Enter:
    """Places for calls of so many tokens, in this order, as long as there is room. Answered with how many got one, and
    under which name they hold it."""

    cell: LimitCell
    tokens: tuple[float, ...]

    def __call__(self, owned: Owned[State], now: float) -> tuple[Owned[State], tuple[int, Term]]:
        cell = self.cell
        if owned.alone is None:
            owned = swept(owned, now, cell.lapse)
        term, state, entered = cell.term, owned.value, 0
        for tokens in self.tokens:
            taken = admit(state, tokens, now)
            if taken is None:
                break
            state, entered = taken, entered + 1
        if not entered:
            return owned, (0, term)
        held = Held(entered, math.fsum(self.tokens[:entered]))
        return owned.holding(term.name, held)._replace(value=state), (entered, term)


@dataclass(frozen=True, slots=True)
class Block:
    """The provider wants to be asked nothing before `until`."""

    until: float

    def __call__(self, owned: Owned[State], now: float) -> tuple[Owned[State], None]:
        return owned._replace(value=block(owned.value, self.until)), None


class LimitCell(OwnedCell[State]):
    ttl = 3600.0

    def __init__(self, link: Link, target: str, limit: RateLimit, changed: Callable[[], None]) -> None:
        self._limit = limit
        self._changed = changed
        self.waited_for = False
        """Whether anybody waits here, for whom a place that comes free has to be heard of."""
        super().__init__(link, f"limit:{target}", State.of(limit))

    def changed(self) -> None:
        self._changed()

    def wanted(self) -> bool:
        return self.waited_for

    def news(self, known: Owned[State], moved: Owned[State]) -> bool:
        """A place has come free where there was none, or nobody is to call for a while."""
        before, after = known.value, moved.value
        most = before.max_concurrent
        freed = most is not None and after.running < most <= before.running
        return freed or after.blocked_until != before.blocked_until

    def encode_value(self, value: State) -> dict[str, Any]:
        empty = [None if bucket is None else _finite(bucket.empty_at) for bucket in (value.requests, value.tokens)]
        return {
            "empty": empty,
            "running": value.running,
            "reserved": value.reserved,
            "blocked_until": _finite(value.blocked_until),
        }

    def decode_value(self, value: Any) -> State:
        fresh = State.of(self._limit)
        requests, tokens = value["empty"]
        return fresh._replace(
            requests=_emptied(fresh.requests, requests),
            tokens=_emptied(fresh.tokens, tokens),
            running=value["running"],
            reserved=value["reserved"],
            blocked_until=_ever(value["blocked_until"]),
        )

    def give(self, value: State, what: Ended, held: Held, now: float) -> tuple[State, None]:
        return finish(value, held.second, what.used, what.sent), None

    def late(self, owned: Owned[State], what: Any, held: Held, now: float) -> tuple[Owned[State], Any]:
        return owned, None  # Its place is somebody else's; what it reserved it was charged.

    def lapse(self, value: State, held: Held, now: float) -> State:
        """Its places are free. What it reserved is spent: its calls were probably sent."""
        return value._replace(running=value.running - int(held.first), reserved=value.reserved - held.second)

    def release(self, value: State, held: Held, now: float) -> State:
        for _ in range(int(held.first)):
            value = finish(value, held.second / held.first, 0.0, False)
        return value

    def used(self, before: Used | None, what: Ended, held: Held) -> Used:
        before = before or Used()
        return Used(before.requests + what.sent, before.tokens + (what.used if what.sent else 0.0))

    def owe(self, value: State, used: Used | None, held: Held, now: float) -> State:
        requests, tokens = used or Used()
        return value._replace(
            requests=value.requests and value.requests.plus(-requests - held.first),
            tokens=value.tokens and value.tokens.plus(-tokens - held.second),
            running=value.running + int(held.first),
            reserved=value.reserved + held.second,
        )

    def share(self, value: State, sharing: int) -> State:
        """As fast as one of so many, and none of the places that others hold."""
        most = value.max_concurrent
        ours = int(sum(owner.held.first for name, owner in self.state.owners.items() if name in self._terms))
        return value._replace(
            requests=_part(value.requests, sharing, self.link.now()),
            tokens=_part(value.tokens, sharing, self.link.now()),
            max_concurrent=None if most is None else max(1, most // sharing),
            running=ours,
        )


class SharedGate(Gate):
    """The account of one provider. `state` is what is known of the store's, in the time of our loops, with our line."""

    def __init__(self, target: str, limit: RateLimit, link: Link) -> None:
        super().__init__(target, limit)
        self._link = link
        self._terms: deque[Term] = deque()
        """Of the calls under way, in the order in which they were admitted."""
        self._asking = False
        self._cell = LimitCell(link, target, limit, self._adopt)
        link.add(self._cell)

    def enter(self, tokens: float, now: float) -> bool:
        return False  # The store has to be asked, and this one cannot wait.

    async def take(self, tokens: float) -> bool:
        """Take what a call needs, if it is there. What was taken for one who is cancelled meanwhile is given back."""
        asked = self._cell.submit(Enter(self._cell, (tokens,)))
        try:
            entered, term = await asyncio.shield(asyncio.wrap_future(asked))
        except asyncio.CancelledError:
            asked.add_done_callback(lambda answer: self._give_back(answer.result(), tokens))
            raise
        if entered:
            self._terms.append(term)
        return bool(entered)

    def leave(
        self, reserved: float, used: float, sent: bool, clock: Callable[[], float], told: RateLimitStatus | None
    ) -> None:
        self._leave(self._terms.popleft(), reserved, used, sent)

    def give_up(self, place: Any, now: float) -> None:
        with self._lock:
            if place.outcome is True:
                self._leave(self._terms.popleft(), place.waiter.tokens, 0.0, False)
                return
        super().give_up(place, now)

    def block(self, seconds: float, now: float) -> None:
        super().block(seconds, now)
        self._cell.submit(Block(self._link.now() + min(seconds, LONGEST_BLOCK)))

    def _leave(self, term: Term, reserved: float, used: float, sent: bool) -> None:
        self._cell.submit(Give(self._cell, term, Ended(used, sent), Held(1, reserved)))

    def _give_back(self, answer: tuple[int, Term], tokens: float) -> None:
        entered, term = answer
        if entered:
            self._leave(term, tokens, 0.0, False)

    def _adopt(self) -> None:
        """What is known of the store's account has changed."""
        now = time.monotonic()
        with self._lock:
            self._move(_shifted(self._cell.state.value, now - self._link.now())._replace(line=self.state.line), now)

    def _move(self, state: State, now: float) -> None:
        self._cell.waited_for = bool(state.line.waiters)
        super()._move(state, now)

    def _let_go(self, state: State, now: float) -> State:
        """Send away who has waited long enough; and ask for places for those who could go as far as is known."""
        moved = advance(state, now)
        for waiter in moved.refused:
            blocked = state.blocked_until - now
            self._wake(self._places[waiter.serial], WaitTooLong(self._target, blocked if blocked > 0 else None))
            state = withdraw(state, waiter.serial)
        if moved.granted and not self._asking:
            self._asking = True
            step = Enter(self._cell, tuple(waiter.tokens for waiter in moved.granted))
            self._cell.submit(step).add_done_callback(lambda answer: self._admit(moved.granted, answer))
        return state

    def _admit(self, asked: tuple[Waiter, ...], answer: Future[tuple[int, Term]]) -> None:
        """The store has given so many of those who asked a place."""
        entered, term = answer.result()
        now = time.monotonic()
        with self._lock:
            self._asking = False
            state = self.state
            for waiter in asked[:entered]:
                place = self._places.get(waiter.serial)
                self._terms.append(term)
                if place is None or not self._wake(place, True):  # He has gone meanwhile.
                    self._leave(self._terms.pop(), waiter.tokens, 0.0, False)
                    continue
                line = withdraw(state, waiter.serial).line
                state = state._replace(line=line._replace(round=waiter.turn) if line.waiters else line)
            self._move(state, now)


class SharedRateLimits(RateLimits):
    def __init__(self, limit_for: Callable[[str], RateLimit | None], link: Link) -> None:
        super().__init__(limit_for)
        self._link = link

    def policy(self, breakers: CircuitBreakerManager | None = None) -> RateLimiter:
        return SharedRateLimiter(self, breakers)

    def _made(self, target: str, limit: RateLimit) -> Gate:
        return SharedGate(target, limit, self._link)


class SharedRateLimiter(RateLimiter):
    """The policy. A call that finds room waits only for the store to say so."""

    async def _wait(self, gate: Any, call: Call, tokens: float, clock: Callable[[], float]) -> None:
        if not gate.state.line.waiters and await gate.take(tokens):
            return
        await super()._wait(gate, call, tokens, clock)


def _shifted(state: State, by: float) -> State:
    """The same in another time."""

    def bucket(of: Bucket | None) -> Bucket | None:
        return None if of is None else of._replace(empty_at=of.empty_at + by)

    return state._replace(
        requests=bucket(state.requests),
        tokens=bucket(state.tokens),
        blocked_until=state.blocked_until + by,
        line=Line(),
    )


def _part(bucket: Bucket | None, sharing: int, now: float) -> Bucket | None:
    """One of so many equal parts."""
    if bucket is None:
        return None
    part = Bucket(bucket.capacity / sharing, bucket.per_second / sharing)
    return part.at_level(bucket.level(now) / sharing, now)


def _emptied(bucket: Bucket | None, empty_at: float | None) -> Bucket | None:
    return None if bucket is None else bucket._replace(empty_at=_ever(empty_at))


def _finite(at: float) -> float | None:
    return at if math.isfinite(at) else None


def _ever(at: float | None) -> float:
    return -math.inf if at is None else at
