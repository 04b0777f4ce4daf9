"""The retry budget: extra attempts at one provider are a share of its recent first attempts, plus a few.

While all is well, retries and hedges are few and the share is never felt. When everything fails, each call would
otherwise bring two or three more and keep a provider down that wants to come back; the share ends that. What is counted
is a ring of slices of time, so that an event costs the same whatever the traffic.

After Envoy's retry budget and Finagle's `RetryBudget(ttl, minRetriesPerSec, percentCanRetry)`.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.reliability._kept import Kept

SLICES = 10
"""The window moves on in steps of a tenth of it."""


class RetryBudgetConfig(BaseModel):
    """Within `window` seconds, extra attempts at one provider <= `minimum` + `ratio` x first attempts.

    `ratio` 0.25: with one call in five failing at random, three attempts take 0.24 extra calls for each first one, so
    nothing is refused; when all fail, the load is 1.25 x at most and not 3 x. `minimum` is what a quiet provider gets,
    so that the three attempts of a lone run are never refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    ratio: float = Field(default=0.25, ge=0, le=10, allow_inf_nan=False)
    minimum: int = Field(default=10, ge=0)
    window: float = Field(default=10.0, gt=0, allow_inf_nan=False)


class Window(NamedTuple):
    """First and extra attempts of the slice now, number `slice` since time 0, and of the slices before, newest first.

    `older_firsts` and `older_extras` are the sums of `older`.
    """

    slice: int = 0
    firsts: int = 0
    extras: int = 0
    older: tuple[tuple[int, int], ...] = ()
    older_firsts: int = 0
    older_extras: int = 0


def first(window: Window, now: float, cfg: RetryBudgetConfig, count: int = 1) -> Window:
    """So many first attempts have ended."""
    at = int(now * SLICES / cfg.window)
    if at > window.slice:
        window = Window(at, 0, 0, *_moved(window, at))
    return window._replace(firsts=window.firsts + count)


def draw(window: Window, now: float, cfg: RetryBudgetConfig) -> tuple[Window, bool]:
    """Whether one more extra attempt is within the budget; it is counted if it is."""
    at = int(now * SLICES / cfg.window)
    if at > window.slice:
        window = Window(at, 0, 0, *_moved(window, at))
    allowed = cfg.minimum + cfg.ratio * (window.older_firsts + window.firsts)
    if window.older_extras + window.extras + 1 > allowed:
        return window, False
    return window._replace(extras=window.extras + 1), True


def _moved(window: Window, at: int) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """What is older than slice `at` and still within the window, and its sums. A slice that saw nothing is (0, 0)."""
    skipped = min(at - window.slice - 1, SLICES)
    older = (*((0, 0),) * skipped, (window.firsts, window.extras), *window.older)[: SLICES - 1]
    return older, sum(firsts for firsts, _ in older), sum(extras for _, extras in older)


class RetryBudget:
    """The windows of one orchestrator, by provider, and the clock of the running loop."""

    def __init__(self, config: RetryBudgetConfig) -> None:
        self._config = config
        self._slice = config.window / SLICES
        self._windows: dict[str, Window] = Kept(self._is_over)
        self._counts: dict[str, _Count] = Kept(self._is_over)

    def first(self, target: str, now: float) -> None:
        """A first attempt at `target` has ended at `now`, well or not."""
        count = self._counts.get(target)
        if count is None or not count.begins <= now < count.ends:
            self._window(target)
            begins = now // self._slice * self._slice
            count = self._counts[target] = _Count(now, begins, begins + self._slice)
        count.firsts += 1

    def draw(self, target: str) -> bool:
        """Whether `target` may get one attempt more than the first ones. It counts as made."""
        now = asyncio.get_running_loop().time()
        self._windows[target], allowed = draw(self._window(target), now, self._config)
        return allowed

    def _is_over(self, counted: Window | _Count) -> bool:
        """Nothing of it is within the window any more."""
        ends = counted.ends if isinstance(counted, _Count) else (counted.slice + 1) * self._slice
        return asyncio.get_running_loop().time() >= ends + self._config.window

    async def ask(self, target: str) -> bool:
        """`draw`, for who can wait for the answer."""
        return self.draw(target)

    def _window(self, target: str) -> Window:
        """With what was counted since."""
        window = self._windows.get(target, _EMPTY)
        count = self._counts.pop(target, None)
        if count is not None:
            window = self._windows[target] = first(window, count.at, self._config, count.firsts)
        return window


class _Count:
    """First attempts of one slice, before they are put into the window together: nearly every call is one."""

    __slots__ = ("at", "begins", "ends", "firsts")

    def __init__(self, at: float, begins: float, ends: float) -> None:
        self.at = at
        self.begins = begins
        self.ends = ends
        self.firsts = 0


_EMPTY = Window()
