"""The one step that changes anything is atomic, and says what stands there where it did not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from servers import Server
from shared_kit import until, until_found
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.shared.board import Board, Entry, open_board

NAMES = ["plain", "with space", "openai@http://127.0.0.1:1/v1", "[odd]*?{}\\^", "ünïcode", "a%b_c"]


@pytest.fixture
async def board(url: str) -> AsyncIterator[Board]:
    made = open_board(url)
    yield made
    await made.aclose()


async def now(board: Board) -> float:
    return (await board.read([]))[1]


async def put(board: Board, key: str, version: int, text: str, **more: Any) -> Any:
    given = {"now": 0.0, "ttl": 60.0, "tell": False, **more}
    return await board.swap(key, version, text, given["now"], given["ttl"], tell=given["tell"])


@pytest.mark.parametrize("key", NAMES)
async def test_what_is_written_is_read_and_listed_under_its_name(board: Board, key: str) -> None:
    done = await put(board, key, 0, '{"a": "1\\n2 {}"}')
    assert done.written
    ((entry,), _) = await board.read([(key, -1)])
    assert entry == Entry(done.entry.version, '{"a": "1\\n2 {}"}')
    assert (await board.read([(key, entry.version)]))[0] == [None]
    assert await board.keys(key[:1]) == [key]
    assert await board.keys("another") == []


async def test_what_is_not_there_has_version_0(board: Board) -> None:
    assert (await board.read([("x", -1)]))[0] == [Entry(0, None)]
    assert (await board.read([("x", 0)]))[0] == [None]
    assert (await board.read([("x", 7)]))[0] == [Entry(0, None)]


async def test_several_are_read_in_the_order_in_which_they_are_asked_for(board: Board) -> None:
    versions = {key: (await put(board, key, 0, key)).entry.version for key in ("b", "a", "c")}
    entries, _ = await board.read([("c", -1), ("missing", -1), ("a", versions["a"]), ("b", -1)])
    assert entries == [Entry(versions["c"], "c"), Entry(0, None), None, Entry(versions["b"], "b")]


async def test_a_write_on_another_version_changes_nothing_and_is_told_what_stands_there(board: Board) -> None:
    first = (await put(board, "x", 0, "first")).entry.version
    second = (await put(board, "x", first, "second")).entry.version
    assert second > first
    for stale in (0, first, second + 1):
        done = await put(board, "x", stale, "stale")
        assert (done.written, done.entry) == (False, Entry(second, "second"))


async def test_of_many_who_write_on_one_version_one_does(url: str, board: Board) -> None:
    version = (await put(board, "x", 0, "0")).entry.version
    boards = [open_board(url) for _ in range(6)]
    done = await asyncio.gather(*(put(each, "x", version, str(n)) for n, each in enumerate(boards)))
    (winner,) = [n for n, each in enumerate(done) if each.written]
    assert (await board.read([("x", -1)]))[0] == [Entry(done[winner].entry.version, str(winner))]
    for each in boards:
        await each.aclose()


async def test_what_was_made_by_a_clock_that_is_ahead_is_refused(board: Board) -> None:
    time = await now(board)
    assert not (await put(board, "x", 0, "early", now=time + 60)).written
    assert (await put(board, "x", 0, "in time", now=time)).written


async def test_the_time_is_that_of_one_clock_and_goes_on(board: Board) -> None:
    done = await put(board, "x", 0, "1")
    assert done.time <= await now(board) <= done.time + 60


async def test_what_is_not_changed_for_its_time_is_gone_and_its_version_never_comes_back(board: Board) -> None:
    version = (await put(board, "x", 0, "old", ttl=0.2)).entry.version

    async def gone() -> bool:
        return (await board.read([("x", -1)]))[0] == [Entry(0, None)]

    await until_found(gone)
    assert await board.keys("x") == []
    done = await put(board, "x", version + 10**9, "new")
    assert done.written
    assert done.entry.version > version


async def test_a_change_is_told_to_all_who_listen_if_it_is_to_be(url: str, board: Board) -> None:
    heard: list[list[tuple[str, Entry]]] = [[], []]
    ready = 0

    async def is_ready() -> None:
        nonlocal ready
        ready += 1

    others = [open_board(url) for _ in heard]
    listening = [
        asyncio.create_task(each.listen(lambda key, entry, to=to: to.append((key, entry)), is_ready))  # type: ignore[misc]
        for each, to in zip(others, heard, strict=True)
    ]
    await until(lambda: ready == 2)
    await put(board, "quiet", 0, "x")
    short = (await put(board, "key: 1", 0, '{"a":\n1}', tell=True)).entry.version
    long = (await put(board, "long", 0, "é" * 9000, tell=True)).entry.version
    await until(lambda: all(len(each) == 2 for each in heard))
    told = [("key: 1", Entry(short, '{"a":\n1}')), ("long", Entry(long, "é" * 9000))]
    assert heard == [told, told]
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    for each in others:
        await each.aclose()


async def test_a_server_that_is_silent_holds_nobody_longer_than_he_wants_to_wait(board: Board, server: Server) -> None:
    await put(board, "x", 0, "1")
    server.pause()
    try:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await board.read([("x", -1)])
        assert asyncio.get_running_loop().time() - began < 2.0
    finally:
        server.resume()
    ((entry,), _) = await board.read([("x", -1)])
    assert entry is not None
    assert entry.text == "1"


async def test_a_server_that_was_started_again_is_reached_again(board: Board, server: Server) -> None:
    await put(board, "x", 0, "1")
    server.kill()
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever the driver says
        await board.read([("x", -1)])
    server.start()
    assert (await put(board, "y", 0, "2")).written


@pytest.mark.parametrize("url", ["sqlite:///x.db", "memory://", "http://127.0.0.1", ""])
def test_what_is_no_server_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(InvalidRequest, match="what is shared needs a server"):
        open_board(url)
