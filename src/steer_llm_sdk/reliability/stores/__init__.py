"""Where keyed runs are remembered. One shape for all stores, moved only by claim, renew, settle and release."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from steer_llm_sdk._install import install_line
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.stores._url import shown

POLL = 0.05
"""Seconds between two looks at a key that somebody else holds, where the store does not say when it comes free."""
VERSION = 1
"""Of what is written into a store. A newer one is refused."""


class Claim(NamedTuple):
    """What asking for a key came to.

    ours: we hold the key under `token` until the lease ends. theirs: somebody else does, for `left` seconds more unless
    he renews. settled: `result` is what the run came to. conflict: the key was used with another fingerprint.
    """

    kind: Literal["ours", "theirs", "settled", "conflict"]
    token: int = 0
    result: bytes | None = None
    left: float = 0.0


class IdempotencyStore(Protocol):
    """Times in seconds, on the store's own clock. Who holds an older token can no longer write."""

    def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Awaitable[Claim]: ...

    def renew(self, key: str, token: int, lease: float) -> Awaitable[bool]:
        """Hold on to the key; False: it is no longer ours."""
        ...

    def settle(self, key: str, token: int, result: bytes) -> Awaitable[bool]:
        """Write the result; False: the token is stale and nothing was written."""
        ...

    def release(self, key: str, token: int) -> Awaitable[bool]:
        """Give the key back with nothing remembered; False: it is no longer ours."""
        ...


Changed: TypeAlias = Callable[[float], Awaitable[None]]
"""Returns when the key may have changed hands, after so many seconds at the latest."""


class Store(IdempotencyStore, ABC):
    """What a store is that several processes may share. It opens itself when it is first used.

    A claim outlives its lease by its ttl, unless somebody takes it over: the fingerprint goes on guarding the key, and
    an owner whom nobody succeeded may still write. After that it is as if it had never been.
    Raises StoreUnavailable where it does not answer, StoreTooNew where a newer version of this library wrote.
    """

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        """Wait for a key that somebody else holds, for `seconds` in all; meanwhile it is `wanted`."""
        yield lambda most: asyncio.sleep(min(most, POLL))

    async def wanted(self, key: str, token: int) -> float:
        """For how many seconds others are going to wait for what we do under `token`; 0 for nobody."""
        return 0.0

    async def aclose(self) -> None:
        """Close what was opened. It is opened again if the store is used again."""

    @abstractmethod
    def __repr__(self) -> str:
        """Where it is, without passwords."""


_MODULES = {
    "memory": "memory",
    "sqlite": "sqlite",
    "redis": "redis",
    "rediss": "redis",
    "postgresql": "postgres",
    "postgres": "postgres",
}
_KNOWN = "sqlite:///file.db, redis://host:6379/0, rediss://…, postgresql://user@host/database or memory://"


def open_store(url: str) -> Store:
    """The store that `url` names; nothing is connected to before it is used.

    "sqlite:///steer.db" (relative), "sqlite:////var/lib/steer.db" (absolute), "redis://user:password@host:6379/0",
    "rediss://…" (TLS), "postgresql://user:password@host/database?sslmode=require", "memory://".
    """
    opened: Store = opened_by(kind_of(url), url)
    return opened


def kind_of(url: object) -> str:
    """What kind of store it is that `url` names. InvalidRequest, with nothing secret in it, where it is none."""
    scheme = url.partition("://")[0].lower() if isinstance(url, str) and "://" in url else ""
    kind = _MODULES.get(scheme)
    if kind is None or not isinstance(url, str):
        raise InvalidRequest("store", shown(url) if isinstance(url, str) else url, f"give {_KNOWN}")
    if "#" in url:  # It would end the URL, and what follows be part of a password, or of a path, that is cut off.
        raise InvalidRequest("store", f"{scheme}://***", "write # as %23 in it")
    try:
        _ = urlsplit(url).port  # which is what fails where it is no number
    except ValueError:
        # Nothing of it is shown, for where the password ends in what is no URL, nobody can say.
        raise InvalidRequest("store", f"{scheme}://***", f"it is no URL; give {_KNOWN}") from None
    return kind


def opened_by(kind: str, url: str, module: str = "{}") -> Any:
    """What the module of a kind opens. By name, for the clients of servers are optional, and none is loaded where
    nothing is shared."""
    try:
        return import_module(f"{__name__}.{module.format(kind)}").opened(url)
    except ImportError as error:
        raise InvalidRequest("store", shown(url), f"its client is not installed: {install_line(kind)}") from error
