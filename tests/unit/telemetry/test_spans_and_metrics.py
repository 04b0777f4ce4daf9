"""Spans and metrics, asserted against the SDK's exporters in memory."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from steer_llm_sdk import Budget
from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, ProviderUnavailable
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    ReliabilityConfig,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.providers.base import trace_headers
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.streaming.manager import EventManager
from steer_llm_sdk.telemetry import JsonLines, instrument, with_run_ids

W3C = "0af7651916cd43dd8448eb211c80319c"
SECRET = "sk-canary-1234567890"


class Seen:
    """An orchestrator under telemetry, and what was exported of it. `traced` False: it is measured only."""

    def __init__(self, *tools: Tool, config: ReliabilityConfig | None = None, traced: bool = True, **more: Any) -> None:
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        registry = ToolRegistry()
        for tool in tools:
            registry.register_tool(tool)
        runner = ReliableOrchestrator(None, config, registry=registry)
        self.meters = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        tracers = self.tracers if traced else None
        self.runner = instrument(runner, tracer_provider=tracers, meter_provider=self.meters, **more)

    def named(self, beginning: str) -> list[Any]:
        return [span for span in self.spans.get_finished_spans() if span.name.startswith(beginning)]

    def one(self, beginning: str) -> Any:
        (span,) = self.named(beginning)
        return span

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], float]]]:
        data = self.reader.get_metrics_data()
        found: dict[str, list[tuple[dict[str, Any], float]]] = {}
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = point.count if hasattr(point, "count") else point.value
                        found.setdefault(metric.name, []).append((dict(point.attributes), value))
        return found


class Plays(Tool):
    """Plays its script, a step an attempt: an exception is raised, seconds are slept, all else is returned."""

    name = ""
    provider = "acme"

    def __init__(self, name: str, *script: Any) -> None:
        self.name = name
        self._script = list(script)
        self.current: list[Any] = []
        self.told: list[Any] = []

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.current.append(trace.get_current_span())
        self.told.append((trace_headers.get() or {}).get("traceparent"))
        step = self._script.pop(0) if self._script else "done"
        if isinstance(step, Exception):
            raise step
        if isinstance(step, (int, float)):
            await asyncio.sleep(step)
            return "slept"
        return step


class Elsewhere(Plays):
    provider = "elsewhere"


def down() -> ProviderUnavailable:
    return ProviderUnavailable("it is down", "acme", 503)


async def test_a_run_is_a_workflow_with_its_plan_its_tool_and_its_attempts_below_it() -> None:
    seen = Seen(Plays("t", {"content": "yes", "usage": {"input_tokens": 3, "output_tokens": 2}, "cost_usd": 0.01}))
    output = await seen.runner.run("q")
    root, plan, tool, attempt = (seen.one(name) for name in ("invoke_workflow", "plan", "execute_tool t", "attempt"))
    assert [span.parent.span_id for span in (plan, tool)] == [root.context.span_id] * 2
    assert attempt.parent.span_id == tool.context.span_id
    assert root.parent is None
    assert {span.context.trace_id for span in (plan, tool, attempt)} == {root.context.trace_id}
    assert output.metadata["trace_id"] == f"{root.context.trace_id:032x}"
    assert root.attributes["steer.request_id"] == output.metadata["request_id"]
    assert dict(tool.attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "t",
        "steer.tool.version": "1.0.0",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "steer.cost_usd": 0.01,
    }
    assert attempt.attributes["gen_ai.provider.name"] == "acme"


async def test_each_attempt_has_a_span_and_a_failed_one_says_why() -> None:
    seen = Seen(Plays("t", down(), "yes"), config=ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.1)))
    await seen.runner.run("q")
    first, second = seen.named("attempt")
    assert (first.attributes["steer.outcome"], first.attributes["error.type"]) == ("failed", "ProviderUnavailable")
    assert not first.status.is_ok
    assert second.attributes["steer.outcome"] == "succeeded"
    assert seen.one("execute_tool").status.is_unset
    assert seen.one("invoke_workflow").attributes["steer.status"] == "succeeded"


async def test_the_span_of_an_attempt_is_current_while_its_tool_works() -> None:
    tool = Plays("t")
    seen = Seen(tool)
    await seen.runner.run("q")
    assert tool.current[0].get_span_context().span_id == seen.one("attempt").context.span_id
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_run_that_failed_is_an_error_of_the_workflow() -> None:
    seen = Seen(Plays("t", down()), config=ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1)))
    await seen.runner.run("q")
    root = seen.one("invoke_workflow")
    assert (root.attributes["error.type"], root.attributes["steer.status"]) == ("ProviderUnavailable", "failed")
    assert not root.status.is_ok
    assert seen.metrics()["gen_ai.invoke_workflow.duration"][0][0]["error.type"] == "ProviderUnavailable"


async def test_a_run_that_raises_ends_its_spans() -> None:
    seen = Seen(Plays("t", 5))
    with pytest.raises(BudgetExceeded):
        await seen.runner.run("q", options={"timeout_ms": 200})
    assert seen.one("invoke_workflow").attributes["error.type"] == "BudgetExceeded"
    assert seen.one("attempt").attributes["steer.outcome"] == "cancelled"
    assert seen.one("execute_tool")


async def test_a_run_that_is_cancelled_ends_its_spans() -> None:
    seen = Seen(Plays("t", 5))
    task = asyncio.create_task(seen.runner.run("q"))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.one("invoke_workflow").attributes["error.type"] == "CancelledError"
    assert seen.one("attempt").attributes["steer.outcome"] == "cancelled"


async def test_a_trace_id_of_w3c_joins_its_trace() -> None:
    seen = Seen(Plays("t"))
    output = await seen.runner.run("q", options={"trace_id": W3C})
    assert {f"{span.context.trace_id:032x}" for span in seen.spans.get_finished_spans()} == {W3C}
    assert output.metadata["trace_id"] == W3C


@pytest.mark.parametrize("trace_id", ["order-17", "0" * 32, "g" * 32])
async def test_another_trace_id_is_kept_as_an_attribute(trace_id: str) -> None:
    seen = Seen(Plays("t"))
    output = await seen.runner.run("q", options=OrchestrationConfig(trace_id=trace_id))
    root = seen.one("invoke_workflow")
    assert (root.attributes["steer.trace_id"], output.metadata["trace_id"]) == (trace_id, trace_id)
    assert f"{root.context.trace_id:032x}" != trace_id


async def test_below_a_span_of_the_caller_the_run_is_a_part_of_it() -> None:
    seen = Seen(Plays("t"))
    with seen.tracers.get_tracer("caller").start_as_current_span("order") as order:
        await seen.runner.run("q")
    assert seen.one("invoke_workflow").parent.span_id == order.get_span_context().span_id


async def test_content_is_in_no_span_unless_it_is_asked_for() -> None:
    seen = Seen(Plays("t", f"key {SECRET}"))
    await seen.runner.run(f"what of {SECRET}?")
    assert SECRET not in "".join(span.to_json() for span in seen.spans.get_finished_spans())


async def test_content_goes_through_the_redactor() -> None:
    def redact(shown: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(shown).replace(SECRET, "[redacted]"))  # type: ignore[no-any-return]

    seen = Seen(Plays("t", f"key {SECRET}"), content=True, redact=redact)
    await seen.runner.run(f"what of {SECRET}?")
    told = "".join(span.to_json() for span in seen.spans.get_finished_spans())
    assert SECRET not in told
    assert seen.one("execute_tool").attributes["gen_ai.tool.call.arguments"] == '"what of [redacted]?"'
    assert seen.one("invoke_workflow").attributes["gen_ai.tool.call.result"] == '"key [redacted]"'


async def test_what_an_error_says_is_content() -> None:
    class Strict(BaseModel):
        n: int

    class Parses(Plays):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            return Strict(n=request["query"])

    def said(seen: Seen) -> list[str]:
        return [str(seen.one(name).status.description) for name in ("attempt", "execute_tool", "invoke_workflow")]

    seen = Seen(Parses("t"))
    await seen.runner.run(f"my password is {SECRET}")
    assert said(seen) == ["validation"] * 3
    assert not any(SECRET in str(span.to_json()) for span in seen.spans.get_finished_spans())
    seen = Seen(Parses("t"), content=True, redact=lambda shown: dict.fromkeys(shown, "hidden"))
    await seen.runner.run(f"my password is {SECRET}")
    assert said(seen) == ["hidden"] * 3
    assert not any(SECRET in str(span.to_json()) for span in seen.spans.get_finished_spans())


@pytest.mark.parametrize("answer", [ZeroDivisionError(), None, 5, "x"], ids=repr)
async def test_a_redactor_that_fails_shows_nothing_and_loses_no_span(answer: Any) -> None:
    def redact(shown: dict[str, Any]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    seen = Seen(Plays("t"), content=True, redact=redact)
    await seen.runner.run("q")
    assert seen.one("execute_tool").attributes["gen_ai.tool.call.arguments"] == '"(redact failed)"'
    assert seen.one("invoke_workflow").attributes["gen_ai.tool.call.result"] == '"(redact failed)"'
    assert seen.one("attempt")


@pytest.mark.parametrize("traced", [True, False])
async def test_metrics_count_what_happened(traced: bool) -> None:
    config = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.1))
    answer = {"content": "yes", "usage": {"input_tokens": 3, "output_tokens": 2}, "cost_usd": 0.25}
    seen = Seen(Plays("t", down(), answer), config=config, traced=traced)
    options = OrchestrationConfig(idempotency_key="k", budgets=(Budget("team", usd=5, per="day"),))
    await seen.runner.run("q", "t", options=options)
    await seen.runner.run("q", "t", options=options)
    found = seen.metrics()
    assert found["steer.retries"] == [({"gen_ai.provider.name": "acme"}, 1)]
    assert found["steer.cost"] == [({"gen_ai.tool.name": "t"}, 0.25)]
    assert sorted(value for _, value in found["gen_ai.client.token.usage"]) == [2, 3]
    assert sorted(labels["steer.outcome"] for labels, _ in found["steer.attempts"]) == ["failed", "succeeded"]
    assert found["steer.idempotency.hits"] == [({"gen_ai.workflow.name": "t"}, 1)]
    assert found["steer.breaker.state"] == [({"gen_ai.provider.name": "acme"}, 0)]
    assert ({"steer.budget": "team", "steer.unit": "usd"}, 5.0) in found["steer.budget.limit"]


@pytest.mark.parametrize("traced", [True, False])
async def test_a_breaker_that_opens_is_counted_and_shown(traced: bool) -> None:
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
    seen = Seen(Plays("t", *(down() for _ in range(5))), config=config, traced=traced)
    for _ in range(5):
        await seen.runner.run("q")
    found = seen.metrics()
    assert found["steer.breaker.state"] == [({"gen_ai.provider.name": "acme"}, 2)]
    assert ({"gen_ai.provider.name": "acme", "steer.breaker.state": "open"}, 1) in found["steer.breaker.changes"]


@pytest.mark.parametrize("traced", [True, False])
async def test_the_attempts_of_a_run_that_is_cancelled_are_counted(traced: bool) -> None:
    config = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.1))
    seen = Seen(Plays("t", down(), 5), config=config, traced=traced)
    task = asyncio.create_task(seen.runner.run("q"))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = seen.metrics()
    outcomes = {labels["steer.outcome"]: count for labels, count in found["steer.attempts"]}
    assert outcomes == {"failed": 1, "cancelled": 1}
    assert found["gen_ai.invoke_workflow.duration"][0][0]["error.type"] == "CancelledError"


async def test_a_run_that_is_only_measured_is_a_part_of_the_trace_that_its_caller_named() -> None:
    tool = Plays("t", "yes", "yes")
    seen = Seen(tool, traced=False)
    output = await seen.runner.run("q", options={"trace_id": W3C})
    assert f"{tool.current[0].get_span_context().trace_id:032x}" == W3C
    assert tool.told[0].startswith(f"00-{W3C}-")
    assert output.metadata["trace_id"] == W3C
    await seen.runner.run("q")
    assert (tool.current[1], tool.told[1]) == (trace.INVALID_SPAN, None)


async def test_a_run_that_is_only_measured_is_a_part_of_its_callers_span() -> None:
    tool = Plays("t")
    seen = Seen(tool, traced=False)
    with seen.tracers.get_tracer("caller").start_as_current_span("order") as order:
        output = await seen.runner.run("q")
    where = order.get_span_context()
    assert output.metadata["trace_id"] == f"{where.trace_id:032x}"
    assert tool.told[0].startswith(f"00-{where.trace_id:032x}-{where.span_id:016x}-")
    assert [span.name for span in seen.spans.get_finished_spans()] == ["order"]


async def test_a_tracer_provider_that_is_set_later_is_told_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(Plays("t"), traced=False)
    await seen.runner.run("q")
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", seen.tracers)
    await seen.runner.run("q")
    assert (len(seen.named("invoke_workflow")), len(seen.named("attempt"))) == (1, 1)
    assert [count for _, count in seen.metrics()["steer.attempts"]] == [2]


async def test_what_is_only_measured_within_a_traced_run_has_no_spans_in_it() -> None:
    class Asks(Plays):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            return (await inner.run("q", "t")).content

    seen = Seen(Plays("t"), Asks("asks"))
    inner = ReliableOrchestrator(registry=seen.runner.registry)
    inner.executor = seen.runner.executor
    instrument(inner, meter_provider=seen.meters)
    output = await seen.runner.run("q", "asks")
    assert output.content == "done"
    assert len(seen.named("attempt")) == 1
    labels = [labels["gen_ai.tool.name"] for labels, _ in seen.metrics()["steer.attempts"]]
    assert sorted(labels) == ["asks", "t"]


async def test_orchestrators_of_one_meter_provider_are_all_watched_and_share_their_lines() -> None:
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
    seen = Seen(Plays("t", *(down() for _ in range(5))), config=config)
    registry = ToolRegistry()
    registry.register_tool(Plays("u"))
    registry.register_tool(Elsewhere("v"))
    second = instrument(ReliableOrchestrator(registry=registry), meter_provider=seen.meters)
    for _ in range(5):
        await seen.runner.run("q")
    await second.run("q", "u")
    await second.run("q", "v")
    states = {labels["gen_ai.provider.name"]: value for labels, value in seen.metrics()["steer.breaker.state"]}
    assert states == {"acme": 2, "elsewhere": 0}
    assert len(seen.metrics()["steer.breaker.state"]) == 2


async def test_an_orchestrator_that_is_gone_is_watched_no_more() -> None:
    seen = Seen(Plays("t"))
    await seen.runner.run("q")
    del seen.runner
    gc.collect()
    assert "steer.breaker.state" not in seen.metrics()


async def test_the_callers_own_events_are_told_as_well() -> None:
    heard: list[str] = []
    seen = Seen(Plays("t"))
    await seen.runner.run("q", event_manager=EventManager(on_create_event=lambda event: heard.append(event.type)))
    assert heard == ["start", "complete"]


async def test_what_is_no_event_manager_is_refused_as_it_is_without_telemetry() -> None:
    with pytest.raises(InvalidRequest, match="event_manager"):
        await Seen(Plays("t")).runner.run("q", event_manager=5)  # type: ignore[arg-type]


async def test_a_stream_and_many_runs_are_traced_too() -> None:
    seen = Seen(Plays("t"))
    async for _ in seen.runner.stream("q"):
        pass
    await seen.runner.run_many(["a", "b"])
    assert len(seen.named("invoke_workflow")) == 3


class Broken:
    """A processor that fails at everything."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("the exporter is broken")

    on_end = on_start

    def shutdown(self) -> None: ...
    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


