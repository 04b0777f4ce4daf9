"""The table of runs: in a SQLite file that the processes of one machine share, or in a PostgreSQL database.

A run has one row, from the moment that it was accepted, or is older than a moment. It ends once: `running` is left by
one statement that asks for it, whoever comes first. A Shelf is called in one thread, a Hasty in another one.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from steer_llm_sdk.reliability.stores._sqlite import into_wal

V = TypeVar("V")
BUSY = 10.0
"""Seconds to wait for another process that is writing."""
PART = 400
"""Runs that one statement asks for."""
SLOW = 0.005
"""Seconds: after a write in the loop that took longer there is none for a while,"""
RESPITE = 10
"""so many times what it took: so the loop stands still for a tenth of the time at most, however slow the disk."""
_LOCK = 7_355_609
"""The advisory lock under which the tables are made, on PostgreSQL."""
_TABLES = (
    """CREATE TABLE IF NOT EXISTS steer_runs (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created DOUBLE PRECISION NOT NULL, state TEXT NOT NULL, tool TEXT,
        owner TEXT NOT NULL, engine TEXT, stop INTEGER NOT NULL DEFAULT 0, record TEXT NOT NULL, events TEXT NOT NULL)
    """,
    "CREATE INDEX IF NOT EXISTS steer_runs_of_tenant ON steer_runs (tenant, created)",
    "CREATE INDEX IF NOT EXISTS steer_runs_by_age ON steer_runs (created)",
    "CREATE INDEX IF NOT EXISTS steer_runs_under_way ON steer_runs (owner) WHERE state = 'running'",
    """CREATE TABLE IF NOT EXISTS steer_live (
        run TEXT NOT NULL, id INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (run, id))""",
    "CREATE TABLE IF NOT EXISTS steer_keyed (key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, run TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS steer_runs_of_engine ON steer_runs (engine) WHERE engine IS NOT NULL",
)
_COLUMNS = "id, tenant, created, state, tool, owner, engine, record, events"


@dataclass(frozen=True, slots=True)
class Row:
    """`record` has request, output and error; both it and the events are JSON."""

    id: str
    tenant: str
    created: float
    state: str
    tool: str | None
    owner: str
    engine: str | None
    record: str
    events: str = "[]"
    live: bool = True
    """Events of it may stand in the other table. It is no column: what is read has it True."""


class Told(NamedTuple):
    """An event: `said` is all of it as JSON, as it stands in the table and is sent."""

    id: int
    type: str
    said: str


class News(NamedTuple):
    """Of a run that is under way, what nobody else knows yet: its row, None where it stands so already, and events."""

    run: str
    row: Row | None
    events: Sequence[Told]


class Shelf:
    """`where` is the path of a file, the URL of a PostgreSQL database, or ":memory:", which is nobody else's."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.on_server = where.startswith(("postgresql://", "postgres://"))
        self._mark = "%s" if self.on_server else "?"
        self._connection: Any = None

    def open(self) -> None:
        self._connection = self._postgres() if self.on_server else self._sqlite()
        with self._written():
            if self.on_server:
                self._ask("SELECT pg_advisory_xact_lock(?)", _LOCK)
            for statement in _TABLES:
                self._ask(statement)

    def _sqlite(self) -> Any:
        connection = sqlite3.connect(self._where, isolation_level=None, check_same_thread=False, timeout=BUSY)
        into_wal(connection, BUSY)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _postgres(self) -> Any:
        import psycopg

        return psycopg.connect(self._where, connect_timeout=5, autocommit=True)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def accept(self, rows: Iterable[Row]) -> None:
        """Write down runs that nobody knows; one that has ended meanwhile stays as it is."""
        with self._written():
            for row in rows:
                self._insert(row, "DO NOTHING")

    def accept_keyed(self, row: Row, key: str, fingerprint: str) -> tuple[str, str]:
        """The same for a run with a key, unless one that was accepted with it is under way: the id and the fingerprint
        of the run that has the key."""
        with self._written():
            found = self._ask(
                "SELECT run, fingerprint FROM steer_keyed JOIN steer_runs ON id = run WHERE key = ? AND state = ?",
                key,
                "running",
            )
            if found:
                return found[0][0], found[0][1]
            self._ask(
                "INSERT INTO steer_keyed VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "fingerprint = excluded.fingerprint, run = excluded.run",
                key,
                fingerprint,
                row.id,
            )
            self._insert(row, "DO NOTHING")
            return row.id, fingerprint

    def accept_once(self, row: Row) -> str:
        """The same for a run that an engine has under a key: the id of the one that was accepted first."""
        with self._written():
            found = self._ask("SELECT id FROM steer_runs WHERE engine = ? ORDER BY created LIMIT 1", row.engine)
            if not found:
                self._insert(row, "DO NOTHING")
            return str(found[0][0]) if found else row.id

    def take(self, row: Row) -> tuple[Row, list[Told]]:
        """Make a run that is under way ours, whether or not it is known; what is known of it, and its events."""
        with self._written():
            self._insert(
                row,
                "(id) DO UPDATE SET owner = excluded.owner, engine = excluded.engine "
                "WHERE steer_runs.state = 'running'",
            )
        known = self.get(row.id)
        assert known is not None
        return known, self.live(row.id)

    def end(self, rows: Sequence[Row]) -> list[Row | None]:
        """Write down how runs ended. For one that had ended already it is what stands, for the others None."""
        with self._written():
            return [self._end(row) for row in rows]

    def _end(self, row: Row) -> Row | None:
        ended = self._insert(
            row,
            "(id) DO UPDATE SET state = excluded.state, tool = excluded.tool, record = excluded.record, "
            "events = excluded.events WHERE steer_runs.state = 'running' RETURNING id",
        )
        if row.live:
            self._ask("DELETE FROM steer_live WHERE run = ?", row.id)
        return None if ended else self.get(row.id)

    def tell(self, news: Sequence[News]) -> None:
        with self._written():
            for _, row, _ in news:
                if row is not None:
                    self._insert(
                        row,
                        "(id) DO UPDATE SET tool = excluded.tool, engine = COALESCE(excluded.engine, steer_runs.engine)"
                        " WHERE steer_runs.state = 'running'",
                    )
            self._ask_each(
                "INSERT INTO steer_live VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                [(run, event.id, event.said) for run, _, events in news for event in events],
            )

    def leave(self, run_id: str, owner: str) -> None:
        """Nobody here carries it out any more: it is to be looked at by all."""
        self._ask("UPDATE steer_runs SET owner = '' WHERE id = ? AND owner = ? AND state = 'running'", run_id, owner)

    def stop(self, run_id: str) -> None:
        """Ask the owner of a run to cancel it."""
        self._ask("UPDATE steer_runs SET stop = 1 WHERE id = ? AND state = 'running'", run_id)

    def stopped(self, owner: str) -> list[str]:
        found = self._ask("SELECT id FROM steer_runs WHERE owner = ? AND state = 'running' AND stop = 1", owner)
        return [run_id for (run_id,) in found]

    def get(self, run_id: str) -> Row | None:
        found = self._ask(f"SELECT {_COLUMNS} FROM steer_runs WHERE id = ?", run_id)
        return Row(*found[0]) if found else None

    def live(self, run_id: str, after: int = 0) -> list[Told]:
        """The events of a run that is under way."""
        found = self._ask("SELECT event FROM steer_live WHERE run = ? AND id > ? ORDER BY id", run_id, after)
        return [_told(event) for (event,) in found]

    def running(self, runs: Iterable[str]) -> set[str]:
        """Those of them that are under way."""
        found: set[str] = set()
        for some in _in_parts(list(runs)):
            marks = ", ".join("?" * len(some))
            rows = self._ask(f"SELECT id FROM steer_runs WHERE state = 'running' AND id IN ({marks})", *some)
            found.update(run_id for (run_id,) in rows)
        return found

    def later(self, known: Mapping[str, int]) -> dict[str, list[Told]]:
        """The events of runs that are under way, after so many of each; nothing of those that have none."""
        found: dict[str, list[Told]] = {}
        for some in _in_parts(list(known.items())):
            pairs = ", ".join(["(CAST(? AS TEXT), CAST(? AS INTEGER))"] * len(some))
            rows = self._ask(
                f"WITH known (known_run, most) AS (VALUES {pairs}) SELECT run, event FROM known CROSS JOIN steer_live "
                "WHERE run = known_run AND id > most ORDER BY run, id",
                *(value for pair in some for value in pair),
            )
            for run_id, event in rows:
                found.setdefault(run_id, []).append(_told(event))
        return found

    def latest(self, tenant: str, count: int) -> list[Row]:
        found = self._ask(
            f"SELECT {_COLUMNS} FROM steer_runs WHERE tenant = ? ORDER BY created DESC LIMIT ?", tenant, count
        )
        return [Row(*row) for row in found]

    def under_way_elsewhere(self, owner: str, count: int) -> list[Row]:
        """Runs that somebody else has, some of them where there are many."""
        found = self._ask(
            f"SELECT {_COLUMNS} FROM steer_runs WHERE state = 'running' AND owner <> ? ORDER BY random() LIMIT ?",
            owner,
            count,
        )
        return [Row(*row) for row in found]

    def owners(self) -> list[str]:
        return [owner for (owner,) in self._ask("SELECT DISTINCT owner FROM steer_runs WHERE state = 'running'")]

    def of_owner(self, owner: str) -> list[Row]:
        found = self._ask(f"SELECT {_COLUMNS} FROM steer_runs WHERE state = 'running' AND owner = ?", owner)
        return [Row(*row) for row in found]

    def prune(self, most: int) -> None:
        """Forget the oldest of the ended ones, where there are more than `most` runs."""
        with self._written():
            self._ask(
                "DELETE FROM steer_runs WHERE state <> 'running' AND created < "
                "(SELECT created FROM steer_runs ORDER BY created DESC LIMIT 1 OFFSET ?)",
                most - 1,
            )
            self._ask("DELETE FROM steer_keyed WHERE NOT EXISTS (SELECT 1 FROM steer_runs WHERE id = run)")
        if not self.on_server:
            self._ask("PRAGMA wal_checkpoint(PASSIVE)")  # A Hasty leaves it to us.

    def _insert(self, row: Row, known: str) -> Sequence[tuple[Any, ...]]:
        return self._ask(
            f"INSERT INTO steer_runs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT {known}",
            row.id,
            row.tenant,
            row.created,
            row.state,
            row.tool,
            row.owner,
            row.engine,
            row.record,
            row.events,
        )

    def _ask(self, statement: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        if self._connection is None:
            self.open()
        cursor = self._connection.execute(statement.replace("?", self._mark), values)
        return list(cursor.fetchall()) if cursor.description else []

    def _ask_each(self, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        self._connection.cursor().executemany(statement.replace("?", self._mark), values)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """One transaction. A connection that has failed is not used again."""
        if self._connection is None:
            self.open()
        self._ask("BEGIN IMMEDIATE" if self._mark == "?" else "BEGIN")
        try:
            yield
            self._ask("COMMIT")
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Roll back; connect anew next time, but for what is in memory, which would be gone."""
        with contextlib.suppress(Exception):
            self._connection.execute("ROLLBACK")
        if self._where != ":memory:":
            with contextlib.suppress(Exception):
                self.close()
            self._connection = None


class Hasty(Shelf):
    """A further way into the file, for the loop: it waits for nobody, and moves nothing from the log into the file, so
    that what it writes ends in the memory of the operating system."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._slow_until = 0.0

    def open(self) -> None:
        """Without making the tables: a Shelf has done so."""
        self._connection = sqlite3.connect(self._where, isolation_level=None, check_same_thread=False, timeout=0)
        self._ask("PRAGMA synchronous = NORMAL")
        self._ask("PRAGMA wal_autocheckpoint = 0")

    def may(self) -> bool:
        """Whether the last write was quick, or is long ago."""
        return time.monotonic() >= self._slow_until

    def end_now(self, made: Callable[[], Row]) -> list[Row | None] | None:
        """As `end`; None where somebody is in the way, and nothing was written. What is one statement needs no
        transaction round it."""
        began = time.monotonic()
        row = made()
        try:
            stands = self.end([row]) if row.live else [self._end(row)]
        except sqlite3.Error:
            return None
        took = time.monotonic() - began
        if took > SLOW:
            self._slow_until = began + took + RESPITE * took
        return stands


def _told(said: str) -> Told:
    event = json.loads(said)
    return Told(event["id"], event["type"], said)


def _in_parts(values: list[V]) -> Iterator[list[V]]:
    """So many that one statement may ask for them."""
    for start in range(0, len(values), PART):
        yield values[start : start + PART]
