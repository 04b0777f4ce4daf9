"""What processes that share a store may rely on: loops, forks, a server that dies; and what is never told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
import redis

from servers import PostgresServer, RedisServer
from steer_llm_sdk.errors import InvalidRequest, StoreTooNew, StoreUnavailable
from steer_llm_sdk.reliability.stores import Claim, Store, _shared, open_store, postgres
from steer_llm_sdk.reliability.stores._postgres import Database
from steer_llm_sdk.reliability.stores.redis import RedisStore
from steer_llm_sdk.reliability.stores.sums_redis import RedisSums

LEASE, TTL = 20.0, 900.0


async def claims(store: Store, key: str = "k") -> Claim:
    return await store.claim(key, "f", LEASE, TTL)


# ── who waits ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", ["settle", "release"])
async def test_who_waits_for_a_key_is_woken_when_it_comes_free(
    url: str, store: Store, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shared, "LONGEST", 3600.0)  # Whoever is not told waits for ever.
    other = open_store(url)
    token = (await claims(other)).token
    waits = asyncio.Event()

    async def frees() -> None:
        await waits.wait()
        await (other.settle("k", token, b"1") if end == "settle" else other.release("k", token))

    async with store.watch("k", 10) as changed:
        freeing = asyncio.create_task(frees())
        while (claim := await claims(store)).kind == "theirs":
            waits.set()
            await changed(3600.0)
    assert claim.kind == ("settled" if end == "settle" else "ours")
    await freeing
    await other.aclose()


@pytest.mark.parametrize("url", ["redis", "postgres"], indirect=True)
async def test_a_server_tells_who_waits_at_once_and_not_at_the_next_look(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shared, "LONGEST", 3600.0)
    token = (await claims(store)).token
    async with store.watch("k", 10) as changed:
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(store.settle("k", token, b"1")))
        await changed(3600.0)
        assert (await claims(store)).kind == "settled"


# ── loops and processes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_one_store_serves_several_loops_at_once_and_one_after_another(url: str) -> None:
    store = open_store(url)
    background = asyncio.new_event_loop()
    thread = threading.Thread(target=background.run_forever, daemon=True)
    thread.start()

    async def five(name: str) -> list[int]:
        return [(await claims(store, f"{name} {n}")).token for n in range(5)]

    async def here(name: str) -> list[int]:
        elsewhere = asyncio.run_coroutine_threadsafe(five(f"{name} elsewhere"), background)
        tokens = await five(name) + await asyncio.wrap_future(elsewhere)
        await store.aclose()  # for the other loop as well, which goes on
        return tokens

    tokens = asyncio.run(here("a")) + asyncio.run(here("b"))
    background.call_soon_threadsafe(background.stop)
    thread.join()
    background.close()
    assert len(tokens) == len(set(tokens)) == 20


async def test_a_store_that_was_closed_opens_itself_again(store: Store) -> None:
    token = (await claims(store)).token
    await store.aclose()
    assert await store.settle("k", token, b"1")
    await store.aclose()
    await store.aclose()


CLAIMS = """
import asyncio, sys
from steer_llm_sdk.reliability.stores import open_store

async def main():
    store = open_store(sys.argv[1])
    kinds = [(await store.claim(str(n), "f", 20, 900)).kind for n in range(50)]
    await store.aclose()
    print(kinds.count("ours"))

