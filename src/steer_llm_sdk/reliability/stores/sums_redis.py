"""Sums in Redis: each action is one script, so it is atomic and one round trip. All of a space is in one slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from steer_llm_sdk.reliability.stores._redis import checked, client
from steer_llm_sdk.reliability.stores._shared import PerLoop
from steer_llm_sdk.reliability.stores.sums import Row, SumStore, as_bytes, as_text

# KEYS: rows (by key), marks (of the keys, sorted), the last mark. Rows are numbers with blanks between them.
_PUT = """
local function put(key, row)
  redis.call('HSET', KEYS[1], key, row)
  redis.call('ZADD', KEYS[2], mark, key)
end
"""
_ADD = f"""
local mark = redis.call('INCR', KEYS[3])
{_PUT}
for i = 1, #ARGV, 2 do
  local more, known = ARGV[i + 1], redis.call('HGET', KEYS[1], ARGV[i])
  if known then
    local sums, next_known = {{}}, string.gmatch(known, '%S+')
    for number in string.gmatch(more, '%S+') do
      sums[#sums + 1] = string.format('%.17g', tonumber(number) + tonumber(next_known()))
    end
    more = table.concat(sums, ' ')
  end
  put(ARGV[i], more)
end
"""
_ADD_WITHIN = f"""
local known = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if known + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return 0 end
local mark = redis.call('INCR', KEYS[3])
{_PUT}
put(ARGV[1], string.format('%.17g', known + tonumber(ARGV[2])))
return 1
"""
_SINCE = """
local last, from = tonumber(redis.call('GET', KEYS[3]) or '0'), tonumber(ARGV[1])
if last < from then from = 0 end  -- The data were lost; what is there is new.
local keys, found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. from, '+inf'), {last}
for _, key in ipairs(keys) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('HGET', KEYS[1], key)
end
return found
"""


class RedisSums(SumStore):
    """`prefix` begins every key. Notes are removed by Redis itself when their time is over."""

    def __init__(self, url: str, prefix: str = "steer") -> None:
        self._where = checked(url)
        self._prefix = prefix
        self._clients: PerLoop[_Client] = PerLoop(lambda: _Client(url), _Client.aclose)

    def __repr__(self) -> str:
        return self._where.shown

    async def add(self, space: str, rows: Mapping[str, Row]) -> None:
        flat = [part for key, row in rows.items() for part in (as_bytes(key), _text(row))]
        await self._ask("add", space, *flat)

    async def since(self, space: str, mark: int) -> tuple[int, Mapping[str, Row]]:
        last, *found = await self._ask("since", space, mark)
        pairs = zip(found[::2], found[1::2], strict=True)
        rows = {as_text(key): [float(number) for number in row.split()] for key, row in pairs}
        return int(last), rows

    async def add_within(self, space: str, key: str, amount: float, limit: float) -> bool:
        return bool(await self._ask("add_within", space, as_bytes(key), repr(amount), repr(limit)))

    async def keep(self, space: str, key: str, note: bytes, ttl: float) -> None:
        try:
            await self._clients.get().client.set(self._name(space, "note", key), note, px=max(1, round(ttl * 1000)))
        except (RedisError, OSError) as error:
            raise self._where.unavailable(error) from None

    async def kept(self, space: str, key: str) -> bytes | None:
        try:
            found: Any = await self._clients.get().client.get(self._name(space, "note", key))
        except (RedisError, OSError) as error:
            raise self._where.unavailable(error) from None
        return None if found is None else bytes(found)

    async def aclose(self) -> None:
        await self._clients.aclose()

    def _name(self, space: str, *parts: str) -> bytes:
        """In a cluster the braces say by what a key is placed."""
        return as_bytes(":".join((f"{self._prefix}:sums:{{{space}}}", *parts)))

    async def _ask(self, script: str, space: str, *values: Any) -> Any:
        names = [self._name(space, part) for part in ("rows", "marks", "last")]
        try:
            return await self._clients.get().scripts[script](keys=names, args=values)
        except (RedisError, OSError) as error:
            raise self._where.unavailable(error) from None


class _Client:
    """What belongs to one loop."""

    def __init__(self, url: str) -> None:
        self.client = client(url)
        texts = {"add": _ADD, "add_within": _ADD_WITHIN, "since": _SINCE}
        self.scripts: dict[str, AsyncScript] = {name: self.client.register_script(text) for name, text in texts.items()}

    async def aclose(self) -> None:
        await self.client.aclose()


def _text(row: Row) -> str:
    return " ".join(repr(float(number)) for number in row)


def opened(url: str) -> RedisSums:
    return RedisSums(url)
