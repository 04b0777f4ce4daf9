"""Deadlines that hold: a run comes back in time even if what it waits for swallows its cancellation."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from steer_llm_sdk.errors import ProviderTimeout

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next

R = TypeVar("R")

GRACE = 0.02
"""Seconds that cancelled work gets to stop, before it is left behind."""

_log = logging.getLogger(__name__)
_abandoned: set[asyncio.Task[Any]] = set()

attempt_left_behind: ContextVar[tuple[object, Callable[[asyncio.Task[Any]], None]] | None] = ContextVar(
    "steer_llm_sdk.attempt_left_behind", default=None
)
"""A call, and who wants to know of an attempt of it that goes on after it was given up."""


@dataclass(slots=True)
class Deadline:
    """`at` is on the clock of the running loop; `limit_ms` is what the caller asked for.

    `firm` False: a keyed run, whose end moves when a caller with more time joins.
    """

    at: float
    limit_ms: float
    firm: bool = True

    @classmethod
    def after(cls, limit_ms: float, now: float) -> Deadline:
        return cls(now + limit_ms / 1000, limit_ms)

    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at - asyncio.get_running_loop().time())


class Late(Exception):
    """The time was up. `finished`: the work still returned within the grace; `result` was paid for."""

    def __init__(self, finished: bool = False, result: Any = None) -> None:
        super().__init__("the time was up")
        self.finished = finished
        self.result = result


class Exited(Exception):
    """Work in a task of its own called exit(). Raised as it is, that would end the event loop and every other run."""

    def __init__(self, exit: SystemExit) -> None:
        super().__init__(f"the work called exit({exit.code!r})")
        self.exit = exit


async def until(
    at: float, work: Coroutine[Any, Any, R], left_behind: Callable[[asyncio.Task[Any]], None] | None = None
) -> R:
    """Do `work` in a task of its own until `at`; raise Late at most GRACE later, whatever the work does.

    Work that has not stopped by then is left to itself, and what it raises later is logged; `left_behind` gets its
    task.
    """
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    task = new_task(loop, announced(work, waiting))
    try:
        if a_turn_is_due(loop, task):
            await turn()
        if not task.done():  # Work that never waits needs no timer.
            await woken_by(loop, at, waiting)
    except BaseException:
        await _stopped(task, left_behind)
        if task.done():
            work.close()  # In case it was stopped before it had begun.
        raise
    if task.done():
        try:
            return task.result()
        except Exited as exited:
            raise exited.exit from None
        finally:
            del task  # It holds what it raised, and the traceback of that this frame: nobody would free the three.
    await _stopped(task, left_behind)
    raise too_late(task)


def new_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
    """loop.create_task, in four fifths of the time where the loop would make no other task than this. From Python 3.13
    on such a task takes its first step at once: one that never waits is done when this returns."""
    if type(loop).create_task is asyncio.BaseEventLoop.create_task and loop.get_task_factory() is None:
        return asyncio.Task(work, loop=loop, name=_NAME, **_EAGER)
    return loop.create_task(work)


_EAGER: Mapping[str, Any] = {"eager_start": True} if sys.version_info >= (3, 13) else {}
"""Python 3.12 has it as well; 3.12.1 crashes where somebody asks such a task for its coroutine when it has ended."""

_NAME = "steer_llm_sdk.run"
"""To number them would take as long as to make them."""


LONGEST = 0.005
"""Seconds for which a loop does not turn, at most, because of runs that never wait."""


class _Turned(threading.local):
    """When the loop of this thread last turned here, by its own clock: that of another loop says nothing of it."""

    loop: asyncio.AbstractEventLoop | None = None
    at = 0.0


_turned = _Turned()


def a_turn_is_due(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> bool:
    """Whether to let the loop turn, so that a new task takes its first step. One that has done so already, and ended,
    took no turn; it takes one now and then all the same, so that run after run of no time holds up neither a deadline
    round them all nor anybody else."""
    if not task.done():
        return True
    turned, now = _turned, loop.time()
    known = turned.loop is loop
    if known and now < turned.at + LONGEST:
        return False
    turned.loop, turned.at = loop, now
    return known


@coroutine
def turn() -> Generator[None]:
    """Let the loop turn once: asyncio.sleep(0), in half the time."""
    yield


def too_late(task: asyncio.Task[Any]) -> Late:
    """What there is to be raised of work that was stopped."""
    return Late(True, task.result()) if has_answered(task) else Late()


def has_answered(task: asyncio.Future[Any]) -> bool:
    """It has ended, and well."""
    return task.done() and not task.cancelled() and task.exception() is None


async def announced(work: Coroutine[Any, Any, R], waiting: Sequence[asyncio.Future[None]]) -> R:
    """`work`, whose end wakes those who then wait for it: a turn of the loop earlier than a callback of its task."""
    try:
        return await work
    except SystemExit as exit:
        raise Exited(exit) from exit
    finally:
        for woken in waiting:
            wake(woken)


async def woken_by(loop: asyncio.AbstractEventLoop, at: float, waiting: list[asyncio.Future[None]]) -> None:
    """Wait among `waiting` to be woken, until `at` at the longest."""
    woken: asyncio.Future[None] = loop.create_future()
    waiting.append(woken)
    timer = loop.call_at(at, wake, woken) if at < math.inf else None
    try:
        await woken
    finally:
        if timer is not None:
            timer.cancel()
        waiting.remove(woken)


def wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


_attempt_ends: ContextVar[float | None] = ContextVar("steer_llm_sdk.attempt_ends", default=None)


def attempt_ends() -> float | None:
    """When the attempt that the running code is inside of is cut off, on the clock of its loop; None: it is not."""
    return _attempt_ends.get()


class AttemptTimeout:
    """The policy: no attempt takes longer than the call's `attempt_timeout`. One within the grace still counts."""

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        seconds = call.attempt_timeout
        if seconds is None:
            return await next(call)
        asked = attempt_left_behind.get()
        # A call within this one's attempt is another call.
        left_behind = asked[1] if asked is not None and asked[0] is call else None
        at = asyncio.get_running_loop().time() + seconds
        # Of attempts one within the other, the first to end ends both.
        outer = _attempt_ends.get()
        token = _attempt_ends.set(at if outer is None else min(at, outer))
        try:
            return await until(at, next(call), left_behind)
        except Late as late:
            if late.finished:
                return late.result
            raise ProviderTimeout(f"no answer from {call.target} within {seconds:g} s", call.target) from None
        finally:
            _attempt_ends.reset(token)


