"""Where snapshots hang that several instances share: a text and a version under each key, in a store's own time.

A board knows nothing of what it holds. It has one step that changes anything, and that is atomic: write this text if
the version is still the one that it was made from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from steer_llm_sdk._install import install_line
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.stores._url import shown

PREFIX = "steer:shared:"
"""Of all keys, and of the channel on which changes are told."""


class Entry(NamedTuple):
    """`version` 0 and no text: the store has none. A version only grows, also over a loss of the data."""

    version: int
    text: str | None


class Swap(NamedTuple):
    """`written`, and the version that it has now; else what stands there instead. `time`: the store's, in seconds."""

    written: bool
    entry: Entry
    time: float


Heard = Callable[[str, Entry], None]


class Board(Protocol):
    """Any error of the store or of the way to it may be raised by each of these; it never says a password."""

    async def read(self, known: Sequence[tuple[str, int]]) -> tuple[list[Entry | None], float]:
        """The entry of each key, None where it is still of the version that is known; and the time of the store."""
        ...

    async def swap(self, key: str, version: int, text: str, now: float, ttl: float, *, tell: bool) -> Swap:
        """Write `text` where the entry is still of `version`, or is not there at all. `now`, by which it was made, must
        not lie ahead of the store's clock. It is kept for `ttl` seconds. `tell` everybody who listens."""
        ...

    async def listen(self, heard: Heard, ready: Callable[[], Awaitable[None]]) -> None:
        """Call `heard` with each change that is told, until the connection breaks; `ready` once as soon as it hears."""
        ...

    async def keys(self, prefix: str) -> list[str]: ...

    async def aclose(self) -> None: ...


def open_board(url: str) -> Board:
    """Connects when it is first used. InvalidRequest where the URL is of no store that can be shared."""
    scheme = _scheme(url)
    try:
        if scheme in ("redis", "rediss"):
            from steer_llm_sdk.reliability.shared.redis import RedisBoard

            return RedisBoard(url)
        if scheme in ("postgres", "postgresql"):
            from steer_llm_sdk.reliability.shared.postgres import PostgresBoard

            return PostgresBoard(url)
    except ImportError as error:
        extra = "redis" if scheme.startswith("redis") else "postgres"
        raise ImportError(f"{shown(url)} needs the extra `{extra}`: {install_line(extra)}") from error
    except Exception:  # It would name what it could not read, and that may be the password.
        raise InvalidRequest("store", shown(url), "it is no URL that can be read") from None
    raise InvalidRequest("store", shown(url), "give redis://… or postgresql://…: what is shared needs a server")


def _scheme(url: str) -> str:
    return url.partition("://")[0].partition("+")[0]
