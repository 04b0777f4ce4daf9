"""The four stores, each on a clock that a test moves, and a model that says what all of them must do."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import redis

from steer_llm_sdk.reliability.stores import Claim, Store
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.reliability.stores.postgres import PostgresStore
from steer_llm_sdk.reliability.stores.redis import RedisStore
from steer_llm_sdk.reliability.stores.sqlite import SqliteStore

R = TypeVar("R")
START = 1_000_000.0
KINDS = ("memory", "sqlite", "redis", "postgres")


class Place(ABC):
    """Where one kind of store keeps its keys. `open` gives another connection to the same keys."""

    def __init__(self) -> None:
        self.now = START

    @abstractmethod
    def open(self) -> Store: ...

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:  # noqa: B027  not every place opens something of its own
        pass

    @abstractmethod
    def make_newer(self, key: str) -> None:
        """Let the value of `key` be one that a newer version wrote."""


class MemoryPlace(Place):
    def __init__(self) -> None:
        super().__init__()
        self._store = MemoryStore(max_entries=100_000, clock=lambda: self.now)

    def open(self) -> Store:
        return self._store

    def make_newer(self, key: str) -> None:
        raise NotImplementedError


class SqlitePlace(Place):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def open(self) -> Store:
        return SqliteStore(self.path, clock=lambda: self.now)

    def make_newer(self, key: str) -> None:
        database = sqlite3.connect(self.path)
        with database:
            database.execute("UPDATE steer_keys SET version = 99 WHERE key = ?", (key,))
        database.close()


class ClockedRedisStore(RedisStore):
    NOW = "local now = tonumber(redis.call('GET', 'clock'))\n"


class RedisPlace(Place):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._connection = redis.Redis.from_url(url)
        self.url = url
        self.advance(0)

    def open(self) -> Store:
        return ClockedRedisStore(self.url)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._connection.set("clock", round(self.now * 1e6))

    def close(self) -> None:
        self._connection.close()

    def make_newer(self, key: str) -> None:
        self._connection.hset(f"steer:run:{key}", "v", 99)


class ClockedPostgresStore(PostgresStore):
    NOW = "(SELECT now FROM test_clock)"


class PostgresPlace(Place):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("CREATE TABLE test_clock AS SELECT to_timestamp(%s) AS now", (START,))

    def open(self) -> Store:
        return ClockedPostgresStore(self.url)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._connection.execute("UPDATE test_clock SET now = to_timestamp(%s)", (self.now,))

    def close(self) -> None:
        self._connection.close()

    def make_newer(self, key: str) -> None:
        self._connection.execute("UPDATE steer_keys SET version = 99 WHERE key = %s", (key,))


# ── what all of them must do ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Entry:
    fingerprint: str
    grant: int
    ttl: float
    until: float
    result: bytes | None = None
    wanted: float = 0.0

    def is_known(self, now: float) -> bool:
        return now < (self.until if self.result is not None else self.until + self.ttl)


class Model:
    """One key. Tokens are counted: the first claim that is granted is 0, the next is 1."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.grants = 0

    def claim(self, now: float, fingerprint: str, lease: float, ttl: float) -> tuple[str, bytes | None]:
        entry = self._known(now)
        if entry is not None:
            if entry.fingerprint != fingerprint:
                return "conflict", None
            if entry.result is not None:
                return "settled", entry.result
            if now < entry.until:
                return "theirs", None
        self.entry = Entry(fingerprint, self.grants, ttl, now + lease)
        self.grants += 1
        return "ours", None

    def renew(self, now: float, grant: int, lease: float) -> bool:
        if (entry := self._held(now, grant)) is not None:
            entry.until = now + lease
        return entry is not None

    def settle(self, now: float, grant: int, result: bytes) -> bool:
        if (entry := self._held(now, grant)) is not None:
            entry.result, entry.until = result, now + entry.ttl
        return entry is not None

    def release(self, now: float, grant: int) -> bool:
        if (entry := self._held(now, grant)) is not None:
            self.entry = None
        return entry is not None

    def _known(self, now: float) -> Entry | None:
        return self.entry if self.entry is not None and self.entry.is_known(now) else None

    def _held(self, now: float, grant: int) -> Entry | None:
        entry = self._known(now)
        return entry if entry is not None and entry.grant == grant and entry.result is None else None


Step = tuple[str, Any]
"""("claim", (fingerprint, lease, ttl)), ("renew" | "settle" | "release", which grant), ("pass", seconds)."""
RENEWED = 2.0


class Differed(AssertionError):
    """A store and the model did not do the same."""


async def compare(place: Place, stores: tuple[Store, ...], key: str, steps: list[Step]) -> None:
    """The same schedule for the model and for a store, by turns over its connections."""
    model = Model()
    tokens: list[int] = []
    for number, (action, given) in enumerate(steps):
        store = stores[number % len(stores)]
        if action == "pass":
            place.advance(given)
            continue
        found: Any
        wanted: Any
        if action == "claim":
            claim = await store.claim(key, *given)
            found = (claim.kind, claim.result)
            wanted = model.claim(place.now, *given)
            if claim.kind == "ours":
                if claim.token in tokens or claim.token < max(tokens, default=-1):
                    raise Differed(f"token {claim.token} is not newer than {tokens}")
                tokens.append(claim.token)
        elif tokens:
            grant = given % len(tokens)
            more = {"renew": (RENEWED,), "settle": (f'"by {grant}"'.encode(),), "release": ()}[action]
            found = await getattr(store, action)(key, tokens[grant], *more)
            wanted = getattr(model, action)(place.now, grant, *more)
        else:
            continue
        if found != wanted:
            raise Differed(f"step {number} of {steps}: {found}, and the model {wanted}")


def at_once(action: Coroutine[Any, Any, R]) -> R:
    """Of a store that never waits."""
    try:
        action.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


async def all_of(*actions: Coroutine[Any, Any, Claim]) -> list[Claim]:
    return list(await asyncio.gather(*actions))
