"""The board on Redis: a hash for each key, moved by one script, and one channel for what has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from steer_llm_sdk.reliability.shared.board import PREFIX, Entry, Heard, Swap

_CHANNEL = f"{PREFIX}changes"

# The version is the time in microseconds, or one more than the last: so it grows over a loss of the data as well.
_SWAP = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local has = redis.call('HMGET', KEYS[1], 'version', 'text')
if (has[1] and has[1] ~= ARGV[1]) or tonumber(ARGV[3]) > now then
    return {0, has[1] or '0', has[2] or '', clock[1], clock[2]}
end
local version = string.format('%.0f', math.max(clock[1] * 1000000 + clock[2], (has[1] or 0) + 1))
redis.call('HSET', KEYS[1], 'version', version, 'text', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if ARGV[5] == '1' then
    redis.call('PUBLISH', ARGV[6], version .. ' ' .. KEYS[1] .. '\\n' .. ARGV[2])
end
return {1, version, '', clock[1], clock[2]}
"""

_READ = """
local clock = redis.call('TIME')
local has = redis.call('HMGET', KEYS[1], 'version', 'text')
if (has[1] or '0') == ARGV[1] then
    return {0, ARGV[1], '', clock[1], clock[2]}
end
return {1, has[1] or '0', has[2] or '', clock[1], clock[2]}
"""


class RedisBoard:
    def __init__(self, url: str) -> None:
        # What has failed is tried again by who knows what it was for.
        self._redis: Any = Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0))
        self._swap = self._redis.register_script(_SWAP)

    async def read(self, known: Sequence[tuple[str, int]]) -> tuple[list[Entry | None], float]:
        if not known:
            seconds, micros = await self._redis.time()
            return [], seconds + micros / 1e6
        async with self._redis.pipeline(transaction=False) as pipe:
            for key, version in known:
                pipe.eval(_READ, 1, _key(key), version)
            answers = await pipe.execute()
        entries = [_entry(version, text) if fresh else None for fresh, version, text, *_ in answers]
        return entries, _time(answers[0])

    async def swap(self, key: str, version: int, text: str, now: float, ttl: float, *, tell: bool) -> Swap:
        args: list[str | int] = [version, text, repr(now), int(ttl * 1000), int(tell), _CHANNEL]
        answer = await self._swap(keys=[_key(key)], args=args)
        return Swap(bool(answer[0]), _entry(answer[1], answer[2]), _time(answer))

    async def listen(self, heard: Heard, ready: Callable[[], Awaitable[None]]) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=False) as channel:
            await channel.subscribe(_CHANNEL)
            async for message in channel.listen():
                if message["type"] == "subscribe":
                    await ready()
                elif message["type"] == "message":
                    head, _, text = message["data"].partition("\n")
                    version, _, key = head.partition(" ")
                    heard(_name(key), Entry(int(version), text))

    async def keys(self, prefix: str) -> list[str]:
        pattern = _key(prefix).removesuffix("}").translate(_LITERAL) + "*"
        return sorted({_name(key) async for key in self._redis.scan_iter(match=pattern, count=1000)})

    async def aclose(self) -> None:
        await self._redis.aclose()


_LITERAL = str.maketrans({sign: f"\\{sign}" for sign in "*?[]^\\"})


def _key(name: str) -> str:
    """In a cluster the braces say by what a key is placed."""
    return f"{PREFIX}{{{name}}}"


def _name(key: str) -> str:
    return key[len(PREFIX) + 1 : -1]


def _entry(version: str, text: str) -> Entry:
    return Entry(int(version), text or None)


def _time(answer: Sequence[Any]) -> float:
    return int(answer[3]) + int(answer[4]) / 1e6
