"""Signs of life, and what is started beside something that shows none.

An attempt is silent from the moment it is sent until its first byte (or any other sign). Whoever waits in a queue or
between two attempts is not silent: nothing was asked of the provider. `first_of` runs candidates one after the other
and, beside one that stays silent, the next; the first acceptable answer wins and the others are stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from steer_llm_sdk.reliability.deadline import Exited, a_turn_is_due, has_answered, new_task, stop, stopped, turn, wake

R = TypeVar("R")
T = TypeVar("T")

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
    candidate won, and this one is being stopped; `blamed`: it is, and was silent to its end. One that is not `watching`
    keeps no account of its silence before `watch`. `race`: the one that it is in, if any.
    """

    __slots__ = (
        "_after",
        "_on_silence",
        "_parent",
        "_pulses",
        "_quiet",
        "_timer",
        "_watching",
        "blamed",
        "lost",
        "race",
        "sent_at",
        "sign_at",
        "silent",
    )

    def __init__(
        self,
        after: float | None = None,
        on_silence: Callable[[Life], None] | None = None,
        parent: Life | None = None,
        watching: bool = True,
    ) -> None:
        self._after = after
        self._watching = watching and after is not None
        self._on_silence = on_silence
        self._parent = parent
        self.race: _Race | None = None
        self._quiet = _NONE
        self._pulses: set[Pulse] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.sent_at: float | None = None
        self.sign_at: float | None = None
        self.blamed = self.lost = self.silent = False

    def sent(self, now: float | None = None) -> Pulse:
        """An attempt is sent. Its pulse is told the first sign of life, and its end."""
        if now is None:
            now = _now()
        pulse = Pulse(self, None if self._parent is None else self._parent.sent(now))
        self._pulses.add(pulse)
        self.sent_at, self.sign_at = now, None
        if self._watching:
            self._move(self._quiet.sent(now))
        return pulse

    def alive(self) -> None:
        """A sign of life of all that is under way."""
        for pulse in tuple(self._pulses):
            pulse.alive()

    def cover(self, by: int) -> None:
        """1: somebody nearer answers a silence from now on; -1: no longer."""
        quiet = self._quiet.cover(by, _now())
        if self._watching:
            self._move(quiet)
        else:
            self._quiet = quiet

    def watch(self, on_silence: Callable[[Life], None]) -> None:
        """Look from now on, at those too that are under way."""
        self._on_silence = on_silence
        if self._after is not None:
            self._watching = True
            begun = sum([pulse.begun for pulse in self._pulses])
            since = max(self.sent_at or 0.0, self.sign_at or 0.0)
            self._move(Quiet(len(self._pulses) - begun, begun, since, self._quiet.covered))

    def close(self) -> None:
        """Watch no longer, and tell nobody."""
        self._rest()
        self.race = None

    @property
    def was_lost(self) -> bool:
        return self.lost or (self._parent is not None and self._parent.was_lost)

    @property
    def timed_out(self) -> bool:
        """It was silent to its end, which came when another had answered."""
        return self.blamed or (self._parent is not None and self._parent.timed_out)

    def _began(self) -> None:
        self.sign_at, self.silent = _now(), False
        if self._watching:
            self._move(self._quiet.alive(self.sign_at))

    def _move(self, quiet: Quiet) -> None:
        """Of one that is still to look; who is to be told of no silence keeps no account of it."""
        self._quiet = quiet
        if self._after is not None and self._timer is None and (due := quiet.due(self._after)) is not None:
            # Left alone by what happens later: when it comes it looks again.
            self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _rest(self) -> None:
        self._watching = False
        self._after = self._on_silence = None  # Who was to be told holds this, too.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._after is None or (due := self._quiet.due(self._after)) is None:
            return
        if due > _now():
            self._move(self._quiet)
            return
        self.silent = True
        told = self._on_silence
        self._rest()
        if told is not None:
            told(self)


