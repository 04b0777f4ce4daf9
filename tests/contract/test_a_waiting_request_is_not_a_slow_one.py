"""**A waiting request is not a slow one.**"""

from __future__ import annotations

import asyncio
from typing import Any

from contract.kit import failed, now, reliable
from steer_llm_sdk.orchestration import OrchestrationOutput, ReliableOrchestrator, Tool
from steer_llm_sdk.reliability import CircuitBreakerConfig, HedgingPolicy, RateLimit, RetryPolicy
from steer_llm_sdk.testing import OK, ScriptedTool, err

ONE_AT_A_TIME = {"p": RateLimit(max_concurrent=1)}


async def at_once(runner: ReliableOrchestrator, runs: int) -> list[OrchestrationOutput]:
    return await asyncio.gather(*(runner.run("q", "t") for _ in range(runs)))


async def test_time_spent_in_a_rate_limit_queue_counts_for_no_breaker() -> None:
    slow: dict[str, Any] = {"slow_call_duration": 2.0, "slow_call_rate_threshold": 0.5, "minimum_throughput": 2}
    tool = ScriptedTool("t", OK(), delay=1.0, provider="p")
    runner = reliable(tool, rate_limits=ONE_AT_A_TIME, breaker=CircuitBreakerConfig(**slow))
    outputs = await at_once(runner, 8)
    assert [output.status for output in outputs] == ["succeeded"] * 8
    assert now() == 8.0
    assert runner.breakers["p"]["state"] == "closed"
    tool = ScriptedTool("t", OK(), delay=3.0, provider="p")
    runner = reliable(tool, rate_limits=ONE_AT_A_TIME, breaker=CircuitBreakerConfig(**slow))
    await at_once(runner, 2)
    assert runner.breakers["p"]["state"] == "open"  # So long a call would have been noticed.


class Straggler(Tool):
    """Takes about a second, or ten where the request says so; the second attempt of such a request takes one again."""

    name, provider = "t", "p"

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.calls.append(request["query"])
        stuck = request["query"] == "slow" and self.calls.count("slow") == 1
        await asyncio.sleep(10 if stuck else 1 - len(self.calls) / 1000)


async def test_time_spent_in_a_rate_limit_queue_counts_for_no_hedge() -> None:
    tool = Straggler()
    runner = reliable(tool, rate_limits={"p": RateLimit(max_concurrent=2)}, hedging=HedgingPolicy(min_samples=3))
    for _ in range(40):
        await runner.run("q", "t")
    await at_once(runner, 8)
    assert len(tool.calls) == 48
    await runner.run("slow", "t")
    assert tool.calls.count("slow") == 2  # So long after it was sent, a call is hedged.


async def test_an_open_breaker_is_noticed_before_queueing() -> None:
    tool = ScriptedTool("t", *[err(503)] * 2, OK(), delay=10.0, provider="p")
    runner = reliable(
        tool,
        rate_limits=ONE_AT_A_TIME,
        breaker=CircuitBreakerConfig(failure_threshold=2, timeout=60),
        retry=RetryPolicy(max_attempts=1),
    )
    outputs = await at_once(runner, 5)
    assert now() == 20.0  # Those in the queue wait for no place when the second failure opens it.
    assert [failed(output)["type"] for output in outputs] == ["ProviderError"] * 2 + ["CircuitOpen"] * 3
    assert failed(await runner.run("q", "t"))["type"] == "CircuitOpen"
    assert (now(), len(tool.calls)) == (20.0, 2)
