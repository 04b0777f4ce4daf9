"""`protected` and what stands beside it: a composite tool puts each of its calls under the policies of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationOutput, Orchestrator, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.orchestration._call import (
    Spent,
    budget_left,
    current_scope,
    expect_answers,
    protected,
    time_left,
)
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import CircuitBreakerConfig, RetryPolicy


class Composite(Tool):
    """Does what it is given."""

    composite = True
    name = "composite"

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        self.work = work

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return await self.work()


def running(work: Callable[[], Awaitable[Any]], **config: Any) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(Composite(work))
    fields: dict[str, Any] = {"retry_policy": RetryPolicy(initial_delay=0), **config}
    return ReliableOrchestrator(None, ReliabilityConfig(**fields), registry=registry)


class Upstream:
    """Fails so often, then answers."""

    def __init__(self, failures: int, status: int = 503) -> None:
        self.failures, self.status, self.calls = failures, status, 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ProviderError("down", "p", self.status)
        return "answer"


async def test_outside_of_a_run_a_call_is_simply_made_and_nothing_is_known() -> None:
    assert await protected(Upstream(0), target="p", part="x") == "answer"
    with pytest.raises(ProviderError):
        await protected(Upstream(1), target="p", part="x")
    expect_answers(5)
    assert (current_scope(), time_left()) == (None, None)
    assert budget_left() == (float("inf"), float("inf"))


async def test_each_call_is_retried_by_itself_and_the_bundle_of_them_is_not() -> None:
    upstreams, began = [Upstream(n) for n in (0, 1, 2)], []

    async def work() -> list[str]:
        began.append(1)
        return [await protected(upstream, target="p", part=str(n)) for n, upstream in enumerate(upstreams)]

    output = await running(work).run("q", "composite")
    assert (output.status, len(began), [upstream.calls for upstream in upstreams]) == ("succeeded", 1, [1, 2, 3])
    assert output.per_agent["composite"]["attempts"] == 6


async def test_when_the_policies_give_up_the_last_error_is_raised_to_the_tool() -> None:
    caught: list[BaseException] = []

    async def work() -> str:
        try:
            return await protected(Upstream(9), target="p", part="x")
        except ProviderError as error:
            caught.append(error)
            return "made do"

    output = await running(work).run("q", "composite")
    assert (output.content, output.status) == ("made do", "succeeded")
    assert [type(error) for error in caught] == [ProviderError]


async def test_what_a_call_used_is_measured_and_summed() -> None:
    async def work() -> str:
        for tokens in (3, 4):
            await protected(
                Upstream(0),
                target="p",
                part="x",
                model="m",
                measure=lambda _, tokens=tokens: Spent({"total_tokens": tokens}, 0.5),
            )
        return "done"

    output = await running(work).run("q", "composite")
    assert (output.usage, output.cost_usd) == ({"total_tokens": 7}, 1.0)
    assert [line["model"] for line in output.attempts] == ["m", "m"]


async def test_what_a_call_used_that_a_plain_tool_made_is_summed_with_what_the_tool_says() -> None:
    async def work() -> dict[str, Any]:
        await protected(Upstream(0), target="p", part="x", measure=lambda _: Spent({"total_tokens": 3}, 0.5))
        return {"content": "done", "usage": {"total_tokens": 4}, "cost_usd": 0.25}

    runner = running(work)
    runner.registry.resolve("composite").composite = False
    output = await runner.run("q", "composite")
    assert (output.usage, output.cost_usd) == ({"total_tokens": 7}, 0.75)


async def test_a_price_in_whole_dollars_is_a_float_like_any_other() -> None:
    async def work() -> str:
        return await protected(Upstream(0), target="p", part="x", measure=lambda _: Spent({"total_tokens": 3}, 1))

    output = await running(work).run("q", "composite")
    assert repr(OrchestrationOutput.model_validate(vars(output))) == repr(output)


async def test_max_total_attempts_holds_for_the_run_and_each_answer_may_be_asked_for_once() -> None:
    for answers, made in ((1, 4), (3, 4), (7, 7)):
        upstreams = [Upstream(99) for _ in range(3)]

        async def work(answers: int = answers, upstreams: list[Upstream] = upstreams) -> str:
            expect_answers(answers)
            expect_answers(1)
            for n, upstream in enumerate(upstreams):
                await asyncio.gather(
                    *(protected(upstream, target=f"p{n}{m}", part="x") for m in range(4)), return_exceptions=True
                )
            return "done"

        await running(work, max_total_attempts=4).run("q", "composite", None, {"max_retries": 0})
        assert sum(upstream.calls for upstream in upstreams) == made


async def test_the_attempt_that_a_call_waits_to_make_is_not_made_by_another() -> None:
    slow, quick, ends = Upstream(1), Upstream(0), []

    async def work() -> Any:
        patient = asyncio.create_task(protected(slow, target="a", part="x"))
        await asyncio.sleep(0)
        for _ in range(3):
            ends.extend(await asyncio.gather(protected(quick, target="b", part="y"), return_exceptions=True))
        return await patient

    runner = running(work, max_total_attempts=4, retry_policy=RetryPolicy(jitter_factor=0))
    output = await runner.run("q", "composite")
    assert (output.content, slow.calls, quick.calls) == ("answer", 2, 2)
    assert [type(end).__name__ for end in ends] == ["str", "str", "AttemptsUsedUp"]


async def test_the_attempt_of_a_call_that_waits_no_longer_is_there_for_others() -> None:
    slow, quick = Upstream(1), Upstream(0)

    async def work() -> Any:
        impatient = asyncio.create_task(protected(slow, target="a", part="x"))
        await asyncio.sleep(0.5)
        impatient.cancel()
        await asyncio.wait({impatient})
        return await protected(quick, target="b", part="y")

    runner = running(work, max_total_attempts=2, retry_policy=RetryPolicy(jitter_factor=0))
    output = await runner.run("q", "composite")
    assert (output.content, slow.calls) == ("answer", 1)


async def test_budget_and_time_that_are_left_can_be_asked() -> None:
    seen: list[Any] = []

    async def work() -> str:
        seen.append((time_left(), budget_left()))
        await protected(
            Upstream(0),
            target="p",
            part="x",
            worst_case=Amount(50, 0.5),
            measure=lambda _: Spent({"total_tokens": 30}, 0.1),
        )
        await asyncio.sleep(0.25)
        seen.append((time_left(), budget_left()))
        return "done"

    options = {"timeout_ms": 1000, "budget": {"tokens": 100, "cost_usd": 1.0}}
    await running(work).run("q", "composite", None, options)
    assert seen == [(1.0, (100, 1.0)), (0.75, (70, 0.9))]


async def test_a_breaker_localises_by_the_part_that_a_call_names() -> None:
    dead, alive = Upstream(99), Upstream(0)

    async def work() -> str:
        try:
            return await protected(dead, target="p", part="dead")
        except ProviderError:
            return await protected(alive, target="p", part="alive")

    one = CircuitBreakerConfig(failure_threshold=1)
    runner = running(work, circuit_breaker_configs={"default": one})
    for _ in range(3):
        assert (await runner.run("q", "composite", None, {"max_retries": 0})).content == "answer"
    assert (dead.calls, alive.calls) == (1, 3)


async def test_an_orchestrator_without_policies_makes_the_calls_too() -> None:
    registry = ToolRegistry()

    async def work() -> str:
        return await protected(Upstream(0), target="p", part="x")

    registry.register_tool(Composite(work))
    output = await Orchestrator(registry).run("q", "composite")
    assert (output.content, output.per_agent["composite"]["attempts"]) == ("answer", 1)
