"""Signs of life, and what is started beside something that shows none.

An attempt is silent from the moment it is sent until its first byte (or any other sign). Whoever waits in a queue or
between two attempts is not silent: nothing was asked of the provider. `first_of` runs candidates one after the other
and, beside one that stays silent, the next; the first acceptable answer wins and the others are stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from steer_llm_sdk.reliability.deadline import Exited, has_answered, stop, stopped, wake

R = TypeVar("R")

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; for the steps of every attempt."""


class Quiet(NamedTuple):
    """Attempts under way that were `silent` so far and that have `begun` to answer; silent, if at all, `since` then.

    `covered` counts those nearer who still have a next one to start beside these, so that this is no silence yet.
    """

    silent: int = 0
    begun: int = 0
    since: float = 0.0
    covered: int = 0

    def sent(self, now: float) -> Quiet:
        silent, begun, since, covered = self
        return _new(Quiet, (silent + 1, begun, since if silent or begun else now, covered))

    def alive(self, now: float) -> Quiet:
        """One of the silent ones has begun."""
        return Quiet(self.silent - 1, self.begun + 1, now, self.covered)

    def ended(self, begun: bool, now: float) -> Quiet:
        """One has ended, by which the provider has shown that it lives."""
        silent, others, _, covered = self
        return _new(Quiet, (silent, others - 1, now, covered) if begun else (silent - 1, others, now, covered))

    def cover(self, by: int, now: float) -> Quiet:
        return self._replace(covered=self.covered + by, since=now)

    def due(self, after: float) -> float | None:
        """When it will have been silent for `after` seconds; None while it is not silent."""
        return None if self.covered or self.begun or not self.silent else self.since + after


_NONE = Quiet()


class Life:
    """Watches the attempts of one candidate and calls `on_silence`, once, when they were silent for `after` seconds.

    What it sees it passes on to `parent`, which watches something larger. `sent_at` and `sign_at` are of the latest
    attempt, None where there was none. `silent`: it was for `after`, and has shown no sign since. `lost`: another
    candidate won, and this one is being stopped; `blamed`: it is, and was silent to its end.
    """

    __slots__ = (
        "_after",
        "_on_silence",
        "_parent",
        "_pulses",
        "_quiet",
        "_timer",
        "blamed",
        "lost",
        "sent_at",
        "sign_at",
        "silent",
    )

    def __init__(
        self,
        after: float | None = None,
        on_silence: Callable[[Life], None] | None = None,
        parent: Life | None = None,
    ) -> None:
        self._after = after
        self._on_silence = on_silence
        self._parent = parent
        self._quiet = _NONE
        self._pulses: set[Pulse] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.sent_at: float | None = None
        self.sign_at: float | None = None
        self.blamed = self.lost = self.silent = False

    def sent(self) -> Pulse:
        """An attempt is sent. Its pulse is told the first sign of life, and its end."""
        pulse = Pulse(self, None if self._parent is None else self._parent.sent())
        self._pulses.add(pulse)
        loop = asyncio.get_running_loop()
        self.sent_at, self.sign_at = loop.time(), None
        if self._after is not None:
            self._move(self._quiet.sent(self.sent_at))
        return pulse

    def alive(self) -> None:
        """A sign of life of all that is under way."""
        for pulse in tuple(self._pulses):
            pulse.alive()

    def cover(self, by: int) -> None:
        """1: somebody nearer answers a silence from now on; -1: no longer."""
        if self._after is not None:
            self._move(self._quiet.cover(by, _now()))

    def close(self) -> None:
        """Watch no longer."""
        self._after = self._on_silence = None  # Who was to be told holds this, too.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def was_lost(self) -> bool:
        return self.lost or (self._parent is not None and self._parent.was_lost)

    @property
    def timed_out(self) -> bool:
        """It was silent to its end, which came when another had answered."""
        return self.blamed or (self._parent is not None and self._parent.timed_out)

    def _began(self) -> None:
        self.sign_at, self.silent = _now(), False
        if self._after is not None:
            self._move(self._quiet.alive(self.sign_at))

    def _ended(self, pulse: Pulse, begun: bool) -> None:
        self._pulses.discard(pulse)
        self.silent = False
        if self._after is not None:
            self._move(self._quiet.ended(begun, _now()))

    def _move(self, quiet: Quiet) -> None:
        """Of one that is still to look; who is to be told of no silence keeps no account of it."""
        self._quiet = quiet
        if self._after is not None and self._timer is None and (due := quiet.due(self._after)) is not None:
            # Left alone by what happens later: when it comes it looks again.
            self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._after is None or (due := self._quiet.due(self._after)) is None:
            return
        if due > _now():
            self._move(self._quiet)
            return
        self.silent = True
        told = self._on_silence
        self.close()
        if told is not None:
            told(self)


class Pulse:
    """One attempt under way, within a Life and whatever watches that."""

    __slots__ = ("_begun", "_life", "_outer")

    def __init__(self, life: Life, outer: Pulse | None) -> None:
        self._life = life
        self._outer = outer
        self._begun = False

    def alive(self) -> None:
        """The first byte, or any other sign of life; more of them change nothing."""
        if self._begun:
            return
        self._begun = True
        self._life._began()
        if self._outer is not None:
            self._outer.alive()

    def ended(self) -> None:
        """To be said once, however it ended."""
        self._life._ended(self, self._begun)
        if self._outer is not None:
            self._outer.ended()


