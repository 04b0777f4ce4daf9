"""The board on PostgreSQL: a row for each key, moved by one statement, and NOTIFY for what has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import psycopg

from steer_llm_sdk.reliability.shared.board import Entry, Heard, Swap

R = TypeVar("R")

_CHANNEL = "steer_shared"
_MOST_TOLD = 7000
"""Characters that go into a notification, which holds 8000 bytes; what is longer is read."""

_TABLE = """
CREATE TABLE IF NOT EXISTS steer_shared (
    key text PRIMARY KEY, version bigint NOT NULL, text text NOT NULL, expires timestamptz NOT NULL)
"""

# The version is the time in microseconds, or one more than the last: so it grows over a loss of the data as well.
_SWAP = """
WITH moved AS (
    INSERT INTO steer_shared AS held (key, version, text, expires)
    SELECT %(key)s, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, %(text)s,
           clock_timestamp() + %(ttl)s * interval '1 second'
    WHERE %(now)s::double precision <= extract(epoch FROM clock_timestamp())::double precision
    ON CONFLICT (key) DO UPDATE
    SET version = greatest(excluded.version, held.version + 1), text = excluded.text, expires = excluded.expires
    WHERE held.version = %(version)s OR held.expires < clock_timestamp()
    RETURNING version)
SELECT version, extract(epoch FROM clock_timestamp())::double precision,
       CASE WHEN %(tell)s THEN pg_notify(%(channel)s, version || ' ' || %(told)s) END
FROM moved
"""

_READ = """
SELECT asked.key, coalesce(held.version, 0), CASE WHEN held.version <> asked.version THEN held.text END,
       extract(epoch FROM clock_timestamp())::double precision
FROM unnest(%s::text[], %s::bigint[]) AS asked (key, version)
LEFT JOIN steer_shared held ON held.key = asked.key AND held.expires > clock_timestamp()
"""


class PostgresBoard:
    def __init__(self, url: str) -> None:
        psycopg.conninfo.conninfo_to_dict(url)
        self._url = url
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def read(self, known: Sequence[tuple[str, int]]) -> tuple[list[Entry | None], float]:
        if not known:
            ((now,),) = await self._rows("SELECT extract(epoch FROM clock_timestamp())::double precision", ())
            return [], now
        keys, versions = [key for key, _ in known], [version for _, version in known]
        rows = {key: (version, text, now) for key, version, text, now in await self._rows(_READ, (keys, versions))}
        entries = [None if rows[key][0] == version else Entry(rows[key][0], rows[key][1]) for key, version in known]
        return entries, max(now for _, _, now in rows.values())

    async def swap(self, key: str, version: int, text: str, now: float, ttl: float, *, tell: bool) -> Swap:
        told = f"{key}\n{text}"
        given = {
            "key": key,
            "version": version,
            "text": text,
            "now": now,
            "ttl": ttl,
            "tell": tell,
            "channel": _CHANNEL,
            "told": told if len(told.encode()) < _MOST_TOLD else key,
        }
        rows = await self._rows(_SWAP, given)
        if rows:
            return Swap(True, Entry(rows[0][0], None), rows[0][1])
        (entry,), at = await self.read([(key, -1)])
        assert entry is not None
        return Swap(False, entry, at)

    async def listen(self, heard: Heard, ready: Callable[[], Awaitable[None]]) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            await ready()
            async for told in connection.notifies():
                head, _, text = told.payload.partition("\n")
                version, _, key = head.partition(" ")
                if not text:
                    (entry,), _ = await self.read([(key, -1)])
                    if entry is not None:
                        heard(key, entry)
                else:
                    heard(key, Entry(int(version), text))

    async def keys(self, prefix: str) -> list[str]:
        sql = "SELECT key FROM steer_shared WHERE starts_with(key, %s) AND expires > clock_timestamp() ORDER BY key"
        return [key for (key,) in await self._rows(sql, (prefix,))]

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _rows(self, sql: str, given: Any) -> list[Any]:
        return await self._in_time(self._execute(sql, given))

    async def _execute(self, sql: str, given: Any) -> list[Any]:
        async with self._one_at_a_time:
            connection = self._connection
            if connection is None or connection.closed:
                connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
                self._connection = connection
                await _prepare(connection)
            done = await connection.execute(sql, given)
            return await done.fetchall()

    async def _in_time(self, work: Coroutine[Any, Any, R]) -> R:
        """The driver, when it is cancelled, asks the server to stop and waits for it; one that is silent would hold us
        for seconds. So the connection is dropped first."""
        task = asyncio.create_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.pgconn.finish()
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise


async def _prepare(connection: psycopg.AsyncConnection[Any]) -> None:
    """Make the table where there is none; several may come at once. Throw away what has expired."""
    # Who may not make tables may use one that somebody else has made.
    there = await connection.execute("SELECT to_regclass('steer_shared') IS NOT NULL")
    if await there.fetchone() == (False,):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('steer_shared'))")
            await connection.execute(_TABLE)
    await connection.execute("DELETE FROM steer_shared WHERE expires < clock_timestamp()")
