"""What a run costs above a plain `await tool.execute(...)`, beside the same job glued together by hand.

    python benchmarks/overhead.py [--runs N] [--rounds N]
    python benchmarks/overhead.py --one CASE --runs N

The second does one case and measures nothing: for who counts instructions, of which two lengths make a difference.

All cases run interleaved in one process and are measured in CPU time of the thread; read the ratios. "Glued" is
tenacity (retry), purgatory (breaker) and asyncio.timeout round the same tool. The last rows are a run with something
more that is off by default, all in memory. "Without" is the run that has none of it: the planned run or, where the row
says so, the one with a deadline and a new key.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from purgatory import AsyncCircuitBreakerFactory
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from steer_llm_sdk import Budget
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    ReliabilityConfig,
    ReliableOrchestrator,
    RuleBasedPlanner,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import create_type_based_rule
from steer_llm_sdk.reliability import CircuitBreakerConfig, HedgingPolicy, RateLimit

REQUEST = {"type": "summary", "query": "Summarise this text."}
Case = Callable[[], Awaitable[Any]]


class NoOp(Tool):
    name = "noop"
    provider = "local"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return "done"


class Wait(NoOp):
    name = "wait"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        await asyncio.sleep(0.05)
        return "done"


def orchestrator(config: ReliabilityConfig | None = None) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(NoOp())
    registry.register_tool(Wait())
    rules = [create_type_based_rule(f"other-{i}", "noop", priority=20 + i) for i in range(4)]
    planner = RuleBasedPlanner([*rules, create_type_based_rule("summary", "noop")])
    return ReliableOrchestrator(planner, config, registry=registry)


def glued(tool: Tool, breakers: AsyncCircuitBreakerFactory) -> Case:
    async def run() -> Any:
        async with asyncio.timeout(30):
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(3),
                wait=wait_exponential_jitter(1, 60),
                retry=retry_if_exception_type(ConnectionError),
                reraise=True,
            ):
                with attempt:
                    async with await breakers.get_breaker("local"):
                        return await tool.execute(REQUEST, {})
        raise AssertionError("tenacity reraises")

    return run


def additions() -> dict[str, tuple[ReliabilityConfig, OrchestrationConfig]]:
    """One thing that is off by default, and then all of them.

    No hedge is sent, for nothing is slow. Hedging is held to be worth while however the latencies of a tool that does
    nothing scatter, so that each run has its task and its timer.
    """
    rates = {"default": CircuitBreakerConfig(failure_rate_threshold=0.5, slow_call_rate_threshold=0.5)}
    limits = {"local": RateLimit(requests_per_minute=1e9, tokens_per_minute=1e9, max_concurrent=1000)}
    hedging = HedgingPolicy(slow_factor=1e9, busy_factor=1e9)
    budgets = OrchestrationConfig(budget={"tokens": 1000}, budgets=(Budget("team", usd=1e6, per="day"),))
    plain = OrchestrationConfig()
    everything = ReliabilityConfig(circuit_breaker_configs=rates, rate_limits=limits, hedging=hedging)
    return {
        "rates in the breaker": (ReliabilityConfig(circuit_breaker_configs=rates), plain),
        "three rate limits": (ReliabilityConfig(rate_limits=limits), plain),
        "hedging": (ReliabilityConfig(hedging=hedging), plain),
        "a run's and a shared budget": (ReliabilityConfig(), budgets),
        "everything on": (everything, budgets),
    }


def with_addition(config: ReliabilityConfig, options: OrchestrationConfig) -> Case:
    runner = orchestrator(config)
    return lambda: runner.run(REQUEST, options=options)


PLANNED, KEYED, GLUED = "planned, breaker, retry", "… and a new key", "glued by hand"


def keyed(runner: ReliableOrchestrator, **more: Any) -> Case:
    keys = itertools.count()

    def run() -> Awaitable[Any]:
        key = f"key-{next(keys)}"
        return runner.run(REQUEST, options=OrchestrationConfig(timeout_ms=30_000, idempotency_key=key, **more))

    return run


def added() -> dict[str, tuple[str, Case]]:
    """By name: what it is compared with, and the run."""
    rows = {name: (PLANNED, with_addition(*addition)) for name, addition in additions().items()}
    config, options = additions()["everything on"]
    keyed_everything = keyed(orchestrator(config), budget=options.budget, budgets=options.budgets)
    return {**rows, "everything on, with a key": (KEYED, keyed_everything)}


def cases() -> dict[str, Case]:
    runner = orchestrator()
    limit = RateLimit(requests_per_minute=1e9, max_concurrent=1000)
    limited = orchestrator(ReliabilityConfig(rate_limits={"local": limit}))
    tool = NoOp()
    plain, deadline = OrchestrationConfig(), OrchestrationConfig(timeout_ms=30_000)
    return {
        "bare": lambda: tool.execute(REQUEST, {}),
        PLANNED: lambda: runner.run(REQUEST, options=plain),
        "… and a rate limit": lambda: limited.run(REQUEST, options=plain),
        "… and a deadline": lambda: runner.run(REQUEST, options=deadline),
        KEYED: keyed(runner),
        GLUED: glued(tool, AsyncCircuitBreakerFactory()),
    }


async def measure(case: Case, runs: int) -> float:
    """Microseconds of CPU per run."""
    started = time.thread_time_ns()
    for _ in range(runs):
        await case()
    return (time.thread_time_ns() - started) / runs / 1000


async def table(live: dict[str, Case], runs: int, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in live}
    for case in live.values():
        await measure(case, runs)
    for _ in range(rounds):
        for name, case in live.items():
            found[name].append(await measure(case, runs))
    return {name: statistics.median(values) for name, values in found.items()}


async def crowd(count: int) -> tuple[float, float, float, float]:
    """CPU µs and kB per run with `count` runs of a 50 ms tool in flight: bare, then ours."""
    tool, runner = Wait(), orchestrator()
    bare = await _crowd(lambda: tool.execute(REQUEST, {}), count)
    ours = await _crowd(lambda: runner.run(REQUEST, "wait"), count)
    return (*bare, *ours)


async def _crowd(case: Case, count: int) -> tuple[float, float]:
    gc.collect()
    started = time.thread_time_ns()
    await asyncio.gather(*(case() for _ in range(count)))
    cpu = (time.thread_time_ns() - started) / count / 1000
    tracemalloc.start()
    tasks = [asyncio.ensure_future(case()) for _ in range(count)]
    await asyncio.sleep(0.02)
    held = tracemalloc.get_traced_memory()[0] / count / 1000
    await asyncio.gather(*tasks)
    tracemalloc.stop()
    return cpu, held


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--crowd", type=int, default=10_000)
    options.add_argument("--one", metavar="CASE", help="do this one only, and measure nothing")
    given = options.parse_args()
    first = cases()
    if given.one is not None:
        asyncio.run(measure({**first, **{name: case for name, (_, case) in added().items()}}[given.one], given.runs))
        return
    print(f"Python {sys.version.split()[0]}, {given.rounds} rounds of {given.runs} runs, medians, CPU µs above bare")
    medians = asyncio.run(table(first, given.runs, given.rounds))
    bare = medians.pop("bare")
    for name, value in medians.items():
        print(f"  {name:<28}{value - bare:8.1f} µs   {(value - bare) / (medians[GLUED] - bare):5.2f} × glued")
    # Made only now: the more is alive, the longer the garbage collector takes, and that is what the glued runs need.
    more = added()
    compared = {name: first[name] for name in ("bare", PLANNED, KEYED)}
    medians = asyncio.run(
        table({**compared, **{name: case for name, (_, case) in more.items()}}, given.runs, given.rounds)
    )
    bare = medians["bare"]
    for name, (without, _) in more.items():
        value, least = medians[name] - bare, medians[without] - bare
        print(f"  {name:<28}{value:8.1f} µs   {value / least:5.2f} × without")
    bare_cpu, bare_kb, cpu, kb = asyncio.run(crowd(given.crowd))
    print(
        f"{given.crowd} runs in flight of a 50 ms tool: CPU {cpu:.1f} µs, {cpu / bare_cpu:.1f} × bare; {kb:.1f} kB ",
        end="",
    )
    print(f"each, {kb / bare_kb:.1f} × bare")


if __name__ == "__main__":
    main()
