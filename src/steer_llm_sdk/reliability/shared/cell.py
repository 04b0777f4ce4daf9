"""One shared value as this instance sees it, and how it is moved.

    submit(step) -> [the steps that wait, together] -> the value that is known -> moved -> swapped on the board
                             ^                                                                |
                             +---------- somebody was faster: what stands there now ----------+

A step is a function of the value and the store's time. Whoever moves the value does it with the same functions as in
memory, and the board only compares versions: so there is one set of rules, and it is not written in Lua.

Where the store does not answer, the value goes on here alone (`parted`), and when it answers again, what happened here
meanwhile is brought to what stands there (`rejoined`). A cell says how, by overriding them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from steer_llm_sdk.reliability.shared.board import Entry
from steer_llm_sdk.reliability.shared.snapshot import Unreadable

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.shared.link import Link

S = TypeVar("S")
A = TypeVar("A")
Step: TypeAlias = Callable[[S, float], tuple[S, A]]

_log = logging.getLogger(__name__)


def newer(known: int, entry: Entry) -> bool:
    """Whether an entry says more than the version that is known. One that comes late does not."""
    return entry.text is not None and entry.version > known


def run(steps: list[Step[S, Any]], state: S, now: float) -> tuple[S, list[Any]]:
    answers = []
    for step in steps:
        state, answer = step(state, now)
        answers.append(answer)
    return state, answers


class Cell(Generic[S]):
    """`state` is what is known of the value; any thread may read it, and only the link's thread moves it.

    `told`: others hear of each change, so that what is known here may be believed; else the store is asked before a
    step is answered that changes nothing.
    """

    told = True
    ttl = 86_400.0
    """Seconds that the store keeps it after the last change."""

    def __init__(self, link: Link, key: str, state: S) -> None:
        self.key = key
        self.link = link
        self.state = self.joint = state
        """`joint` is what the store had when it last answered; `state` is another only while we go on alone."""
        self.version = 0
        self.alone = False
        """The store does not answer, or holds what cannot be read; what is decided here is decided alone."""
        self._steps: list[tuple[Step[S, Any], Future[Any]]] = []
        self._lock = threading.Lock()
        self._due = False
        self._later: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        self._asking = False
        """The store is being told of our steps."""
        self._news: Entry | None = None
        """The newest that was heard meanwhile."""

    # ── what a kind of cell says of itself ───────────────────────────────────────────────────────────────────────────

    def encode(self, state: S) -> str:
        raise NotImplementedError

    def decode(self, text: str) -> S:
        """Raises Unreadable."""
        raise NotImplementedError

    def changed(self) -> None:
        """`state` is another one. Called in the link's thread."""

    def seen(self, stored: S) -> None:
        """The store holds this. Called in the link's thread, before `state` is it."""

    def parted(self, state: S) -> S:
        """The value with which this instance goes on alone."""
        return state

    def rejoined(self, stored: S, now: float) -> S:
        """What stands in the store, with what happened here meanwhile. Called again where somebody is faster."""
        return stored

    def part_again(self) -> None:
        """The store may or may not have what `rejoined` made last: it did not answer."""

    def news(self, known: S, moved: S) -> bool:
        """Whether others are told at once."""
        return self.told

    def begin(self) -> None:
        """Steps are going to be made, together."""

    def stamped(self, moved: S, now: float) -> S:
        """What goes to the store, after the steps."""
        return moved

    def unsure(self, steps: list[Step[S, Any]]) -> None:
        """The store may or may not have made these steps: it did not answer. They are made once more, here alone."""

    def keep(self) -> None:
        """Called in the link's thread every REFRESH seconds, whenever the store has answered."""

    def wanted(self) -> bool:
        """Whether it has to be kept up to date although nobody tells of its changes."""
        return False

    # ── any thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, step: Step[S, A], delay: float = 0.0) -> Future[A]:
        """Have a step made, with those that come meanwhile; with a `delay` in seconds when it is over or sooner.

        The future is answered when the store has it, or has failed to answer in time.
        """
        future: Future[A] = Future()
        with self._lock:
            self._steps.append((step, future))
            if self._due:
                return future
            self._due = delay == 0.0
        if not self.link.call(self._wake, delay):
            self.answer_alone()
        return future

    # ── the link's thread ────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, entry: Entry) -> None:
        """What is told, or was read; what is older than what is known is no news. While our own steps are under way it
        waits for their answer: it may have them in it, and where the answer is lost, they are made once more."""
        if self.alone:
            return
        if self._asking:
            if self._news is None or entry.text is None or newer(self._news.version, entry):
                self._news = entry
            return
        if entry.text is None:
            self.version = 0  # The store has lost it; the next step brings it back.
        elif newer(self.version, entry):
            try:
                self._adopt(entry.version, self.decode(entry.text))
            except Unreadable as error:
                self._set_aside(error)

    def part(self) -> None:
        """The store does not answer."""
        if not self.alone:
            self.alone = True
            self.state = self.parted(self.state)
            self.changed()

    async def rejoin(self, entry: Entry) -> None:
        """The store answers again: bring to it what happened here. Raises what the board raises."""
        async with self._moving:
            while self.alone:
                try:
                    # A store that has lost it gets what it had.
                    stored = self.joint if entry.text is None else self.decode(entry.text)
                except Unreadable as error:
                    self._set_aside(error)
                    return
                now = self.link.now()
                moved, version = self.rejoined(stored, now), entry.version
                if entry.text is None or moved != stored:
                    moved = self.stamped(moved, now)
                    try:
                        done = await self.link.swap(self, version, self.encode(moved), now, tell=True)
                    except self.link.LOST:
                        self.part_again()
                        raise
                    version, entry = done.entry.version, done.entry
                    if not done.written:
                        continue
                self.alone = False
                self._adopt(version, moved)

    async def drain(self) -> None:
        """Until no step waits."""
        self._wake(0.0)
        while self._working is not None:
            await self._working

    def _adopt(self, version: int, state: S) -> None:
        self.version, self.joint = version, state
        self.seen(state)
        if state != self.state:
            self.state = state
            self.changed()

    def _set_aside(self, error: Unreadable) -> None:
        if not self.alone:
            _log.error("%s is not shared: %s", self.key, error)
        self.part()

    def _wake(self, delay: float) -> None:
        if delay:
            if self._later is None:
                self._later = asyncio.get_running_loop().call_later(delay, self._wake, 0.0)
            return
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        """As long as there are steps. Only one is at work, so that an instance does not compete with itself."""
        try:
            while pending := self._taken():
                try:
                    async with self._moving:
                        await self._make(pending)
                except BaseException as error:  # Nobody may wait for ever.
                    for _, future in pending:
                        if not future.done():
                            future.set_exception(error)
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._working = None

    def _taken(self) -> list[tuple[Step[S, Any], Future[Any]]]:
        with self._lock:
            taken, self._steps = self._steps, []
            self._due = False
        return taken

    async def _make(self, pending: list[tuple[Step[S, Any], Future[Any]]]) -> None:
        steps = [step for step, _ in pending]
        sure, link = self.told, self.link
        self.begin()
        while not self.alone:
            known, version, now = self.state, self.version, link.now()
            moved, answers = run(steps, known, now)
            idle = version > 0 and (moved is known or moved == known)
            if idle and sure:
                _answer(pending, answers)
                return
            try:
                if idle:
                    entry = await link.read(self)
                    if entry is not None:
                        self.hear(entry)
                    sure = entry is None
                    continue
                moved = self.stamped(moved, now)
                self._asking = True
                try:
                    done = await link.swap(self, version, self.encode(moved), now, tell=self.news(known, moved))
                finally:
                    self._asking, heard, self._news = False, self._news, None
            except link.LOST as error:
                if not idle:
                    self.unsure(steps)
                link.lost(error)
                break
            if self._is_alone():  # Others found meanwhile that the store does not answer.
                self.unsure(steps)
                continue
            if done.written:
                self._adopt(done.entry.version, moved)
            else:
                sure = True
                self._lose(version, done.entry)
            if heard is not None:
                self.hear(heard)
            if done.written:
                _answer(pending, answers)
                return
        self._alone(pending)

    def _is_alone(self) -> bool:
        return self.alone

    def _lose(self, tried: int, entry: Entry) -> None:
        """Somebody was faster. A store that has lost its data and its clock may have an older version: it is right."""
        self.hear(entry)
        if self.version == tried != entry.version:
            self.version = entry.version - 1
            self.hear(entry)

    def _alone(self, pending: list[tuple[Step[S, Any], Future[Any]]]) -> None:
        known = self.state
        self.state, answers = run([step for step, _ in pending], known, self.link.now())
        if self.state is not known:
            self.changed()
        _answer(pending, answers)

    def answer_alone(self) -> None:
        """The link is closed: there is no thread that could."""
        self.part()
        self._alone(self._taken())


def _answer(pending: list[tuple[Step[Any, Any], Future[Any]]], answers: list[Any]) -> None:
    for (_, future), answer in zip(pending, answers, strict=True):
        # Who asked may have been cancelled, and his future with him.
        if future.set_running_or_notify_cancel():
            future.set_result(answer)
