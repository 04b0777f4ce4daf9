"""A retry budget that instances share: extra attempts of all of them are a share of the first attempts of all.

First attempts are counted here and brought to the store together; an extra attempt asks there, so that no two instances
take the last one both. A hedge cannot wait for the answer: it goes by what is known here, and is counted there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from steer_llm_sdk.reliability._kept import Kept
from steer_llm_sdk.reliability.retry_budget import SLICES, RetryBudget, RetryBudgetConfig, Window, draw, first
from steer_llm_sdk.reliability.shared import snapshot
from steer_llm_sdk.reliability.shared.cell import Cell
from steer_llm_sdk.reliability.shared.link import Link


@dataclass(frozen=True, slots=True)
class Firsts:
    count: int
    cfg: RetryBudgetConfig

    def __call__(self, window: Window, now: float) -> tuple[Window, None]:
        return first(window, now, self.cfg, self.count), None


@dataclass(frozen=True, slots=True)
class Draw:
    """An extra attempt, where it is within the budget; and the `firsts` that the store has not seen."""

    firsts: int
    cfg: RetryBudgetConfig

    def __call__(self, window: Window, now: float) -> tuple[Window, bool]:
        if self.firsts:
            window = first(window, now, self.cfg, self.firsts)
        return draw(window, now, self.cfg)


class WindowCell(Cell[Window]):
    told = False

    def __init__(self, link: Link, target: str, config: RetryBudgetConfig) -> None:
        super().__init__(link, f"retries:{config.window:g}:{target}", Window())
        self.ttl = 10 * config.window
        self.ended = 0
        """First attempts that have ended since the start."""
        self._brought = 0
        self._config = config

    def encode(self, state: Window) -> str:
        return snapshot.written({"window": snapshot.window_to(state)})

    def decode(self, text: str) -> Window:
        return snapshot.read(text, lambda value: snapshot.window_of(value["window"]))

    @property
    def idle(self) -> bool:
        """Nothing of it is within the window any more, and nothing is to be told."""
        over = self.state.slice + SLICES <= int(self.link.now() * SLICES / self._config.window)
        return over and self.ended == self._brought

    def new_firsts(self) -> int:
        """Those that nobody has been told of."""
        with self._lock:
            ended = self.ended
            new, self._brought = ended - self._brought, ended
        return new

    def keep(self) -> None:
        if new := self.new_firsts():
            self.submit(Firsts(new, self._config))


class SharedRetryBudget(RetryBudget):
    def __init__(self, config: RetryBudgetConfig, link: Link) -> None:
        super().__init__(config)
        self._link = link
        self._cells: dict[str, WindowCell] = Kept(lambda cell: cell.idle)

    def first(self, target: str, now: float) -> None:
        (self._cells.get(target) or self._opened(target)).ended += 1

    async def ask(self, target: str) -> bool:
        cell = self._cells.get(target) or self._opened(target)
        answer = cell.submit(Draw(cell.new_firsts(), self._config))
        return await asyncio.shield(asyncio.wrap_future(answer))

    def draw(self, target: str) -> bool:
        """Whether it is within the budget as far as is known here; it counts for all."""
        cell = self._cells.get(target) or self._opened(target)
        step = Draw(cell.new_firsts(), self._config)
        _, allowed = step(cell.state, self._link.now())
        cell.submit(step if allowed else Firsts(step.firsts, self._config))
        return allowed

    def _opened(self, target: str) -> WindowCell:
        made = WindowCell(self._link, target, self._config)
        cell = self._cells.setdefault(target, made)
        if cell is made:  # Else another thread was faster.
            self._link.add(cell)
        return cell
