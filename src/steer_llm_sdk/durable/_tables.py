"""The two tables of our own beside those of the engine: which key belongs to which run, and which workers live.

Each has one connection, which any thread may use. On SQLite the time is that of this machine, on PostgreSQL that of the
server, so that no worker's clock decides who is dead.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steer_llm_sdk.durable.runner import Claim
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError
from steer_llm_sdk.reliability.stores._sqlite import into_wal
from steer_llm_sdk.reliability.stores._url import shown

_WORKERS = """CREATE TABLE IF NOT EXISTS steer_workers (
    id TEXT PRIMARY KEY, beat DOUBLE PRECISION NOT NULL, heartbeat DOUBLE PRECISION NOT NULL, taken_by TEXT,
    host TEXT NOT NULL, pid INTEGER NOT NULL, version TEXT NOT NULL)"""
_KEYS = """CREATE TABLE IF NOT EXISTS steer_keys (
    id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, generation INTEGER NOT NULL, claimed DOUBLE PRECISION NOT NULL)"""
_LOCK = 7_355_608
"""The advisory lock under which the tables are made: CREATE IF NOT EXISTS of two at once is an error in PostgreSQL."""

HELD_AT_MOST = 2
"""Seconds after which PostgreSQL breaks off a transaction in which nothing happens, of those that others may have to
wait for: a process that was stopped in the middle of one would hold its locks for as long as it is stopped."""


class Store(NamedTuple):
    """Where the runs are kept: the path of a SQLite file, or the URL of a PostgreSQL database."""

    url: str
    path: str | None

    @classmethod
    def of(cls, url: str) -> Store:
        """InvalidRequest, without the password, where it is neither."""
        scheme, rest = url.partition("://")[::2]
        if scheme == "sqlite" and rest.startswith("/") and rest[1:].strip() and ":memory:" not in rest:
            return cls(url, rest[1:])
        if scheme in ("postgresql", "postgres") and rest:
            return cls(f"postgresql://{rest}", None)
        if "://" not in url and Path(url).is_file():
            raise InvalidRequest("store", url, f"write a file as sqlite:///{url}")
        raise InvalidRequest(
            "store",
            shown(url),
            "give sqlite:///file.db, sqlite:////absolute/file.db or postgresql://user@host/database",
        )

    @property
    def shown(self) -> str:
        """For people: without credentials."""
        return shown(self.url)

    @property
    def is_of_a_service(self) -> bool:
        """Whether it is a file that `steer-llm serve` without --durable keeps its runs in."""
        if self.path is None or not Path(self.path).is_file():
            return False
        try:
            with contextlib.closing(
                sqlite3.connect(f"{Path(self.path).absolute().as_uri()}?mode=ro", uri=True)
            ) as there:
                return bool(there.execute("SELECT 1 FROM sqlite_master WHERE name = 'steer_runs'").fetchone())
        except sqlite3.Error:
            return False

    def prepare(self) -> None:
        """Write-ahead logging, which lets several processes read while one writes, and stays with the file."""
        if self.path is None:
            return
        self.require_subseconds()
        Path(self.path).absolute().parent.mkdir(parents=True, exist_ok=True)
        for path in (self.path, self.workers):
            with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
                mode = into_wal(connection, 30)
            if mode != "wal":
                raise OrchestratorError(
                    f"{self.shown}: write-ahead logging cannot be switched on (it says {mode}); "
                    "put the file on a local disk, or use PostgreSQL"
                )

    def require_subseconds(self) -> None:
        """OrchestratorError where the SQLite of this Python is too old for the engine to write with."""
        if self.path is not None and _lacks_subseconds(sys.version_info[:2], sqlite3.sqlite_version_info[:2]):
            raise OrchestratorError(
                f"{self.shown}: from Python 3.12 on durable runs need SQLite 3.42, and this Python "
                f"({sys.version.split()[0]}) has {sqlite3.sqlite_version}; use one with a newer SQLite, or PostgreSQL"
            )

    @property
    def workers(self) -> str:
        """The SQLite file in which they say that they live."""
        return f"{self.path}.workers"


def _lacks_subseconds(python: tuple[int, int], sqlite: tuple[int, int]) -> bool:
    """From Python 3.12 on the engine asks SQLite for `unixepoch('subsec')`, which older ones say nothing to: its first
    step would fail with a message about a column of its own."""
    return python >= (3, 12) and sqlite < (3, 42)


class Worker(NamedTuple):
    id: str
    silent_for: float
    host: str
    pid: int
    version: str


class _Table:
    TABLE: str
    SYNCHRONOUS = "FULL"
    HELD_AT_MOST = 60
    """Seconds after which PostgreSQL breaks off a transaction in which nothing happens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.path
        self._lock = threading.Lock()
        self._connection: Any = None

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _now(self, ask: _Ask) -> float:
        if self._path is not None:
            return time.time()
        ((now,),) = ask("SELECT extract(epoch FROM clock_timestamp())")
        return float(now)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[_Ask]:
        """A connection that has failed is not used again."""
        with self._lock:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._postgres() if self._path is None else self._sqlite(self._path)
            ask = _Ask(connection, "?" if self._path is not None else "%s")
            try:
                yield ask
                connection.commit()
            except BaseException:
                self._connection = None
                with contextlib.suppress(Exception):
                    connection.close()
                raise

    def _sqlite(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE", check_same_thread=False)
        connection.execute(f"PRAGMA synchronous={self.SYNCHRONOUS}")
        connection.execute(self.TABLE)
        connection.commit()
        return connection

    def _postgres(self) -> Any:
        import psycopg

        connection = psycopg.connect(self._store.url, connect_timeout=5)
        connection.execute(f"SET idle_in_transaction_session_timeout = {1000 * self.HELD_AT_MOST:d}")
        connection.commit()
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(self.TABLE.encode())
        connection.commit()
        return connection


class Keys(_Table):
    TABLE = _KEYS

    def claim(self, key: str, fingerprint: str, keep: float) -> Claim:
        """The claim that holds: this one, if the key is new or was claimed more than `keep` seconds ago."""
        with self._transaction() as ask:
            now = self._now(ask)
            ask("INSERT INTO steer_keys VALUES (?, ?, 1, ?) ON CONFLICT DO NOTHING", key, fingerprint, now)
            ask(
                "UPDATE steer_keys SET fingerprint = ?, generation = generation + 1, claimed = ? "
                "WHERE id = ? AND claimed < ?",
                fingerprint,
                now,
                key,
                now - keep,
            )
            ((known, generation),) = ask("SELECT fingerprint, generation FROM steer_keys WHERE id = ?", key)
        return Claim(known, generation)

    def renew(self, key: str, generation: int) -> Claim:
        """Begin the next generation, unless somebody else has; either way, what holds now."""
        with self._transaction() as ask:
            now = self._now(ask)
            ask(
                "UPDATE steer_keys SET generation = generation + 1, claimed = ? WHERE id = ? AND generation = ?",
                now,
                key,
                generation,
            )
            ((known, new),) = ask("SELECT fingerprint, generation FROM steer_keys WHERE id = ?", key)
        return Claim(known, new)


class Workers(_Table):
    """On SQLite in a file of its own: SQLite gives its lock to whoever comes at the right moment, and a worker that
    waits for it behind the steps of all the others would be taken for dead."""

    TABLE = _WORKERS
    SYNCHRONOUS = "OFF"  # Whoever lives beats again in a moment.
    HELD_AT_MOST = HELD_AT_MOST

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._path = None if store.path is None else store.workers

    def beat(self, worker: str, heartbeat: float, host: str, pid: int, version: str) -> None:
        """Say that it lives, also where it was taken for dead; it is when it says so not for `heartbeat` seconds."""
        with self._transaction() as ask:
            ask(
                "INSERT INTO steer_workers VALUES (?, ?, ?, NULL, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET beat = excluded.beat, taken_by = NULL",
                worker,
                self._now(ask),
                heartbeat,
                host,
                pid,
                version,
            )

    def watch(self, workers: Collection[str], heartbeat: float) -> None:
        """From now on whoever of them is on no list is dead unless it says within `heartbeat` seconds that it lives."""
        with self._transaction() as ask:
            known = {name for (name,) in ask("SELECT id FROM steer_workers")}
            for worker in set(workers) - known:
                ask(
                    "INSERT INTO steer_workers VALUES (?, ?, ?, NULL, '', 0, '') ON CONFLICT DO NOTHING",
                    worker,
                    self._now(ask),
                    heartbeat,
                )

    def take_dead(self, taker: str) -> list[str]:
        """The workers that are dead, but for the taker himself. Each is given to one taker: if he dies too, the next
        may take it half a heartbeat later."""
        with self._transaction() as ask:
            now = self._now(ask)
            silent = ask("SELECT id FROM steer_workers WHERE beat < ? - heartbeat AND id <> ?", now, taker)
            dead = [name for (name,) in silent]
            return [name for name in dead if self._take(ask, name, taker, now)]

    def forget(self, worker: str, taker: str | None = None) -> None:
        """Take it off the list: itself, or the one who has taken it, unless it came back to life."""
        with self._transaction() as ask:
            if taker is None:
                ask("DELETE FROM steer_workers WHERE id = ?", worker)
            else:
                ask("DELETE FROM steer_workers WHERE id = ? AND taken_by = ?", worker, taker)

    def all(self) -> list[Worker]:
        with self._transaction() as ask:
            now = self._now(ask)
            rows = ask("SELECT id, beat, host, pid, version FROM steer_workers ORDER BY id")
        return [Worker(name, now - beat, host, pid, version) for name, beat, host, pid, version in rows]

    def _take(self, ask: _Ask, worker: str, taker: str, now: float) -> bool:
        taken = ask(
            "UPDATE steer_workers SET beat = ? - heartbeat / 2, taken_by = ? "
            "WHERE id = ? AND beat < ? - heartbeat RETURNING id",
            now,
            taker,
            worker,
            now,
        )
        return bool(taken)


class _Ask:
    def __init__(self, connection: Any, mark: str) -> None:
        self._connection = connection
        self._mark = mark

    def __call__(self, statement: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        cursor = self._connection.execute(statement.replace("?", self._mark), values)
        return list(cursor.fetchall()) if cursor.description else []
