"""Instances that share a store, in one process, each with a link of its own as if it were another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from steer_llm_sdk.errors import CircuitOpen
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
from steer_llm_sdk.reliability.shared.breaker import SharedCircuitBreaker
from steer_llm_sdk.reliability.shared.state import SharedState

QUICK = CircuitBreakerConfig(
    failure_threshold=3, timeout=0.2, half_open_requests=1, success_threshold=1, probe_lease=30
)
LONG = QUICK.model_copy(update={"timeout": 60.0})
PATIENT = 5.0
"""Seconds that a busy machine may take for what takes a millisecond; no test waits for it."""


class Instances:
    def __init__(self, url: str) -> None:
        self.url = url
        self.states: list[SharedState] = []

    def state(self, patience: float = PATIENT) -> SharedState:
        made = SharedState(self.url, patience=patience)
        self.states.append(made)
        return made

    def breakers(
        self, count: int, config: CircuitBreakerConfig = QUICK, *, patience: float = PATIENT
    ) -> list[SharedCircuitBreaker]:
        made: list[Any] = [
            self.state(patience).breakers(lambda name: config).get_or_create("acme") for _ in range(count)
        ]
        return made

    def close(self) -> None:
        for state in self.states:
            state.close()


async def fails() -> None:
    raise ProviderError("down", "acme", status_code=503)


async def works() -> str:
    return "ok"


async def outcome(breaker: SharedCircuitBreaker, func: Callable[[], Any]) -> str:
    try:
        await breaker.call(func)
    except CircuitOpen:
        return "refused"
    except ProviderError:
        return "failed"
    return "ok"


async def trip(breaker: SharedCircuitBreaker) -> None:
    for _ in range(breaker.config.failure_threshold):
        assert await outcome(breaker, fails) == "failed"


async def until(holds: Callable[[], bool], within: float = 10.0) -> float:
    """Seconds that it took to come true."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within, "it does not come true"
        await asyncio.sleep(0.002)
    return time.monotonic() - began
