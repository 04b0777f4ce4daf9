"""What is learned, on the real servers: sums that several processes add to."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from servers import RedisServer
from steer_llm_sdk.errors import InvalidRequest, StoreUnavailable
from steer_llm_sdk.orchestration.planning import LearnedPlanner, ToolMetadata
from steer_llm_sdk.orchestration.planning.learned import Pacing
from steer_llm_sdk.reliability.stores import _sqlite, open_store
from steer_llm_sdk.reliability.stores.sums import SumStore, open_sums

TOOLS = {name: ToolMetadata(name=name) for name in ("good", "odd")}
CODE = {"type": "code", "query": "Sort a list."}


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sums.db'}"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def sums(url: str) -> AsyncIterator[SumStore]:
    opened = open_sums(url)
    yield opened
    await opened.aclose()


async def test_what_is_added_comes_to_a_total_and_only_what_changed_is_told(sums: SumStore) -> None:
    await sums.add("s", {"a": (1.0, 0.1), "b\x1f\0\ud800": (1e-300,)})
    await sums.add("s", {"a": (2.0, 0.2)})
    await sums.add("other", {"a": (9.0,)})
    mark, rows = await sums.since("s", 0)
    assert {key: list(row) for key, row in rows.items()} == {"a": [3.0, 0.1 + 0.2], "b\x1f\0\ud800": [1e-300]}
    assert (await sums.since("s", mark))[1] == {}
    await sums.add("s", {"a": (-4.0, 0.0)})
    again, rows = await sums.since("s", mark)
    assert again > mark
    assert {key: list(row) for key, row in rows.items()} == {"a": [-1.0, 0.1 + 0.2]}
    assert (await sums.since("nobody", 0))[1] == {}


async def test_fifty_that_add_at_once_lose_nothing_and_never_pass_the_limit(sums: SumStore) -> None:
    took = await asyncio.gather(*(sums.add_within("s", "budget", 0.03, 1.0) for _ in range(50)))
    assert took.count(True) == 33
    await asyncio.gather(*(sums.add("s", {"a": (1.0,), f"k{n}": (1.0, 2.0)}) for n in range(50)))
    rows = (await sums.since("s", 0))[1]
    assert rows["budget"][0] == pytest.approx(0.99)
    assert (rows["a"][0], len(rows)) == (50.0, 52)


async def test_who_reads_while_others_write_misses_no_change(url: str, sums: SumStore) -> None:
    reader = sums if url == "memory://" else open_sums(url)
    seen: dict[str, float] = {}
    mark = 0

    async def write() -> None:
        for n in range(40):
            await asyncio.gather(*(sums.add("s", {f"k{n % 7}{who}": (1.0,)}) for who in range(5)))

    writing = asyncio.create_task(write())
    while not writing.done():
        await asyncio.sleep(0)
        mark, rows = await reader.since("s", mark)
        seen |= {key: row[0] for key, row in rows.items()}
    mark, rows = await reader.since("s", mark)
    seen |= {key: row[0] for key, row in rows.items()}
    assert seen == {key: row[0] for key, row in (await reader.since("s", 0))[1].items()}
    assert sum(seen.values()) == 200
    await reader.aclose()


async def test_a_note_is_kept_for_its_time(sums: SumStore) -> None:
    await sums.keep("s", "a", b"\x00\xff one", 60)
    await sums.keep("s", "a", b"\x00\xff two", 60)
    await sums.keep("s", "short", b"gone", 0.05)
    assert await sums.kept("s", "a") == b"\x00\xff two"
    assert await sums.kept("other", "a") is None
    async with asyncio.timeout(10):
        while await sums.kept("s", "short") is not None:
            await asyncio.sleep(0.005)
    assert await sums.kept("s", "a") == b"\x00\xff two"


LEARNS = """
import asyncio, sys
from steer_llm_sdk.orchestration.planning import LearnedPlanner, ToolMetadata
from steer_llm_sdk.orchestration.planning.learned import Pacing

url, tool, reward, budget = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
tools = {tool: ToolMetadata(name=tool, resource_requirements={"estimated_cost_per_run": 0.001})}

async def main():
    planner = LearnedPlanner("good", store=url, explore="off", pacing=Pacing(budget_usd=budget, requests=200))
    done = 0
    for _ in range(60):
        try:
            decision = await planner.plan({"type": "code", "query": "Sort a list."}, tools)
        except Exception as error:
            assert type(error).__name__ == "BudgetExceeded", error
            continue
        done += 1
        assert await planner.feedback(decision.metadata["decision_id"], reward, 0.001, 20.0)
    print(done)

asyncio.run(main())
"""


def processes(url: str, budget: float) -> list[int]:
    """Two processes, each trying 60 times: what they were let to do."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(LEARNS), url, tool, reward, str(budget)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for tool, reward in (("good", "0.3"), ("odd", "0.9"))
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [int(out) for out, _ in said]