async def test_an_exporter_that_fails_never_touches_a_run(caplog: pytest.LogCaptureFixture) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(Broken())  # type: ignore[arg-type]
    registry = ToolRegistry()
    registry.register_tool(Plays("t"))
    runner = instrument(ReliableOrchestrator(registry=registry), tracer_provider=tracers)
    output = await runner.run("q")
    assert output.content == "done"
    assert "telemetry failed" in caplog.text


async def test_without_a_provider_nothing_is_done() -> None:
    registry = ToolRegistry()
    registry.register_tool(Plays("t"))
    runner = instrument(ReliableOrchestrator(registry=registry))
    output = await runner.run("q")
    assert output.metadata["trace_id"] == output.metadata["request_id"]


async def test_instrumenting_twice_changes_nothing() -> None:
    seen = Seen(Plays("t"))
    assert instrument(seen.runner) is seen.runner
    await seen.runner.run("q")
    assert (len(seen.named("invoke_workflow")), len(seen.named("attempt"))) == (1, 1)
    assert [count for _, count in seen.metrics()["steer.attempts"]] == [1]


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, list[str]]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    logger, handler = logging.getLogger("app"), Keep()
    handler.setFormatter(JsonLines())
    handler.addFilter(with_run_ids)
    logger.addHandler(handler)
    yield logger, lines
    logger.removeHandler(handler)


async def test_a_log_line_of_a_tool_names_its_run(log: tuple[logging.Logger, list[str]]) -> None:
    logger, lines = log

    class Logs(Plays):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            logger.warning("look at %s", "this", extra={"order": 17})
            return "done"

    seen = Seen(Logs("t"))
    output = await seen.runner.run("q")
    (line,) = map(json.loads, lines)
    assert (line["message"], line["level"], line["tool"], line["order"]) == ("look at this", "WARNING", "t", 17)
    assert (line["request_id"], line["trace_id"]) == (output.metadata["request_id"], output.metadata["trace_id"])


def test_outside_of_a_run_a_log_line_has_no_ids(log: tuple[logging.Logger, list[str]]) -> None:
    logger, lines = log
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("it failed")
    line = json.loads(lines[0])
    assert "request_id" not in line
    assert "ValueError: no" in line["exception"]
