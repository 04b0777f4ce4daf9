"""Retry: exponential backoff whose jitter keeps its entropy at the cap, and the server's wishes as a floor."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.errors import AttemptsUsedUp, ErrorCategory, Rejected, message_of
from steer_llm_sdk.reliability.classify import ErrorClassification, classify

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next


class RetryPolicy(BaseModel):
    """How often, and how long between. All times in seconds.

    A delay is drawn from [1 - jitter_factor, 1] x the exponential one, at the cap too, so that clients never fall into
    step. `max_total_delay` bounds the sum of the waits of one call.
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

    def should_retry_category(self, category: ErrorCategory) -> bool:
        """Whether errors of this category are retried. Those without a switch of their own are not."""
        return self._switch(category) is True

    def allows(self, error: ErrorClassification) -> bool:
        """What the error says of itself is believed, within what the switches allow."""
        if error.refused or not error.is_retryable:
            return False
        switch = self._switch(error.category)
        return error.is_retryable if switch is None else switch

    def delay(self, attempt: int, jitter: float) -> float:
        """The wait after attempt number `attempt` (from 1); `jitter` is uniform in [0, 1)."""
        delay = self.initial_delay
        if self.exponential_backoff and delay:
            try:
                delay *= self.backoff_factor ** (attempt - 1)
            except OverflowError:
                delay = self.max_delay
        return min(delay, self.max_delay) * (1 - self.jitter_factor * jitter)

    def wait(self, error: ErrorClassification, attempt: int, jitter: float) -> float | None:
        """The wait before the next attempt, None where the server asks for more than `max_delay`.

        The server's delay is a floor: jitter only adds to it, a tenth at most.
        """
        delay = self.delay(attempt, jitter)
        asked = error.retry_after if self.respect_retry_after else None
        if asked is None:
            return delay
        if asked > self.max_delay:
            return None
        return max(delay, asked * (1 + 0.1 * jitter))

    def _switch(self, category: ErrorCategory) -> bool | None:
        return {
            ErrorCategory.TIMEOUT: self.retry_on_timeout,
            ErrorCategory.RATE_LIMIT: self.retry_on_rate_limit,
            ErrorCategory.SERVER_ERROR: self.retry_on_server_error,
            ErrorCategory.BAD_RESPONSE: self.retry_on_server_error,
            ErrorCategory.NETWORK: self.retry_on_network_error,
        }.get(category)


class Retry:
    """The policy. `max_total_time` bounds the run with its retries, `max_total_attempts` the upstream calls of the
    run per answer asked for, across retries and fallbacks."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        max_total_time: float = 300.0,
        max_total_attempts: int = 10,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._max_total_time = max_total_time
        self._max_total_attempts = max_total_attempts
        self._jitter = jitter

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        waited = 0.0
        failed: Exception | None = None
        while True:
            try:
                if call.sent >= self._max_total_attempts and call.sent >= self._max_total_attempts * call.answers:
                    raise AttemptsUsedUp(call.sent)
                return await next(call)
            except Rejected as refusal:
                # After a failure, the failure is the news; that the next attempt was refused is how it ended.
                if failed is None:
                    raise
                raise failed from refusal
            except Exception as error:
                failed = error
                delay = self._delay(call, classify(error), waited)
                if delay is None:
                    raise
                call.emit("retry_attempt", _told(call, error, delay))
            waited += delay
            await asyncio.sleep(delay)

    def _delay(self, call: Call, error: ErrorClassification, waited: float) -> float | None:
        """How long to wait before the next attempt; None: there is none."""
        attempts_left = call.attempts < call.max_attempts
        run_left = call.sent < self._max_total_attempts * call.answers
        if not (attempts_left and run_left and self._policy.allows(error)):
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


def _told(call: Call, error: Exception, delay: float) -> dict[str, Any]:
    return {
        "provider": call.target,
        "attempt": call.attempts,
        "delay_ms": round(delay * 1000, 1),
        "error": type(error).__name__,
        "message": message_of(error),
    }
