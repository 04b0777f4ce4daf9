"""Most runs make their first attempt without asking each policy in turn. What comes of it is the same."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract.kit import registry
from steer_llm_sdk.errors import BudgetExceeded, ErrorCategory
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
)
from steer_llm_sdk.orchestration._call import current_scope, protected
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import CircuitBreakerConfig, HedgingPolicy, RateLimit, RetryPolicy
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, VirtualTimeLoop, err

SLOW = OK("slow", after=9)
"""Longer than a call may take that is not slow."""
STEPS = [
    OK("x"),
    SLOW,
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
    "default": CircuitBreakerConfig(
        failure_threshold=2, timeout=5, slow_call_rate_threshold=0.5, slow_call_duration=5, minimum_throughput=2
    )
}


async def in_turn(call: Any, next: Any) -> Any:
    """A policy that does nothing: with one more in the list, there is no shorter way."""
    return await next(call)


LIMIT = RateLimit(requests_per_minute=4, tokens_per_minute=60, max_concurrent=1, max_wait=3)
HEDGING = HedgingPolicy(min_samples=2, slow_factor=1e9, busy_factor=1e9)
EVERY: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"rate_limits": {"default": LIMIT}}, {}),
    ({}, {"budget": {"tokens": 25, "cost_usd": 3}}),
    ({"rate_limits": {"default": LIMIT}, "retry_budget": {"minimum": 0, "ratio": 0.5, "window": 60}}, {}),
    ({"rate_limits": {"default": LIMIT}}, {"budgets": [{"name": "team", "tokens": 60, "usd": 4}]}),
    ({"rate_limits": {"default": LIMIT}, "learn_rate_limits": True}, {"budget": {"tokens": 25}}),
    ({"hedging": HEDGING}, {}),
    ({"rate_limits": {"default": LIMIT}, "max_total_attempts": 2}, {"per_agent_timeout_ms": 700}),
    (
        {"rate_limits": {"default": LIMIT}, "hedging": HEDGING, "max_total_attempts": 2},
        {"budget": {"tokens": 25}, "budgets": [{"name": "team", "usd": 4}], "timeout_ms": 20_000},
    ),
]
"""What may stand round a call, and what a run may ask for."""


class Estimated(ScriptedTool):
    """Says that it takes ten tokens and half a dollar at most."""

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(10, 0.5)


async def told(scripts: list[list[Any]], every: tuple[dict[str, Any], dict[str, Any]], *, shorter: bool) -> list[Any]:
    random.seed(1)  # What is added to Retry-After is drawn.
    config = ReliabilityConfig(retry_policy=NO_JITTER, circuit_breaker_configs=BREAKERS, **every[0])
    tool = Estimated("t", *[step for script in scripts for step in script])
    runner = ReliableOrchestrator(None, config, registry=registry(tool))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    found: list[Any] = []
    for number, script in enumerate(scripts):
        options = {"max_retries": len(script) - 1, "request_id": f"r{number}", **every[1]}
        events = RecordedEvents()
        try:
            output = await runner.run({"query": "q"}, "t", None, options, events if number % 2 else None)
        except BudgetExceeded as error:
            found += [str(error), error.output and error.output.model_dump(mode="json")]
        else:
            # It is made without being validated, and is what validating it comes to.
            assert repr(OrchestrationOutput.model_validate(vars(output))) == repr(output)
            found.append(output.model_dump(mode="json"))
        found += [events.types, {name: dict(stats) for name, stats in runner.breakers.items()}]
        found += [{name: dict(view) for name, view in runner.budgets.items()}, gates(runner)]
        await asyncio.sleep(number % 3)
    return found


def gates(runner: ReliableOrchestrator) -> list[Any]:
    """What is left of the limits, to a millionth: what is given back is not always what was taken, to the last bit."""
    limits, now = runner.executor.limits, asyncio.get_running_loop().time()
    if limits is None:
        return []
    states = [gate.state for gate in limits.gates.values() if gate is not None]
    levels = [bucket and round(bucket.level(now), 6) for state in states for bucket in (state.requests, state.tokens)]
    return [levels, [(state.running, round(state.reserved, 6), state.blocked_until) for state in states]]


def in_virtual_time(work: Any) -> Any:
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@given(
    st.lists(st.lists(st.sampled_from(STEPS), min_size=1, max_size=3), min_size=1, max_size=7), st.sampled_from(EVERY)
)
@example([[OK("x")], [err(503), OK("x")]], EVERY[3])  # The answer before is what allows a retry.
@example([[SLOW]] * 3, EVERY[0])  # An answer may open the circuit, too.
@example([[SLOW]] * 3, EVERY[1])
def test_outputs_and_all_that_is_counted_are_those_of_the_policies_in_turn(
    scripts: list[list[Any]], every: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    assert in_virtual_time(told(scripts, every, shorter=True)) == in_virtual_time(told(scripts, every, shorter=False))


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("every", EVERY, ids=range(len(EVERY)))
async def test_a_cancelled_run_gives_back_what_it_had_taken_and_is_not_tried_again(
    every: tuple[dict[str, Any], dict[str, Any]], shorter: bool
) -> None:
    tool = Estimated("t", HANG, OK("x"))
    runner = ReliableOrchestrator(None, ReliabilityConfig(**every[0]), registry=registry(tool))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    task = asyncio.ensure_future(runner.run("q", "t", None, every[1]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    spent = [(view["spent"]["usd"], view["reserved"]["usd"]) for view in runner.budgets.values()]
    assert spent in ([], [(0.5, 0.0)])
    assert (await runner.run("q", "t", None, every[1])).status == "succeeded"


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("every", EVERY, ids=range(len(EVERY)))
async def test_after_a_call_a_tool_is_where_it_was_before(
    every: tuple[dict[str, Any], dict[str, Any]], shorter: bool
) -> None:
    """What it tells then is no sign of life of a call that has ended."""
    found: list[bool] = []

    class Composite(Estimated):
        composite = True

        async def execute(self, *given: Any, **more: Any) -> Any:
            before = current_scope()
            for _ in range(2):
                with contextlib.suppress(ProviderError):
                    await protected(lambda: super(Composite, self).execute(*given, **more), target="p", part="t")
                found.append(current_scope() is before)
            return "x"

    tool = Composite("t", OK("x"), err(400))
    runner = ReliableOrchestrator(None, ReliabilityConfig(**every[0]), registry=registry(tool))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    assert (await runner.run("q", "t", None, every[1])).content == "x"
    assert found == [True, True]


@pytest.mark.parametrize("every", EVERY[:2], ids=["usual", "at once"])
async def test_an_answer_that_opens_the_circuit_says_so(every: tuple[dict[str, Any], dict[str, Any]]) -> None:
    runner = ReliableOrchestrator(
        None, ReliabilityConfig(circuit_breaker_configs=BREAKERS, **every[0]), registry=registry(Estimated("t", SLOW))
    )
    told = []
    for _ in range(2):
        events = RecordedEvents()
        assert (await runner.run("q", "t", None, every[1], events)).content == "slow"
        told.append([event["state"] for event in events.data("circuit_breaker")])
    assert (told, runner.breakers["t"]["state"]) == ([[], ["open"]], "open")


async def test_options_that_were_set_to_what_they_are_anyhow_change_nothing() -> None:
    async def run(**options: Any) -> Any:
        tool = ScriptedTool("t", err(503), *STEPS[:2])
        runner = ReliableOrchestrator(None, ReliabilityConfig(retry_policy=NO_JITTER), registry=registry(tool))
        runs = [await runner.run("q", None, None, {"request_id": f"r{n}", **options}) for n in range(3)]
        return [output.model_dump(mode="json") for output in runs], [dict(call.options) for call in tool.calls]

    every = OrchestrationConfig().model_dump(exclude={"request_id"})
    assert await run() == await run(**every)


class Unreadable(ProviderError):
    """Raises when it is asked what it means."""

    @property
    def category(self) -> ErrorCategory:
        raise RuntimeError("no category")


def unreadable() -> list[ProviderError]:
    uncounted = ProviderError("no", "local", 400)
    uncounted.usage = 7  # type: ignore[assignment]  # What a careless tool may set.
    worded = ProviderError("no", "local", "busy")  # type: ignore[arg-type]  # A status as text, which is no number.
    return [Unreadable("no", "local"), worded, uncounted]


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("error", unreadable(), ids=["category", "status", "usage"])
async def test_a_failure_that_nobody_can_read_gives_back_what_the_call_had_taken(
    error: ProviderError, shorter: bool
) -> None:
    tool = Estimated("t", err(error), OK("x"))
    config = ReliabilityConfig(rate_limits={"default": RateLimit(max_concurrent=1, max_queue=0)})
    runner = ReliableOrchestrator(None, config, registry=registry(tool))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    options = {"budgets": [{"name": "team", "tokens": 60}]}
    assert (await runner.run("q", "t", None, options)).status == "failed"
    assert (runner.budgets["team"]["reserved"]["tokens"], gates(runner)[1][0][0]) == (0, 0)
    assert (await runner.run("q", "t", None, options)).status == "succeeded"


class Misjudged(ScriptedTool):
    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount("ten")  # type: ignore[arg-type]  # No number: it cannot be reserved.


@pytest.mark.parametrize("shorter", [True, False])
async def test_what_cannot_be_reserved_leaves_no_place_taken(shorter: bool) -> None:
    config = ReliabilityConfig(rate_limits={"default": RateLimit(max_concurrent=1, max_queue=0)})
    runner = ReliableOrchestrator(None, config, registry=registry(Misjudged("t", OK("x"))))
    if not shorter:
        runner.executor.around_attempts(in_turn)
    output = await runner.run("q", "t", None, {"budget": {"tokens": 60}})
    assert (output.content["error"]["type"], gates(runner)[1][0][0]) == ("TypeError", 0)
