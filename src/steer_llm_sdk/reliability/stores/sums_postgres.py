"""Sums in PostgreSQL: each action is one statement.

Its tables begin with `steer_` and are made when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from psycopg.rows import TupleRow

from steer_llm_sdk.reliability.stores._postgres import Database
from steer_llm_sdk.reliability.stores._shared import FOREVER
from steer_llm_sdk.reliability.stores.sums import SWEEP, Row, SumStore, as_bytes, as_text

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE steer_sum_spaces (space bytea PRIMARY KEY, mark bigint NOT NULL);
    CREATE TABLE steer_sums (
        space bytea, key bytea, mark bigint NOT NULL, row double precision[] NOT NULL, PRIMARY KEY (space, key));
    CREATE INDEX steer_sums_changed ON steer_sums (space, mark);
    CREATE TABLE steer_sum_notes (
        space bytea, key bytea, until timestamptz NOT NULL, note bytea NOT NULL, PRIMARY KEY (space, key));
    CREATE INDEX steer_sum_notes_until ON steer_sum_notes (until);
    """,
)
# Whoever writes holds the space's row until he commits. So marks become visible in their order, and none is missed.
_MARK = """
WITH marked AS (
    INSERT INTO steer_sum_spaces AS held VALUES (%(space)s, 1)
    ON CONFLICT (space) DO UPDATE SET mark = held.mark + 1 RETURNING mark)
"""
_ADD = f"""
{_MARK}
INSERT INTO steer_sums AS held
SELECT %(space)s, more.key, marked.mark, more.row::double precision[]
FROM marked, unnest(%(keys)s::bytea[], %(rows)s::text[]) AS more (key, row)
ON CONFLICT (space, key) DO UPDATE SET mark = excluded.mark, row = (
    SELECT array_agg(a + b ORDER BY place)
    FROM unnest(held.row, excluded.row) WITH ORDINALITY AS both_rows (a, b, place))
"""
_ADD_WITHIN = f"""
{_MARK}
INSERT INTO steer_sums AS held
SELECT %(space)s, %(key)s, mark, ARRAY[%(amount)s::double precision] FROM marked
WHERE %(amount)s::double precision <= %(limit)s::double precision
ON CONFLICT (space, key) DO UPDATE SET mark = excluded.mark, row = ARRAY[held.row[1] + excluded.row[1]]
WHERE held.row[1] + excluded.row[1] <= %(limit)s::double precision
"""
_SINCE = """
SELECT mark, NULL, NULL FROM steer_sum_spaces WHERE space = %(space)s
UNION ALL
SELECT mark, key, row FROM steer_sums WHERE space = %(space)s AND mark > %(mark)s
"""
_KEEP = """
INSERT INTO steer_sum_notes VALUES (%(space)s, %(key)s, clock_timestamp() + %(ttl)s, %(note)s)
ON CONFLICT (space, key) DO UPDATE SET until = excluded.until, note = excluded.note
"""
_KEPT = "SELECT note FROM steer_sum_notes WHERE space = %(space)s AND key = %(key)s AND until > clock_timestamp()"


class PostgresSums(SumStore):
    """`url` as libpq takes it, TLS and password in it."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, "sums", MIGRATIONS)
        self._kept = 0

    def __repr__(self) -> str:
        return self._database.where.shown

    async def add(self, space: str, rows: Mapping[str, Row]) -> None:
        arrays = ["{" + ",".join(repr(float(number)) for number in row) + "}" for row in rows.values()]
        await self._execute(_ADD, space, keys=[as_bytes(key) for key in rows], rows=arrays)

    async def since(self, space: str, mark: int) -> tuple[int, Mapping[str, Row]]:
        found = (await self._execute(_SINCE, space, mark=mark))[1]
        last = next((at for at, key, _ in found if key is None), 0)
        if last < mark:  # The data were lost; what is there is new.
            return await self.since(space, 0)
        return last, {as_text(key): row for _, key, row in found if key is not None}

    async def add_within(self, space: str, key: str, amount: float, limit: float) -> bool:
        return (await self._execute(_ADD_WITHIN, space, key=as_bytes(key), amount=amount, limit=limit))[0] == 1

    async def keep(self, space: str, key: str, note: bytes, ttl: float) -> None:
        until = timedelta(seconds=min(ttl, FOREVER))
        await self._execute(_KEEP, space, key=as_bytes(key), ttl=until, note=note)
        self._kept += 1
        if self._kept % SWEEP == 0:
            await self._execute("DELETE FROM steer_sum_notes WHERE until < clock_timestamp()", space)

    async def kept(self, space: str, key: str) -> bytes | None:
        found = (await self._execute(_KEPT, space, key=as_bytes(key)))[1]
        return bytes(found[0][0]) if found else None

    async def aclose(self) -> None:
        await self._database.aclose()

    async def _execute(self, statement: str, space: str, **values: object) -> tuple[int, list[TupleRow]]:
        return await self._database.execute(statement.encode(), {"space": as_bytes(space), **values})


def opened(url: str) -> PostgresSums:
    return PostgresSums(url)
