"""Real processes, killed, paused and cancelled in the middle of bundles, on real SQLite and real PostgreSQL.

The provider holds the replicate after those that a test wants recorded: the run stands still until the test goes on.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from durable_process import Process, until
from watched import Watch

from held import HeldProvider
from steer_llm_sdk.durable._tables import Store, Workers

pytestmark = pytest.mark.timeout(300)  # Three processes start, on a machine that may be busy.
KEYED = {"idempotency_key": "k"}


def held_after(count: int, watch: Watch, provider: HeldProvider) -> None:
    """The run has recorded so many calls, and waits for the answer of the next one."""
    until(lambda: provider.asked == count + 1 and watch.recorded() == count)


def replicates(output: dict[str, Any]) -> list[str]:
    return [one["id"] for one in output["content"]["evidence_bundle"]["replicates"]]


def test_a_kill_after_replicate_3_of_5_buys_only_the_two_that_are_missing(
    store: str, provider: HeldProvider, watch: Watch
) -> None:
    provider.let = 3
    with Process(store, provider.base_url, KEYED) as first:
        first.next()
        held_after(3, watch, provider)
        first.kill()
    provider.let_all()
    with Process(store, provider.base_url, KEYED) as second:
        second.next()
        said = second.next()
    output = said["output"]
    assert (output["status"], said["replayed"]) == ("succeeded", True)
    assert replicates(output) == ["r1", "r2", "r3", "r4", "r5"]
    assert provider.asked == 6  # One call was under way when it was killed.
    assert output["per_agent"]["facts"]["attempts"] == 5
    assert watch.recorded() == 5


def test_another_process_takes_the_run_over(store: str, provider: HeldProvider, watch: Watch) -> None:
    provider.let = 3
    with (
        Process(store, provider.base_url, serve=True) as survivor,
        Process(store, provider.base_url, KEYED) as first,
    ):
        worker = survivor.next()["ready"]
        first.next()
        held_after(3, watch, provider)
        first.kill()
        until(lambda: watch.runs.list()[0].worker == worker)
        provider.let_all()
        run = until(lambda: (run := watch.runs.info("default:k")) and run.ended and run)
    assert run.ended["output"]["status"] == "succeeded"
    assert provider.asked == 6
    assert run.about["deaths"] == 1


def test_a_process_that_was_only_paused_cannot_write_into_the_run_that_another_has(
    store: str, provider: HeldProvider, watch: Watch
) -> None:
    """It gets the outcome of the other, and so does its caller."""
    provider.let = 2
    with (
        Process(store, provider.base_url, serve=True) as survivor,
        Process(store, provider.base_url, KEYED) as first,
    ):
        worker = survivor.next()["ready"]
        first.next()
        held_after(2, watch, provider)
        first.signal(signal.SIGSTOP)
        until(lambda: provider.asked == 4)  # The other asks for the third as well.
        first.signal(signal.SIGCONT)
        provider.let_all()
        said = first.next()
        run = watch.runs.info("default:k")
    assert run is not None
    assert run.ended is not None
    assert said["output"] == run.ended["output"]
    assert run.worker == worker
    assert provider.asked == 6


def test_the_runs_of_a_process_that_was_taken_for_dead_before_it_began_them_go_on_as_well(
    store: str, provider: HeldProvider, watch: Watch
) -> None:
    """It was so slow to start that the others had forgotten it, and was killed before it could say that it lives."""
    provider.let = 2
    with Process(store, provider.base_url, KEYED) as first:
        worker = first.next()["ready"]
        held_after(2, watch, provider)
        first.kill()
    workers = Workers(Store.of(store))
    workers.forget(worker)
    workers.close()
    provider.let_all()
    with Process(store, provider.base_url, serve=True) as survivor:
        survivor.next()
        run = until(lambda: (run := watch.runs.info("default:k")) and run.ended and run)
    assert run.ended["output"]["status"] == "succeeded"
    assert provider.asked == 6


def test_a_run_that_is_cancelled_from_outside_stops_and_keeps_what_it_has(
    sqlite: str, provider: HeldProvider, watch: Watch
) -> None:
    provider.let = 2
    with Process(sqlite, provider.base_url, KEYED) as first:
        first.next()
        held_after(2, watch, provider)
        watch.runs.cancel("default:k")
        assert first.next()["error"] == "RunCancelled"
    assert provider.asked == 3
    provider.let_all()
    with Process(sqlite, provider.base_url, KEYED) as second:
        second.next()
        said = second.next()
    assert (said["output"]["status"], said["replayed"]) == ("succeeded", False)
    assert replicates(said["output"]) == ["r1", "r2", "r3", "r4", "r5"]
    assert provider.asked == 6
    assert watch.runs.info("default#2:k") is not None


def test_a_cancelled_run_that_is_resumed_goes_on_with_a_worker(
    sqlite: str, provider: HeldProvider, watch: Watch
) -> None:
    provider.let = 2
    with Process(sqlite, provider.base_url, KEYED, serve=True) as first:
        first.next()
        held_after(2, watch, provider)
        watch.runs.cancel("default:k")
        first.next()
        provider.let_all()
        watch.runs.resume("default:k")
        run = until(lambda: (run := watch.runs.info("default:k")) and run.ended and run)
    assert run.ended["output"]["status"] == "succeeded"
    assert watch.recorded() == 5


def test_other_versions_of_the_tools_leave_a_run_to_its_own(sqlite: str, provider: HeldProvider, watch: Watch) -> None:
    provider.let = 2
    with Process(sqlite, provider.base_url, KEYED) as first:
        first.next()
        held_after(2, watch, provider)
        first.kill()
    provider.let_all()
    with Process(sqlite, provider.base_url, serve=True, version="2.0.0") as newer:
        newer.next()
        until(lambda: watch.runs.list()[0].state == "waiting")
        time.sleep(1)
        assert watch.runs.list()[0].state == "waiting"
    assert provider.asked == 3
    with Process(sqlite, provider.base_url, serve=True) as same:
        same.next()
        until(lambda: watch.runs.list()[0].state == "finished")


def test_a_process_that_is_told_to_stop_hands_its_runs_over_at_once(
    sqlite: str, provider: HeldProvider, watch: Watch
) -> None:
    provider.let = 2
    with (
        Process(sqlite, provider.base_url, serve=True, heartbeat=600) as survivor,
        Process(sqlite, provider.base_url, KEYED, heartbeat=600) as first,
    ):
        survivor.next()
        first.next()
        held_after(2, watch, provider)
        first.signal(signal.SIGTERM)
        assert first.next()["error"] == "OrchestratorError"
        first.wait()
        provider.let_all()
        until(lambda: watch.runs.list()[0].state == "finished")
    assert provider.asked == 6