asyncio.run(main())
"""


async def test_a_connection_that_is_in_use_at_the_end_is_closed_when_it_comes_back(postgres_url: str) -> None:
    database = Database(postgres_url, "keys", postgres.MIGRATIONS)
    asking = asyncio.ensure_future(database.execute(b"SELECT pg_backend_pid()", {}))
    await asyncio.sleep(0)  # It is on its way.
    await database.aclose()
    _, [(backend,)] = await asking
    there = b"SELECT 1 FROM pg_stat_activity WHERE pid = %(backend)s"
    async with asyncio.timeout(10):
        while (await database.execute(there, {"backend": backend}))[0]:
            await asyncio.sleep(0.01)  # The server takes a moment to see that it is gone.
    await database.aclose()


@pytest.mark.parametrize("kind", [RedisStore, RedisSums])
@pytest.mark.parametrize("begun", [1, 2, 4, 8, 16])
async def test_what_redis_is_asked_at_the_end_is_answered_and_its_connection_closed(
    redis_url: str, kind: type[RedisStore | RedisSums], begun: int
) -> None:
    store = kind(redis_url)
    with redis.Redis.from_url(redis_url) as watching:
        before = {client["id"] for client in watching.client_list()}
        asking = asyncio.ensure_future(
            claims(store) if isinstance(store, RedisStore) else store.add_within("s", "k", 1.0, 2.0)
        )
        for _ in range(begun):
            await asyncio.sleep(0)  # It is on its way: so far, it asks for a connection, connects, or has asked.
        await store.aclose()
        answer = await asking
        assert answer is True or answer.kind == "ours"
        while {client["id"] for client in watching.client_list()} - before:
            await asyncio.sleep(0.01)  # The server takes a moment to see that it is gone.


def test_of_processes_that_make_the_store_at_the_same_time_each_key_goes_to_one(url: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CLAIMS, url], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    granted = [int(process.communicate(timeout=50)[0]) for process in processes]
    assert sum(granted) == 50


FORKS = """
import asyncio, os, sys
from steer_llm_sdk.reliability.stores import open_store

store = open_store(sys.argv[1])

async def main(key):
    kind = (await store.claim(key, "f", 20, 900)).kind
    os.write(1, f"{kind}\\n".encode())  # In one piece, for the two write at once.

asyncio.run(main("a"))
child = os.fork()
asyncio.run(main("b" if child else "c"))
if child:
    os.waitpid(child, 0)
