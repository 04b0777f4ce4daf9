"""Retry: exponential backoff whose jitter keeps its entropy at the cap, and the server's wishes as a floor."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steer_llm_sdk.errors import AttemptsUsedUp, ErrorCategory, Rejected, message_of
from steer_llm_sdk.reliability.classify import ErrorClassification, classify

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next
    from steer_llm_sdk.reliability.retry_budget import RetryBudget


MAX_TOTAL_ATTEMPTS, MAX_TOTAL_TIME = 10, 300.0
"""Of one run, where nothing else is said; the time in seconds."""


class CategoryRetry(BaseModel):
    """What is different for the errors of one category; None is as the policy has it. Delays in seconds.

    `max_attempts` can only be fewer than the policy's: how often a call may be made has one owner.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_attempts: int | None = Field(default=None, ge=1)
    initial_delay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_delay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    backoff_factor: float | None = Field(default=None, ge=1, allow_inf_nan=False)


class RetryPolicy(BaseModel):
    """How often, and how long between. All times in seconds.

    A delay is drawn from [1 - jitter_factor, 1] x the exponential one, at the cap too, so that clients never fall into
    step. `max_total_delay` bounds the sum of the waits of one call. `by_category` has what is different for some
    errors: `{"rate_limit": {"initial_delay": 5}}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_attempts: int = Field(default=3, ge=1)
    initial_delay: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_delay: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    backoff_factor: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    jitter_factor: float = Field(default=0.5, ge=0, le=1)
    retry_on_timeout: bool = True
    retry_on_rate_limit: bool = True
    retry_on_server_error: bool = True
    retry_on_network_error: bool = True
    respect_retry_after: bool = True
    exponential_backoff: bool = True
    max_total_delay: float = Field(default=300.0, ge=0, allow_inf_nan=False)
    by_category: dict[ErrorCategory, CategoryRetry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_categories(self) -> RetryPolicy:
        for category, own in self.by_category.items():
            if own.max_attempts is not None and own.max_attempts > self.max_attempts:
                raise ValueError(
                    f"by_category[{category.value!r}].max_attempts: {own.max_attempts} is more than "
                    f"max_attempts = {self.max_attempts}; raise that, and lower it for the other categories"
                )
            if self._switch(category) is False:
                raise ValueError(
                    f"by_category[{category.value!r}]: errors of this category are not retried; leave it out"
                )
        return self

    def should_retry_category(self, category: ErrorCategory) -> bool:
        """Whether errors of this category are retried. Those without a switch of their own are not."""
        return self._switch(category) is True

    def allows(self, error: ErrorClassification) -> bool:
        """What the error says of itself is believed, within what the switches allow."""
        if error.refused or not error.is_retryable:
            return False
        switch = self._switch(error.category)
        return error.is_retryable if switch is None else switch

    def delay(self, attempt: int, jitter: float, category: ErrorCategory = ErrorCategory.UNKNOWN) -> float:
        """The wait after attempt number `attempt` (from 1); `jitter` is uniform in [0, 1)."""
        own = self.by_category.get(category, _AS_THE_POLICY)
        delay = self.initial_delay if own.initial_delay is None else own.initial_delay
        most = self._max_delay(category)
        if self.exponential_backoff and delay:
            try:
                delay *= (own.backoff_factor or self.backoff_factor) ** (attempt - 1)
            except OverflowError:
                delay = most
        return min(delay, most) * (1 - self.jitter_factor * jitter)

    def wait(self, error: ErrorClassification, attempt: int, jitter: float) -> float | None:
        """The wait before the next attempt, None where the server asks for more than `max_delay`.

        The server's delay is a floor: jitter only adds to it, a tenth at most.
        """
        delay = self.delay(attempt, jitter, error.category)
        asked = error.retry_after if self.respect_retry_after else None
        if asked is None:
            return delay
        if asked > self._max_delay(error.category):
            return None
        return max(delay, asked * (1 + 0.1 * jitter))

    def _max_delay(self, category: ErrorCategory) -> float:
        own = self.by_category.get(category, _AS_THE_POLICY)
        return self.max_delay if own.max_delay is None else own.max_delay

    def _switch(self, category: ErrorCategory) -> bool | None:
        return {
            ErrorCategory.TIMEOUT: self.retry_on_timeout,
            ErrorCategory.RATE_LIMIT: self.retry_on_rate_limit,
            ErrorCategory.SERVER_ERROR: self.retry_on_server_error,
            ErrorCategory.BAD_RESPONSE: self.retry_on_server_error,
            ErrorCategory.NETWORK: self.retry_on_network_error,
        }.get(category)


class _AsThePolicy(NamedTuple):
    """What a category without an entry of its own has; a model would be built when the module is loaded."""

    max_attempts: None = None
    initial_delay: None = None
    max_delay: None = None
    backoff_factor: None = None


_AS_THE_POLICY = _AsThePolicy()


class AttemptLimit:
    """How many upstream calls one run may make: the one owner across retries, fallbacks, hedges and late starts.

    `limit` holds for the run; a bundle that asks for k answers may make `per_answer` x k where that is more. As a
    policy it stands next to what counts the attempts, so that no queue lies between the look and the leap.

    No retry and no hedge takes a call that the next model or tool would need for an answer that is still missing.
    """

    def __init__(self, limit: int, per_answer: int = 1) -> None:
        self.limit = limit
        self.per_answer = per_answer

    def left(self, call: Call) -> bool:
        return call.sent < self.limit or call.sent < self.per_answer * call.answers

    def left_for_another(self, call: Call) -> bool:
        """Whether a call that was sent may be sent again, as a retry or a hedge."""
        return call.sent + call.kept_for_others < max(self.limit, self.per_answer * call.answers)

    def allows(self, call: Call) -> bool:
        """Whether it may be sent now, for the first time or again."""
        return self.left_for_another(call) if call.attempts else self.left(call)

    def __call__(self, call: Call, next: Next[Any, Any], /) -> Coroutine[Any, Any, Any]:
        if not self.allows(call):
            raise AttemptsUsedUp(call.sent)
        return next(call)


class Retry:
    """The policy. `max_total_time` bounds the run with its retries, `limit` its upstream calls. A retry draws from
    `budget`; where that refuses, the failure is raised with a note that says so. `check` raises the Rejected that the
    next attempt would meet now: where that would last longer than the wait, there is no wait."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        max_total_time: float = MAX_TOTAL_TIME,
        limit: AttemptLimit | None = None,
        budget: RetryBudget | None = None,
        check: Callable[[Call], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._max_total_time = max_total_time
        self.limit = limit or AttemptLimit(MAX_TOTAL_ATTEMPTS)
        self._budget = budget
        self.first = None if budget is None else budget.first
        self._check = check
        self._jitter = jitter

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        if call.sent >= self.limit.limit and not self.limit.left(call):
            raise AttemptsUsedUp(call.sent)
        try:
            result = await next(call)
        except Rejected:
            raise
        except Exception as error:
            failed = error
        else:
            self.begun(call)
            return result
        self.begun(call)
        try:
            return await self.again(call, next, failed)
        finally:
            del failed  # See `again`.

    def begun(self, call: Call) -> None:
        """The first attempt has ended, well or not, unless it was never sent."""
        if self._budget is not None and call.ended is not None:
            self._budget.first(call.target, call.ended)

    async def again(self, call: Call, next: Next[Any, Any], error: Exception) -> Any:
        """What follows when the first attempt has failed with `error`: wait and try, or raise the last failure."""
        waited = 0.0
        try:
            while True:
                delay = self._delay(call, classify(error), waited)
                if delay is None:
                    raise error
                if (refused := self._refused_for_longer(call, delay)) is not None:
                    raise error from refused
                if not await self._afford(call, error):
                    raise error
                call.emit("retry_attempt", {**_told(call, error), "delay_ms": round(delay * 1000, 1)})
                waited += delay
                call.promise()  # Else another call of the run could take the last attempt meanwhile.
                await asyncio.sleep(delay)
                if not self.limit.left_for_another(call):
                    raise error from AttemptsUsedUp(call.sent)
                try:
                    return await next(call)
                except Rejected as refusal:
                    # The failure is the news; that the next attempt was refused is how it ended.
                    raise error from (error.__cause__ or refusal)
                except Exception as another:
                    error = another
        finally:
            call.renounce()
            # Its traceback holds this frame. While the frame holds it too, only the garbage collector frees them, and
            # the request with them.
            del error

    def _delay(self, call: Call, error: ErrorClassification, waited: float) -> float | None:
        """How long to wait before the next attempt; None: there is none."""
        if not (self._attempts_left(call, error) and self.limit.left_for_another(call) and self._policy.allows(error)):
            return None
        delay = self._policy.wait(error, call.attempts, self._jitter())
        if (
            delay is None
            or waited + delay > self._policy.max_total_delay
            or call.elapsed() + delay > self._max_total_time
        ):
            return None
        if call.deadline is not None and delay >= call.deadline.remaining():
            return None
        return delay

    def _refused_for_longer(self, call: Call, delay: float) -> Rejected | None:
        """What the next attempt would be refused with; None where it may go, or nobody knows."""
        if self._check is None:
            return None
        try:
            self._check(call)
        except Rejected as refusal:
            return refusal if (refusal.retry_after or 0.0) > delay else None
        return None

    def _attempts_left(self, call: Call, error: ErrorClassification) -> bool:
        own = self._policy.by_category.get(error.category, _AS_THE_POLICY).max_attempts
        return call.attempts < (call.max_attempts if own is None else min(own, call.max_attempts))

    async def _afford(self, call: Call, error: Exception) -> bool:
        if self._budget is None or await self._budget.ask(call.target):
            return True
        call.emit("retry_refused", {**_told(call, error), "reason": "retry_budget"})
        note = f"not tried again: the retry budget of {call.target} is used up"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return False


def _told(call: Call, error: Exception) -> dict[str, Any]:
    return {
        "provider": call.target,
        "attempt": call.attempts,
        "error": type(error).__name__,
        "message": message_of(error),
    }
