"""A database in PostgreSQL: the tables of one store, brought up to date, and connections for each event loop."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from steer_llm_sdk.errors import StoreTooNew
from steer_llm_sdk.reliability.stores._shared import CONNECT, PerLoop, Where

CONNECTIONS = 10
"""At most, for each loop; one more listens while somebody waits for a key."""
_MIGRATING = 0x5354454552  # "STEER": the number of the advisory lock


class Database:
    """`url` as libpq takes it, TLS and password in it. `migrations` make the tables of `part`; see `_migrate`.

    InvalidRequest where libpq cannot read the URL, StoreUnavailable where the server does not answer.
    """

    def __init__(self, url: str, part: str, migrations: Sequence[str]) -> None:
        self.where = Where(url)
        self._url = url
        self._part = part
        self._migrations = migrations
        self._migrated = False
        self._connections = PerLoop(lambda: _Connections(self.connect), _Connections.aclose)
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise self.where.unusable("libpq", error) from None

    async def execute(self, statement: bytes, values: Mapping[str, Any]) -> tuple[int, list[TupleRow]]:
        """How many rows it touched, and those that it returns."""
        try:
            async with self._connections.get().use() as connection:
                done = await connection.execute(statement, values)
                return done.rowcount, await done.fetchall() if done.description else []
        except (psycopg.Error, OSError) as error:
            raise self.where.unavailable(error) from None

    async def connect(self) -> psycopg.AsyncConnection:
        """One that belongs to the caller, who closes it."""
        connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=round(CONNECT))
        try:
            if not self._migrated:
                await _migrate(connection, self._part, self._migrations, self.where.shown)
                self._migrated = True
        except BaseException:
            await connection.close()
            raise
        return connection

    async def aclose(self) -> None:
        await self._connections.aclose()


async def _migrate(connection: psycopg.AsyncConnection, part: str, steps: Sequence[str], where: str) -> None:
    """Bring the tables of `part` up to date: of the numbered `steps`, those that were not taken yet, in one
    transaction and under one lock, so that any number of processes may start at once."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS steer_migrations (part text PRIMARY KEY, number int NOT NULL)"
        )
        found = await connection.execute("SELECT number FROM steer_migrations WHERE part = %s", (part,))
        row = await found.fetchone()
        taken = 0 if row is None else row[0]
        if taken > len(steps):
            raise StoreTooNew(where, f"its schema of {part}", taken, len(steps))
        for step in steps[taken:]:
            await connection.execute(step.encode())
        await connection.execute(
            "INSERT INTO steer_migrations VALUES (%s, %s) ON CONFLICT (part) DO UPDATE SET number = excluded.number",
            (part, len(steps)),
        )


class _Connections:
    """Those of one loop. Whoever asks for one gets the one that was used last."""

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, psycopg.AsyncConnection]]) -> None:
        self._connect = connect
        self._idle: list[psycopg.AsyncConnection] = []
        self._closed = False
        self._places = asyncio.Semaphore(CONNECTIONS)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[psycopg.AsyncConnection]:
        async with self._places:
            connection = await self._taken()
            try:
                yield connection
            except BaseException:
                await connection.close()  # Whoever was cut off left it in the middle of something.
                raise
            if self._closed:  # Nobody will come for it any more.
                await connection.close()
            else:
                self._idle.append(connection)

    async def _taken(self) -> psycopg.AsyncConnection:
        while self._idle:
            connection = self._idle.pop()
            if _is_quiet(connection):
                return connection
            await connection.close()
        return await self._connect()

    async def aclose(self) -> None:
        """Those that are in use are closed when they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()


def _is_quiet(connection: psycopg.AsyncConnection) -> bool:
    """Whether nothing came in on an idle connection: what comes is its end, for the server was stopped."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
