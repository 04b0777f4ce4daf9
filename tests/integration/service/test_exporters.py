"""Exporters that hang or fail beside a service, and what is exported of errors and of runs that are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from served import Service

from steer_llm_sdk.orchestration import ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.telemetry import instrument
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

Serve = Callable[..., Service]


class Exporter(SpanExporter):
    """`how`: it raises, or it waits until the test is over."""

    def __init__(self, how: str) -> None:
        self._how = how
        self.asked = threading.Event()
        self.over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        if self._how == "raises":
            raise RuntimeError("the collector is gone")
        self.over.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.over.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class Metrics(MetricExporter):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.like = Exporter(how)

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **more: Any) -> MetricExportResult:
        self.like.export(())
        return MetricExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000, **more: Any) -> None:
        self.like.shutdown()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_an_exporter_of_spans_that_hangs_or_raises_touches_no_run(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    exporter, tracers = Exporter(how), TracerProvider(shutdown_on_exit=False)
    batch = BatchSpanProcessor(exporter, max_queue_size=8, max_export_batch_size=4, schedule_delay_millis=10)
    tracers.add_span_processor(batch)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", tracers)
    with serve(ScriptedTool("t", *[OK("fine")] * 20)).client() as client:
        for _ in range(2):
            # More spans than the queue holds, while nothing of it gets away.
            for _ in range(10):
                answer = client.post("/v1/runs", json={"request": "x", "tool_name": "t"})
                assert (answer.status_code, answer.json()["content"]) == (200, "fine")
            assert exporter.asked.wait(10)
    exporter.over.set()
    tracers.shutdown()


async def test_an_exporter_that_hangs_within_the_end_of_a_span_holds_up_no_run() -> None:
    exporter, tracers = Exporter("hangs"), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    registry = ToolRegistry()
    registry.register_tool(ScriptedTool("t", *[OK("fine")] * 3))
    runner = instrument(ReliableOrchestrator(registry=registry), tracer_provider=tracers)
    # The exporter goes on only when the runs are over.
    assert [(await runner.run("x", "t")).content for _ in range(3)] == ["fine"] * 3
    assert exporter.asked.is_set()
    exporter.over.set()


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_an_exporter_of_metrics_that_hangs_or_raises_touches_no_run(how: str) -> None:
    exporter = Metrics(how)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=10)
    meters = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    registry = ToolRegistry()
    registry.register_tool(ScriptedTool("t", *[OK("fine")] * 20))
    runner = instrument(ReliableOrchestrator(registry=registry), meter_provider=meters)
    for _ in range(2):
        for _ in range(10):
            assert (await runner.run("x", "t")).content == "fine"
        assert await asyncio.to_thread(exporter.like.asked.wait, 10)
    exporter.like.over.set()
    await asyncio.to_thread(meters.shutdown)


def test_an_error_and_a_cancelled_run_are_told_by_spans_and_metrics(
    serve: Serve, spans: Callable[[], tuple[ReadableSpan, ...]]
) -> None:
    service = serve(ScriptedTool("t", err(ValueError("no")), HANG, provider="p"))
    with service.client() as client:
        assert client.post("/v1/runs", json={"request": "x", "tool_name": "t"}).json()["status"] == "failed"
        body = {"request": "x", "tool_name": "t"}
        run_id = client.post("/v1/runs", json=body, headers={"Prefer": "respond-async"}).json()["id"]
        assert client.delete(f"/v1/runs/{run_id}").status_code == 202
        assert service.ended(client, run_id)["state"] == "cancelled"
        told = client.get("/metrics").text
    count = "gen_ai_invoke_workflow_duration_seconds_count"
    assert f'{count}{{error_type="ValueError",gen_ai_workflow_name="t"}} 1.0' in told
    assert f'{count}{{error_type="CancelledError",gen_ai_workflow_name="t"}} 1.0' in told
    attempts_of = 'steer_attempts_total{gen_ai_provider_name="p",gen_ai_tool_name="t",steer_outcome='
    assert attempts_of + '"failed"} 1.0' in told
    assert attempts_of + '"cancelled"} 1.0' in told
    roots = [span for span in spans() if span.name.startswith("invoke_workflow")]
    assert [(span.attributes or {})["error.type"] for span in roots] == ["ValueError", "CancelledError"]
    assert [(span.attributes or {})["steer.status"] for span in roots] == ["failed", "cancelled"]
    attempts = [span for span in spans() if span.name.startswith("attempt")]
    assert [(span.attributes or {})["steer.outcome"] for span in attempts] == ["failed", "cancelled"]
    assert len({span.context.trace_id for span in (*roots, *attempts) if span.context}) == 2
