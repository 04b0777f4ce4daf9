"""One trace from the caller through the service to the provider, seen by a provider that keeps what it is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.service import create_app

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


class Provider:
    """Speaks OpenAI's format; the first `failures` requests are answered 503. `seen`: the headers of each request."""

    def __init__(self, failures: int = 0) -> None:
        self.seen: list[dict[str, str]] = []
        self._failures = failures

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))
        }
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.seen.append(headers)
        failed = len(self.seen) <= self._failures
        status = "503 Service Unavailable" if failed else "200 OK"
        streamed = body.get("stream") and not failed
        said = _stream() if streamed else json.dumps(_completion("message")).encode()
        kind = "text/event-stream" if streamed else "application/json"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode() + said)
        await writer.drain()
        writer.close()

    def parents(self) -> list[tuple[str, str]]:
        """The trace and the span that each request says it is below of."""
        return [tuple(headers["traceparent"].split("-")[1:3]) for headers in self.seen]  # type: ignore[misc]


def _completion(part: str) -> dict[str, Any]:
    choice = {"index": 0, part: {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    kind = "chat.completion" if part == "message" else "chat.completion.chunk"
    return {"id": "c", "object": kind, "created": 1, "model": "m", "choices": [choice]}


def _stream() -> bytes:
    return b"data: " + json.dumps(_completion("delta")).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of the process, whose tracer provider is ours for this test."""
    kept, tracers = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", tracers)
    return kept


@asynccontextmanager
async def served(provider: Provider) -> AsyncIterator[httpx2.AsyncClient]:
    listening = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    model = Model("openai:m", base_url=f"http://127.0.0.1:{port}/v1")
    registry = ToolRegistry()
    registry.register_tool(LLMTool("ask", model=model))
    config = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.001))
    runner = ReliableOrchestrator(reliability_config=config, registry=registry)
    app = create_app(runner, models={"m": (model,)})
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        yield client
    listening.close()


async def ask(client: httpx2.AsyncClient, way: str, headers: dict[str, str]) -> None:
    if way == "runs":
        answer = await client.post("/v1/runs", json={"request": "q", "tool_name": "ask"}, headers=headers)
        assert answer.json()["status"] == "succeeded", answer.text
    else:
        body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": way == "streamed chat"}
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text


WAYS = ["runs", "chat", "streamed chat"]


@pytest.mark.parametrize("way", WAYS)
async def test_each_request_to_a_provider_is_below_its_attempt_and_the_run_below_its_caller(
    way: str, spans: InMemorySpanExporter
) -> None:
    provider = Provider(failures=1)
    async with served(provider) as client:
        await ask(client, way, TRACEPARENT)
    ended = spans.get_finished_spans()
    (root,) = [span for span in ended if span.name.startswith("invoke_workflow")]
    # FastAPI may have spans of its own in between.
    above = {span.context.span_id: span.parent for span in ended}
    parent = root.parent
    while parent is not None and parent.span_id in above:
        parent = above[parent.span_id]
    assert parent is not None
    assert (f"{root.context.trace_id:032x}", f"{parent.span_id:016x}") == (TRACE, CALLER)
    attempts = [f"{span.context.span_id:016x}" for span in ended if span.name.startswith("attempt")]
    assert provider.parents() == [(TRACE, attempt) for attempt in attempts]
    assert len(attempts) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_where_nobody_keeps_spans_the_callers_goes_on_to_the_provider(way: str) -> None:
    provider = Provider()
    async with served(provider) as client:
        await ask(client, way, TRACEPARENT)
    assert provider.parents() == [(TRACE, CALLER)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"}])
async def test_without_a_trace_a_provider_is_told_of_none(way: str, headers: dict[str, str]) -> None:
    provider = Provider()
    async with served(provider) as client:
        await ask(client, way, headers)
    assert ["traceparent" in seen for seen in provider.seen] == [False]


async def test_baggage_of_the_caller_is_no_business_of_the_provider(spans: InMemorySpanExporter) -> None:
    provider = Provider()
    async with served(provider) as client:
        await ask(client, "runs", {**TRACEPARENT, "baggage": "customer=17"})
    assert ["baggage" in seen for seen in provider.seen] == [False]
