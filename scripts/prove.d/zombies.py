"""The same schedules, made at random from a seed, for every store and for a model of it: owners that stall, come back
as zombies and write late, lose renewals, meet another request, and a clock that is set back. Store and model must give
the same answers. (tests/integration/stores has the same with Hypothesis, which finds the shortest that differs.)

Then defects are planted in each store, one at a time, and some schedule must show them.

    sh scripts/prove zombies [--examples 100000] [--on-servers 2000]

`--examples` is for memory and SQLite, `--on-servers` for Redis and PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).parents[2] / "tests" / folder) for folder in (".", "integration/stores")]

from places import Differed, MemoryPlace, Place, PostgresPlace, RedisPlace, Step, at_once, compare  # noqa: E402

from servers import PostgresServer, RedisServer  # noqa: E402
from steer_llm_sdk.reliability.stores import Claim, Store, postgres, redis, sqlite  # noqa: E402
from steer_llm_sdk.reliability.stores.memory import MemoryStore  # noqa: E402
from steer_llm_sdk.reliability.stores.sqlite import Keys  # noqa: E402


def schedule_of(chance: random.Random) -> list[Step]:
    steps: list[Step] = []
    for _ in range(chance.randint(4, 14)):
        kind = chance.random()
        if kind < 0.35:
            steps.append(("claim", (chance.choice("fffg"), chance.choice([1.0, 2.0]), chance.choice([1.0, 3.0]))))
        elif kind < 0.75:
            steps.append((chance.choice(["renew", "settle", "release"]), chance.randrange(6)))
        else:
            steps.append(("pass", chance.choice([0.5, 1.0, 2.0, 3.0, -0.5])))
    return steps


class FilePlace(Place):
    """SQLite without its thread: what it does in a transaction, and nothing to wait for."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._database = sqlite3.connect(f"{folder}/steer.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(sqlite._TABLES)

    def open(self) -> Store:
        return _AtOnce(self)

    def make_newer(self, key: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._database.close()

    @property
    def keys(self) -> Keys:
        return Keys(self._database)


class _AtOnce(Store):
    def __init__(self, place: FilePlace) -> None:
        self._place = place

    def __repr__(self) -> str:
        return "sqlite"

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        keys, now = self._place.keys, self._place.now
        return keys.look(key, fingerprint, now) or keys.claim(key, fingerprint, lease, ttl, now)

    async def renew(self, key: str, token: int, lease: float) -> bool:
        return self._place.keys.renew(key, token, lease, self._place.now)

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        return self._place.keys.settle(key, token, result, self._place.now)

    async def release(self, key: str, token: int) -> bool:
        return self._place.keys.release(key, token, self._place.now)


def schedules(examples: int, check: Callable[[int, list[Step]], None]) -> tuple[int, str | None]:
    """How many were compared, and the first that differed."""
    chance = random.Random(1)
    for number in range(1, examples + 1):
        try:
            check(number, schedule_of(chance))
        except Differed as error:
            return number, str(error)
    return examples, None


def on_memory(examples: int) -> tuple[int, str | None]:
    place = MemoryPlace()
    pair = (place.open(), place.open())
    return schedules(examples, lambda number, schedule: at_once(compare(place, pair, str(number), schedule)))


def on_sqlite(examples: int) -> tuple[int, str | None]:
    with tempfile.TemporaryDirectory() as folder:
        place = FilePlace(folder)
        pair = (place.open(), place.open())
        try:
            return schedules(examples, lambda number, schedule: at_once(compare(place, pair, str(number), schedule)))
        finally:
            place.close()


def on_server(place: Place, examples: int) -> tuple[int, str | None]:
    with asyncio.Runner() as runner:

        async def opened() -> tuple[Store, Store]:
            return place.open(), place.open()

        pair = runner.run(opened())
        try:
            # Each run has keys of its own: what an earlier one left is none of its business.
            run = time.time_ns()
            return schedules(
                examples, lambda number, schedule: runner.run(compare(place, pair, f"{run} {number}", schedule))
            )
        finally:
            for store in pair:
                runner.run(store.aclose())


# ── defects ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(module: Any, name: str, old: str, new: str) -> Callable[[], Any]:
    @contextmanager
    def planted() -> Iterator[None]:
        text = getattr(module, name)
        assert old in text, f"{name} has no {old!r} any more"
        with patch.object(module, name, text.replace(old, new)):
            yield

    return planted


def _statement(name: str, old: str, new: str) -> Callable[[], Any]:
    @contextmanager
    def planted() -> Iterator[None]:
        text = postgres._STATEMENTS[name]
        assert old in text, f"{name} has no {old!r} any more"
        with patch.dict(postgres._STATEMENTS, {name: text.replace(old, new)}):
            yield

    return planted


def _sql(old: str, new: str) -> Callable[[], Any]:
    """In whatever SQLite is told."""

    @contextmanager
    def planted() -> Iterator[None]:
        init = Keys.__init__

        def changed(keys: Keys, database: sqlite3.Connection, where: str = "this store") -> None:
            init(keys, database, where)
            run = keys._run
            keys._run = lambda text, values=(): run(*_changed(text, values, old, new))

        with patch.object(Keys, "__init__", changed):
            yield

    return planted


def _changed(text: str, values: Any, old: str, new: str) -> tuple[str, Any]:
    return (text.replace(old, new), values) if old in text else (text, values)


def _held_by_anybody(store: MemoryStore, key: str, token: int) -> Any:
    return store._claimed.get(key)


def _never_lapses(store: MemoryStore, key: str, token: int) -> Any:
    entry = store._claimed.get(key)
    return None if entry is None or entry.token != token else entry


async def _not_renewed(store: MemoryStore, key: str, token: int, lease: float) -> bool:
    return store._held(key, token) is not None


DEFECTS: dict[str, dict[str, Callable[[], Any]]] = {
    "memory": {
        "a zombie's write is not fenced": lambda: patch.object(MemoryStore, "_held", _held_by_anybody),
        "a lost claim may be written to for ever": lambda: patch.object(MemoryStore, "_held", _never_lapses),
        "a renewal is lost": lambda: patch.object(MemoryStore, "renew", _not_renewed),
    },
    "sqlite": {
        "a zombie's write is not fenced": _sql("AND token = ? AND", "AND (token = ? OR 1) AND"),
        "a result may be written twice": _sql("AND token = ? AND result IS NULL", "AND token = ?"),
        "a renewal is lost": _sql("SET until = ?, forgotten", "SET until = until + 0 * ?, forgotten"),
        "a claim is forgotten with its lease": _sql("WHERE key = ? AND forgotten > ?", "WHERE key = ? AND until > ?"),
        "another request gets the key": _sql("SELECT fingerprint,", "SELECT 'f',"),
    },
    "redis": {
        "a zombie's write is not fenced": _text(redis, "_HELD", "held[1] ~= ARGV[1] or ", ""),
        "a result may be written twice": _text(redis, "_HELD", "held[2] or ", ""),
        "a renewal is lost": _text(redis, "_RENEW", "'u', whole(now + ARGV[2]), ", ""),
        "a claim is forgotten with its lease": _text(
            redis, "_CLAIM", "now < tonumber(known[5])", "now < tonumber(known[4])"
        ),
        "a token comes twice": _text(redis, "_CLAIM", "math.max(now, tonumber(known[2]) + 1)", "now"),
        "another request gets the key": _text(redis, "_CLAIM", "known[1] ~= ARGV[1]", "false"),
    },
    "postgres": {
        "a zombie's write is not fenced": _statement("settle", "AND token = %(token)s ", ""),
        "a zombie gives back what is another's": _statement("release", "AND token = %(token)s ", ""),
        "a renewal is lost": _statement("renew", "SET until = {now} + %(lease)s,", "SET until = until,"),
        "a claim is forgotten with its lease": _statement("claim", "AND forgotten > now)", "AND until > now)"),
        "a result is forgotten with the lease": _statement("settle", "forgotten = {now} + ttl", "forgotten = until"),
        "another request gets the key": _statement("claim", "fingerprint <> %(fingerprint)s", "false"),
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/prove zombies")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--on-servers", type=int, default=2_000)
    options = parser.parse_args()
    with RedisServer() as redis_server, PostgresServer() as postgres_server:
        places: dict[str, Place] = {
            "redis": RedisPlace(redis_server.url),
            "postgres": PostgresPlace(postgres_server.url),
        }
        ways: dict[str, tuple[Callable[[int], tuple[int, str | None]], int]] = {
            "memory": (on_memory, options.examples),
            "sqlite": (on_sqlite, options.examples),
            "redis": (lambda examples: on_server(places["redis"], examples), options.on_servers),
            "postgres": (lambda examples: on_server(places["postgres"], examples), options.on_servers),
        }
        differed = caught = planted = 0
        print("store     schedules  different  s")
        for kind, (compared, examples) in ways.items():
            began = time.perf_counter()
            done, first = compared(examples)
            differed += first is not None
            print(f"{kind:<9} {done:>9}  {int(first is not None):>9}  {time.perf_counter() - began:.0f}", flush=True)
            if first:
                print("   ", first)
        for kind, defects in DEFECTS.items():
            for name, plant in defects.items():
                with plant():
                    done, first = ways[kind][0](1_000)
                planted, caught = planted + 1, caught + (first is not None)
                print(
                    f"planted in {kind}: {name}: {f'caught by schedule {done}' if first else 'NOT CAUGHT'}", flush=True
                )
        for place in places.values():
            place.close()
        print(f"caught/planted {caught}/{planted}")
        return 1 if differed or caught < planted else 0


if __name__ == "__main__":
    sys.exit(main())
