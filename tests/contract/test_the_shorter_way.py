"""Most runs make their first attempt without asking each policy in turn. What comes of it is the same."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.kit import registry
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
)
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import CircuitBreakerConfig, RetryPolicy
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, VirtualTimeLoop, err

STEPS = [
    OK("x"),
    OK({"content": None, "cost_usd": 1, "cost_breakdown": {"a": 1}}),
    OK({"content": {"a": [1]}, "usage": {"total_tokens": 7}, "cost_usd": 0.5, "metadata": {"own": 1}}),
    err(503),
    err(429, retry_after=3),
    err(400),
    err(ValueError("no")),
    err(ProviderError("half", "local", status_code=500, usage={"total_tokens": 3})),
]
NO_JITTER = RetryPolicy(jitter_factor=0)
BREAKERS = {
    "default": CircuitBreakerConfig(failure_threshold=2, timeout=5, slow_call_rate_threshold=0.5, minimum_throughput=2)
}


async def in_turn(call: Any, next: Any) -> Any:
    """A policy that does nothing: with one more in the list, there is no shorter way."""
    return await next(call)


async def told(scripts: list[list[Any]], *, shorter: bool) -> list[Any]:
    random.seed(1)  # What is added to Retry-After is drawn.
    config = ReliabilityConfig(retry_policy=NO_JITTER, circuit_breaker_configs=BREAKERS)
    tool = ScriptedTool("t", *[step for script in scripts for step in script])
    runner = ReliableOrchestrator(None, config, registry=registry(tool))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    found: list[Any] = []
    for number, script in enumerate(scripts):
        options = {"max_retries": len(script) - 1, "request_id": f"r{number}"}
        output = await runner.run({"query": "q"}, "t", None, options)
        # It is made without being validated, and is what validating it comes to.
        assert repr(OrchestrationOutput.model_validate(vars(output))) == repr(output)
        found += [output.model_dump(mode="json"), {name: dict(stats) for name, stats in runner.breakers.items()}]
        await asyncio.sleep(1)
    return found


def in_virtual_time(work: Any) -> Any:
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@given(st.lists(st.lists(st.sampled_from(STEPS), min_size=1, max_size=3), min_size=1, max_size=5))
def test_outputs_and_circuits_are_those_of_the_policies_in_turn(scripts: list[list[Any]]) -> None:
    assert in_virtual_time(told(scripts, shorter=True)) == in_virtual_time(told(scripts, shorter=False))


@pytest.mark.parametrize("shorter", [True, False])
async def test_a_cancelled_run_gives_its_permit_back_and_is_not_tried_again(shorter: bool) -> None:
    tool = ScriptedTool("t", HANG, OK("x"))
    runner = ReliableOrchestrator(registry=registry(tool))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    task = asyncio.ensure_future(runner.run("q", "t"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await runner.run("q", "t")).status == "succeeded"


async def test_options_that_were_set_to_what_they_are_anyhow_change_nothing() -> None:
    async def run(**options: Any) -> Any:
        tool = ScriptedTool("t", err(503), *STEPS[:2])
        runner = ReliableOrchestrator(None, ReliabilityConfig(retry_policy=NO_JITTER), registry=registry(tool))
        runs = [await runner.run("q", None, None, {"request_id": f"r{n}", **options}) for n in range(3)]
        return [output.model_dump(mode="json") for output in runs], [dict(call.options) for call in tool.calls]

    every = OrchestrationConfig().model_dump(exclude={"request_id"})
    assert await run() == await run(**every)
