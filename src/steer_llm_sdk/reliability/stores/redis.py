"""The store in Redis: for any number of machines. Each action is one script, that is one round trip and atomic.

A key is one hash, so a cluster can hold it anywhere. Time is the server's. Redis removes by itself what is forgotten.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from steer_llm_sdk.errors import StoreTooNew
from steer_llm_sdk.reliability.stores import VERSION, Changed, Claim, Store
from steer_llm_sdk.reliability.stores._redis import checked, client
from steer_llm_sdk.reliability.stores._shared import FOREVER, Listener, PerLoop

# Of a key: v version, f fingerprint, t token, l ttl, u end of the lease, g when all of it is forgotten, w until when
# somebody elsewhere waits for it, r result. Times in microseconds, which a number in Lua holds exactly.
_NOW = "local time = redis.call('TIME')\nlocal now = time[1] * 1000000 + time[2]\n"
_HELD = """
local held = redis.call('HMGET', KEYS[1], 't', 'r', 'g', 'l', 'w')
if held[1] ~= ARGV[1] or held[2] or now >= tonumber(held[3]) then return 0 end
"""
_SAY = "if held[5] then redis.call('PUBLISH', ARGV[2], KEYS[1]) end\n"
_WHOLE = "local function whole(number) return string.format('%.0f', number) end\n"

_CLAIM = """
local known = redis.call('HMGET', KEYS[1], 'f', 't', 'v', 'u', 'g', 'r')
if known[1] and now < tonumber(known[5]) then
  if tonumber(known[3]) > tonumber(ARGV[4]) then return {'newer', known[3]} end
  if known[1] ~= ARGV[1] then return {'conflict'} end
  if known[6] then return {'settled', known[2], known[6]} end
  if now < tonumber(known[4]) then return {'theirs', whole(tonumber(known[4]) - now)} end
end
-- The time, for it grows without being kept; and more than the last one, for it may be set back.
local token = known[2] and math.max(now, tonumber(known[2]) + 1) or now
local until_, gone = now + ARGV[2], now + ARGV[2] + ARGV[3]
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'v', ARGV[4], 'f', ARGV[1], 't', whole(token), 'l', ARGV[3],
  'u', whole(until_), 'g', whole(gone))
redis.call('PEXPIRE', KEYS[1], math.ceil((ARGV[2] + ARGV[3]) / 1000))
return {'ours', whole(token)}
"""
_RENEW = """
redis.call('HSET', KEYS[1], 'u', whole(now + ARGV[2]), 'g', whole(now + ARGV[2] + held[4]))
redis.call('PEXPIRE', KEYS[1], math.ceil((ARGV[2] + held[4]) / 1000))
return 1
"""
_SETTLE = """
redis.call('HSET', KEYS[1], 'r', ARGV[3], 'g', whole(now + held[4]))
redis.call('PEXPIRE', KEYS[1], math.ceil(held[4] / 1000))
"""
# Only the token stays for a while, so that the next one is another.
_RELEASE = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 't', ARGV[1], 'g', 0)
redis.call('PEXPIRE', KEYS[1], math.ceil(held[4] / 1000))
"""
_WANT = """
local known = redis.call('HMGET', KEYS[1], 'f', 'r', 'w')
if not known[1] or known[2] then return 0 end
local till = now + ARGV[1]
if not known[3] or tonumber(known[3]) < till then redis.call('HSET', KEYS[1], 'w', whole(till)) end
return 1
"""
_WANTED = """
local known = redis.call('HMGET', KEYS[1], 't', 'r', 'w')
if known[1] ~= ARGV[1] or known[2] or not known[3] then return '0' end
return whole(math.max(0, tonumber(known[3]) - now))
"""


class RedisStore(Store):
    """`url` as redis-py takes it, TLS and password in it. `prefix` begins the name of every key and channel."""

    NOW = _NOW
    """The part of each script that tells the time."""

    def __init__(self, url: str, *, prefix: str = "steer") -> None:
        self._where = checked(url)
        self._prefix = prefix
        self._said = f"{prefix}:free"
        start = self.NOW + _WHOLE
        scripts = {
            "claim": start + _CLAIM,
            "renew": start + _HELD + _RENEW,
            "settle": start + _HELD + _SETTLE + _SAY + "return 1",
            "release": start + _HELD + _RELEASE + _SAY + "return 1",
            "want": start + _WANT,
            "wanted": start + _WANTED,
        }
        self._clients: PerLoop[_Client] = PerLoop(lambda: _Client(client(url), scripts, self._said), _Client.aclose)

    def __repr__(self) -> str:
        return self._where.shown

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        answer = await self._ask("claim", key, fingerprint, _micro(lease), _micro(ttl), VERSION)
        kind = answer[0].decode()
        if kind == "newer":
            raise StoreTooNew(self._where.shown, f"the value of key '{key}'", int(answer[1]), VERSION)
        if kind == "theirs":
            return Claim("theirs", left=int(answer[1]) / 1e6)
        return Claim(kind) if kind == "conflict" else Claim(kind, int(answer[1]), answer[2] if answer[2:] else None)

    async def renew(self, key: str, token: int, lease: float) -> bool:
        return bool(await self._ask("renew", key, token, _micro(lease)))

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        return bool(await self._ask("settle", key, token, self._said, result))

    async def release(self, key: str, token: int) -> bool:
        return bool(await self._ask("release", key, token, self._said))

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        async with self._clients.get().listener.waiting(self._name(key)) as changed:
            await self._ask("want", key, _micro(seconds))
            yield changed

    async def wanted(self, key: str, token: int) -> float:
        return int(await self._ask("wanted", key, token)) / 1e6

    async def aclose(self) -> None:
        await self._clients.aclose()

    def _name(self, key: str) -> str:
        return f"{self._prefix}:run:{key}"

    async def _ask(self, script: str, key: str, *values: Any) -> Any:
        try:
            return await self._clients.get().scripts[script](keys=[self._name(key)], args=values)
        except (RedisError, OSError) as error:
            raise self._where.unavailable(error) from None


class _Client:
    """What belongs to one loop."""

    def __init__(self, client: redis.asyncio.Redis, scripts: dict[str, str], channel: str) -> None:
        self.client = client
        self.scripts: dict[str, AsyncScript] = {name: client.register_script(text) for name, text in scripts.items()}
        self.listener = _Listener(client, channel)

    async def aclose(self) -> None:
        await self.listener.aclose()
        await self.client.aclose()


class _Listener(Listener):
    def __init__(self, client: redis.asyncio.Redis, channel: str) -> None:
        super().__init__()
        self._client = client
        self._channel = channel

    async def listen(self, hears: Callable[[], None]) -> None:
        async with self._client.pubsub() as said:
            await said.subscribe(self._channel)
            while True:
                message = await said.get_message(timeout=None)
                if message is not None and message["type"] == "subscribe":
                    hears()
                elif message is not None and message["type"] == "message":
                    self.wakes.wake(message["data"].decode())


def _micro(seconds: float) -> int:
    return round(min(seconds, FOREVER) * 1e6)


def opened(url: str) -> Store:
    return RedisStore(url)
