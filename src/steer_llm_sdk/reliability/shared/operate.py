"""What an operator sees of the shared breakers, and does to them; from outside, without being one of the instances."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from steer_llm_sdk.errors import StoreUnavailable
from steer_llm_sdk.reliability.circuit import Circuit, Open
from steer_llm_sdk.reliability.circuit_breaker import BreakerMode
from steer_llm_sdk.reliability.shared.board import Board, open_board
from steer_llm_sdk.reliability.shared.breaker import KIND
from steer_llm_sdk.reliability.shared.cell import Cell, Step
from steer_llm_sdk.reliability.shared.circuit import Reset, SetMode, Shared, decoded, encoded
from steer_llm_sdk.reliability.shared.snapshot import Unreadable
from steer_llm_sdk.reliability.stores._url import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

R = TypeVar("R")

PATIENCE = 5.0
"""Seconds that an operator waits for the store."""


class Seen(NamedTuple):
    """One breaker. `state` is the circuit's own; `mode` is the operator's, None where each instance has its own.

    `failures` in a row count towards opening it; `retry_after` in seconds, None unless it is open.
    """

    name: str
    state: str
    mode: str | None
    failures: int
    retry_after: float | None
    parts: dict[str, str]
    """Those that are cut off alone, and the state of each."""
    generation: int


async def breakers(url: str) -> list[Seen]:
    """Those that any instance has used, by name. StoreUnavailable where the store does not answer in time."""

    async def read(board: Board) -> list[Seen]:
        keys = await board.keys(KIND)
        entries, now = await board.read([(key, -1) for key in keys])
        return [
            _seen(key.removeprefix(KIND), decoded(entry.text), now)
            for key, entry in zip(keys, entries, strict=True)
            if entry is not None and entry.text is not None
        ]

    return await _at(url, read)


async def hold_open(url: str, name: str) -> None:
    """Every instance refuses every call to `name`, until somebody closes it; whether any has used it or not."""
    await _move(url, name, SetMode(BreakerMode.FORCED_OPEN))


async def close(url: str, name: str, *, hold: bool = False) -> None:
    """Closed with nothing remembered, and its own master again; with `hold` closed whatever fails, until closed again
    without it."""
    await _move(url, name, Reset(BreakerMode.FORCED_CLOSED if hold else None))


async def _move(url: str, name: str, step: Step[Shared, None]) -> None:
    key = KIND + name

    async def move(board: Board) -> None:
        while True:
            (entry,), now = await board.read([(key, -1)])
            assert entry is not None
            known = Shared(Circuit()) if entry.text is None else decoded(entry.text)
            moved, _ = step(known, now)
            done = await board.swap(key, entry.version, encoded(moved), now, Cell.ttl, tell=True)
            if done.written:
                return

    await _at(url, move)


async def _at(url: str, do: Callable[[Board], Coroutine[Any, Any, R]]) -> R:
    async with _board(url) as board:
        try:
            async with asyncio.timeout(PATIENCE):
                return await do(board)
        except Unreadable:
            raise
        except Exception as error:
            # What a driver says may have the password in it.
            raise StoreUnavailable(f"{shown(url)} does not answer: {type(error).__name__}") from None


@asynccontextmanager
async def _board(url: str) -> AsyncIterator[Board]:
    board = open_board(url)
    try:
        yield board
    finally:
        await board.aclose()


def _seen(name: str, shared: Shared, now: float) -> Seen:
    circuit = shared.circuit
    whole = circuit.whole
    return Seen(
        name,
        circuit.state(now).value,
        None if shared.mode is None else shared.mode.value,
        circuit.tally.streak.total,
        max(0.0, whole.until - now) if isinstance(whole, Open) else None,
        {part: circuit.state(now, part).value for part in circuit.narrowed},
        circuit.generation,
    )
