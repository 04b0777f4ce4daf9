"""What SQLite does where it is asked for, and what it leaves to its thread; and what befalls a file."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steer_llm_sdk.errors import InvalidRequest, StoreUnavailable
from steer_llm_sdk.reliability.stores import Claim, Store, open_store, sqlite
from steer_llm_sdk.reliability.stores.sqlite import SqliteStore

HERE, THREAD = threading.main_thread().name, "steer-sqlite"


class Clock:
    """Tells the time, and remembers which threads asked for it: they did something."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self) -> float:
        self.asked.append(threading.current_thread().name)
        return time.time()

    def who(self) -> set[str]:
        """Since the last time. A thread that goes on looks whether it is time to sweep, which is not counted."""
        asked, self.asked = self.asked, []
        return set(asked)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """However slow the machine is while this is tested, nothing is left to the thread for that."""
    monkeypatch.setattr(sqlite, "SLOW", float("inf"))
    monkeypatch.setattr(sqlite, "TURN", float("inf"))
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(str(tmp_path / "steer.db"), clock=clock)
    await claims(opened, "first")
    clock.who()
    yield opened
    await opened.aclose()


async def claims(store: Store, key: str) -> Claim:
    await asyncio.sleep(0)  # A turn of its own.
    return await store.claim(key, "f", 20, 900)


async def test_a_claim_and_its_result_wait_for_no_thread(store: SqliteStore, clock: Clock) -> None:
    claim = await claims(store, "k")
    assert await store.settle("k", claim.token, b"1")
    assert (await claims(store, "k")).result == b"1"
    assert clock.who() == {HERE}


async def test_where_each_write_waits_for_the_disk_all_are_the_threads(tmp_path: Path, clock: Clock) -> None:
    store = SqliteStore(str(tmp_path / "steer.db"), synchronous="full", clock=clock)
    for key in "ab":
        assert (await claims(store, key)).kind == "ours"
    assert clock.who() == {THREAD}
    await store.aclose()


async def test_a_large_result_is_the_threads(store: SqliteStore, clock: Clock) -> None:
    claim = await claims(store, "k")
    clock.who()
    assert await store.settle("k", claim.token, b"x" * (sqlite.LARGE + 1))
    assert clock.who() == {THREAD}


async def test_after_an_action_that_took_long_the_next_is_the_threads(
    store: SqliteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SLOW", 0.0)
    monkeypatch.setattr(sqlite, "RESPITE", 1e9)
    await claims(store, "slow")
    assert clock.who() == {HERE}
    await claims(store, "next")
    assert clock.who() == {THREAD}


async def test_of_a_crowd_in_one_turn_most_are_written_by_the_thread(store: SqliteStore, clock: Clock) -> None:
    granted = await asyncio.gather(*(store.claim(str(n), "f", 20, 900) for n in range(100)))
    assert {claim.kind for claim in granted} == {"ours"}
    assert len({claim.token for claim in granted}) == 100
    assert clock.asked.count(HERE) == sqlite.AT_ONCE
    assert await asyncio.gather(*(store.settle(str(n), granted[n].token, b"1") for n in range(100))) == [True] * 100


async def test_the_loop_goes_on_while_another_process_writes(store: SqliteStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "steer.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    claiming = asyncio.create_task(claims(store, "k"))
    for _ in range(20):
        await asyncio.sleep(0.001)  # The loop turns, and the claim waits.
    assert not claiming.done()
    assert (await claims(store, "first")).kind == "theirs"  # Who only looks waits for nobody who writes.
    other.execute("COMMIT")
    other.close()
    assert (await claiming).kind == "ours"


async def test_a_lock_that_is_not_let_go_is_a_store_that_does_not_answer(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY", 0.05)
    await store.aclose()  # It opens itself again, with that patience.
    other = sqlite3.connect(tmp_path / "steer.db", isolation_level=None)
    await claims(store, "before")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="database is locked"):
        await claims(store, "k")
    other.execute("ROLLBACK")
    other.close()
    assert (await claims(store, "k")).kind == "ours"


async def test_the_log_is_moved_into_the_file_without_being_asked(store: SqliteStore, tmp_path: Path) -> None:
    for n in range(1500):
        claim = await claims(store, str(n))
        await store.settle(str(n), claim.token, b"x" * 700)
    # Unmoved it is 42 MB; how far the thread is behind says more about the machine than about the code.
    assert (tmp_path / "steer.db-wal").stat().st_size < 21_000_000


async def test_one_store_in_many_threads_gives_each_key_to_one(store: SqliteStore) -> None:
    keys, granted = itertools.count(), []

    async def claim_all() -> None:
        for n in range(200):
            granted.append(await store.claim(f"shared {n}", "f", 20, 900))
            if next(keys) % 7 == 0:
                await asyncio.sleep(0)

    threads = [threading.Thread(target=lambda: asyncio.run(claim_all())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(claim.kind for claim in granted) == ["ours"] * 200 + ["theirs"] * 600


# ── what is wrong with a key, a result or a file ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_a_key_that_cannot_be_written_is_refused_and_the_next_one_is_served(
    tmp_path: Path, synchronous: str
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/steer.db?synchronous={synchronous}")
    async with asyncio.timeout(10):
        with pytest.raises(UnicodeEncodeError):
            await claims(store, "\ud800")
        assert (await claims(store, "k")).kind == "ours"
        with pytest.raises(UnicodeDecodeError):
            await store.settle("k", 1, b"\xff")
        with pytest.raises(OverflowError):
            await store.settle("k", 1 << 70, b"1")
        assert (await claims(store, "k")).kind == "theirs"
    await store.aclose()


async def test_what_nobody_thought_of_is_an_answer_and_not_the_end_of_the_thread(tmp_path: Path) -> None:
    store = SqliteStore(f"{tmp_path}/a\0b")
    async with asyncio.timeout(10):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="ValueError: embedded null"):
                await claims(store, "k")
        await store.aclose()


@pytest.mark.parametrize("url", ["sqlite:///a%00b.db", "sqlite:///job#1/steer.db", "redis://u:hun#ter2@host:6379/0"])
def test_a_url_that_would_be_cut_off_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^store: ") as caught:
        open_store(url)
    assert "ter2" not in str(caught.value)


FULL = """
import asyncio, resource, signal, sys
from steer_llm_sdk.errors import StoreUnavailable
from steer_llm_sdk.reliability.stores import open_store

async def run():
    store = open_store(sys.argv[1])
    first = await store.claim("first", "f", 20, 900)
    print(await store.settle("first", first.token, b"kept"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    for n in range(2):
        try:
            await store.claim(f"full {n}", "f", 20, 900)
        except StoreUnavailable:
            print("unavailable")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print((await store.claim("first", "f", 20, 900)).result, (await store.claim("full 0", "f", 20, 900)).kind)
    await store.aclose()

asyncio.run(run())
"""


def test_a_full_disk_is_a_store_that_does_not_answer_until_there_is_room(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, f"sqlite:///{tmp_path}/steer.db"],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout.split() == ["True", "unavailable", "unavailable", "b'kept'", "ours"]


async def test_a_file_that_is_damaged_is_an_answer_in_a_sentence(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/steer.db")
    await claims(store, "k")
    await store.aclose()
    with (tmp_path / "steer.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 20_000)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="malformed"):
            await claims(store, "k")
    await store.aclose()
