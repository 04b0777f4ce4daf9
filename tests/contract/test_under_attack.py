"""What a hostile caller, tool or store may do, and what it must not achieve."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import OrderedDict
from decimal import Decimal
from typing import Any

import pytest

from steer_llm_sdk import EventManager
from steer_llm_sdk.errors import BudgetExceeded, CircuitOpen, InvalidRequest, ProviderError, StoreUnavailable
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    PlanDecision,
    Planner,
    ReliabilityConfig,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.reliability import HedgingPolicy, IdempotencyManager, circuit_breaker
from steer_llm_sdk.reliability.circuit_breaker import (
    Circuit,
    CircuitBreaker,
    CircuitBreakerConfig,
    Closed,
    Open,
    Outcome,
    Permit,
)
from steer_llm_sdk.reliability.classify import classify
from steer_llm_sdk.testing import OK, ScriptedTool, err

Execute = Any


class Made(Tool):
    """A tool whose `execute` is the given function of the request and the options."""

    name = "made"
    provider = "p"

    def __init__(self, execute: Execute, name: str = "made") -> None:
        self._execute = execute
        self.calls = 0
        type(self).name = name

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.calls += 1
        return await self._execute(request, options)


def runner(*tools: Tool, **given: Any) -> ReliableOrchestrator:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    return ReliableOrchestrator(registry=registry, **given)


async def turns_its_cancellation_into_an_error(request: Any, options: Any) -> Any:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ConnectionError("lost") from None


@pytest.mark.parametrize("options", [{}, {"timeout_ms": 10_000}, {"idempotency_key": "k"}])
async def test_a_cancelled_run_is_not_tried_again_whatever_the_tool_makes_of_it(options: dict[str, Any]) -> None:
    tool = Made(turns_its_cancellation_into_an_error)
    orchestrator = runner(tool)
    run = asyncio.ensure_future(orchestrator.run("q", "made", options=options))
    await asyncio.sleep(0.1)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(120)
    assert tool.calls == 1
    assert orchestrator.breakers["p"]["failures"] == 0


@pytest.mark.parametrize("options", [{}, {"timeout_ms": 10_000}, {"idempotency_key": "k"}, {"max_retries": 2}])
@pytest.mark.parametrize("listens", [False, True])
async def test_who_was_asked_to_stop_before_he_asks_is_stopped_and_no_tool_has_failed(
    options: dict[str, Any], listens: bool
) -> None:
    async def works(request: Any, options: Any) -> Any:
        await asyncio.sleep(1)

    async def asks() -> Any:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        return await orchestrator.run("q", "made", options=options, event_manager=events)

    orchestrator, events = runner(Made(works)), EventManager() if listens else None
    run = asyncio.ensure_future(asks())
    with pytest.raises(asyncio.CancelledError):
        await run
    assert orchestrator.breakers.get("p", {"failures": 0})["failures"] == 0


async def test_no_fallback_begins_when_the_time_is_up() -> None:
    class Both(Planner):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            return PlanDecision(selected_tool="deaf", fallback_tools=["other"])

    async def deaf(request: Any, options: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise ConnectionError("late") from None

    other = ScriptedTool("other", OK())
    with pytest.raises(BudgetExceeded):
        await runner(Made(deaf, "deaf"), other, planner=Both()).run("q", options={"timeout_ms": 200})
    await asyncio.sleep(1)
    assert other.calls == []


@pytest.mark.parametrize(
    "options", [{}, {"timeout_ms": 1000}, {"per_agent_timeout_ms": 1000}, {"idempotency_key": "k"}]
)
@pytest.mark.parametrize("config", [{}, {"hedging": HedgingPolicy(min_samples=2)}])
async def test_a_tool_that_exits_has_failed_and_the_loop_goes_on(options: Any, config: Any) -> None:
    async def leave(request: Any, options: Any) -> Any:
        await asyncio.sleep(0.1)
        if request == {"query": "leave"}:
            sys.exit(3)

    orchestrator = runner(Made(leave), reliability_config=ReliabilityConfig(**config))
    for _ in range(3):
        await orchestrator.run("stay", "made")
    output = await orchestrator.run("leave", "made", options=options)
    assert output.content["error"]["type"] == "ToolExecutionError"
    assert [attempt["outcome"] for attempt in output.attempts] == ["failed"]


class Stuck(IdempotencyManager):
    """A cache whose get or store never answers."""

    def __init__(self, stuck: str) -> None:
        super().__init__()
        self._stuck = stuck

    async def get(self, key: str) -> Any:
        await asyncio.sleep(3600 if self._stuck == "get" else 0)
        return None

    async def store(self, key: str, value: Any) -> None:
        await asyncio.sleep(3600 if self._stuck == "store" else 0)


@pytest.mark.parametrize("options", [{}, {"timeout_ms": 500}])
async def test_a_store_that_hangs_after_the_work_does_not_lose_it(options: dict[str, Any]) -> None:
    orchestrator = runner(ScriptedTool("t", OK("paid")), idempotency_manager=Stuck("store"))
    output = await orchestrator.run("q", options={"idempotency_key": "k", **options})
    assert output.content == "paid"


async def test_a_store_that_hangs_before_the_work_is_a_store_that_is_down() -> None:
    tool = ScriptedTool("t", OK("paid"))
    with pytest.raises(StoreUnavailable):
        await runner(tool, idempotency_manager=Stuck("get")).run("q", options={"idempotency_key": "k"})
    assert tool.calls == []
    unprotected = ReliabilityConfig(on_store_down="run_unprotected")
    orchestrator = runner(tool, idempotency_manager=Stuck("get"), reliability_config=unprotected)
    assert (await orchestrator.run("q", options={"idempotency_key": "k"})).content == "paid"


async def test_a_cost_of_any_kind_of_number_is_counted() -> None:
    tool = ScriptedTool("t", OK({"content": "x", "cost_usd": Decimal("5.00")}))
    with pytest.raises(BudgetExceeded) as caught:
        await runner(tool).run("q", options={"budget": {"cost_usd": 1}})
    assert caught.value.output.cost_usd == 5.0


@pytest.mark.parametrize("returned", [{"content": "x", "cost_usd": 10**400}, {"content": "x", "cost_usd": "much"}])
async def test_a_cost_that_is_none_loses_nothing(returned: dict[str, Any]) -> None:
    output = await runner(ScriptedTool("t", OK(returned))).run("q")
    assert (output.content, output.cost_usd) == ("x", None)


async def test_tokens_beyond_every_float_exceed_the_budget_with_the_output_attached() -> None:
    tool = ScriptedTool("t", OK({"content": "x", "usage": {"total_tokens": 10**400}}))
    with pytest.raises(BudgetExceeded) as caught:
        await runner(tool).run("q", options={"budget": {"tokens": 100}})
    assert caught.value.output.content == "x"


async def test_an_empty_manager_is_a_manager() -> None:
    class Sized(IdempotencyManager):
        def __len__(self) -> int:
            return 0

    manager = Sized()
    assert runner(ScriptedTool("t"), idempotency_manager=manager).idempotency_manager is manager


class Mute(ConnectionError):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_without_words_is_retried_and_told_by_its_type() -> None:
    tool = ScriptedTool("t", err(Mute()), err(Mute()), err(Mute()))
    output = await runner(tool).run("q")
    assert len(tool.calls) == 3
    assert output.content["error"]["message"] == "Mute"


def test_headers_that_cannot_be_read_say_nothing() -> None:
    class Headers(dict[str, str]):
        def items(self) -> Any:
            raise RuntimeError("no")

    error = ConnectionError("x")
    error.headers = Headers(a="b")  # type: ignore[attr-defined]
    assert classify(error).retry_after is None


async def test_content_that_is_no_json_is_kept_as_far_as_it_can_be() -> None:
    class Secretive:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    output = await runner(ScriptedTool("t", OK({"content": {"text": "paid", "x": Secretive(), 1: "a", "1": "b"}}))).run(
        "q"
    )
    assert output.content == {"text": "paid", "x": "(Secretive)", "1": "a", "1'": "b"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"budget": {"tokens": 10**400}}, "budget"),
        ({"budget": {"ms": 10**400}}, "budget"),
        ({"timeout_ms": 10**400}, "timeout_ms"),
        ({"per_agent_timeout_ms": 10**30}, "per_agent_timeout_ms"),
        ({"tenant": "\ud800"}, "tenant"),
        ({"trace_id": "\ud800"}, "trace_id"),
    ],
)
async def test_an_option_beyond_reason_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        await runner(ScriptedTool("t")).run("q", options=options)


async def test_nobody_writes_into_the_request_of_the_caller() -> None:
    class Writes(ScriptedTool):
        def validate_request(self, request: Any) -> None:
            request["validated"] = True

        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            request["list"].append(1)
            request["nested"]["x"] = 1
            return "done"

    class Plans(Planner):
        async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
            request["planned"] = True
            return PlanDecision(selected_tool="t")

    request: dict[str, Any] = {"list": [], "nested": OrderedDict(a=1)}
    assert (await runner(Writes("t"), planner=Plans()).run(request)).status == "succeeded"
    assert request == {"list": [], "nested": OrderedDict(a=1)}


def test_a_part_that_is_cut_off_does_not_probe_beside_the_whole() -> None:
    cfg = CircuitBreakerConfig(failure_threshold=1, half_open_requests=1, timeout=10)
    cut_off = Open(1, 5.0, frozenset({"b"}), confirmed=True)
    circuit = Circuit(Open(2, 10.0, frozenset({"a"})), narrowed={"b": cut_off}, generation=2)
    circuit, first = circuit.admit("a", 11.0, cfg)
    circuit, second = circuit.admit("b", 11.0, cfg)
    assert isinstance(first, Permit)
    assert not isinstance(second, Permit)


def test_a_part_that_is_cut_off_can_still_bring_the_whole_back() -> None:
    cfg = CircuitBreakerConfig(failure_threshold=1, half_open_requests=1, timeout=10)
    cut_off = Open(1, 5.0, frozenset({"b"}), confirmed=True)
    circuit = Circuit(Open(2, 10.0, frozenset({"a"})), narrowed={"b": cut_off}, generation=2)
    _, answer = circuit.admit("b", 11.0, cfg)
    assert isinstance(answer, Permit)
    assert answer.part is None
    assert not isinstance(circuit.whole, Closed)


async def test_a_retry_after_that_is_a_header_is_read_as_one() -> None:
    tool = ScriptedTool("t", err(ProviderError("slow down", "p", 429, retry_after="2")), OK())  # type: ignore[arg-type]
    began = asyncio.get_running_loop().time()
    await runner(tool).run("q", options=OrchestrationConfig())
    assert asyncio.get_running_loop().time() - began >= 2


@pytest.mark.parametrize("cost", ["cheap", -1, float("nan"), float("inf"), 10**400, True])
def test_a_declared_cost_that_is_no_price_is_refused_at_registration(cost: object) -> None:
    declares = ScriptedTool("t", OK())
    declares.resource_requirements = {"estimated_cost_per_run": cost}
    with pytest.raises(ValueError, match="estimated_cost_per_run"):
        ToolRegistry().register_tool(declares)


async def test_closing_a_stream_does_not_wait_for_a_tool_that_is_deaf() -> None:
    async def deaf(request: Any, options: Any) -> Any:
        for _ in range(100):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue

    loop = asyncio.get_running_loop()
    async with runner(Made(deaf)).stream("q", "made") as events:
        async for _ in events:
            break
        closing = loop.time()
    assert loop.time() - closing <= 0.05


def test_one_probe_is_admitted_however_many_threads_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    breaker = CircuitBreaker("p", CircuitBreakerConfig(failure_threshold=1, half_open_requests=1, timeout=0.0))
    breaker.report(breaker.admit("a"), "a", Outcome.FAILURE)
    clock = circuit_breaker._now

    def slow_clock() -> float:
        time.sleep(0.002)  # Between reading the circuit and writing it, every other thread gets its turn.
        return clock()

    monkeypatch.setattr(circuit_breaker, "_now", slow_clock)
    admitted: list[Permit] = []

    def ask() -> None:
        with contextlib.suppress(CircuitOpen):
            admitted.append(breaker.admit("a"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1
