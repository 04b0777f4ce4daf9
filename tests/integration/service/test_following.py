"""Who follows a run hears all of it and its end, whoever carries it out, whenever he comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service import runs
from steer_llm_sdk.service.runs import Run, RunBook
from steer_llm_sdk.streaming.manager import EventManager

TEXT = {"type": "delta", "delta": "a"}


class Engine:
    """Knows no end of any run."""

    async def owners(self) -> set[str] | None:
        return None

    async def outcome(self, engine_id: str) -> OrchestrationOutput | str | None:
        return None

    async def cancel(self, engine_id: str) -> None:
        pass


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[tuple[RunBook, RunBook]]:
    """Of two processes, on one table."""
    made = RunBook(str(tmp_path / "runs.db"), Engine()), RunBook(str(tmp_path / "runs.db"), Engine())
    for book in made:
        await book.open()
    yield made
    for book in made:
        await book.close()


def a_run() -> Run:
    return Run("r", "default", "x", 1.0, tool="t", engine="e")


async def numbers(follow: Any) -> list[int]:
    async with asyncio.timeout(10):
        return [event.id async for events in follow for event in events]


async def test_what_comes_while_the_reader_is_busy_with_what_was_there_is_not_lost_at_the_end() -> None:
    run = a_run()
    run.tell(TEXT)
    following = run.follow(0)
    assert [event.id for event in await anext(following)] == [1]
    run.tell(TEXT)
    run.tell(TEXT)
    run.state = "succeeded"
    run.wake()
    assert await numbers(following) == [2, 3]


async def test_a_run_that_is_silent_is_followed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEEP_ALIVE", 0.01)
    following = a_run().follow(0)
    assert [await anext(following) for _ in range(2)] == [[], []]
    await following.aclose()


async def test_who_read_a_run_from_the_table_hears_of_it_though_it_is_taken_up_here(
    books: tuple[RunBook, RunBook],
) -> None:
    here, there = books
    await there.handed_in("r", "default", "x", "t", "e")
    found = await here.get("default", "r")
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def work(events: EventManager) -> str:
        await events.emit_delta(StreamDeltaEvent("a"))
        begun.set()
        await may_end.wait()
        await events.emit_delta(StreamDeltaEvent("b"))
        return "done"

    def came_to(said: str) -> OrchestrationOutput:
        return OrchestrationOutput(content=said, elapsed_ms=1)

    carrying = asyncio.create_task(here.carry(a_run(), 0.0, work, came_to))
    await begun.wait()
    following = asyncio.create_task(numbers(here.follow(found, 0)))
    elsewhere = asyncio.create_task(numbers(there.follow(await there.get("default", "r"), 0)))
    await asyncio.sleep(0)
    may_end.set()
    assert (await following, await elsewhere) == ([1, 2], [1, 2])
    assert (await carrying, found.state) == ("done", "succeeded")
