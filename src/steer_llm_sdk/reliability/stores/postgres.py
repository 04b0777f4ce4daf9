"""The store in PostgreSQL: for any number of machines. Each action is one statement; time is the server's.

Its tables begin with `steer_` and are made when it is first used.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from steer_llm_sdk.errors import StoreTooNew, StoreUnavailable
from steer_llm_sdk.reliability.stores import VERSION, Changed, Claim, Store
from steer_llm_sdk.reliability.stores._postgres import Database
from steer_llm_sdk.reliability.stores._shared import CONNECT, FOREVER, Listener, PerLoop

SWEEP = 60.0
"""Seconds between two removals of what is forgotten."""
SWEPT = 1000
"""Rows removed at a time at most."""
MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE steer_keys (
        digest bytea PRIMARY KEY,         -- SHA-256 of the key: an index takes no text of any length
        key text NOT NULL,                -- its beginning, to read
        fingerprint text NOT NULL,
        token bigint NOT NULL,
        version int NOT NULL,
        ttl interval NOT NULL,
        until timestamptz NOT NULL,       -- the end of the lease
        forgotten timestamptz NOT NULL,   -- the end of everything about the key
        wanted timestamptz,               -- until when somebody elsewhere waits for it
        result text
    );
    CREATE INDEX steer_keys_forgotten ON steer_keys (forgotten);
    CREATE SEQUENCE steer_tokens;
    """,
)

_CLAIM = """
WITH clock AS MATERIALIZED (SELECT {now} AS now),
seen AS (SELECT k.* FROM steer_keys k, clock WHERE digest = %(digest)s AND forgotten > now),
mine AS (
    INSERT INTO steer_keys AS k (digest, key, fingerprint, token, version, ttl, until, forgotten)
    SELECT %(digest)s, %(shown)s, %(fingerprint)s, nextval('steer_tokens'), %(version)s, %(ttl)s,
           now + %(lease)s, now + %(lease)s + %(ttl)s
    FROM clock WHERE NOT EXISTS (
        SELECT FROM seen WHERE version > %(version)s OR fingerprint <> %(fingerprint)s
                            OR result IS NOT NULL OR until > now)
    ON CONFLICT (digest) DO UPDATE
    SET fingerprint = excluded.fingerprint, token = excluded.token, version = excluded.version, ttl = excluded.ttl,
        until = excluded.until, forgotten = excluded.forgotten, wanted = NULL, result = NULL
    -- Between our look and this, somebody else may have come.
    WHERE k.forgotten <= {now}
       OR k.fingerprint = excluded.fingerprint AND k.result IS NULL AND k.until <= {now}
    RETURNING token
)
SELECT 'ours', token, NULL, 0, 0 FROM mine
UNION ALL
SELECT CASE WHEN fingerprint <> %(fingerprint)s THEN 'conflict'
            WHEN result IS NOT NULL THEN 'settled' ELSE 'theirs' END,
       token, result, version, greatest(0, extract(epoch FROM until - now))
FROM seen, clock WHERE NOT EXISTS (SELECT FROM mine)
"""
_HELD = "WHERE digest = %(digest)s AND token = %(token)s AND result IS NULL AND forgotten > {now}"
_SAY = "RETURNING CASE WHEN wanted IS NOT NULL THEN pg_notify('steer_keys', encode(digest, 'hex')) END"
_STATEMENTS = {
    "claim": _CLAIM,
    "renew": f"UPDATE steer_keys SET until = {{now}} + %(lease)s, forgotten = {{now}} + %(lease)s + ttl {_HELD}",
    "settle": f"UPDATE steer_keys SET result = %(result)s, forgotten = {{now}} + ttl {_HELD} {_SAY}",
    "release": f"DELETE FROM steer_keys {_HELD} {_SAY}",
    "want": "UPDATE steer_keys SET wanted = greatest(wanted, {now} + %(seconds)s)"
    " WHERE digest = %(digest)s AND result IS NULL",
    "wanted": "SELECT greatest(0, extract(epoch FROM wanted - {now})) FROM steer_keys"
    " WHERE digest = %(digest)s AND token = %(token)s AND result IS NULL",
    "sweep": "DELETE FROM steer_keys WHERE digest IN (SELECT digest FROM steer_keys WHERE forgotten <= {now}"
    " LIMIT %(most)s FOR UPDATE SKIP LOCKED)",
}


