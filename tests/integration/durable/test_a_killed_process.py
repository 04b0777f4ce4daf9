"""Real processes, killed with SIGKILL in the middle of bundles, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from durable_process import HEARTBEAT, Process

from steer_llm_sdk.durable import runs_of
from steer_llm_sdk.testing import SimulatedProvider

SLOW = "slow:seconds=0.3"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runs.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(SLOW) as running:
        yield running


def until(there: Callable[[], Any], patience: float = 30.0) -> Any:
    end = time.monotonic() + patience
    while not (found := there()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)
    return found


def recorded(store: str, run_id: str) -> list[str]:
    runs = runs_of(store)
    try:
        return [name for name in runs.steps(run_id) if name != "plan"]
    finally:
        runs.close()


def test_a_kill_after_replicate_3_of_5_buys_only_the_two_that_are_missing(
    store: str, provider: SimulatedProvider
) -> None:
    with Process(store, provider.base_url, {"idempotency_key": "k"}) as first:
        first.next()
        until(lambda: len(recorded(store, "default:k")) == 3)
        first.kill()
    under_way = len(provider.calls) - 3
    with Process(store, provider.base_url, {"idempotency_key": "k"}) as second:
        second.next()
        output = second.next()["output"]
    assert output["status"] == "succeeded"
    assert [one["id"] for one in output["content"]["evidence_bundle"]["replicates"]] == ["r1", "r2", "r3", "r4", "r5"]
    assert len(provider.calls) == 5 + under_way
    assert output["per_agent"]["facts"]["attempts"] == 5
    assert len(recorded(store, "default:k")) == 5


def test_another_process_takes_the_run_over_within_two_heartbeats(store: str, provider: SimulatedProvider) -> None:
    with (
        Process(store, provider.base_url, serve=True) as survivor,
        Process(store, provider.base_url, {"idempotency_key": "k"}) as first,
    ):
        worker = survivor.next()["ready"]
        first.next()
        until(lambda: len(recorded(store, "default:k")) == 3)
        first.kill()
        killed = time.monotonic()
        runs = runs_of(store)
        try:
            until(lambda: runs.list()[0].worker == worker)
            assert time.monotonic() - killed < 2 * HEARTBEAT
            ended = until(lambda: runs.info("default:k").ended)  # type: ignore[union-attr]
        finally:
            runs.close()
    assert ended["output"]["status"] == "succeeded"
    assert len(provider.calls) <= 6