async def watch(task: asyncio.Future[Any], at: float | None) -> None:
    """Return when the task is done or the time has come. The task is not touched, whoever is cancelled."""
    if task.done():
        return
    loop = task.get_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def done(_: object) -> None:
        wake(woken)

    task.add_done_callback(done)
    timer = None if at is None else loop.call_at(at, wake, woken)
    try:
        await woken
    finally:
        task.remove_done_callback(done)
        if timer is not None:
            timer.cancel()


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait GRACE for all of them to end; after that they are on their own."""
    for task in tasks:
        task.cancel()
    await stopped(*tasks)


async def stopped(*tasks: asyncio.Task[Any]) -> None:
    """Wait GRACE for tasks that were cancelled to end; after that they are on their own."""
    running = [task for task in tasks if not task.done()]
    try:
        if running:
            end = running[0].get_loop().time() + GRACE
            for task in running:
                await watch(task, end)
    finally:
        for task in tasks:
            if not task.done():
                _abandoned.add(task)
                task.add_done_callback(_forget)
            elif not task.cancelled():
                task.exception()  # Seen: whoever stops work does not ask how it ended.


async def _stopped(task: asyncio.Task[Any], left_behind: Callable[[asyncio.Task[Any]], None] | None) -> None:
    try:
        await stop(task)
    finally:
        if left_behind is not None and not task.done():
            left_behind(task)


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("work that was left behind failed later: %r", error)
