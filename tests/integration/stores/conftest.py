from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from places import KINDS, MemoryPlace, Place, PostgresPlace, RedisPlace, SqlitePlace

from steer_llm_sdk.reliability.stores import Store, open_store


def _place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if kind == "memory":
        return MemoryPlace()
    if kind == "sqlite":
        return SqlitePlace(str(tmp_path / "steer.db"))
    if kind == "redis":
        return RedisPlace(request.getfixturevalue("redis_url"))
    return PostgresPlace(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = _place(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture
async def pair(place: Place) -> AsyncIterator[tuple[Store, Store]]:
    """Two connections to the same keys."""
    one, other = place.open(), place.open()
    yield one, other
    await one.aclose()
    await other.aclose()


@pytest.fixture(params=KINDS[1:])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that processes may share, on its own clock."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'steer.db'}"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = open_store(url)
    yield opened
    await opened.aclose()