os._exit(0)
"""


def test_a_process_that_was_forked_opens_the_store_for_itself(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKS, url], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split() == ["ours"] * 3


# ── what is forgotten goes away ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_forgotten_is_removed(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"steer_llm_sdk.reliability.stores.{module}.SWEEP", 0.1)
    for n in range(30):
        claim = await store.claim(str(n), "f", 0.05, 0.05)
        if n % 2:
            await store.settle(str(n), claim.token, b"1")
    token = (await claims(store, "last")).token
    async with asyncio.timeout(20):
        while await asyncio.to_thread(_kept, url) != ["last"]:
            await store.settle("last", token, b"1")  # Whoever finds that it is time does it afterwards.
            await asyncio.sleep(0.01)


def _kept(url: str) -> list[str]:
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as connection:
            return [key.decode().removeprefix("steer:run:") for key in connection.keys("steer:run:*")]
    if url.startswith("postgres"):
        with psycopg.connect(url) as connection:
            return [row[0] for row in connection.execute("SELECT key FROM steer_keys")]
    import sqlite3

    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = [row[0] for row in database.execute("SELECT key FROM steer_keys")]
    database.close()
    return rows


@pytest.mark.parametrize("url", ["redis"], indirect=True)
async def test_redis_keeps_no_key_without_an_end(url: str, store: Store) -> None:
    await claims(store, "claimed")
    await store.settle("settled", (await claims(store, "settled")).token, b"1")
    await store.release("released", (await claims(store, "released")).token)
    with redis.Redis.from_url(url) as connection:
        ends = {key.decode().split(":")[-1]: connection.pttl(key) for key in connection.keys("*")}
    assert ends.keys() == {"claimed", "settled", "released"}
    assert TTL * 1000 < ends["claimed"] <= (LEASE + TTL) * 1000
    assert 0 < ends["settled"] <= TTL * 1000
    assert 0 < ends["released"] <= TTL * 1000


# ── when it fails ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_postgres_that_was_started_again_knows_what_it_knew(
    postgres_server: PostgresServer, postgres_url: str, how: str
) -> None:
    store = open_store(postgres_url)
    held, settled = (await claims(store, "held")).token, (await claims(store, "settled")).token
    await store.settle("settled", settled, b"1")
    async with store.watch("held", 10) as changed:  # A listener too outlives the server.
        getattr(postgres_server, how)()
        with pytest.raises(StoreUnavailable):
            await claims(store, "other")
        postgres_server.start()
        await changed(1)
    assert (await claims(store, "settled")).result == b"1"
    assert (await claims(store, "held")).kind == "theirs"
    assert await store.settle("held", held, b"2")
    await store.aclose()


async def test_a_durable_redis_that_was_killed_and_started_again_knows_what_it_knew() -> None:
    with RedisServer(durable=True) as server:
        store = open_store(server.url)
        held, settled = (await claims(store, "held")).token, (await claims(store, "settled")).token
        await store.settle("settled", settled, b"1")
        async with store.watch("held", 10) as changed:
            server.kill()
            with pytest.raises(StoreUnavailable):
                await claims(store, "other")
            server.start()
            await changed(1)
        assert (await claims(store, "settled")).result == b"1"
        assert (await claims(store, "held")).kind == "theirs"
        assert await store.settle("held", held, b"2")
        await store.aclose()


async def test_a_claim_that_is_cancelled_leaves_a_store_that_works(store: Store) -> None:
    for n in range(30):
        claiming = asyncio.create_task(claims(store, str(n)))
        await asyncio.sleep(n / 10_000)
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
    assert [(await claims(store, f"after {n}")).kind for n in range(30)] == ["ours"] * 30


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/missing/steer.db")
    with pytest.raises(StoreUnavailable, match=r"the folder .*/missing is not there; make it"):
        await claims(store)
    await store.aclose()


async def test_a_file_that_is_no_database_is_an_answer_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "steer.db").write_text("no database, whatever its name says " * 100)
    store = open_store(f"sqlite:///{tmp_path}/steer.db")
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        await claims(store)
    await store.aclose()


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_a_newer_schema_is_refused_with_a_sentence(url: str, store: Store) -> None:
    await claims(store)
    await store.aclose()
    if url.startswith("postgres"):
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE steer_migrations SET number = 99")
    else:
        import sqlite3

        database = sqlite3.connect(url.removeprefix("sqlite:///"))
        database.execute("PRAGMA user_version = 99")
        database.close()
    again = open_store(url)
    with pytest.raises(StoreTooNew, match=r"its schema.* has version 99, .* up to version 1; upgrade it"):
        await claims(again)
    await again.aclose()


# ── URLs and what is said of them ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@127.0.0.1:1/0",
        "rediss://:hunter2@127.0.0.1:1/0",
        "redis://127.0.0.1:1/0?password=hunter2",
        "postgresql://user:hunter2@127.0.0.1:1/db?connect_timeout=2",
        "postgresql://127.0.0.1:1/db?user=u&password=hunter2",
    ],
)
async def test_a_password_is_in_no_error_and_no_repr(url: str) -> None:
    store = open_store(url)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1") as caught:
        await claims(store)
    shown = [repr(store), str(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
    assert not any("hunter2" in text for text in shown)
    assert caught.value.__suppress_context__
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@host/db",
        "redis://u:hunter2@host:port/0",
        "redis://u:hunter2@host:6379/0?no_such_option=1",
        "redis://u:hunter2@host:6379/0?decode_responses=True",
        "postgresql://u:hunter2@host/db?no_such_option=1",
        "postgresql://u:hun[ter2@host/db",
        "postgresql://u:hun/ter2@host/db",
        "u:hunter2@host/db",
        "sqlite://u:hunter2@host/file.db",
        "steer.db",
        "",
    ],
)
def test_what_names_no_store_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^store: ") as caught:
        open_store(url)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///a.db?synchronous=off", "sqlite:///a.db?x=1"]
)
def test_a_file_is_named_by_three_slashes_and_a_path(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"give sqlite:///file\.db"):
        open_store(url)


async def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/what%3Fa%20name.db?synchronous=full")
    assert (await claims(store)).kind == "ours"
    await store.aclose()
    assert (tmp_path / "what?a name.db").exists()