def _now() -> float:
    return asyncio.get_running_loop().time()


Candidate = Callable[[Life], Coroutine[Any, Any, R]]
MayStart = Callable[[int, bool], bool]
Failed = Callable[[int, Exception], bool]


def first_of(
    candidates: Sequence[Candidate[R]],
    *,
    after: float,
    may_start: MayStart,
    failed: Failed,
    parent: Life | None = None,
    answers_silence: bool = True,
) -> Coroutine[Any, Any, tuple[int, R] | None]:
    """The number of the candidate whose answer came first, and the answer; None where all that were started failed.

    The next one is started when no other is left, and beside one that was silent for `after` seconds. `may_start` is
    asked for each but the first, with whether it would stand beside another; it says no for good. `failed` is told each
    failure and says whether a next one may follow; it may raise instead. Nobody is left running, however this ends,
    except who ignores a cancellation. `answers_silence` False: it is no more than slow, and neither blamed for it nor
    hidden from `parent`, who would otherwise answer no silence while there is a next one here.
    """
    return _Race(candidates, after, may_start, failed, parent, answers_silence).run()


class _Race:
    __slots__ = (
        "_after",
        "_answers_silence",
        "_candidates",
        "_covering",
        "_failed",
        "_loop",
        "_may_start",
        "_next",
        "_over",
        "_parent",
        "_running",
        "_silent",
        "_woken",
    )

    def __init__(
        self,
        candidates: Sequence[Candidate[Any]],
        after: float,
        may_start: MayStart,
        failed: Failed,
        parent: Life | None,
        answers_silence: bool,
    ) -> None:
        self._candidates = candidates
        self._after = after
        self._may_start = may_start
        self._failed = failed
        self._parent = parent
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._running: dict[asyncio.Task[Any], tuple[int, Life]] = {}
        self._silent: Life | None = None
        self._answers_silence = answers_silence
        self._covering = answers_silence and parent is not None
        self._woken: asyncio.Future[None] | None = None
        self._over = False

    async def run(self) -> tuple[int, Any] | None:
        if self._covering and self._parent is not None:
            self._parent.cover(1)
        try:
            self._start()
            while self._running:
                self._woken = self._loop.create_future()
                await self._woken
                for task in [task for task, (_, life) in self._running.items() if task.done() and not life.lost]:
                    number, life = self._running.pop(task)
                    life.close()
                    try:
                        return number, task.result()
                    except Exited as exited:
                        raise exited.exit from None
                    except Exception as error:
                        if not self._failed(number, error):
                            self._stop_starting()
                if not self._running or self._somebody_is_silent():
                    self._start_next()
            return None
        except asyncio.CancelledError:
            # Who ignores a cancellation and answers all the same has been paid for.
            running = [(task, number) for task, (number, _) in self._running.items() if not task.done()]
            await self._stop(*self._running)
            for task, number in running:
                if has_answered(task):
                    return number, task.result()
            raise
        finally:
            if self._covering:
                self._uncover()
            if self._running:
                left, self._running = self._running, {}
                for _, life in left.values():
                    life.close()
                await self._stop(*left)
                for task, (_, life) in left.items():
                    if has_answered(task):
                        life.blamed = False  # It has answered after all, if too late.

    def _lose_the_others(self) -> None:
        """At once: who got the place of the winner in a queue would be sent before the race is told."""
        winner = asyncio.current_task()
        self._over = True
        for task, (_, life) in self._running.items():
            if task is not winner and not task.done():
                life.lost = True
                life.blamed = life.silent and self._answers_silence
                task.cancel()

    async def _stop(self, *tasks: asyncio.Task[Any]) -> None:
        """Everybody is cancelled once: who was already may be tidying up."""
        if self._over:
            await stopped(*tasks)
        else:
            self._over = True
            await stop(*tasks)

    def _somebody_is_silent(self) -> bool:
        silent, self._silent = self._silent, None
        return silent is not None and any(life is silent for _, life in self._running.values())

    def _start_next(self) -> None:
        if self._next < len(self._candidates):
            if self._may_start(self._next, bool(self._running)):
                self._start()
            else:
                self._stop_starting()

    def _start(self) -> None:
        number, self._next = self._next, self._next + 1
        if self._next < len(self._candidates):
            life = Life(self._after, self._on_silence, self._parent)
        else:
            life = Life(parent=self._parent)
            self._uncover()
        task = self._loop.create_task(self._work(number, life))
        self._running[task] = number, life

    async def _work(self, number: int, life: Life) -> Any:
        try:
            answer = await self._candidates[number](life)
            if not self._over and len(self._running) > 1:
                self._lose_the_others()
            return answer
        except SystemExit as exit:
            raise Exited(exit) from exit
        finally:
            self._wake()  # A turn of the loop earlier than a callback of the task would.

    def _stop_starting(self) -> None:
        self._next = len(self._candidates)
        self._uncover()

    def _uncover(self) -> None:
        if self._parent is not None and self._covering:
            self._covering = False
            self._parent.cover(-1)

    def _on_silence(self, life: Life) -> None:
        self._silent = life
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None:
            wake(self._woken)
