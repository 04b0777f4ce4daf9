"""A shorter way through rate limit, breaker, reservation and attempt limit, for a call that may be sent at once.

Nearly always there is room, the circuit is closed and the money is there. Then nothing has to be waited for, and one
coroutine asks them all, by the same functions, in the same order; each in a coroutine of its own takes twice as long.
Whatever is out of the ordinary before the call is sent is left to the policies in turn, with nothing taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability._pipeline import Next, Policy, compose
from steer_llm_sdk.reliability.budget import Reservation, Reserve, charge_of_failure, tell
from steer_llm_sdk.reliability.circuit import SUCCESS
from steer_llm_sdk.reliability.circuit_breaker import Breaker
from steer_llm_sdk.reliability.rate_limiter import RateLimiter, counted
from steer_llm_sdk.reliability.retry import AttemptLimit

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call

P = TypeVar("P")


def at_once(policies: Sequence[Policy[Any]], next: Next[Any, Any]) -> Next[Any, Any]:
    """`compose`, with the shorter way where `policies` end in those that it knows."""
    rest = list(policies)
    limit = _last(rest, AttemptLimit)
    reserve = _last(rest, Reserve)
    breaker = _last(rest, Breaker)
    if breaker is None:
        return compose(policies, next)
    limiter = _last(rest, RateLimiter)
    if limiter is not None and limiter.learns:
        rest.append(limiter)
        limiter = None
    in_turn = compose(policies[len(rest) :], next)
    return compose(rest, AtOnce(limiter, breaker, reserve is not None, limit, in_turn, next).__call__)


def _last(policies: list[Policy[Any]], kind: type[P]) -> P | None:
    """The last, taken off, where it is of this very kind: one that is derived may have to wait for its answer."""
    last = policies[-1] if policies else None
    if type(last) is not kind:
        return None
    policies.pop()
    return last


class AtOnce:
    """`RateLimiter(Breaker(Reserve(AttemptLimit(next))))`, of which only the breaker must be there; `in_turn` is what
    they are when they are asked one after the other."""

    def __init__(
        self,
        limiter: RateLimiter | None,
        breaker: Breaker,
        reserves: bool,
        limit: AttemptLimit | None,
        in_turn: Next[Any, Any],
        next: Next[Any, Any],
    ) -> None:
        self._limiter = limiter
        self._breaker = breaker
        self._reserves = reserves
        self._limit = limit
        self._in_turn = in_turn
        self._next = next

    async def __call__(self, call: Call) -> Any:
        breaker = self._breaker.breakers.of_call(call)
        permit, ledger = breaker.free, call.ledger if self._reserves else None
        if (
            permit is None
            or (self._limit is not None and not self._limit.allows(call))
            or (ledger is not None and (ledger.elsewhere is not None or call.attempt_timeout is not None))
        ):
            return await self._in_turn(call)
        clock = asyncio.get_running_loop().time
        now = clock()
        limiter = self._limiter
        gate, tokens = None if limiter is None else limiter.gate(call), 0.0
        if gate is not None:
            if gate.state.tokens is not None:
                tokens = counted(call.worst_case.tokens, 0)
            if not gate.enter(tokens, now):
                return await self._in_turn(call)
        held: Reservation | None = None
        if ledger is not None:
            try:
                held = ledger.reserve(call.worst_case)
            except (BudgetExceeded, InvalidRequest):
                if gate is not None:
                    gate.leave(tokens, 0.0, False, clock, None)
            if held is None:
                return await self._in_turn(call)
        attempts, used, told = call.attempts, tokens, None
        try:
            actual: Amount | None = None
            try:
                result = await self._next(call)
                if held is not None or gate is not None:
                    actual = call.spent(result)
            except BaseException as error:
                if held is not None and (overruns := held.settle(charge_of_failure(error, call.worst_case))):
                    tell(call, overruns)
                self._breaker.failed(call, breaker, permit, error, now if breaker.times_calls else None)
                raise
            if held is not None and actual is not None and (overruns := held.settle(actual)):
                tell(call, overruns)
            changed = breaker.report(permit, call.part, SUCCESS, now if breaker.times_calls else None)
            if changed is not None:
                self._breaker.tell(call, breaker, changed)
            if gate is not None and actual is not None and gate.state.tokens is not None:
                used = counted(actual.tokens, 0) or tokens
            return result
        except BaseException as error:
            if limiter is not None and gate is not None:
                used, told = limiter.failed(gate, call, error, tokens, clock)
            raise
        finally:
            if gate is not None:
                gate.leave(tokens, used, call.attempts > attempts, clock, told)
