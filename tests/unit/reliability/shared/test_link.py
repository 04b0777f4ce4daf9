"""The thread that keeps what is shared, with a board in memory: clocks that are put back, bad steps, the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared_model import Store
from steer_llm_sdk.reliability.shared import snapshot
from steer_llm_sdk.reliability.shared.board import Entry, Swap
from steer_llm_sdk.reliability.shared.cell import Cell
from steer_llm_sdk.reliability.shared.link import Link

pytestmark = pytest.mark.real_time


class MemoryBoard:
    """A board of one key, with a clock of its own."""

    def __init__(self) -> None:
        self.ahead = 1000.0
        self.store = Store()
        self.closed = False

    def _now(self) -> float:
        return time.monotonic() + self.ahead

    async def read(self, known: Any) -> Any:
        entry = self.store.entry
        return [None if version == entry.version else entry for _, version in known], self._now()

    async def swap(self, key: str, version: int, text: str, now: float, ttl: float, *, tell: bool) -> Swap:
        if now > self._now():
            return Swap(False, self.store.entry, self._now())
        return self.store.swap(version, text)._replace(time=self._now())

    async def listen(self, heard: Any, ready: Any) -> None:
        await ready()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


class Counter(Cell[int]):
    told = False

    def encode(self, state: int) -> str:
        return snapshot.written({"count": state})

    def decode(self, text: str) -> int:
        return snapshot.read(text, lambda value: int(value["count"]))


def add(state: int, now: float) -> tuple[int, tuple[int, float]]:
    return state + 1, (state + 1, now)


@pytest.fixture
def board() -> MemoryBoard:
    return MemoryBoard()


@pytest.fixture
def link(board: MemoryBoard) -> Iterator[Link]:
    made = Link("redis://model", patience=5.0, make_board=lambda url: board)
    yield made
    made.close()


def counter(link: Link, state: int = 0) -> Counter:
    made = Counter(link, "count", state)
    link.add(made)
    return made


def test_steps_of_several_threads_are_all_made(link: Link) -> None:
    cell = counter(link)
    futures: list[Any] = []

    def submit() -> None:
        futures.extend(cell.submit(add) for _ in range(200))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(future.result(10)[0] for future in futures) == list(range(1, 801))
    assert cell.state == 800


def test_a_step_knows_the_time_of_the_store_and_none_that_is_to_come(link: Link, board: MemoryBoard) -> None:
    cell = counter(link)
    cell.submit(add).result(10)
    for _ in range(50):
        _, now = cell.submit(add).result(10)
        assert now <= board._now() < now + 5


def test_a_clock_that_is_put_back_is_followed(link: Link, board: MemoryBoard) -> None:
    cell = counter(link)
    assert cell.submit(add).result(10)[0] == 1
    board.ahead -= 500.0
    count, now = cell.submit(add).result(10)
    assert count == 2
    assert now <= board._now() < now + 5


def test_a_step_that_raises_says_so_to_who_asked_and_nobody_waits_for_ever(link: Link) -> None:
    cell = counter(link)

    def bad(state: int, now: float) -> tuple[int, None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cell.submit(bad).result(10)
    assert cell.submit(add).result(10)[0] == 1


def test_a_step_may_wait_for_others_but_not_for_longer_than_it_said(link: Link) -> None:
    cell = counter(link)
    cell.submit(add).result(10)
    late = cell.submit(add, 0.05)
    assert late.result(10)[0] == 2
    late = cell.submit(add, 3600.0)
    assert cell.submit(add).result(10)[0] == 4
    assert late.result(10)[0] == 3


def test_what_waits_is_brought_to_the_store_before_it_is_closed(link: Link, board: MemoryBoard) -> None:
    cell = counter(link)
    futures = [cell.submit(add, 3600.0) for _ in range(3)]
    cell.submit(add).result(10)
    late = cell.submit(add, 3600.0)
    link.close()
    assert [future.result(10)[0] for future in (*futures, late)] == [1, 2, 3, 5]
    assert board.store.entry.text == snapshot.written({"count": 5})
    assert board.closed


def test_after_the_end_a_cell_goes_on_alone(link: Link) -> None:
    cell = counter(link)
    cell.submit(add).result(10)
    link.close()
    assert cell.submit(add).result(10)[0] == 2
    assert cell.alone


def test_a_cell_that_nobody_holds_is_forgotten(link: Link) -> None:
    cell = counter(link)
    cell.submit(add).result(10)
    assert len(link.cells) == 1
    del cell
    end = time.monotonic() + 10
    while link.cells:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_board_that_is_behind_its_own_past_is_believed(link: Link, board: MemoryBoard) -> None:
    """A store that was put back from a backup, clock and all: what it says is what there is."""
    cell = counter(link)
    for _ in range(5):
        cell.submit(add).result(10)
    board.store.entry = Entry(2, snapshot.written({"count": 2}))
    assert cell.submit(add).result(10)[0] == 3
