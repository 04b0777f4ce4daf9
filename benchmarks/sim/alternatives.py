"""What others do: the contenders that the library is compared with, from libraries in wide use where they have it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeAlias

from kit import Contender, Send
from purgatory import AsyncCircuitBreakerFactory
from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_exponential_jitter
from tenacity.wait import wait_base

Wait: TypeAlias = wait_base | Callable[[RetryCallState], float]


def tenacity(attempts: int, wait: Wait | None = None) -> Contender:
    """Retry whatever fails, up to `attempts` in all, with tenacity's exponential backoff and jitter."""
    pause = wait_exponential_jitter(1, 60) if wait is None else wait

    def contender(send: Send) -> Send:
        async def call() -> Any:
            return await AsyncRetrying(stop=stop_after_attempt(attempts), wait=pause, reraise=True)(send)

        return call

    return contender


def purgatory_breaker(threshold: int, ttl: float, around: Contender) -> Contender:
    """purgatory's breaker round each request, and `around` round that."""

    def contender(send: Send) -> Send:
        breakers = AsyncCircuitBreakerFactory(default_threshold=threshold, default_ttl=ttl)

        async def guarded() -> Any:
            async with await breakers.get_breaker("simulated"):
                return await send()

        return around(guarded)

    return contender


def token_bucket(attempts: int, tokens: float = 10.0, ratio: float = 0.1) -> Contender:
    """gRPC's retry throttling: a failure takes a token, a success gives `ratio`; no retry below half of them."""

    def contender(send: Send) -> Send:
        left = tokens

        async def counted() -> Any:
            nonlocal left
            try:
                result = await send()
            except Exception:
                left = max(0.0, left - 1)
                raise
            left = min(tokens, left + ratio)
            return result

        def stop(state: Any) -> bool:
            return state.attempt_number >= attempts or left <= tokens / 2

        async def call() -> Any:
            pause = wait_exponential_jitter(1, 60)
            return await AsyncRetrying(stop=stop, wait=pause, reraise=True)(counted)

        return call

    return contender


class AddThenClamp(wait_base):
    """The jitter of many retry helpers: up to a second is added first and the cap applied last."""

    def __init__(self, cap: float) -> None:
        self._cap = cap

    def __call__(self, retry_state: RetryCallState) -> float:
        return min(self._cap, 2.0 ** (retry_state.attempt_number - 1) + random.random())


def fixed_hedge(delay: float) -> Contender:
    """A second request after `delay`, always; the first answer counts and the other request is cancelled."""

    def contender(send: Send) -> Send:
        async def call() -> Any:
            tasks = [asyncio.ensure_future(send())]
            await asyncio.wait(tasks, timeout=delay)
            if not tasks[0].done():
                tasks.append(asyncio.ensure_future(send()))
            done, slower = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in slower:
                task.cancel()
            return done.pop().result()

        return call

    return contender
