"""One circuit for all instances, on a real server: what one finds out, all of them know."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from servers import Server
from shared_kit import (
    LONG,
    PATIENT,
    QUICK,
    Instances,
    fails,
    nobody_looks,
    outcome,
    trip,
    until,
    until_found,
    works,
)
from steer_llm_sdk.errors import CircuitOpen
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.reliability import BreakerMode, RetryPolicy
from steer_llm_sdk.reliability.circuit import FAILURE, NEUTRAL
from steer_llm_sdk.reliability.shared import link
from steer_llm_sdk.reliability.shared.board import open_board
from steer_llm_sdk.reliability.shared.state import SharedState
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err

AT_ONCE = 0.3
"""Seconds of patience of instances whose store is about to be silent."""


async def test_failures_of_different_instances_add_up(instances: Instances) -> None:
    ours = instances.breakers(3, LONG)
    assert [await outcome(breaker, fails) for breaker in ours] == ["failed"] * 3
    await until(lambda: all(breaker.is_open for breaker in ours))
    assert {await outcome(breaker, works) for breaker in ours} == {"refused"}


async def test_a_failed_call_returns_when_the_store_knows_of_it(instances: Instances) -> None:
    here, there = instances.breakers(2, LONG)
    await trip(here)
    assert here.is_open
    newcomer = instances.breakers(1, LONG)[0]
    assert await outcome(newcomer, works) == "refused"
    await until(lambda: there.is_open)


async def test_a_success_of_another_instance_begins_the_count_anew(instances: Instances) -> None:
    here, there = instances.breakers(2, LONG)
    await outcome(here, fails)
    await outcome(here, fails)
    await until(lambda: there.get_stats()["alone"] is False and there._circuit.tally.streak.total == 2)
    assert await outcome(there, works) == "ok"
    await until(lambda: here._circuit.tally.streak.total == 0)
    assert await outcome(here, fails) == "failed"
    assert here.is_closed


async def test_a_trip_is_pushed_and_not_found_by_looking(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = nobody_looks(monkeypatch)
    ours = instances.breakers(4, LONG)
    for breaker in ours:
        assert await outcome(breaker, works) == "ok"
    await until(lambda: len(listening) == 4)
    await trip(ours[0])
    await until(lambda: all(breaker.is_open for breaker in ours))


async def test_what_is_told_and_not_heard_is_found_by_looking(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.Link, "_hear", lambda self, key, entry: None)
    ours = instances.breakers(3, LONG)
    await trip(ours[0])
    await until(lambda: all(breaker.is_open for breaker in ours))


async def test_a_closed_circuit_admits_and_counts_successes_without_the_store(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    (ours,) = instances.breakers(1)
    assert await outcome(ours, works) == "ok"

    async def swap(self: Any, cell: Any, *given: Any) -> Any:
        asked.append(cell.key)
        raise OSError

    monkeypatch.setattr(link.Link, "swap", swap)
    assert [await outcome(ours, works) for _ in range(100)] == ["ok"] * 100
    assert asked == []


async def test_one_probe_among_all_callers_of_all_instances(instances: Instances) -> None:
    ours = instances.breakers(4)
    await trip(ours[0])
    await until(lambda: all(breaker.is_half_open for breaker in ours))
    probes = 0
    let_go = asyncio.Event()

    async def probe() -> None:
        nonlocal probes
        probes += 1
        await let_go.wait()

    calls = [asyncio.create_task(outcome(breaker, probe)) for breaker in ours for _ in range(50)]
    await until(lambda: sum(call.done() for call in calls) == 199)
    assert probes == 1
    let_go.set()
    await asyncio.gather(*calls)
    assert sorted(call.result() for call in calls) == ["ok"] + ["refused"] * 199
    await until(lambda: all(breaker.is_closed for breaker in ours))


async def test_the_lease_of_a_lost_probe_ends_in_the_stores_time(instances: Instances) -> None:
    here, there = instances.breakers(2, QUICK.model_copy(update={"probe_lease": 0.4}))
    await trip(here)
    await until(lambda: here.is_half_open)
    await here.take("acme")  # And never heard of again.
    assert await outcome(there, works) == "refused"

    async def admitted() -> bool:
        return await outcome(there, works) == "ok"

    await until_found(admitted)


async def test_who_is_cancelled_while_he_asks_for_a_probe_gives_it_back(instances: Instances) -> None:
    here, there = instances.breakers(2)
    await trip(here)
    await until(lambda: here.is_half_open)
    asking = asyncio.create_task(here.take("acme"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: there.get_stats()["generation"] == 2)  # The probe was given to him who had gone.
    await until(lambda: not there._circuit.whole.probes)
    assert await outcome(there, works) == "ok"


async def test_who_is_cancelled_while_he_probes_gives_his_place_back(instances: Instances) -> None:
    here, there = instances.breakers(2)
    await trip(here)
    await until(lambda: here.is_half_open)
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    probing = asyncio.create_task(here.call(hangs))
    await begun.wait()
    assert await outcome(there, works) == "refused"
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    await until(lambda: not there._circuit.whole.probes)
    assert await outcome(there, works) == "ok"


async def test_who_has_no_loop_asks_and_reports_all_the_same(instances: Instances) -> None:
    here, there = instances.breakers(2, LONG)

    def fails_without_a_loop() -> None:
        for _ in range(LONG.failure_threshold):
            here.report(here.admit("acme"), "acme", FAILURE)

    await asyncio.to_thread(fails_without_a_loop)
    await until(lambda: here.is_open and there.is_open)
    with pytest.raises(CircuitOpen):
        await asyncio.to_thread(here.admit, "acme")


async def test_a_probe_that_says_nothing_frees_its_place_for_another_instance(instances: Instances) -> None:
    here, there = instances.breakers(2)
    await trip(here)
    await until(lambda: here.is_half_open)
    permit = await here.take("acme")
    assert await outcome(there, works) == "refused"
    await here.ended(permit, "acme", NEUTRAL)
    await until(lambda: not there._circuit.whole.probes)
    assert await outcome(there, works) == "ok"


async def test_a_late_failure_from_before_the_recovery_counts_nowhere(instances: Instances) -> None:
    here, there = instances.breakers(2)
    late = [await there.take("acme") for _ in range(QUICK.failure_threshold)]
    await trip(here)
    await until(lambda: here.is_half_open)
    assert await outcome(here, works) == "ok"
    for permit in late:
        await there.ended(permit, "acme", FAILURE)
    assert here.is_closed
    await until(lambda: there.is_closed)


async def test_the_mode_and_a_reset_hold_for_all_instances(instances: Instances) -> None:
    here, there = instances.breakers(2, LONG)
    here.set_mode(BreakerMode.FORCED_OPEN)
    await until(lambda: there.is_open)
    assert await outcome(there, works) == "refused"
    here.set_mode(BreakerMode.AUTO)
    await until(lambda: there.is_closed)
    await trip(here)
    await until(lambda: there.is_open)
    there.reset()
    await until(lambda: here.is_closed)


async def test_callbacks_of_every_instance_run_in_its_own_loop(instances: Instances) -> None:
    seen: list[tuple[str, bool]] = []
    loop = asyncio.get_running_loop()

    async def on_open(breaker: Any) -> None:
        seen.append((breaker.get_stats()["state"], asyncio.get_running_loop() is loop))

    ours = instances.breakers(2, LONG.model_copy(update={"on_open": on_open}))
    await trip(ours[0])
    await until(lambda: len(seen) == 2)
    assert seen == [("open", True)] * 2


# ── a store that does not answer ─────────────────────────────────────────────────────────────────────────────────────


async def test_while_the_store_is_silent_each_goes_on_alone_and_what_failed_meanwhile_counts_when_it_is_back(
    instances: Instances, server: Server
) -> None:
    here, there = instances.breakers(2, LONG, patience=AT_ONCE)
    for breaker in (here, there):
        assert await outcome(breaker, works) == "ok"
    server.pause()
    try:
        assert await outcome(there, works) == "ok"
        await trip(here)
        assert await outcome(here, works) == "refused"
        assert (here.get_stats()["alone"], there.is_closed) == (True, True)
    finally:
        server.resume()
    await until(lambda: there.is_open)
    await until(lambda: not here.get_stats()["alone"])
    assert here.get_stats()["generation"] == there.get_stats()["generation"] < 10


async def test_an_outage_that_is_over_before_the_store_is_back_opens_nothing(
    instances: Instances, server: Server
) -> None:
    here, there = instances.breakers(2, QUICK, patience=AT_ONCE)
    for breaker in (here, there):
        assert await outcome(breaker, works) == "ok"
    server.pause()
    try:
        await trip(here)
        await until(lambda: here.is_half_open)
        assert await outcome(here, works) == "ok"
        assert here.is_closed
    finally:
        server.resume()
    await until(lambda: not (here.get_stats()["alone"] or there.get_stats()["alone"]))
    assert (here.is_closed, there.is_closed) == (True, True)


async def test_a_permit_from_before_the_silence_counts_on_both_sides(instances: Instances, server: Server) -> None:
    here, there = instances.breakers(2, LONG, patience=AT_ONCE)
    permits = [await here.take("acme") for _ in range(LONG.failure_threshold)]
    assert await outcome(there, works) == "ok"
    server.pause()
    try:
        for permit in permits:
            await here.ended(permit, "acme", FAILURE)
        assert here.is_open
    finally:
        server.resume()
    await until(lambda: there.is_open)


async def test_a_killed_store_that_has_lost_everything_gets_it_back(instances: Instances, server: Server) -> None:
    here, there = instances.breakers(2, LONG, patience=AT_ONCE)
    await trip(here)
    await until(lambda: there.is_open)
    server.kill()
    await until(lambda: here.get_stats()["alone"] and there.get_stats()["alone"])
    assert [await outcome(breaker, works) for breaker in (here, there)] == ["refused"] * 2
    server.start()
    await until(lambda: not (here.get_stats()["alone"] or there.get_stats()["alone"]))
    newcomer = instances.breakers(1, LONG)[0]
    await until(lambda: newcomer.link.up)
    assert await outcome(newcomer, works) == "refused"


async def test_a_store_that_was_never_there_fails_no_call(caplog: pytest.LogCaptureFixture) -> None:
    instances = Instances("redis://user:secret@127.0.0.1:1/0")
    try:
        with caplog.at_level(logging.WARNING):
            (breaker,) = instances.breakers(1, LONG, patience=AT_ONCE)
            assert await outcome(breaker, works) == "ok"
            await trip(breaker)
            assert await outcome(breaker, works) == "refused"
        assert "redis://127.0.0.1:1/0 does not answer" in caplog.text
        assert "secret" not in caplog.text
    finally:
        instances.close()


async def test_what_a_newer_release_has_written_is_left_alone_and_said(
    instances: Instances, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[link.Link] = []
    whole = link.Link._refresh

    async def refresh(self: link.Link) -> None:
        await whole(self)
        looks.append(self)

    monkeypatch.setattr(link.Link, "_refresh", refresh)
    board = open_board(instances.url)
    newer = '{"format":2,"circuit":"of another shape"}'
    _, now = await board.read([("x", 0)])
    assert (await board.swap("breaker:acme", 0, newer, now, 60, tell=True)).written
    (breaker,) = instances.breakers(1, LONG)
    assert await outcome(breaker, works) == "ok"
    assert "a snapshot of format 2, and this release reads 1" in caplog.text
    await trip(breaker)
    assert breaker.is_open
    looks.clear()
    await until(lambda: len(looks) == 3)
    ((entry,), _) = await board.read([("breaker:acme", -1)])
    assert entry is not None
    assert entry.text == newer
    await board.aclose()


async def test_closing_brings_what_waits_to_the_store(instances: Instances) -> None:
    here, there = instances.breakers(2, LONG)
    permits = [await here.take("acme") for _ in range(LONG.failure_threshold)]
    for permit in permits:
        here.report(permit, "acme", FAILURE)
    instances.states[0].close()
    await until(lambda: there.is_open)
    assert await outcome(here, works) in ("ok", "refused")


# ── orchestrators ────────────────────────────────────────────────────────────────────────────────────────────────────


def orchestrator(instances: Instances, *steps: Any, patience: float = 5.0) -> tuple[ReliableOrchestrator, ScriptedTool]:
    tool = ScriptedTool("ask", *steps, provider="acme")
    registry = ToolRegistry()
    registry.register_tool(tool)
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=1), circuit_breaker_configs={"default": LONG}, enable_fallback=False
    )
    return ReliableOrchestrator(None, config, registry=registry, shared=instances.state(patience)), tool


async def test_an_orchestrator_is_refused_what_another_has_found_to_be_down(instances: Instances) -> None:
    here, _ = orchestrator(instances, *[err(503)] * 3)
    there, tool = orchestrator(instances, OK("yes"))
    for _ in range(3):
        assert (await here.run("q", "ask")).status == "failed"
    output = await there.run("q", "ask")
    assert (output.status, output.errors["ask"]["type"], tool.calls) == ("failed", "CircuitOpen", [])
    assert there.breakers["acme"]["state"] == "open"


async def test_the_call_that_opens_the_circuit_says_so_and_so_does_each_call_without_a_store(
    instances: Instances, server: Server
) -> None:
    here, _ = orchestrator(instances, *[err(503)] * 3, patience=AT_ONCE)
    server.pause()
    try:
        events = RecordedEvents()
        for _ in range(3):
            await here.run("q", "ask", None, None, events)
    finally:
        server.resume()
    assert [event["state"] for event in events.data("circuit_breaker")] == ["open"]
    assert {event["store"] for event in events.data("store_down")} == {here.breakers["acme"]["store"]}


async def test_a_cancelled_probe_gives_its_place_back(instances: Instances) -> None:
    config = QUICK.model_copy(update={"failure_threshold": 1})
    tool = ScriptedTool("ask", err(503), OK("late", after=3600), OK("yes"), provider="acme")
    registry = ToolRegistry()
    registry.register_tool(tool)
    here = ReliableOrchestrator(
        None,
        ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1), circuit_breaker_configs={"default": config}),
        registry=registry,
        shared=instances.state(),
    )
    await here.run("q", "ask")
    await until(lambda: here.breakers["acme"]["state"] == "half_open")
    probe = asyncio.create_task(here.run("q", "ask"))
    await until(lambda: len(tool.calls) == 2)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    breaker: Any = here.executor.breakers.get("acme")
    await until(lambda: not breaker._circuit.whole.probes)
    assert (await here.run("q", "ask")).content == "yes"


@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_a_store_with_a_server_is_shared_without_more_being_said(
    url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("STEER_STORE", url)
    monkeypatch.setattr(SharedState.__init__, "__kwdefaults__", {"patience": PATIENT})
    runners = []
    for steps in ([err(503)] * 3, [OK("yes")]):
        registry = ToolRegistry()
        registry.register_tool(ScriptedTool("ask", *steps, provider="acme"))
        config = ReliabilityConfig(
            retry_policy=RetryPolicy(max_attempts=1), circuit_breaker_configs={"default": LONG}, enable_fallback=False
        )
        store = url if how == "argument" else None
        runners.append(ReliableOrchestrator(None, config, registry=registry, store=store))
    here, there = runners
    async with here, there:
        for _ in range(3):
            assert (await here.run("q", "ask")).status == "failed"
        assert (await there.run("q", "ask")).errors["ask"]["type"] == "CircuitOpen"
    assert here.breakers["acme"]["alone"]  # Closed, it shares nothing any more.
