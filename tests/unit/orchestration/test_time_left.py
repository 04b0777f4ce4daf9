"""Each attempt is told what is left, and none starts when nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from steer_llm_sdk import LLMTool, ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry, time_left, tool
from steer_llm_sdk.errors import BudgetExceeded, ProviderError
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration.planning import PlanDecision
from steer_llm_sdk.orchestration.tools import protected
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.reliability import RetryPolicy

STEADY = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=1.0, backoff_factor=1.0, jitter_factor=0.0))


class Planned:
    def __init__(self, *names: str) -> None:
        self.names = names

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        return PlanDecision(selected_tool=self.names[0], fallback_tools=list(self.names[1:]))


async def run(*tools: Tool, request: Any = "q", **options: Any) -> Any:
    registry = ToolRegistry()
    for each in tools:
        registry.register_tool(each)
    planner: Any = Planned(*(each.name for each in tools))
    orchestrator = ReliableOrchestrator(planner=planner, registry=registry, reliability_config=STEADY)
    return await orchestrator.run(request, options=options)


class Looks(Tool):
    """Notes what is left, works for `seconds`, and fails `failures` times."""

    def __init__(self, name: str, seconds: float, failures: int) -> None:
        self._name, self.seconds, self.failures = name, seconds, failures
        self.left: list[float | None] = []

    @property
    def name(self) -> str:
        return self._name

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> str:
        self.left.append(time_left())
        await asyncio.sleep(self.seconds)
        if len(self.left) <= self.failures:
            raise ProviderError("down", self._name, status_code=503)
        return "ok"


async def test_a_retry_and_a_fallback_see_the_smaller_rest() -> None:
    first, second = Looks("a", 2.0, failures=9), Looks("b", 0.5, failures=0)
    output = await run(first, second, timeout_ms=10_000, max_retries=1)
    assert output.status == "succeeded"
    assert first.left == [pytest.approx(10), pytest.approx(7)]
    assert second.left == [pytest.approx(5)]


async def test_the_end_of_the_attempt_counts_where_it_comes_first() -> None:
    looks = Looks("a", 0.5, failures=2)
    await run(looks, timeout_ms=4_000, per_agent_timeout_ms=2_000)
    assert looks.left == [pytest.approx(2), pytest.approx(2), pytest.approx(1)]
    looks = Looks("a", 0.5, failures=0)
    await run(looks, per_agent_timeout_ms=2_000)
    assert looks.left == [pytest.approx(2)]


async def test_without_a_limit_and_outside_of_a_run_nothing_is_known() -> None:
    looks = Looks("a", 0.0, failures=0)
    await run(looks)
    assert (looks.left, time_left()) == ([None], None)


async def test_after_an_attempt_its_end_is_forgotten() -> None:
    await run(Looks("a", 0.0, failures=0), per_agent_timeout_ms=2_000)
    later = Looks("b", 0.0, failures=0)
    await run(later)
    assert later.left == [None]


async def test_a_function_tool_is_told_whether_it_runs_in_the_loop_or_in_a_thread() -> None:
    @tool
    async def beside(text: str) -> float | None:
        return time_left()

    @tool
    def in_a_thread(text: str) -> float | None:
        return time_left()

    for each in (beside, in_a_thread):
        output = await run(each, request={"text": "q"}, timeout_ms=5_000)
        assert 4 < output.content <= 5


class Composite(Tool):
    composite = True

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work

    @property
    def name(self) -> str:
        return "composite"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return await self.work()


async def test_each_call_of_a_composite_tool_is_told() -> None:
    left: list[float | None] = []

    async def call() -> str:
        left.append(time_left())
        await asyncio.sleep(1)
        if len(left) == 1:
            raise ProviderError("down", "p", status_code=503)
        return "ok"

    async def work() -> str:
        await protected(call, target="p", part="x")
        return await protected(call, target="p", part="x")

    await run(Composite(work), timeout_ms=10_000)
    assert left == [pytest.approx(10), pytest.approx(8), pytest.approx(7)]


async def test_no_call_starts_after_the_deadline_even_of_a_tool_that_does_not_stop() -> None:
    sent: list[float] = []
    refused: list[BaseException] = []

    async def call() -> str:
        sent.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.4)
        return "ok"

    async def work() -> None:
        for _ in range(6):
            try:
                await protected(call, target="p", part="x")
            except (asyncio.CancelledError, BudgetExceeded) as error:
                refused.append(error)

    with pytest.raises(BudgetExceeded):
        await run(Composite(work), timeout_ms=1_000)
    assert sent == [0.0, 0.4, 0.8]
    assert [type(error) for error in refused] == [
        asyncio.CancelledError,
        BudgetExceeded,
        BudgetExceeded,
        BudgetExceeded,
    ]


async def test_a_retry_whose_wait_would_end_after_the_deadline_is_not_waited_for() -> None:
    looks = Looks("a", 0.6, failures=9)
    output = await run(looks, timeout_ms=1_500)
    assert (output.status, len(looks.left), output.elapsed_ms) == ("failed", 1, 600)


class Model:
    """Answers after a second; the first answers fail, or are not of the form that was asked for."""

    name, target = "test:m", "test"

    def __init__(self, *answers: str | Exception) -> None:
        self.answers, self.timeouts = list(answers), []  # type: ignore[var-annotated]

    async def prepare(self) -> None:
        """Always ready."""

    async def request(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        self.timeouts.append(request.timeout)
        await asyncio.sleep(1)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ModelReply(text=answer, model=self.name, cost_usd=0.0, finish_reason="stop")

    def worst_case(self, request: ModelRequest) -> Amount:
        return Amount(1, 0.0)

    async def aclose(self) -> None:
        """Nothing is open."""


async def test_the_client_of_a_model_gets_what_is_left_also_for_a_retry_and_for_a_repair() -> None:
    model = Model(ProviderError("down", "test", status_code=503), "no number", "7")
    output = await run(LLMTool("t", model, output_type=int), timeout_ms=10_000)
    assert output.content == 7
    # A tenth of a second more than is left, so that the deadline itself always speaks first.
    assert model.timeouts == [pytest.approx(10.1), pytest.approx(8.1), pytest.approx(7.1)]


async def test_the_client_of_a_model_gets_the_rest_of_the_attempt_where_that_ends_first() -> None:
    model = Model("no number", "7")
    await run(LLMTool("t", model, output_type=int), timeout_ms=2_500, per_agent_timeout_ms=2_000)
    assert model.timeouts == [pytest.approx(2.1), pytest.approx(1.6)]
