"""A store on SQLite and on PostgreSQL, and a provider that answers when it is let."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from watched import Watch

from held import HeldProvider


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("sqlite" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def watch(request: pytest.FixtureRequest) -> Iterator[Watch]:
    """Of `store`, or of `sqlite` in a test that is about neither database."""
    store = "store" if "store" in request.fixturenames else "sqlite"
    watching = Watch(request.getfixturevalue(store))
    yield watching
    watching.close()


@pytest.fixture
def provider() -> Iterator[HeldProvider]:
    with HeldProvider() as running:
        yield running