class Pulse:
    """One attempt under way, within a Life and whatever watches that."""

    __slots__ = ("_life", "_outer", "begun")

    def __init__(self, life: Life, outer: Pulse | None) -> None:
        self._life = life
        self._outer = outer
        self.begun = False

    def alive(self) -> None:
        """The first byte, or any other sign of life; more of them change nothing."""
        if self.begun:
            return
        self.begun = True
        self._life._began()
        if self._outer is not None:
            self._outer.alive()

    def ended(self) -> None:
        """To be said once, however it ended."""
        life = self._life
        life._pulses.discard(self)
        life.silent = False
        if life._watching:
            life._move(life._quiet.ended(self.begun, _now()))
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
    begun: tuple[asyncio.Task[R], Life] | None = None,
) -> Coroutine[Any, Any, tuple[int, R] | None]:
    """The number of the candidate whose answer came first, and the answer; None where all that were started failed.

    The next one is started when no other is left, and beside one that was silent for `after` seconds. `may_start` is
    asked for each but the first, with whether it would stand beside another; it says no for good. `failed` is told each
    failure and says whether a next one may follow; it may raise instead. Nobody is left running, however this ends,
    except who ignores a cancellation. `answers_silence` False: it is no more than slow, and neither blamed for it nor
    hidden from `parent`, who would otherwise answer no silence while there is a next one here. `begun`: the task of the
    first, where it is under way already, and its life; see `at_work`.
    """
    return _Race(candidates, after, may_start, failed, parent, answers_silence).run(begun)


async def at_work(work: Callable[[T], Coroutine[Any, Any, R]], given: T, life: Life) -> R:
    """What the task of a candidate does: `work(given)`, whose end its race is told, if it is in one by then."""
    try:
        answer = await work(given)
        if life.race is not None:
            life.race.answered()
        return answer
    except SystemExit as exit:
        raise Exited(exit) from exit
    finally:
        if life.race is not None:
            life.race.wake()  # A turn of the loop earlier than a callback of the task would.


def result_of(task: asyncio.Task[R]) -> R:
    """Of one that has ended."""
    try:
        return task.result()
    except Exited as exited:
        raise exited.exit from None
    finally:
        del task  # It holds what it raised, and the traceback of that this frame.


async def answers_all_the_same(task: asyncio.Task[Any]) -> bool:
    """Stop it. Whether it ignored its cancellation and has answered: that has been paid for."""
    running = not task.done()
    await stop(task)
    return running and has_answered(task)


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

    async def run(self, begun: tuple[asyncio.Task[Any], Life] | None = None) -> tuple[int, Any] | None:
        if self._covering and self._parent is not None:
            self._parent.cover(1)
        try:
            if begun is None:
                first, life = self._start(watching=False)
                if a_turn_is_due(self._loop, first):
                    await turn()
            else:
                first, life = begun
                self._running[first] = 0, life
                self._next, life.race = 1, self
            if not first.done():  # Who answers without having to wait needs no timer.
                if self._next < len(self._candidates):
                    life.watch(self._on_silence)
                await self._event()
            del first  # It holds what it raised, and the traceback of that this frame.
            while self._running:
                for task in [task for task, (_, life) in self._running.items() if task.done() and not life.lost]:
                    number, life = self._running.pop(task)
                    life.close()
                    try:
                        return number, result_of(task)
                    except Exception as error:
                        if not self._failed(number, error):
                            self._stop_starting()
                if not self._running or self._somebody_is_silent():
                    self._start_next()
                # One that never waits has ended already, where a task takes its first step at once.
                if self._running and not any(
                    task.done() and not life.lost for task, (_, life) in self._running.items()
                ):
                    await self._event()
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

    def _event(self) -> asyncio.Future[None]:
        """The next: one has ended, or was silent."""
        self._woken = self._loop.create_future()
        return self._woken

    def answered(self) -> None:
        """By the running task. The others lose at once: who got the place of the winner in a queue would be sent before
        the race is told."""
        if self._over or len(self._running) < 2:
            return
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

    def _start(self, watching: bool = True) -> tuple[asyncio.Task[Any], Life]:
        number, self._next = self._next, self._next + 1
        if self._next < len(self._candidates):
            life = Life(self._after, self._on_silence, self._parent, watching)
        else:
            life = Life(parent=self._parent)
            self._uncover()
        life.race = self
        # Of one that answers at once beside others, `answered` has to know the task.
        begin = self._loop.create_task if self._running else partial(new_task, self._loop)
        task = begin(at_work(self._candidates[number], life, life))
        self._running[task] = number, life
        return task, life

    def _stop_starting(self) -> None:
        self._next = len(self._candidates)
        self._uncover()

    def _uncover(self) -> None:
        if self._parent is not None and self._covering:
            self._covering = False
            self._parent.cover(-1)

    def _on_silence(self, life: Life) -> None:
        self._silent = life
        self.wake()

    def wake(self) -> None:
        if self._woken is not None:
            wake(self._woken)