@pytest.fixture
async def planner_at() -> AsyncIterator[Callable[..., LearnedPlanner]]:
    made: list[LearnedPlanner] = []

    def make(url: str, **options: Any) -> LearnedPlanner:
        made.append(LearnedPlanner("good", store=url, explore="off", **options))
        return made[-1]

    yield make
    for planner in made:
        await planner.aclose()


Make = Callable[..., LearnedPlanner]


@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres"], indirect=True)
async def test_two_processes_learn_as_one(url: str, planner_at: Make) -> None:
    assert processes(url, 10.0) == [60, 60]
    third = planner_at(url)
    decision = await third.plan(CODE, TOOLS)
    assert decision.selected_tool == "odd"
    assert {arm: cell.runs for (_, arm), cell in third.beliefs.cells.items()} == {"good@1.0.0": 60, "odd@1.0.0": 60}
    assert await third.feedback(decision.metadata["decision_id"], 1.0)
    # A decision of one process, judged again in another.
    assert await planner_at(url).feedback(decision.metadata["decision_id"], 0.0)
    last = planner_at(url)
    await last.plan(CODE, TOOLS)
    cell = last.beliefs.cells["code", "odd@1.0.0"]
    assert (cell.runs, cell.reward) == (61, pytest.approx(60 * 0.9))


@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres"], indirect=True)
async def test_two_processes_do_not_overspend_what_is_for_both(url: str) -> None:
    done = processes(url, 0.08)
    assert 70 <= sum(done) <= 80


async def test_planning_goes_on_alone_while_the_store_is_silent_and_pays_what_it_owes(
    redis_url: str, redis_server: RedisServer, planner_at: Make
) -> None:
    planner = planner_at(redis_url)
    paced = planner_at(redis_url, space="paced", pacing=Pacing(budget_usd=1.0, requests=10))
    await planner.plan(CODE, TOOLS)
    redis_server.pause()
    try:
        began = time.monotonic()
        for _ in range(30):
            decision = await planner.plan(CODE, {"odd": TOOLS["odd"]})
            assert await planner.feedback(decision.metadata["decision_id"], 1.0)
        assert time.monotonic() - began < 4.0
        assert planner.beliefs.cells["code", "odd@1.0.0"].runs == 30
        with pytest.raises(StoreUnavailable):
            await paced.plan(CODE, TOOLS)
    finally:
        redis_server.resume()
    other, cell = planner_at(redis_url), ("code", "odd@1.0.0")
    async with asyncio.timeout(30):
        while cell not in other.beliefs.cells:
            await planner.plan(CODE, TOOLS)
            await other.plan(CODE, TOOLS)
            await asyncio.sleep(0.2)
    # A write that was cut off may have come through, and is then counted twice.
    assert 30 <= other.beliefs.cells[cell].runs <= 31
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await paced.plan(CODE, TOOLS)).selected_tool == "good"
                break
            except StoreUnavailable:
                await asyncio.sleep(0.2)


def test_a_store_that_is_none_is_refused() -> None:
    store: Any
    for store in ("mysql://here", "nowhere", object()):
        with pytest.raises(InvalidRequest, match="store"):
            LearnedPlanner(store=store)
    with pytest.raises(InvalidRequest) as caught:
        LearnedPlanner(store="ftp://me:secret@here")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///sums.db?synchronous=never",
        "sqlite:///sums.db?wait=1",
        "sqlite:///:memory:",
        "redis://host:1/0?decode_responses=True",
        "redis://host:1/0?nothing_of_that_name=1",
        "redis://me:sec#ret@host:1/0",
        "postgresql://me:sec/ret@host/db",
        "postgresql://host/db?nothing_of_that_name=1",
    ],
)
def test_a_url_that_no_store_takes_is_refused_before_anything_is_written(url: str) -> None:
    for opens in (open_sums, open_store):
        with pytest.raises(InvalidRequest, match="store") as caught:
            opens(url)
        assert "ret@" not in str(caught.value)


async def test_sums_wait_for_the_disk_where_the_url_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def traced(*given: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*given, **options)
        connection.set_trace_callback(said.append)
        return connection

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", traced)
    for option, expected in (("", "PRAGMA synchronous = normal"), ("?synchronous=full", "PRAGMA synchronous = full")):
        said.clear()
        sums = open_sums(f"sqlite:///{tmp_path / 'sums.db'}{option}")
        await sums.add("s", {"a": (1.0,)})
        await sums.aclose()
        assert expected in said


async def test_a_new_file_into_which_somebody_writes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says that it is locked, at once and whatever it was told to wait."""
    path = tmp_path / "sums.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE another (x)")
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(_sqlite.time, "sleep", lambda seconds: other.execute("COMMIT"))
    sums = open_sums(f"sqlite:///{path}")
    await sums.add("s", {"k": (1.0,)})
    await sums.aclose()
    other.close()
