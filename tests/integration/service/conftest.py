"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from served import Refused, Service, serving

from steer_llm_sdk.testing import SimulatedProvider


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:
        yield lambda *tools, **options: stack.enter_context(serving(*tools, **options))


@pytest.fixture
def refused(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Sends a body to a path, and gives what the 400 says that answers it. Both providers have a key."""

    def send(path: str, body: bytes) -> dict[str, Any]:
        for provider in ("OPENAI", "ANTHROPIC"):
            monkeypatch.setenv(f"{provider}_API_KEY", "x")
        with serve().client() as client:
            answer = client.post(path, content=body)
        assert answer.status_code == 400
        said: dict[str, Any] = answer.json()
        return said

    return send


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as running:
        yield running


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[ReadableSpan, ...]]:
    """The spans of the process that have ended, whose tracer provider is ours for this test."""
    kept, tracers = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", tracers)
    return kept.get_finished_spans
