"""Rate limits and retry budgets that instances share, on real servers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from servers import Server
from shared_kit import Instances, comes_to, drained, until, until_found
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import HedgingPolicy, RateLimit, RetryPolicy
from steer_llm_sdk.reliability.retry_budget import RetryBudgetConfig
from steer_llm_sdk.reliability.shared import owners
from steer_llm_sdk.reliability.shared.breaker import as_it_is
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

AT_ONCE = 0.3
KEY = "limit:acme"


class Busy(ScriptedTool):
    """Says how many calls are under way in all instances."""

    now = most = 0

    async def execute(self, *given: Any, **more: Any) -> Any:
        Busy.now += 1
        Busy.most = max(Busy.most, Busy.now)
        try:
            return await super().execute(*given, **more)
        finally:
            Busy.now -= 1


@pytest.fixture(autouse=True)
def _nobody_is_busy() -> None:
    Busy.now = Busy.most = 0


def runner(
    instances: Instances,
    limit: RateLimit | None,
    *steps: Any,
    patience: float = 5.0,
    attempts: int = 1,
    retry_budget: RetryBudgetConfig | None = None,
) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(Busy("t", *steps, provider="acme"))
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=attempts, initial_delay=0.001, jitter_factor=0),
        rate_limits={} if limit is None else {"acme": limit},
        retry_budget=retry_budget,
        enable_fallback=False,
    )
    return ReliableOrchestrator(None, config, registry=registry, shared=instances.state(patience))


async def ask(orchestrator: ReliableOrchestrator, options: Any = None) -> str:
    output = await orchestrator.run("q", "t", None, {"enable_circuit_breaker": False, **(options or {})})
    return "ok" if output.status == "succeeded" else str(output.errors["t"]["type"])


def cell_of(orchestrator: ReliableOrchestrator, key: str = KEY) -> Any:
    return next(cell for cell in orchestrator.executor.shared.link.cells if cell.key == key)


async def test_instances_take_from_one_bucket_of_requests(instances: Instances) -> None:
    limit = RateLimit(requests_per_minute=6, max_wait=0)
    runners = [runner(instances, limit, OK("x")) for _ in range(3)]
    ends = [await ask(each) for _ in range(4) for each in runners]
    assert sorted(ends) == ["WaitTooLong"] * 6 + ["ok"] * 6


async def test_tokens_are_reserved_for_all_and_settled_by_what_was_used(instances: Instances, url: str) -> None:
    class Counted(ScriptedTool):
        def worst_case(self, request: Any, options: Any) -> Any:
            from steer_llm_sdk.models.usage import Amount

            return Amount(600, 0.0)

    def counted() -> ReliableOrchestrator:
        registry = ToolRegistry()
        registry.register_tool(Counted("t", OK("x", usage={"total_tokens": 100}), provider="acme"))
        config = ReliabilityConfig(rate_limits={"acme": RateLimit(tokens_per_minute=1000, max_wait=0)})
        return ReliableOrchestrator(None, config, registry=registry, shared=instances.state())

    runners = [counted(), counted()]
    ends = []
    for number in range(8):
        ends.append(await ask(runners[number % 2]))
        await comes_to(url, KEY, reserved=0)
    assert ends == ["ok"] * 5 + ["WaitTooLong"] * 3


async def test_no_more_calls_are_under_way_in_all_instances_than_there_are_places_and_everybody_comes_to_his_turn(
    instances: Instances, url: str
) -> None:
    limit = RateLimit(max_concurrent=3)
    runners = [runner(instances, limit, *[OK("x", after=0.01)] * 15) for _ in range(4)]
    ends = await asyncio.gather(*(ask(each) for each in runners for _ in range(15)))
    assert (ends, Busy.most) == (["ok"] * 60, 3)
    await comes_to(url, KEY, running=0)


async def test_the_pause_that_a_provider_asks_of_one_instance_holds_for_all(instances: Instances) -> None:
    limit = RateLimit(max_wait=0)
    wait = ProviderError("slow down", "acme", status_code=429, retry_after=60)
    here, there = runner(instances, limit, err(wait)), runner(instances, limit, OK("x"))
    assert await ask(there) == "ok"
    assert await ask(here) == "ProviderError"
    await until(lambda: cell_of(there).state.value.blocked_until > 0)
    assert await ask(there) == "WaitTooLong"


async def test_who_is_cancelled_in_the_queue_or_under_way_gives_his_place_back(instances: Instances, url: str) -> None:
    limit = RateLimit(max_concurrent=1)
    here, there = runner(instances, limit, HANG, OK("x")), runner(instances, limit, OK("y"))
    under_way = asyncio.create_task(ask(here))
    await until(lambda: Busy.now == 1)
    waiting = [asyncio.create_task(ask(each)) for each in (here, there)]
    await until(lambda: cell_of(here).waited_for and cell_of(there).waited_for)
    for task in (waiting[0], under_way):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await waiting[1] == "ok"
    await comes_to(url, KEY, running=0)


async def test_who_is_cancelled_at_any_moment_leaves_no_place_taken(instances: Instances, url: str) -> None:
    here = runner(instances, RateLimit(max_concurrent=2), *[OK("x")] * 60)
    for turns in range(25):
        run = asyncio.create_task(ask(here))
        for _ in range(turns):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run])
    await drained(here.executor.shared)
    await comes_to(url, KEY, running=0)


async def test_one_who_waits_is_sent_away_when_his_time_is_up(instances: Instances) -> None:
    limit = RateLimit(max_concurrent=1, max_wait=0.1)
    here, there = runner(instances, limit, HANG), runner(instances, limit, OK("y"))
    under_way = asyncio.create_task(ask(here))
    await until(lambda: Busy.now == 1)
    assert await ask(there) == "WaitTooLong"
    under_way.cancel()
    await asyncio.wait([under_way])


async def test_the_places_of_a_crashed_instance_come_free_when_its_lease_ends(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "LEASE", 2.0)
    monkeypatch.setattr(owners, "RENEW", 0.1)
    limit = RateLimit(max_concurrent=1, max_wait=0)
    here, there = runner(instances, limit, HANG), runner(instances, limit, OK("y"))
    under_way = asyncio.create_task(ask(here))
    await until(lambda: Busy.now == 1)
    assert await ask(there) == "WaitTooLong"
    instances.states[0].close()

    async def admitted() -> bool:
        return await ask(there) == "ok"

    await until_found(admitted)
    under_way.cancel()
    await asyncio.wait([under_way])


async def test_another_limit_in_the_next_release_is_heeded_at_once(instances: Instances) -> None:
    before = runner(instances, RateLimit(requests_per_minute=2, max_wait=0), OK("x"))
    assert [await ask(before) for _ in range(3)] == ["ok", "ok", "WaitTooLong"]
    after = runner(instances, RateLimit(max_concurrent=5, max_wait=0), OK("x"))
    assert [await ask(after) for _ in range(5)] == ["ok"] * 5


async def test_while_the_store_is_silent_each_goes_on_with_its_part_and_nobody_fails(
    instances: Instances, url: str, server: Server
) -> None:
    limit = RateLimit(max_concurrent=4)
    runners = [runner(instances, limit, *[OK("x", after=0.05)] * 40, patience=AT_ONCE) for _ in range(2)]
    assert [await ask(each) for _ in range(2) for each in runners] == ["ok"] * 4
    long = [asyncio.create_task(ask(each)) for each in runners]
    await until(lambda: Busy.now == 2)
    server.pause()
    try:
        assert await asyncio.gather(*long) == ["ok"] * 2
        Busy.most = 0
        assert await asyncio.gather(*(ask(each) for each in runners for _ in range(10))) == ["ok"] * 20
        assert Busy.most <= 4
    finally:
        server.resume()
    await until(lambda: not any(cell_of(each).alone for each in runners))
    assert await asyncio.gather(*(ask(each) for each in runners for _ in range(10))) == ["ok"] * 20
    await comes_to(url, KEY, running=0)


# ── retry budgets ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_extra_attempts_of_all_instances_are_within_one_budget(instances: Instances) -> None:
    budget = RetryBudgetConfig(ratio=0, minimum=5, window=3600)
    runners = [runner(instances, None, *[err(503)] * 40, attempts=3, retry_budget=budget) for _ in range(4)]
    await asyncio.gather(*(ask(each) for each in runners for _ in range(5)))
    calls = sum(len(each.registry.get_tool("t").calls) for each in runners)  # type: ignore[union-attr]
    assert calls == 20 + 5


async def test_first_attempts_of_one_instance_earn_retries_for_another(instances: Instances) -> None:
    budget = RetryBudgetConfig(ratio=0.5, minimum=0, window=3600)
    healthy = runner(instances, None, OK("x"), attempts=3, retry_budget=budget)
    failing = runner(instances, None, *[err(503)] * 40, attempts=2, retry_budget=budget)
    for _ in range(10):
        assert await ask(healthy) == "ok"
    await until(lambda: cell_of(healthy, "retries:3600:acme").state.firsts == 10)
    for _ in range(8):
        await ask(failing)
    # 10 first attempts of the one and n of the other: the nth failure has 5 + n / 2 in all.
    assert len(failing.registry.get_tool("t").calls) == 8 + 8  # type: ignore[union-attr]
    for _ in range(8):
        await ask(failing)
    assert len(failing.registry.get_tool("t").calls) == 16 + 13  # type: ignore[union-attr]


async def test_hedges_of_all_instances_are_within_one_budget(instances: Instances) -> None:
    """A hedge cannot wait for the store: it goes by what is known of it."""
    budget = RetryBudgetConfig(ratio=0, minimum=1, window=3600)
    hedging = HedgingPolicy(min_samples=3, max_ratio=1.0, slow_factor=1e9, busy_factor=1e9)

    def hedged() -> ReliableOrchestrator:
        registry = ToolRegistry()
        quick, slow = OK("x", after=0.02), OK("slow", after=0.5)
        registry.register_tool(ScriptedTool("t", *[quick] * 3, slow, slow, provider="acme"))
        config = ReliabilityConfig(retry_budget=budget, hedging=hedging, enable_fallback=False)
        return ReliableOrchestrator(None, config, registry=registry, shared=instances.state())

    here, there = hedged(), hedged()
    for _ in range(3):
        assert [await ask(each) for each in (here, there)] == ["ok"] * 2
    told = []
    for each in (here, there):
        events = RecordedEvents()
        await each.run("q", "t", None, {"enable_circuit_breaker": False}, events)
        told.append((len(events.data("hedge")), [refused["reason"] for refused in events.data("hedge_refused")]))
        await until(lambda: cell_of(here, "retries:3600:acme").state.extras == 1)
        cell_of(there, "retries:3600:acme").submit(as_it_is)
        await until(lambda: cell_of(there, "retries:3600:acme").state.extras == 1)
    assert told == [(1, []), (0, ["retry_budget"])]


async def test_a_silent_store_refuses_no_retry_that_this_instance_could_afford(
    instances: Instances, server: Server
) -> None:
    budget = RetryBudgetConfig(ratio=0, minimum=3, window=3600)
    here = runner(instances, None, *[err(503)] * 40, attempts=2, retry_budget=budget, patience=AT_ONCE)
    await ask(here)
    server.pause()
    try:
        for _ in range(4):
            await ask(here)
        assert len(here.registry.get_tool("t").calls) == 5 + 3  # type: ignore[union-attr]
    finally:
        server.resume()
