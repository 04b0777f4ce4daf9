"""The order in which what is ready in one turn of an event loop runs, drawn from a seed."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any
from weakref import WeakKeyDictionary


class SeededTurns(deque[asyncio.Handle]):
    """Takes the place of a loop's queue of ready handles. `asyncio` pops from it as many as it held when a turn began.

    Steps of tasks, and timers that are due together, change places among themselves. Every other callback stays where
    it stands: `call_soon` promises first in, first out, and transports are built on it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)
        self._left = 0
        self._births: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[asyncio.Handle, asyncio.Task[Any]] = WeakKeyDictionary()
        self._born = 0

    def called_soon(self, callback: Callable[..., Any], handle: asyncio.Handle) -> None:
        """`handle` is what `callback` is ready under. The step of a task is a method of it. A task is numbered at its
        first step that waits for a turn: one that took its first step at once may never have one."""
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, asyncio.Task):
            self._steps[handle] = owner
            if owner not in self._births:
                self._births[owner] = self._born
                self._born += 1

    def popleft(self) -> asyncio.Handle:
        if self._left <= 0:
            self._begin_turn()
        self._left -= 1
        return super().popleft()

    def _begin_turn(self) -> None:
        self._left = len(self)
        if self._left < 2:
            return
        handles = list(self)
        places = [place for place, handle in enumerate(handles) if self._may_move(handle)]
        # Sorted first, so that the order drawn depends on what is ready and not on how it came in: asyncio walks over
        # sets of tasks here and there, whose order differs from process to process.
        moved = sorted((handles[place] for place in places), key=self._rank)
        self._random.shuffle(moved)
        for place, handle in zip(places, moved, strict=True):
            self[place] = handle

    def _may_move(self, handle: asyncio.Handle) -> bool:
        return isinstance(handle, asyncio.TimerHandle) or handle in self._steps

    def _rank(self, handle: asyncio.Handle) -> tuple[bool, float]:
        task = self._steps.get(handle)
        return task is None, math.inf if task is None else self._births.get(task, math.inf)
