"""The way to the store: one connection on a thread of its own, which keeps the store's time and hears what changes.

On a thread, because the state belongs to the process and not to a loop: orchestrators may be used from several loops
and threads, and what the others tell is heard while a loop of ours is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from steer_llm_sdk.reliability.shared.board import Board, Entry, Swap, open_board
from steer_llm_sdk.reliability.shared.cell import Cell
from steer_llm_sdk.reliability.stores._url import shown

_log = logging.getLogger(__name__)

PATIENCE = 0.25
"""Seconds that the store gets to answer; it answers in half a millisecond."""
REFRESH = 0.25
"""Seconds between two looks at all that is shared: for what was told and not heard, and for a store that is back."""


class Link:
    """`up`: the store answers. `at` is its URL without credentials. Starts when it is first used."""

    LOST: tuple[type[BaseException], ...] = (Exception,)
    """Whatever the store or the way to it raises: it cannot be used now, and the reason is not ours to mend."""

    def __init__(
        self, url: str, *, patience: float = PATIENCE, make_board: Callable[[str], Board] = open_board
    ) -> None:
        self.at = shown(url)
        self.up = True
        self._patience = patience
        self._board = make_board(url)
        # Whoever uses a cell holds it; one that is forgotten is no longer kept up to date.
        self._cells: weakref.WeakSet[Cell[Any]] = weakref.WeakSet()
        self._ahead = time.time() - time.monotonic()
        self._clock_known = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._refreshing: asyncio.Event | None = None
        self.outages = 0

    # ── any thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> float:
        """The store's time, or a little before it: an answer was under way for a while, and nobody knows how long."""
        return time.monotonic() + self._ahead

    def add(self, cell: Cell[Any]) -> None:
        """Keep a cell as the store has it."""
        if not self.up:
            cell.part()
        with self._lock:
            self._cells.add(cell)
        self.call(self._look)

    @property
    def cells(self) -> list[Cell[Any]]:
        with self._lock:
            return list(self._cells)

    def call(self, do: Callable[..., None], *args: Any) -> bool:
        """Have it done on the link's thread; False where it is closed."""
        with self._lock:
            if self._closed:
                return False
            loop = self._started()
        try:
            loop.call_soon_threadsafe(do, *args)
        except RuntimeError:  # It has ended since.
            return False
        return True

    def close(self) -> None:
        """Bring what waits to the store, if it answers, and let go of it."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._look)
            thread.join(4 * self._patience)

    # ── the link's thread ────────────────────────────────────────────────────────────────────────────────────────────

    async def swap(self, cell: Cell[Any], version: int, text: str, now: float, *, tell: bool) -> Swap:
        async with asyncio.timeout(self._patience):
            done = await self._board.swap(cell.key, version, text, now, cell.ttl, tell=tell)
        # One that lies before what we took for now shows that the store's clock was put back.
        self._tick(done.time, back=done.time < now)
        return done

    async def read(self, cell: Cell[Any]) -> Entry | None:
        """None where it is as it is known."""
        (entry,) = await self._read([cell])
        return entry

    def lost(self, error: BaseException) -> None:
        """Everything goes on alone, until the store answers again."""
        if self.up:
            self.up = False
            self.outages += 1
            _log.warning("%s does not answer (%s): what is shared there goes on here alone", self.at, _named(error))
        for cell in self.cells:
            cell.part()

    async def _read(self, cells: Iterable[Cell[Any]]) -> list[Entry | None]:
        known = [(cell.key, -1 if cell.alone else cell.version) for cell in cells]
        async with asyncio.timeout(self._patience):
            entries, at = await self._board.read(known)
        self._tick(at)
        return entries

    def _tick(self, store_time: float, back: bool = False) -> None:
        ahead = store_time - time.monotonic()
        if back or not self._clock_known or ahead > self._ahead:
            self._ahead, self._clock_known = ahead, True

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._live, args=(self._loop,), name=f"steer {self.at}", daemon=True)
            self._thread.start()
        return self._loop

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._keep())
        finally:
            with self._lock:
                self._closed = True
            for cell in self.cells:
                cell.answer_alone()

    def _look(self) -> None:
        if self._refreshing is not None:
            self._refreshing.set()

    async def _keep(self) -> None:
        self._refreshing = asyncio.Event()
        listening = asyncio.create_task(self._listen())
        try:
            while not self._closed:
                self._refreshing.clear()
                await self._refresh()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._refreshing.wait(), REFRESH)
            for cell in self.cells:
                await cell.drain()
        finally:
            listening.cancel()
            await asyncio.wait([listening], timeout=self._patience)  # A driver may swallow its cancellation.
            with contextlib.suppress(*self.LOST):
                async with asyncio.timeout(self._patience):
                    await self._board.aclose()

    async def _refresh(self) -> None:
        cells = [cell for cell in self.cells if cell.told or cell.alone or cell.wanted()]
        try:
            entries = await self._read(cells)
            for cell, entry in zip(cells, entries, strict=True):
                if entry is None:
                    continue
                if cell.alone:
                    await cell.rejoin(entry)
                else:
                    cell.hear(entry)
            for cell in self.cells:
                cell.keep()
        except self.LOST as error:
            self.lost(error)
            return
        if not self.up:
            self.up = True
            _log.warning("%s answers again: what is shared is shared again", self.at)

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(*self.LOST):
                await self._board.listen(self._hear, self._heard_again)
            await asyncio.sleep(REFRESH)

    def _hear(self, key: str, entry: Entry) -> None:
        for cell in self.cells:
            if cell.key == key:
                cell.hear(entry)

    async def _heard_again(self) -> None:
        """What was told before nobody heard."""
        self._look()


def _named(error: BaseException) -> str:
    """Its type alone: what a driver says may have the password in it."""
    return type(error).__name__
