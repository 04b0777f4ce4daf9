"""A client of Redis as all that is kept there uses it."""

from __future__ import annotations

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from steer_llm_sdk.reliability.stores._shared import CONNECT, Where

CONNECTIONS = 20
"""At most, for each loop: a server that does one thing at a time is not faster for more. One may listen."""
ANSWER = 30.0
"""Seconds to wait for an answer on a connection that is there. Callers give up earlier, and the late answer to their
claim still tells which key to give back."""


def checked(url: str) -> Where:
    """Connects to nothing. InvalidRequest where redis-py cannot use the URL, or would read answers as text."""
    where = Where(url)
    try:
        pool = client(url).connection_pool
        pool.connection_class(**pool.connection_kwargs)
        if pool.connection_kwargs.get("decode_responses"):
            raise ValueError("decode_responses: answers are read as bytes; leave it out")
    except (ValueError, TypeError) as error:
        raise where.unusable("redis-py", error) from None
    return where


class Pool(redis.asyncio.BlockingConnectionPool):
    """Connections that are in use when it is closed are closed when they come back: whoever has asked gets his answer,
    and none stays open."""

    _ended = False

    async def aclose(self) -> None:
        self._ended = True
        await self.disconnect(inuse_connections=False)

    async def release(self, connection: AbstractConnection) -> None:
        await super().release(connection)
        if self._ended:
            await self.disconnect(inuse_connections=False)


def client(url: str) -> redis.asyncio.Redis:
    pool = Pool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=CONNECT,
        socket_connect_timeout=CONNECT,
        socket_timeout=ANSWER,
        socket_keepalive=True,
        # An action is not repeated: whether the first one was carried out, nobody knows.
        retry=Retry(NoBackoff(), 0),
    )
    return redis.asyncio.Redis.from_pool(pool)
