"""Virtual time: an event loop whose clock jumps to the next timer when all tasks wait."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from steer_llm_sdk.testing._turns import SeededTurns

__all__ = ["Deadlock", "VirtualTimeLoop", "run_in_virtual_time"]

R = TypeVar("R")
Args = TypeVarTuple("Args")

_NANOSECOND = 1e-9
GRACE = 1.0
"""Real seconds that a loop without timers waits to be woken by another thread."""


class Deadlock(RuntimeError):
    """Every task waits, no timer is set, and nothing outside of the loop can wake it: the loop would never end."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0 and stands still while code runs; it jumps to the next timer when all tasks wait.

    So `await asyncio.sleep(3600)` takes no time and `loop.time()` is then exactly 3600. While something outside may
    still answer (an open socket, work in an executor) the clock does not jump but runs as a real one does: a timeout
    round real I/O does not fire before its time.

    With a `seed` the tasks that are ready in the same turn of the loop run in a random order, and so do timers that are
    due at the same time: the same seed gives the same order, another seed another. What one task does, and callbacks
    given to `call_soon`, keep their order, and nothing moves from one turn to another. Without a seed: first in, first
    out, as in any loop.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._jumping = _JumpingSelector(selectors.DefaultSelector())
        super().__init__(self._jumping)
        self._jumping.own_files = len(self._jumping.get_map())
        self._turns = None if seed is None else SeededTurns(seed)
        if self._turns is not None:
            self._ready = self._turns

    def time(self) -> float:
        return self._jumping.now

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        if self._turns is not None:
            self._turns.called_soon(callback, handle)
        return handle

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Args], R], *args: *Args) -> asyncio.Future[R]:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.outside_jobs += 1
        future.add_done_callback(self._job_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self._jumping.outside_jobs += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._jumping.outside_jobs -= 1

    def _job_done(self, _: asyncio.Future[Any]) -> None:
        self._jumping.outside_jobs -= 1


class _JumpingSelector(selectors.BaseSelector):
    """A selector that moves the clock instead of waiting, if no event can arrive."""

    def __init__(self, real: selectors.BaseSelector) -> None:
        self._real = real
        self.now = 0.0
        self.own_files = 0
        self.outside_jobs = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0):
            self._step_past_what_is_due()
            return ready
        if self.outside_jobs or len(self.get_map()) > self.own_files:
            return self._wait(timeout)
        if timeout is None:
            return self._last_chance()
        self.now += timeout
        return []

    def _step_past_what_is_due(self) -> None:
        """A timer is due when its time is less than now and a nanosecond. After three months of virtual time floats no
        longer tell the two apart, and a timer that is exactly due would wait for ever."""
        if self.now + _NANOSECOND == self.now:
            self.now = math.nextafter(self.now, math.inf)

    def _wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        ready = self._real.select(timeout)
        waited = time.monotonic() - began
        self.now += waited if ready or timeout is None else max(waited, timeout)
        return ready

    def _last_chance(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._wait(GRACE)
        if not ready:
            raise Deadlock("every task waits, and nothing can wake one: no timer, no I/O, no executor work")
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def run_in_virtual_time(main: Coroutine[Any, Any, R], *, seed: int | None = None, debug: bool | None = None) -> R:
    """Like `asyncio.run`, on a VirtualTimeLoop. Raises Deadlock where `main` can never end.

    `seed` is the loop's. The module `random` is seeded with it as well meanwhile, so that jitter repeats too, and goes
    on afterwards where it was.
    """
    with asyncio.Runner(debug=debug, loop_factory=partial(VirtualTimeLoop, seed)) as runner:
        if seed is None:
            return runner.run(main)
        state = random.getstate()
        random.seed(seed)
        try:
            return runner.run(main)
        finally:
            random.setstate(state)
