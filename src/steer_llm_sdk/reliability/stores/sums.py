"""Sums that several processes add to, and small notes that any of them may read: what learned state is kept in.

Sums commute, so nobody has to wait for anybody: who adds needs no lock, and who reads sees the total of all.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from steer_llm_sdk.errors import StoreUnavailable
from steer_llm_sdk.reliability.stores import kind_of, opened_by
from steer_llm_sdk.reliability.stores._sqlite import into_wal
from steer_llm_sdk.reliability.stores.sqlite import file_of

Row = Sequence[float]


class SumStore(Protocol):
    """Rows of numbers and notes by key, in named spaces. Rows that are added to a key are of one length.

    Raises StoreUnavailable where it does not answer.
    """

    async def add(self, space: str, rows: Mapping[str, Row]) -> None:
        """Add each row to what is there, all of them at once."""
        ...

    async def since(self, space: str, mark: int) -> tuple[int, Mapping[str, Row]]:
        """The totals of the rows that have changed after `mark`, and the mark for the next time. From 0: all."""
        ...

    async def add_within(self, space: str, key: str, amount: float, limit: float) -> bool:
        """Add to a row of one number, unless it would come above the limit: then False, and nothing is added."""
        ...

    async def keep(self, space: str, key: str, note: bytes, ttl: float) -> None:
        """Keep a note for `ttl` seconds, in place of the one that may be there."""
        ...

    async def kept(self, space: str, key: str) -> bytes | None: ...

    async def aclose(self) -> None:
        """Close what was opened. It is opened again if it is used again."""
        ...


def total(row: Row | None, more: Row) -> tuple[float, ...]:
    return tuple(more) if row is None else tuple(a + b for a, b in zip(row, more, strict=True))


def as_bytes(key: str) -> bytes:
    """A task type may be any text: with a null in it, or half of a pair of surrogates."""
    return key.encode("utf-8", "surrogatepass")


def as_text(key: bytes) -> str:
    return bytes(key).decode("utf-8", "surrogatepass")


class MemorySums:
    """For one process; any number of its threads and event loops. `max_notes`: of more, the oldest go first."""

    def __init__(self, max_notes: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_notes = max_notes
        self._clock = clock
        self._lock = threading.Lock()
        self._mark = 0
        self._rows: dict[tuple[str, str], tuple[int, tuple[float, ...]]] = {}
        self._notes: OrderedDict[tuple[str, str], tuple[float, bytes]] = OrderedDict()

    async def add(self, space: str, rows: Mapping[str, Row]) -> None:
        with self._lock:
            self._add(space, rows)

    def _add(self, space: str, rows: Mapping[str, Row]) -> None:
        self._mark += 1
        for key, more in rows.items():
            known = self._rows.get((space, key))
            self._rows[space, key] = (self._mark, total(None if known is None else known[1], more))

    async def since(self, space: str, mark: int) -> tuple[int, Mapping[str, Row]]:
        with self._lock:
            changed = {key: row for (of, key), (at, row) in self._rows.items() if of == space and at > mark}
            return self._mark, changed

    async def add_within(self, space: str, key: str, amount: float, limit: float) -> bool:
        with self._lock:
            known = self._rows.get((space, key), (0, (0.0,)))[1][0]
            if known + amount > limit:
                return False
            self._add(space, {key: (amount,)})
            return True

    async def keep(self, space: str, key: str, note: bytes, ttl: float) -> None:
        with self._lock:
            self._notes[space, key] = (self._clock() + ttl, note)
            self._notes.move_to_end((space, key))
            if len(self._notes) > self._max_notes:
                self._notes.popitem(last=False)

    async def kept(self, space: str, key: str) -> bytes | None:
        with self._lock:
            until, note = self._notes.get((space, key), (0.0, b""))
            return note if self._clock() < until else None

    async def aclose(self) -> None:
        """There is nothing to close."""


_TABLES = """
CREATE TABLE IF NOT EXISTS sums
    (space BLOB, key BLOB, mark INTEGER, row TEXT, PRIMARY KEY (space, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sums_changed ON sums (space, mark);
CREATE TABLE IF NOT EXISTS sum_notes
    (space BLOB, key BLOB, until REAL, note BLOB, PRIMARY KEY (space, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sum_notes_until ON sum_notes (until);
"""
SWEEP = 1000
"""Notes are looked through for old ones once in so many."""


class SQLiteSums:
    """One file, for the processes of one machine. Each call is a transaction in a thread; `clock` is wall time.

    It waits `timeout` seconds for another process that writes. `synchronous` is as in SqliteStore.
    """

    def __init__(
        self,
        path: str,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
        *,
        synchronous: str = "normal",
    ) -> None:
        self._path, self._timeout, self._clock = path, timeout, clock
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._kept = 0

    async def add(self, space: str, rows: Mapping[str, Row]) -> None:
        await asyncio.to_thread(self._in_one, lambda db: _add(db, space, rows))

    async def since(self, space: str, mark: int) -> tuple[int, Mapping[str, Row]]:
        return await asyncio.to_thread(self._in_one, lambda db: _since(db, space, mark), False)

    async def add_within(self, space: str, key: str, amount: float, limit: float) -> bool:
        return await asyncio.to_thread(self._in_one, lambda db: _add_within(db, space, key, amount, limit))

    async def keep(self, space: str, key: str, note: bytes, ttl: float) -> None:
        now = self._clock()
        self._kept += 1
        sweep = self._kept % SWEEP == 0
        await asyncio.to_thread(
            self._in_one,
            lambda db: _keep(db, (as_bytes(space), as_bytes(key), now + ttl, note), now if sweep else None),
        )

    async def kept(self, space: str, key: str) -> bytes | None:
        now = self._clock()
        return await asyncio.to_thread(self._in_one, lambda db: _kept(db, space, key, now), False)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _in_one(self, work: Callable[[sqlite3.Connection], Any], writes: bool = True) -> Any:
        with self._lock:
            try:
                db = self._connection or self._opened()
                return _in_transaction(db, work) if writes else work(db)
            except sqlite3.Error as error:
                raise StoreUnavailable(f"{self._path}: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        into_wal(db, self._timeout)
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        db.executescript(_TABLES)
        self._connection = db
        return db


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any]) -> Any:
    db.execute("BEGIN IMMEDIATE")
    try:
        done = work(db)
        db.execute("COMMIT")
        return done
    except BaseException:
        if db.in_transaction:  # A full disk has ended it already, and that is what is to be told.
            db.execute("ROLLBACK")
        raise


def _add(db: sqlite3.Connection, space: str, rows: Mapping[str, Row]) -> None:
    (mark,) = db.execute("SELECT COALESCE(MAX(mark), 0) + 1 FROM sums WHERE space = ?", (as_bytes(space),)).fetchone()
    for key, more in rows.items():
        place = (as_bytes(space), as_bytes(key))
        known = db.execute("SELECT row FROM sums WHERE space = ? AND key = ?", place).fetchone()
        row = total(None if known is None else json.loads(known[0]), more)
        db.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?)", (*place, mark, json.dumps(row)))


def _since(db: sqlite3.Connection, space: str, mark: int) -> tuple[int, Mapping[str, Row]]:
    found = db.execute(
        "SELECT key, mark, row FROM sums WHERE space = ? AND mark > ?", (as_bytes(space), mark)
    ).fetchall()
    return max((at for _, at, _ in found), default=mark), {as_text(key): json.loads(row) for key, _, row in found}


def _add_within(db: sqlite3.Connection, space: str, key: str, amount: float, limit: float) -> bool:
    known = db.execute("SELECT row FROM sums WHERE space = ? AND key = ?", (as_bytes(space), as_bytes(key))).fetchone()
    if (0.0 if known is None else json.loads(known[0])[0]) + amount > limit:
        return False
    _add(db, space, {key: (amount,)})
    return True


def _keep(db: sqlite3.Connection, note: tuple[bytes, bytes, float, bytes], sweep: float | None) -> None:
    db.execute("INSERT OR REPLACE INTO sum_notes VALUES (?, ?, ?, ?)", note)
    if sweep is not None:
        db.execute("DELETE FROM sum_notes WHERE until < ?", (sweep,))


def _kept(db: sqlite3.Connection, space: str, key: str, now: float) -> bytes | None:
    found = db.execute(
        "SELECT note FROM sum_notes WHERE space = ? AND key = ? AND until > ?", (as_bytes(space), as_bytes(key), now)
    ).fetchone()
    return None if found is None else bytes(found[0])


def open_sums(url: str) -> SumStore:
    """The sums at the URL of a store, as `open_store` takes it; nothing is connected to before they are used."""
    kind = kind_of(url)
    if kind == "memory":
        return MemorySums()
    if kind == "sqlite":
        path, synchronous = file_of(url)
        return SQLiteSums(path, synchronous=synchronous)
    opened: SumStore = opened_by(kind, url, "sums_{}")
    return opened
