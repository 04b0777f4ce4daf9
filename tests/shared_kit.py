"""Instances that share a store, in one process, each with a link of its own as if it were another."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from steer_llm_sdk.errors import CircuitOpen
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
from steer_llm_sdk.reliability.shared import link
from steer_llm_sdk.reliability.shared.board import open_board
from steer_llm_sdk.reliability.shared.breaker import SharedCircuitBreaker, as_it_is
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


def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> list[link.Link]:
    """Those who have begun to listen. From there on they know what they are told, and nothing else."""
    listening: list[link.Link] = []
    whole = link.Link._heard_again

    async def heard_again(self: link.Link) -> None:
        listening.append(self)
        await whole(self)

    monkeypatch.setattr(link, "REFRESH", 3600.0)
    monkeypatch.setattr(link.Link, "_heard_again", heard_again)
    return listening


async def until(holds: Callable[[], bool], within: float = 10.0) -> float:
    """Seconds that it took to come true."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within, "it does not come true"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def until_found(holds: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    """As `until`, where somebody has to be asked."""
    end = time.monotonic() + within
    while not await holds():
        assert time.monotonic() < end, "it does not come true"
        await asyncio.sleep(0.002)


class FaultyBoard:
    """A board behind a bad line: what is asked is lost, or done and its answer lost, as the dice have it."""

    def __init__(self, board: Any, dice: random.Random, *, lost: float = 0.1, answer_lost: float = 0.1) -> None:
        self._board = board
        self._dice = dice
        self._lost = lost
        self._answer_lost = answer_lost

    async def read(self, *given: Any) -> Any:
        self._lose(self._lost)
        return await self._board.read(*given)

    async def swap(self, *given: Any, **more: Any) -> Any:
        self._lose(self._lost)
        done = await self._board.swap(*given, **more)
        self._lose(self._answer_lost)
        return done

    async def listen(self, *given: Any) -> None:
        await self._board.listen(*given)

    async def aclose(self) -> None:
        await self._board.aclose()

    def heal(self) -> None:
        self._lost = self._answer_lost = 0.0

    def _lose(self, share: float) -> None:
        if self._dice.random() < share:
            raise ConnectionError("lost")


async def standing(url: str, key: str) -> dict[str, Any]:
    """What the store holds under a key, as JSON."""
    board = open_board(url)
    try:
        ((entry,), _) = await board.read([(key, -1)])
    finally:
        await board.aclose()
    assert entry is not None
    assert entry.text is not None
    found: dict[str, Any] = json.loads(entry.text)
    return found


async def drained(state: SharedState | None) -> None:
    """All that was asked of its cells so far has been answered, and what that gives back is on its way."""
    assert state is not None
    await asyncio.gather(*(asyncio.wrap_future(cell.submit(as_it_is)) for cell in state.link.cells))


async def comes_to(url: str, key: str, **wanted: Any) -> None:
    """What the store holds under a key has these values: how a call ended is brought to it while nobody waits."""

    async def holds() -> bool:
        found = await standing(url, key)
        return {name: found[name] for name in wanted} == wanted

    await until_found(holds)
