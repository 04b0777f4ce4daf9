"""How a run ended is in the table when its caller hears of it, whoever else writes there."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service import _shelf, runs
from steer_llm_sdk.service._shelf import Hasty, Row, Shelf
from steer_llm_sdk.service.runs import RunBook
from steer_llm_sdk.streaming.manager import EventManager


@pytest.fixture
def in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is slow, however busy the machine is."""
    monkeypatch.setattr(_shelf, "SLOW", math.inf)


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


@pytest.fixture
async def book(table: str) -> AsyncIterator[RunBook]:
    made = RunBook(table)
    await made.open()
    yield made
    await made.close()


async def done(_: EventManager) -> OrchestrationOutput:
    return OrchestrationOutput(content="done", elapsed_ms=1)


def states(table: str) -> dict[str, str]:
    with sqlite3.connect(table) as database:
        return dict(database.execute("SELECT id, state FROM steer_runs"))


def row(run: str, state: str, live: bool = False) -> Row:
    record = json.dumps({"request": "x", "output": None, "error": None})
    return Row(run, "default", 1.0, state, "t", "o", None, record, "[]", live)


async def test_an_end_is_in_the_table_once_the_run_is_over(book: RunBook, table: str) -> None:
    run = book.start("r", "default", "x", done)
    assert run.task is not None
    await run.task
    assert states(table) == {"r": "succeeded"}


async def test_all_of_a_crowd_that_ends_in_one_turn_are_written(book: RunBook, table: str) -> None:
    crowd = [book.start(f"r{number}", "default", "x", done) for number in range(runs.AT_ONCE + 20)]
    await asyncio.gather(*(run.task for run in crowd if run.task is not None))
    assert states(table) == {run.id: "succeeded" for run in crowd}
    assert book.under_way == 0


async def test_while_somebody_else_writes_the_loop_goes_on_and_the_end_is_written_after(
    book: RunBook, table: str
) -> None:
    other = sqlite3.connect(table, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    run = book.start("r", "default", "x", done)
    assert run.task is not None
    for _ in range(20):
        await asyncio.sleep(0)
    assert run.state == "succeeded"
    assert not run.task.done()
    other.execute("COMMIT")
    other.close()
    await asyncio.wait_for(run.task, 30)
    assert states(table) == {"r": "succeeded"}


async def test_the_events_that_others_were_told_of_go_with_the_end(book: RunBook, table: str) -> None:
    may_end = asyncio.Event()

    async def work(events: EventManager) -> OrchestrationOutput:
        await events.emit_delta(StreamDeltaEvent("a"))
        await may_end.wait()
        return OrchestrationOutput(content="done", elapsed_ms=1)

    def live() -> int:
        with sqlite3.connect(table) as database:
            return int(database.execute("SELECT count(*) FROM steer_live").fetchone()[0])

    run = await book.accept("r", "default", "x", work)
    async with asyncio.timeout(30):
        while not live():
            await asyncio.sleep(0.01)
    may_end.set()
    assert run.task is not None
    await run.task
    assert (live(), states(table)) == (0, {"r": "succeeded"})


@pytest.mark.usefixtures("in_time")
def test_who_is_in_a_hurry_writes_nothing_where_somebody_is_in_the_way(table: str) -> None:
    shelf, hasty = Shelf(table), Hasty(table)
    shelf.open()
    assert hasty.end_now(partial(row, "r", "succeeded")) == [None]
    (stands,) = hasty.end_now(partial(row, "r", "failed", live=True)) or [None]
    assert (stands and stands.state, states(table)) == ("succeeded", {"r": "succeeded"})
    other = sqlite3.connect(table, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert hasty.end_now(partial(row, "s", "succeeded")) is None
    assert hasty.end_now(partial(row, "s", "succeeded", live=True)) is None
    other.execute("ROLLBACK")
    other.close()
    assert hasty.end_now(partial(row, "s", "succeeded")) == [None]
    shelf.close()
    hasty.close()


@pytest.mark.parametrize("slow", ["to make", "to write"])
def test_after_a_slow_write_there_is_none_for_a_while(table: str, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    now = [100.0]

    class Slow(Hasty):
        def _end(self, row: Row) -> Row | None:
            now[0] += slow == "to write"
            return super()._end(row)

    def made() -> Row:
        now[0] += slow == "to make"
        return row("a", "succeeded")

    monkeypatch.setattr(_shelf.time, "monotonic", lambda: now[0])
    shelf, hasty = Shelf(table), Slow(table)
    shelf.open()
    assert hasty.may()
    assert hasty.end_now(made) == [None]
    assert not hasty.may()
    now[0] += _shelf.RESPITE
    assert hasty.may()
    shelf.close()
    hasty.close()


async def test_the_loop_does_not_write_down_a_large_request(book: RunBook, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[threading.Thread] = []
    row = runs.Run.row

    def noted(self: runs.Run) -> Row:
        made.append(threading.current_thread())
        return row(self)

    monkeypatch.setattr(runs.Run, "row", noted)
    for size in (runs.LARGE, runs.LARGE + 1):
        await book.carry_out(book.new(f"waited {size}", "default", "x", size), done)
        accepted = await book.accept(f"accepted {size}", "default", "x", done, size=size)
        assert accepted.task is not None
        await accepted.task
    loops = threading.current_thread()
    assert [where is loops for where in made] == [True] * 3 + [False] * 3


async def test_a_run_that_has_ended_is_not_cancelled_when_the_book_is_closed(table: str) -> None:
    book = RunBook(table)
    await book.open()
    other = sqlite3.connect(table, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    run = book.new("r", "default", "x")
    caller = asyncio.create_task(book.carry_out(run, done))
    for _ in range(20):
        await asyncio.sleep(0)
    assert run.state == "succeeded"
    closing = asyncio.create_task(book.close())
    await asyncio.sleep(0)
    other.execute("COMMIT")
    other.close()
    assert (await caller).content == "done"
    await closing


@pytest.mark.usefixtures("in_time")
def test_what_was_written_in_a_hurry_is_moved_from_the_log_into_the_file(table: str) -> None:
    shelf, hasty = Shelf(table), Hasty(table)
    shelf.open()
    for number in range(50):
        hasty.end_now(partial(row, f"r{number}", "succeeded"))
    before = Path(table).read_bytes().count(b"succeeded")
    shelf.prune(1000)
    assert (before, Path(table).read_bytes().count(b"succeeded") >= 50) == (0, True)
    shelf.close()
    hasty.close()


async def test_events_that_were_being_told_when_their_run_ended_are_not_left_in_the_table(
    book: RunBook, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, telling, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    tell = Shelf.tell

    def held(self: Shelf, news: Any) -> None:
        loop.call_soon_threadsafe(telling.set)
        assert may_end.wait(10)
        tell(self, news)

    async def work(events: EventManager) -> OrchestrationOutput:
        await events.for_run("r", "t").emit_delta(StreamDeltaEvent("a"))
        await telling.wait()
        loop.call_later(0.05, may_end.set)  # when this end waits for the thread
        return OrchestrationOutput(content="done", elapsed_ms=1)

    monkeypatch.setattr(Shelf, "tell", held)
    run = book.start("r", "default", "x", work)
    assert run.task is not None
    await run.task
    with sqlite3.connect(table) as database:
        assert database.execute("SELECT COUNT(*) FROM steer_live").fetchone() == (0,)
    assert states(table) == {"r": "succeeded"}
