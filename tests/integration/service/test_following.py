"""Who follows a run hears all of it and its end, whoever carries it out, whenever he comes."""

from __future__ import annotations

import asyncio
import json
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration._result import as_json
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service import guard, runs
from steer_llm_sdk.service._json import written
from steer_llm_sdk.service.routes.runs import _Followed
from steer_llm_sdk.service.runs import Run, RunBook, _Heard, told
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
    following = RunBook(":memory:").follow(run, 0)
    assert [event.id for event in await anext(following)] == [1]
    run.tell(TEXT)
    run.tell(TEXT)
    run.state = "succeeded"
    run.wake()
    assert await numbers(following) == [2, 3]


async def test_a_run_that_is_silent_is_followed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEEP_ALIVE", 0.01)
    following = RunBook(":memory:").follow(a_run(), 0)
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


class Color(Enum):
    RED = "red"


class Model(BaseModel):
    at: datetime


def circle() -> list[Any]:
    round_: list[Any] = []
    round_.append(round_)
    return round_


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD: list[Any] = [
    math.nan,
    -math.inf,
    2**64,
    "null",
    None,
    "\ud800",
    b"x",
    (1, 2),
    {1, 2},
    {1: "a", "1": "b"},
    {"a": {"b": math.nan}},
    Color.RED,
    circle(),
    deep(150),
    deep(300),
    datetime(2026, 1, 1, tzinfo=UTC),
    Model(at=datetime(2026, 1, 1, tzinfo=UTC)),
    UUID(int=7),
    Decimal("1.50"),
    object,
    OrderedDict(a=1),
    MappingProxyType({"a": 1}),
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from(ODD),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=8,
)


def says_what_json_says(value: Any) -> bool:
    event = {"id": 1, "type": "delta", "delta": value, "at_ms": 0.5}
    return told(event) == (1, "delta", written({name: as_json(part)[0] for name, part in event.items()}))


@given(values)
def test_an_event_is_written_as_json_says_it_whatever_a_tool_has_put_in(value: Any) -> None:
    assert says_what_json_says(value)


@pytest.mark.parametrize("value", [*ODD, ODD, 10**5000], ids=lambda _: "")
def test_what_is_hard_to_write_is_written_as_json_says_it(value: Any) -> None:
    assert says_what_json_says(value)


def test_an_exception_in_an_event_is_described() -> None:
    said = json.loads(told({"id": 1, "type": "error", "error": KeyError("x")}).said)
    assert (said["error"]["type"], said["error"]["is_retryable"]) == ("KeyError", False)


async def test_an_event_says_what_its_tool_said_then_whatever_becomes_of_it() -> None:
    @dataclass(frozen=True)
    class Own(StreamDeltaEvent):
        more: str = "more"

    run = a_run()
    events = _Heard(run).for_run("r", "t", {"user": {"name": "n"}})
    data = {"number": [1]}
    await events.emit_delta(StreamDeltaEvent({"event_type": "x", "data": data}))
    await events.emit_delta(Own("b", chunk_index=2))
    data["number"].append(2)
    events.metadata["user"]["name"] = "other"
    first, own = (json.loads(event.said) for event in run.events)
    assert (first["delta"]["data"], first["metadata"]["user"]) == ({"number": [1]}, {"name": "n"})
    assert list(first) == [*list(own)[:-2], "at_ms"]
    assert list(own)[-2:] == ["more", "at_ms"]
    assert [event.id for event in run.events] == [1, 2]


class Reader:
    """Of an ASGI server: it goes away once it has had `pieces`, and says so when it is asked, or by an OSError."""

    def __init__(self, pieces: int, *, fails: bool) -> None:
        self.said: list[bytes] = []
        self._left, self._fails = pieces, fails
        self._gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            if self._fails and not self._left:
                raise OSError
            self.said.append(message["body"])
            self._left -= 1
            if not (self._left or self._fails):
                self._gone.set()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_reader_who_goes_away_leaves_nothing_behind(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UNWATCHED", 0)
    run, reader, before = a_run(), Reader(2, fails=fails), asyncio.all_tasks()
    run.tell(TEXT)
    book = RunBook(":memory:")
    following = asyncio.create_task(_Followed(book, run, 0)({"type": "http"}, reader.receive, reader.send))
    async with asyncio.timeout(10):
        for _ in range(3):
            await asyncio.sleep(0.01)
            run.tell(TEXT)
        await following
    assert [piece.partition(b"\n")[0] for piece in reader.said] == [b"id: 1", b"id: 2"]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert book._followed == {}


async def test_who_follows_can_be_cancelled() -> None:
    reader = Reader(9, fails=False)
    following = asyncio.create_task(
        _Followed(RunBook(":memory:"), a_run(), 0)({"type": "http"}, reader.receive, reader.send)
    )
    await asyncio.sleep(0)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