class PostgresStore(Store):
    """`url` as libpq takes it, TLS and password in it."""

    NOW = "clock_timestamp()"
    """What tells the time in each statement."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, "keys", MIGRATIONS)
        self._where = self._database.where
        self._statements = {name: text.format(now=self.NOW).encode() for name, text in _STATEMENTS.items()}
        self._listeners = PerLoop(lambda: _Listener(self._database.connect), _Listener.aclose)
        self._next_sweep = 0.0
        self._sweeps: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return self._where.shown

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        found = await self._ask(
            "claim",
            key,
            shown=key[:200].replace("\0", ""),
            fingerprint=fingerprint,
            lease=_interval(lease),
            ttl=_interval(ttl),
            version=VERSION,
        )
        if not found:
            return Claim("theirs")  # Somebody took it in this moment: our statement saw neither the old nor the new.
        kind, token, result, version, left = found[0]
        if version > VERSION:
            raise StoreTooNew(self._where.shown, f"the value of key '{key}'", version, VERSION)
        if kind == "theirs":
            return Claim("theirs", left=float(left))
        return Claim(kind) if kind == "conflict" else Claim(kind, token, None if result is None else result.encode())

    async def renew(self, key: str, token: int, lease: float) -> bool:
        return await self._write("renew", key, token=token, lease=_interval(lease))

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        settled = await self._write("settle", key, token=token, result=result.decode())
        self._sweep_now_and_then()
        return settled

    async def release(self, key: str, token: int) -> bool:
        return await self._write("release", key, token=token)

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        async with self._listeners.get().waiting(_digest(key).hex()) as changed:
            await self._write("want", key, seconds=_interval(seconds))
            yield changed

    async def wanted(self, key: str, token: int) -> float:
        found = await self._ask("wanted", key, token=token)
        return float(found[0][0] or 0) if found else 0.0

    async def aclose(self) -> None:
        here = asyncio.get_running_loop()
        sweeps = [sweep for sweep in self._sweeps if sweep.get_loop() is here]
        if sweeps:
            await asyncio.wait(sweeps, timeout=CONNECT)
        await self._listeners.aclose()
        await self._database.aclose()

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, name: str, key: str, **values: Any) -> list[TupleRow]:
        return (await self._execute(name, digest=_digest(key), **values))[1]

    async def _write(self, name: str, key: str, **values: Any) -> bool:
        return (await self._execute(name, digest=_digest(key), **values))[0] > 0

    async def _execute(self, name: str, **values: Any) -> tuple[int, list[TupleRow]]:
        return await self._database.execute(self._statements[name], values)

    # ── removing what is forgotten ───────────────────────────────────────────────────────────────────────────────────

    def _sweep_now_and_then(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_sweep:
            return
        self._next_sweep = loop.time() + SWEEP
        sweep = loop.create_task(self._sweep())
        self._sweeps.add(sweep)
        sweep.add_done_callback(self._sweeps.discard)

    async def _sweep(self) -> None:
        try:
            swept, _ = await self._execute("sweep", most=SWEPT)
        except StoreUnavailable:
            return
        if swept == SWEPT:
            self._next_sweep = 0.0


class _Listener(Listener):
    def __init__(self, connect: Callable[[], Coroutine[Any, Any, psycopg.AsyncConnection]]) -> None:
        super().__init__()
        self._connect = connect

    async def listen(self, hears: Callable[[], None]) -> None:
        connection = await self._connect()
        try:
            await connection.execute("LISTEN steer_keys")
            hears()
            async for said in connection.notifies():
                self.wakes.wake(said.payload)
        finally:
            await connection.close()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _interval(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, FOREVER))


def opened(url: str) -> Store:
    return PostgresStore(url)
