"""Cells without threads, loops and servers: what happens between instances and their store is chosen step by step.

The cells are the real ones. Only what lies around them is made here: a store that compares versions, and a line on
which a request or its answer is lost.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

from steer_llm_sdk.reliability.shared.board import Entry, Swap
from steer_llm_sdk.reliability.shared.cell import Cell

R = TypeVar("R")

Line = Literal["good", "request lost", "answer lost", "another found it lost"]
LINES: tuple[Line, ...] = ("good", "request lost", "answer lost", "another found it lost")


class Store:
    """One key. Its clock is everybody's."""

    def __init__(self, entry: Entry = Entry(0, None), now: float = 0.0) -> None:
        self.entry = entry
        self.now = now

    def swap(self, version: int, text: str) -> Swap:
        if self.entry.version not in (0, version):
            return Swap(False, self.entry, self.now)
        self.entry = Entry(max(self.entry.version, version) + 1, text)
        return Swap(True, self.entry, self.now)


class Lost(ConnectionError):
    """The store did not answer."""


class ModelLink:
    """A link to `Store` in the place of the real one; `line` is what becomes of the next request."""

    LOST = (Lost,)

    def __init__(self, store: Store) -> None:
        self.store = store
        self.line: Line = "good"
        self.up = True
        self.at = "model"
        self.cell: Cell[Any] | None = None

    def now(self) -> float:
        return self.store.now

    def call(self, *_: Any) -> bool:
        return True

    async def swap(self, cell: Cell[Any], version: int, text: str, now: float, *, tell: bool) -> Swap:
        if self.line == "request lost":
            raise Lost
        done = self.store.swap(version, text)
        if self.line == "answer lost":
            raise Lost
        if self.line == "another found it lost":
            cell.part()
        return done

    async def read(self, cell: Cell[Any]) -> Entry | None:
        if self.line in ("request lost", "answer lost"):
            raise Lost
        return None if self.store.entry.version == cell.version else self.store.entry

    def lost(self, error: BaseException) -> None:
        assert self.cell is not None
        self.cell.part()


def at_once(work: Coroutine[Any, Any, R]) -> R:
    """The result of work that never has to wait."""
    try:
        work.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    raise AssertionError("it waits")


def make(cell: Cell[Any], *steps: Any, line: Line = "good") -> list[Any]:
    """The answers of steps that are made together."""
    link: Any = cell.link
    link.line = line
    pending: Sequence[tuple[Any, Future[Any]]] = [(step, Future()) for step in steps]
    at_once(cell._make(list(pending)))
    link.line = "good"
    return [future.result() for _, future in pending]


def look(cell: Cell[Any], *, line: Line = "good") -> None:
    """What the link does every now and then: hear what stands there, or come back."""
    link: Any = cell.link
    link.line = line
    try:
        if line in ("request lost",):
            raise Lost
        if cell.alone:
            at_once(cell.rejoin(link.store.entry))
        else:
            cell.hear(link.store.entry)
    except Lost:
        cell.part()
    link.line = "good"
