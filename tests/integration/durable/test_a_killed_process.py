"""Real processes, killed, paused and cancelled in the middle of bundles, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from durable_process import HEARTBEAT, Process

from conftest import Watch
from steer_llm_sdk.durable._tables import Store, Workers
from steer_llm_sdk.testing import SimulatedProvider

pytestmark = pytest.mark.timeout(180)  # Three processes start, on a machine that may be busy.
KEYED = {"idempotency_key": "k"}


def until(there: Callable[[], Any], patience: float = 30.0) -> Any:
    end = time.monotonic() + patience
    while not (found := there()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)
    return found


def replicates(output: dict[str, Any]) -> list[str]:
    return [one["id"] for one in output["content"]["evidence_bundle"]["replicates"]]


def test_a_kill_after_replicate_3_of_5_buys_only_the_two_that_are_missing(
    store: str, provider: SimulatedProvider, watch: Watch
) -> None:
    with Process(store, provider.base_url, KEYED) as first:
        first.next()
        until(lambda: watch.recorded() == 3)
        first.kill()
    with Process(store, provider.base_url, KEYED) as second:
        second.next()
        said = second.next()
    output = said["output"]
    assert (output["status"], said["replayed"]) == ("succeeded", True)
    assert replicates(output) == ["r1", "r2", "r3", "r4", "r5"]
    assert len(provider.calls) in (5, 6)  # One call may have been under way when it was killed.
    assert output["per_agent"]["facts"]["attempts"] == 5
    assert watch.recorded() == 5


def test_another_process_takes_the_run_over_within_two_heartbeats(
    store: str, provider: SimulatedProvider, watch: Watch
) -> None:
    with (
        Process(store, provider.base_url, serve=True) as survivor,
        Process(store, provider.base_url, KEYED) as first,
    ):
        worker = survivor.next()["ready"]
        first.next()
        until(lambda: watch.recorded() == 3)
        first.kill()
        killed = time.monotonic()
        until(lambda: watch.runs.list()[0].worker == worker)
        assert time.monotonic() - killed < 2 * HEARTBEAT
        run = until(lambda: (run := watch.runs.info("default:k")) and run.ended and run)
    assert run.ended["output"]["status"] == "succeeded"
    assert len(provider.calls) <= 6
    assert run.about["deaths"] == 1


def test_a_process_that_was_only_paused_cannot_write_into_the_run_that_another_has(
    store: str, provider: SimulatedProvider, watch: Watch
) -> None:
    """It gets the outcome of the other, and so does its caller."""
    with (
        Process(store, provider.base_url, serve=True) as survivor,
        Process(store, provider.base_url, KEYED) as first,
    ):
        worker = survivor.next()["ready"]
        first.next()
        until(lambda: watch.recorded() == 2)
        first.signal(signal.SIGSTOP)
        until(lambda: watch.runs.list()[0].worker == worker)
        first.signal(signal.SIGCONT)
        said = first.next()
        run = watch.runs.info("default:k")
    assert run is not None
    assert run.ended is not None
    assert said["output"] == run.ended["output"]
    assert run.worker == worker
    assert len(provider.calls) <= 7  # At the pause, and at its end, one call was under way.


def test_the_runs_of_a_process_that_was_taken_for_dead_before_it_began_them_go_on_as_well(
    store: str, provider: SimulatedProvider, watch: Watch
) -> None:
    """It was so slow to start that the others had forgotten it, and was killed before it could say that it lives."""
    with Process(store, provider.base_url, KEYED) as first:
        worker = first.next()["ready"]
        until(lambda: watch.recorded() == 2)
        first.kill()
    workers = Workers(Store.of(store))
    workers.forget(worker)
    workers.close()
    with Process(store, provider.base_url, serve=True) as survivor:
        survivor.next()
        run = until(lambda: (run := watch.runs.info("default:k")) and run.ended and run)
    assert run.ended["output"]["status"] == "succeeded"
    assert len(provider.calls) <= 6


def test_a_run_that_is_cancelled_from_outside_stops_and_keeps_what_it_has(
    sqlite: str, provider: SimulatedProvider, watch: Watch
) -> None:
    with Process(sqlite, provider.base_url, KEYED) as first:
        first.next()
        until(lambda: watch.recorded() == 2)
        watch.runs.cancel("default:k")
        assert first.next()["error"] == "RunCancelled"
    bought = len(provider.calls)
    assert bought < 5
    with Process(sqlite, provider.base_url, KEYED) as second:
        second.next()
        said = second.next()
    assert (said["output"]["status"], said["replayed"]) == ("succeeded", False)
    assert replicates(said["output"]) == ["r1", "r2", "r3", "r4", "r5"]
    assert len(provider.calls) <= 5 + 2
    assert watch.runs.info("default#2:k") is not None


def test_a_cancelled_run_that_is_resumed_goes_on_with_a_worker(
    sqlite: str, provider: SimulatedProvider, watch: Watch
) -> None:
    with Process(sqlite, provider.base_url, KEYED, serve=True) as first:
        first.next()
        until(lambda: watch.recorded() == 2)
        watch.runs.cancel("default:k")
        first.next()
        watch.runs.resume("default:k")
        run = until(lambda: (run := watch.runs.info("default:k")) and run.ended and run)
    assert run.ended["output"]["status"] == "succeeded"
    assert watch.recorded() == 5


def test_other_versions_of_the_tools_leave_a_run_to_its_own(
    sqlite: str, provider: SimulatedProvider, watch: Watch
) -> None:
    with Process(sqlite, provider.base_url, KEYED) as first:
        first.next()
        until(lambda: watch.recorded() == 2)
        first.kill()
    bought = len(provider.calls)
    with Process(sqlite, provider.base_url, serve=True, version="2.0.0") as newer:
        newer.next()
        until(lambda: watch.runs.list()[0].state == "waiting")
        time.sleep(1)
        assert watch.runs.list()[0].state == "waiting"
    assert len(provider.calls) == bought
    with Process(sqlite, provider.base_url, serve=True) as same:
        same.next()
        until(lambda: watch.runs.list()[0].state == "finished")


def test_a_process_that_is_told_to_stop_hands_its_runs_over_at_once(
    sqlite: str, provider: SimulatedProvider, watch: Watch
) -> None:
    with (
        Process(sqlite, provider.base_url, serve=True, heartbeat=600) as survivor,
        Process(sqlite, provider.base_url, KEYED, heartbeat=600, stop_after=0.8) as first,
    ):
        survivor.next()
        first.next()
        assert first.next()["error"] == "OrchestratorError"
        first.wait()
        until(lambda: watch.runs.list()[0].state == "finished")
    assert len(provider.calls) <= 6
