"""What it costs to share: µs for one call and round trips to the store, in memory and on Redis and PostgreSQL.

    python benchmarks/shared.py

One orchestrator, a tool that does nothing, one call after the other. Wall time, for most of it is waiting: the median
of `RUNS` calls. Read ratios, not digits.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers import PostgresServer, RedisServer
from steer_llm_sdk import Budget
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import CircuitBreakerConfig, RateLimit, RetryPolicy
from steer_llm_sdk.reliability.shared.state import SharedState

RUNS = 500
BUDGET = {"budgets": (Budget("team", usd=1e6),)}
NEVER = CircuitBreakerConfig(failure_threshold=10**6)


class NoOp(Tool):
    name = "noop"
    provider = "acme"
    fails = False

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        if self.fails:
            raise ProviderError("down", "acme", status_code=503)
        return {"content": "x", "cost_usd": 0.001}


CASES: dict[str, dict[str, Any]] = {
    "a call that goes well, circuit closed": {},
    "a call that fails": {"fails": True},
    "with a rate limit": {"limit": RateLimit(requests_per_minute=1e9, max_concurrent=100)},
    "with a shared budget": {"options": BUDGET},
}


async def measured(
    shared: SharedState | None, *, fails: bool = False, limit: RateLimit | None = None, options: Any = None
) -> tuple[float, float]:
    """µs and round trips of one call."""
    tool = NoOp()
    tool.fails = fails
    registry = ToolRegistry()
    registry.register_tool(tool)
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=1),
        circuit_breaker_configs={"default": NEVER},
        rate_limits={} if limit is None else {"acme": limit},
        retry_budget=None,
    )
    orchestrator = ReliableOrchestrator(None, config, registry=registry, shared=shared)
    asked = _counted(shared) if shared is not None else lambda: 0
    for _ in range(20):
        await orchestrator.run("q", "noop", None, options)
    before, times = asked(), []
    for _ in range(RUNS):
        began = time.perf_counter()
        await orchestrator.run("q", "noop", None, options)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6, (asked() - before) / RUNS


def _counted(shared: SharedState) -> Callable[[], int]:
    """Swaps, and reads of one key; not the look that is taken at everything four times a second."""
    count, link = 0, shared.link
    swap, read = link.swap, link.read

    async def swapped(*given: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        return await swap(*given, **more)

    async def been_read(*given: Any) -> Any:
        nonlocal count
        count += 1
        return await read(*given)

    link.swap, link.read = swapped, been_read  # type: ignore[method-assign]
    return lambda: count


async def main(redis: str, postgres: str) -> None:
    print(f"{'':<40}{'in memory':>10}{'Redis':>22}{'PostgreSQL':>22}")
    for name, case in CASES.items():
        row = f"{name:<40}{(await measured(None, **case))[0]:>7.0f} µs"
        for url in (redis, postgres):
            shared = SharedState(url)
            micros, trips = await measured(shared, **case)
            await asyncio.to_thread(shared.close)
            row += f"{micros:>9.0f} µs, {trips:.1f} trips"
        print(row)


if __name__ == "__main__":
    with RedisServer() as redis_server, PostgresServer() as postgres_server:
        asyncio.run(main(redis_server.url, postgres_server.url))
