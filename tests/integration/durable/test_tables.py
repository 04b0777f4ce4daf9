"""Our two tables, on SQLite and on PostgreSQL: keys, and who lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from steer_llm_sdk.durable._tables import Keys, Store, Workers

LONG = 1000.0


@pytest.fixture
def keys(store: str) -> Iterator[Keys]:
    made = Keys(Store.of(store))
    yield made
    made.close()


@pytest.fixture
def workers(store: str) -> Iterator[Workers]:
    made = Workers(Store.of(store))
    yield made
    made.close()


def at_once(store: str, table: type[Any], count: int, do: Callable[[Any, int], Any]) -> list[Any]:
    """What each of `count` threads, with connections of their own, gets for the same at the same time."""
    found: list[Any] = [None] * count
    ready = threading.Barrier(count)

    def one(number: int) -> None:
        mine = table(Store.of(store))
        ready.wait()
        found[number] = do(mine, number)
        mine.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def silent_for(seconds: float, workers: Workers) -> None:
    """As if so much more time had gone by since each of them gave a sign of life."""
    with workers._transaction() as ask:
        ask("UPDATE steer_workers SET beat = beat - ?", seconds)


def test_the_first_claim_of_a_key_holds(keys: Keys) -> None:
    assert keys.claim("k", "one", LONG) == ("one", 1)
    assert keys.claim("k", "two", LONG) == ("one", 1)
    assert keys.claim("k2", "two", LONG) == ("two", 1)


def test_of_claims_at_once_one_holds(store: str) -> None:
    claims = at_once(store, Keys, 8, lambda mine, number: mine.claim("k", f"f{number}", LONG))
    assert len(set(claims)) == 1


def test_a_claim_that_is_too_old_gives_way_to_a_new_generation(keys: Keys) -> None:
    keys.claim("k", "one", LONG)
    time.sleep(0.02)
    assert keys.claim("k", "two", 0.01) == ("two", 2)


def test_of_those_who_begin_a_generation_at_once_one_does(store: str, keys: Keys) -> None:
    keys.claim("k", "one", LONG)
    assert at_once(store, Keys, 8, lambda mine, _: mine.renew("k", 1)) == [("one", 2)] * 8
    assert keys.renew("k", 2) == ("one", 3)


def test_a_dead_worker_is_given_to_one_and_to_the_next_when_that_one_has_died_too(store: str, workers: Workers) -> None:
    workers.beat("w", LONG, "host", 1, "v")
    assert workers.take_dead("a") == []
    silent_for(2 * LONG, workers)
    taken = at_once(store, Workers, 8, lambda mine, number: mine.take_dead(f"t{number}"))
    assert sorted(taken, reverse=True) == [["w"], *[[]] * 7]
    assert workers.take_dead("b") == []
    silent_for(2 * LONG, workers)
    assert workers.take_dead("b") == ["w"]


def test_each_worker_is_dead_by_its_own_heartbeat(workers: Workers) -> None:
    workers.beat("slow", 3 * LONG, "host", 1, "v")
    workers.beat("quick", LONG, "host", 2, "v")
    silent_for(2 * LONG, workers)
    assert workers.take_dead("a") == ["quick"]


def test_nobody_takes_himself_over(workers: Workers) -> None:
    workers.beat("w", LONG, "host", 1, "v")
    silent_for(2 * LONG, workers)
    assert workers.take_dead("w") == []
    assert workers.take_dead("other") == ["w"]


def test_a_worker_that_is_stopped_in_the_middle_of_a_change_holds_nobody_up_for_long(postgres_url: str) -> None:
    stopped, other = Workers(Store.of(postgres_url)), Workers(Store.of(postgres_url))
    other.beat("w", LONG, "host", 1, "v")
    silent_for(2 * LONG, other)
    taken = []
    # Any of its statements may be the one that finds out, and so may the end.
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout), stopped._transaction() as ask:  # noqa: PT012
        ask("UPDATE steer_workers SET pid = 2 WHERE id = ?", "w")
        taken += other.take_dead("b")
    assert taken == ["w"]
    stopped.close()
    other.close()


def test_only_who_has_taken_a_worker_forgets_it_and_not_when_it_came_back(workers: Workers) -> None:
    workers.beat("w", LONG, "host", 1, "v")
    silent_for(2 * LONG, workers)
    workers.take_dead("a")
    workers.forget("w", "b")
    assert [worker.id for worker in workers.all()] == ["w"]
    workers.beat("w", LONG, "host", 1, "v")
    workers.forget("w", "a")
    (worker,) = workers.all()
    assert (worker.id, worker.host, worker.pid, worker.version) == ("w", "host", 1, "v")
    workers.forget("w")
    assert workers.all() == []


def test_a_connection_that_broke_is_replaced(workers: Workers) -> None:
    workers.beat("w", LONG, "host", 1, "v")
    workers._connection.close()
    with pytest.raises(Exception, match="closed"):
        workers.all()
    assert [worker.id for worker in workers.all()] == ["w"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:secret@host:5432/db?sslmode=require", "postgresql://host:5432/db"),
        ("postgres://user:secret@host/db", "postgresql://host/db"),
        ("sqlite:////abs/runs.db", "sqlite:////abs/runs.db"),
    ],
)
def test_a_store_is_shown_without_its_password(url: str, shown: str) -> None:
    assert Store.of(url).shown == shown


def test_a_sqlite_file_is_in_wal_mode_from_the_start(sqlite: str) -> None:
    import sqlite3

    Store.of(sqlite).prepare()
    connection = sqlite3.connect(sqlite.removeprefix("sqlite:///"))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
