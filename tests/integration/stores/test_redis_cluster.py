"""Every script keeps to the one slot of its key, as a Redis Cluster asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from servers import RedisServer
from shared_kit import until
from steer_llm_sdk import Budget
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.reliability import CircuitBreakerConfig, RateLimit, RetryPolicy
from steer_llm_sdk.reliability.stores import open_store
from steer_llm_sdk.reliability.stores.sums import open_sums
from steer_llm_sdk.testing import OK, ScriptedTool, err


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with RedisServer(cluster=True) as server:
        client = redis.Redis.from_url(server.url)
        with pytest.raises(redis.RedisError, match="same slot"):
            client.mset({"a": 1, "b": 1})
        client.close()
        yield server.url


async def test_keys_are_claimed_renewed_settled_given_back_and_waited_for(url: str) -> None:
    ours, theirs = open_store(url), open_store(url)
    for number in range(20):
        key = f"key-{number}"
        claim = await ours.claim(key, "f", 20, 900)
        assert claim.kind == "ours"
        assert await ours.renew(key, claim.token, 20)
        async with theirs.watch(key, 10) as changed:
            assert await ours.wanted(key, claim.token) > 9
            ending = ours.settle(key, claim.token, b"1") if number % 2 else ours.release(key, claim.token)
            assert await ending
            await changed(3600.0)
        assert (await theirs.claim(key, "f", 20, 900)).kind == ("settled" if number % 2 else "ours")
    await ours.aclose()
    await theirs.aclose()


async def test_what_planning_has_learned_is_added_up(url: str) -> None:
    sums = open_sums(url)
    await sums.add("s", {"a": (1.0,), "b": (2.0,)})
    assert {key: list(row) for key, row in (await sums.since("s", 0))[1].items()} == {"a": [1.0], "b": [2.0]}
    assert await sums.add_within("s", "budget", 0.6, 1.0)
    assert not await sums.add_within("s", "budget", 0.6, 1.0)
    await sums.aclose()


async def test_a_keyed_run_under_breaker_limit_and_budgets_of_all_instances(url: str) -> None:
    registry = ToolRegistry()
    registry.register_tool(
        ScriptedTool("t", OK("x", cost_usd=0.4), OK("y"), err(503), err(503), OK("never"), provider="acme")
    )
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=1),
        rate_limits={"acme": RateLimit(requests_per_minute=600, max_concurrent=2)},
        circuit_breaker_configs={"default": CircuitBreakerConfig(failure_threshold=2)},
    )
    budgets = [Budget("team", usd=1.0), Budget("house", usd=5.0, per="day")]
    async with (
        ReliableOrchestrator(None, config, registry=registry, store=url) as here,
        ReliableOrchestrator(None, config, registry=registry, store=url) as there,
    ):
        keyed = {"idempotency_key": "k", "budgets": budgets}
        first, again = [await each.run("q", "t", options=keyed) for each in (here, there)]
        assert (first.content, again.content, again.replayed) == ("x", "x", True)
        assert (await there.run("q", "t")).content == "y"
        assert [(await here.run("q", "t", options={"budgets": budgets})).status for _ in range(2)] == ["failed"] * 2
        await until(lambda: there.breakers.get("acme", {}).get("state") == "open")
        assert (await there.run("q", "t")).content["error"]["type"] == "CircuitOpen"
        await until(lambda: there.budgets["house"]["spent"]["usd"] == 0.4)
