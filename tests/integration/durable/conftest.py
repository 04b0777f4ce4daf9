"""A store on SQLite and on PostgreSQL, and a provider that answers when it is let."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from held import HeldProvider
from steer_llm_sdk.durable import runs_of
from steer_llm_sdk.durable._dbos import DbosRuns


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


class Watch:
    """The store, as seen from outside; it is opened when there is something in it."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._runs: DbosRuns | None = None

    @property
    def runs(self) -> DbosRuns:
        if self._runs is None:
            self._runs = runs_of(self._store)
        return self._runs

    def recorded(self, run_id: str = "default:k") -> int:
        """How many calls of the run are recorded."""
        return sum(name != "plan" for name in self.runs.steps(run_id))

    def close(self) -> None:
        if self._runs is not None:
            self._runs.close()
