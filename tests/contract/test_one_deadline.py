"""**One deadline.** `timeout_ms` and `budget["ms"]`, the earlier of them, bound everything, in both orchestrators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from contract.kit import Fixed, failed, now, plain, registry, reliable, tasks
from steer_llm_sdk import EventManager
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    OrchestrationOutput,
    PlanDecision,
    Planner,
    ReliableOrchestrator,
)
from steer_llm_sdk.orchestration._call import time_left
from steer_llm_sdk.reliability import IdempotencyManager, RetryPolicy
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err, stubborn

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])
LIMITS = pytest.mark.parametrize(
    "limit",
    [
        {"timeout_ms": 1000},
        {"budget": {"ms": 1000}},
        {"timeout_ms": 1000, "budget": {"ms": 9000}},
        {"timeout_ms": 9000, "budget": {"ms": 1000}},
    ],
    ids=["timeout_ms", "budget", "timeout_ms is earlier", "budget is earlier"],
)
KEYS = pytest.mark.parametrize("key", [None, "k"], ids=["without key", "keyed"])
SLACK = 0.05


async def late(runner: Any, options: dict[str, Any], events: EventManager | None = None, **run: Any) -> BudgetExceeded:
    """The error of a run that meets its deadline of one second, and not before or after it."""
    began = now()
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", options=options, event_manager=events, **run)
    assert 1 <= now() - began <= 1 + SLACK
    error = caught.value
    assert (error.budget_type, error.limit) == ("time", 1000)
    assert error.actual >= 1000
    assert "time budget exceeded" in str(error)
    return error


# ── what it bounds ───────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@LIMITS
@KEYS
async def test_it_bounds_a_tool_that_hangs(orchestrator: Any, limit: Any, key: Any) -> None:
    tool = ScriptedTool("t", HANG)
    error = await late(orchestrator(tool), {**limit, "idempotency_key": key}, tool_name="t")
    assert (tool.running, tool.cancelled, tasks()) == (0, 1, set())
    assert error.affected_agents == ["t"]


@BOTH
@LIMITS
@KEYS
async def test_it_returns_even_if_a_tool_swallows_its_cancellation(orchestrator: Any, limit: Any, key: Any) -> None:
    tool = ScriptedTool("t", stubborn(60))
    error = await late(orchestrator(tool), {**limit, "idempotency_key": key}, tool_name="t")
    assert [line["outcome"] for line in error.output.attempts] == ["running"]
    await asyncio.sleep(100)
    assert (tool.running, tasks()) == (0, set())
    assert [line["outcome"] for line in error.output.attempts] == ["running"]


@BOTH
@KEYS
async def test_it_returns_even_if_an_attempt_with_a_limit_of_its_own_swallows_its_cancellation(
    orchestrator: Any, key: Any
) -> None:
    tool = ScriptedTool("t", stubborn(60))
    options = {"timeout_ms": 1000, "per_agent_timeout_ms": 990, "idempotency_key": key}
    await late(orchestrator(tool), options, tool_name="t")
    await asyncio.sleep(100)
    assert not tasks()


@BOTH
@KEYS
@pytest.mark.parametrize("kind", ["on_start", "on_delta", "on_error", "on_create_event"])
async def test_it_returns_even_if_a_handler_hangs(orchestrator: Any, key: Any, kind: str) -> None:
    async def hang(_: Any) -> None:
        await asyncio.sleep(3600)

    tool = ScriptedTool("t", err(503), HANG)
    options = {"timeout_ms": 1000, "idempotency_key": key, "max_retries": 3}
    runner = orchestrator(tool) if orchestrator is plain else reliable(tool, retry=RetryPolicy(initial_delay=0.1))
    await late(runner, options, EventManager(**{kind: hang}), tool_name="t")
    await asyncio.sleep(0)
    assert not tasks()


@BOTH
async def test_a_handler_that_hangs_does_not_hold_the_shorter_of_two_deadlines(orchestrator: Any) -> None:
    """Also where somebody with more time has joined the same keyed run."""

    async def hang(_: Any) -> None:
        await asyncio.sleep(3600)

    runner = orchestrator(ScriptedTool("t", OK(after=5)))
    first = asyncio.create_task(
        late(runner, {"timeout_ms": 1000, "idempotency_key": "k"}, EventManager(on_start=hang), tool_name="t")
    )
    await asyncio.sleep(0.5)
    joined = asyncio.create_task(runner.run("q", "t", None, {"idempotency_key": "k"}))
    await first
    assert (await joined).content == "ok"


@KEYS
async def test_it_bounds_planning(key: Any) -> None:
    class Slow(Planner):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            await asyncio.sleep(3600)
            raise AssertionError

    runner = ReliableOrchestrator(Slow(), registry=registry(ScriptedTool("t")))
    await late(runner, {"timeout_ms": 1000, "idempotency_key": key})
    assert not tasks()


@KEYS
async def test_it_bounds_fallbacks(key: Any) -> None:
    first, second = ScriptedTool("first", err(400, after=0.6)), ScriptedTool("second", OK(after=0.6))
    error = await late(reliable(first, second), {"timeout_ms": 1000, "idempotency_key": key})
    assert error.affected_agents == ["second"]
    assert (second.cancelled, tasks()) == (1, set())


@KEYS
async def test_it_bounds_all_attempts_together(key: Any) -> None:
    tool = ScriptedTool("t", err(503, after=0.4), err(503, after=0.4), OK(after=0.4))
    runner = reliable(tool, retry=RetryPolicy(initial_delay=0.01))
    await late(runner, {"timeout_ms": 1000, "idempotency_key": key}, tool_name="t")
    assert len(tool.calls) == 3


@BOTH
async def test_it_bounds_waiting_for_somebody_who_does_the_same_work(orchestrator: Any) -> None:
    tool = ScriptedTool("t", OK(after=5))
    runner = orchestrator(tool)
    first = asyncio.create_task(runner.run("q", "t", None, {"idempotency_key": "k"}))
    await asyncio.sleep(0.5)
    await late(runner, {"timeout_ms": 1000, "idempotency_key": "k"}, tool_name="t")
    assert (await first).content == "ok"
    assert (len(tool.calls), tool.cancelled) == (1, 0)


@BOTH
async def test_it_bounds_a_store_that_does_not_answer(orchestrator: Any) -> None:
    class Silent(IdempotencyManager):
        async def get(self, key: str) -> Any:
            await asyncio.sleep(3600)

        async def store(self, key: str, value: Any) -> None:
            await asyncio.sleep(3600)

    tool = ScriptedTool("t")
    runner = orchestrator(tool, manager=Silent())
    await late(runner, {"timeout_ms": 1000, "idempotency_key": "k"}, tool_name="t")
    assert (tool.calls, tasks()) == ([], set())


# ── backoff ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def ends(runner: ReliableOrchestrator, options: dict[str, Any], **run: Any) -> OrchestrationOutput:
    output: OrchestrationOutput = await runner.run("q", options=options, **run)
    return output


async def test_no_sleep_is_begun_that_would_end_after_it() -> None:
    tool = ScriptedTool("t", err(503))
    output = await ends(reliable(tool, retry=RetryPolicy(jitter_factor=0)), {"timeout_ms": 1000}, tool_name="t")
    assert (output.status, now(), len(tool.calls)) == ("failed", 0, 1)


async def test_a_delay_the_server_asked_for_beyond_it_means_fall_back_at_once() -> None:
    first, second = ScriptedTool("first", err(429, retry_after=5)), ScriptedTool("second")
    output = await ends(reliable(first, second), {"timeout_ms": 1000})
    assert (output.metadata["tool_name"], now(), len(first.calls)) == ("second", 0, 1)


async def test_no_attempt_starts_after_it() -> None:
    tool = ScriptedTool("t", err(503, after=0.3))
    output = await ends(
        reliable(tool, retry=RetryPolicy(initial_delay=0.2, jitter_factor=0, max_attempts=10)),
        {"timeout_ms": 1000},
        tool_name="t",
    )
    assert output.status == "failed"
    assert [call.at for call in tool.calls] == pytest.approx([0, 0.5])
    assert now() == pytest.approx(0.8)


# ── what is not it ───────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("options", [{}, {"timeout_ms": 1000}])
async def test_a_tools_own_timeout_error_is_a_tool_failure_not_a_budget(orchestrator: Any, options: Any) -> None:
    tool = ScriptedTool("t", err(TimeoutError))
    info = failed(await orchestrator(tool).run("q", "t", None, {**options, "retry_on_failure": False}))
    assert (info["type"], info["code"]) == ("TimeoutError", "timeout")


@BOTH
@KEYS
async def test_an_answer_just_in_time_is_an_answer(orchestrator: Any, key: Any) -> None:
    output = await orchestrator(ScriptedTool("t", OK("x", after=0.999))).run(
        "q", "t", None, {"timeout_ms": 1000, "idempotency_key": key}
    )
    assert (output.status, output.content) == ("succeeded", "x")


@BOTH
@KEYS
async def test_without_one_a_run_takes_as_long_as_it_takes(orchestrator: Any, key: Any) -> None:
    output = await orchestrator(ScriptedTool("t", OK(after=10**4))).run("q", "t", None, {"idempotency_key": key})
    assert (output.status, output.elapsed_ms) == ("succeeded", 10**7)


@BOTH
async def test_it_counts_from_the_start_of_each_run(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK(after=0.7)))
    for _ in range(3):
        assert (await runner.run("q", "t", None, {"timeout_ms": 1000})).status == "succeeded"


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_the_events_of_a_late_run_end_with_an_error_and_nothing_follows(orchestrator: Any) -> None:
    events = RecordedEvents()

    class Chatty(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            try:
                return await super().execute(request, options, event_manager)
            finally:
                await event_manager.emit_delta(StreamDeltaEvent("after the end"))

    await late(orchestrator(Chatty("t", stubborn(5))), {"timeout_ms": 1000}, events, tool_name="t")
    await asyncio.sleep(60)
    assert events.types == ["start", "error"]


@BOTH
async def test_a_planner_or_tool_can_ask_how_much_time_is_left(orchestrator: Any) -> None:
    seen: list[Callable[[], float | None] | float | None] = []

    class Asks(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            seen.append(time_left())
            return await super().execute(request, options, event_manager)

    tool = Asks("t")
    for options in ({"timeout_ms": 1000}, {}, {"idempotency_key": "k"}, {"idempotency_key": "l", "timeout_ms": 1000}):
        await orchestrator(tool).run("q", "t", None, options)
    assert seen == [1.0, None, None, 1.0]


async def test_a_plan_that_came_in_time_is_carried_out_in_what_is_left() -> None:
    class Thoughtful(Fixed):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            await asyncio.sleep(0.6)
            return await super().plan(request, available_tools, context)

    tool = ScriptedTool("t", OK(after=0.6))
    await late(reliable(tool, planner=Thoughtful("t")), {"timeout_ms": 1000})
    assert tool.cancelled == 1


# ── what is known of a run that it ended ─────────────────────────────────────────────────────────────────────────────


@KEYS
async def test_the_error_has_an_output_with_every_attempt_and_what_is_known_of_its_usage(key: Any) -> None:
    first = ScriptedTool("first", err(503, usage={"total_tokens": 7}), err(400))
    second = ScriptedTool("second", HANG, version="2.0")
    runner = reliable(first, second, retry=RetryPolicy(initial_delay=0.5, jitter_factor=0))
    error = await late(runner, {"timeout_ms": 1000, "idempotency_key": key})
    output = error.output
    assert (output.status, output.usage, output.elapsed_ms) == ("failed", {"total_tokens": 7}, 1000)
    assert [(line["tool"], line["outcome"]) for line in output.attempts] == [
        ("first", "failed"),
        ("first", "failed"),
        ("second", "cancelled"),
    ]
    assert output.content["error"]["message"] == str(error) == "time budget exceeded: 1000 ms > 1000 ms"
    assert {name: info["type"] for name, info in output.errors.items()} == {
        "first": "ProviderError",
        "second": "BudgetExceeded",
    }
    assert {name: entry["error"] for name, entry in output.per_agent.items()} == output.errors
    assert (output.metadata["tool_name"], output.metadata["tool_version"]) == ("second", "2.0")
    assert output.metadata["plan"]["selected_tool"] == "first"
    assert error.affected_agents == ["second"]


async def test_there_is_no_output_where_nothing_was_sent() -> None:
    class Plans(Fixed):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> Any:
            await asyncio.sleep(5)

    error = await late(reliable(ScriptedTool("t"), planner=Plans("t")), {"timeout_ms": 1000})
    assert (error.output, error.affected_agents) == (None, [])


async def test_an_output_that_came_within_the_grace_is_the_output() -> None:
    tool = ScriptedTool("t", stubborn(1.01, OK("paid for")))
    error = await late(reliable(tool), {"timeout_ms": 1000}, tool_name="t")
    assert error.output.content == "paid for"
