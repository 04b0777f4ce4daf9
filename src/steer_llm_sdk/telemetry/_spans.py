"""The spans of one run: the workflow, the plan, each tool that is tried, and below it each attempt."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import INVALID_SPAN, format_trace_id

from steer_llm_sdk.models.usage import tokens_by_side
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.providers.base import trace_headers
from steer_llm_sdk.telemetry import names
from steer_llm_sdk.telemetry._closing import Closer

_log = logging.getLogger(__name__)

Redactor = Callable[[dict[str, Any]], dict[str, Any]]
LONGEST = 10_000
"""Characters of a request or an answer that go into a span, where they are wanted there at all."""


def caller_context(trace_id: str | None) -> Context | None:
    """Where the run's span belongs: below the span that is current; else in the trace that the caller named by its W3C
    id (32 hex digits, not all 0); else (None) in a trace of its own."""
    if trace.get_current_span() is not INVALID_SPAN or trace_id is None:
        return None
    try:
        number = int(trace_id, 16) if len(trace_id) == 32 else 0
    except ValueError:
        return None
    if not number:
        return None
    # A parent that nobody sent: the trace is the caller's, and so is the root of it.
    parent = SpanContext(number, number & (2**64 - 1) or 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(parent))


# Not the propagators of the process: baggage may hold what is no provider's business.
_W3C = TraceContextTextMapPropagator()


def headers_of(span: Span) -> dict[str, str]:
    """`traceparent` and `tracestate` for what is asked within the span; none where there is no trace."""
    headers: dict[str, str] = {}
    _W3C.inject(headers, set_span_in_context(span))
    return headers


def below_caller(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """A run that is begun within is a part of the span that the caller's `traceparent` names, if it names one. Where a
    span is current, as under the instrumentation of a server, that one is nearer."""
    if "traceparent" not in headers or trace.get_current_span() is not INVALID_SPAN:
        return _NOTHING
    return _within(_W3C.extract(headers))


_NOTHING = nullcontext()


@contextmanager
def _within(context: Context) -> Iterator[None]:
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def in_trace(trace_id: Any) -> AbstractContextManager[str | None]:
    """For a run without spans of its own: what is done within is below the caller's, and what is asked of providers
    says so. Gives the id of that trace; None where there is none."""
    if trace_id is None and trace.get_current_span() is INVALID_SPAN:
        return _NOTHING
    return _in_trace(trace_id)


@contextmanager
def _in_trace(trace_id: Any) -> Iterator[str | None]:
    where = caller_context(trace_id) if isinstance(trace_id, str) else None
    with _NOTHING if where is None else _within(where):
        span = trace.get_current_span()
        own = trace_id_of(span)
        if own is None:
            yield None
            return
        token = trace_headers.set(headers_of(span))
        try:
            yield own
        finally:
            trace_headers.reset(token)


def trace_id_of(span: Span) -> str | None:
    context = span.get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


class RunSpans:
    """`content`: requests, answers and what errors say go into the spans as well, through `redact`.

    What is over keeps its time, and is ended by `closer` when the run is.
    """

    def __init__(
        self, tracer: Tracer, root: Span, request: Any, content: bool, redact: Redactor | None, closer: Closer
    ) -> None:
        self._tracer = tracer
        self.root = root
        self._below = set_span_in_context(root)
        self._began = time.time_ns()
        self._request = request if content else None
        self._content = content
        self._redact = redact
        self._tools: dict[str, tuple[Span, Context]] = {}
        self._planned = False
        self._closer = closer
        self._over: list[tuple[Span, int]] = []
        self._closed = False

    def planned(self, tool: str, version: str, at: float) -> None:
        """The run has started with a tool; until then it planned."""
        if self._planned:
            return
        self._planned = True
        span = self._tracer.start_span(
            names.PLAN, self._below, start_time=self._began, attributes={names.OPERATION: names.PLAN}
        )
        span.set_attribute(names.TOOL, tool)
        span.set_attribute(names.TOOL_VERSION, version)
        self._over.append((span, max(int(at * 1e9), self._began)))

    def attempt(self, call: Any, replicate: str) -> Span:
        """The span of an attempt that is sent now."""
        _, below = self._tool(call.tool, call.version)
        span = self._tracer.start_span(f"{names.ATTEMPT} {call.target}", below, SpanKind.CLIENT)
        if span.is_recording():
            span.set_attributes({names.PROVIDER: call.target, names.TOOL: call.tool})
            if call.model is not None:
                span.set_attribute(names.MODEL, call.model)
            if replicate:
                span.set_attribute(names.REPLICATE, replicate)
        return span

    def attempt_ended(self, span: Span, error: BaseException | None) -> None:
        """How an attempt ended. A cancellation is no error: somebody else answered, or nobody waits any more."""
        outcome = "succeeded" if error is None else "failed" if isinstance(error, Exception) else "cancelled"
        span.set_attribute(names.OUTCOME, outcome)
        if isinstance(error, Exception):
            self._fail(span, describe_error(error))
            after = getattr(error, "retry_after", None)
            if isinstance(after, (int, float)):
                span.set_attribute(names.RETRY_AFTER, after)
        over = span, time.time_ns()
        if self._closed:  # It was left behind.
            self._closer.end([over])
        else:
            self._over.append(over)

    def ended(self, output: Any, error: BaseException | None) -> None:
        """Say what the run came to on all that is open."""
        now = time.time_ns()
        per_agent: Mapping[str, Any] = {} if output is None else output.per_agent
        for name, (span, _) in self._tools.items():
            entry = per_agent.get(name, {})
            if entry.get("error"):
                self._fail(span, entry["error"])
            _spent(span, entry.get("usage") or {}, entry.get("cost_usd"))
            self._over.append((span, now))
        self._over.append((self.root, now))
        if output is not None:
            self.root.set_attributes({names.STATUS: output.status, names.REPLAYED: output.replayed})
            _spent(self.root, output.usage, output.cost_usd)
            plan = output.metadata.get("plan")
            if isinstance(plan, Mapping) and plan.get("reasoning"):
                self.root.set_attribute(names.PLAN_REASON, str(plan["reasoning"]))
            if self._content:
                self.root.set_attribute(names.RESULT, self._shown("content", output.content))
            if output.status == "failed":
                said = output.content.get("error", {}) if isinstance(output.content, dict) else {}
                self._fail(self.root, said)
        elif error is not None:
            self.root.set_attribute(names.STATUS, "failed" if isinstance(error, Exception) else "cancelled")
        if error is not None:
            self._fail(self.root, describe_error(error))

    async def close(self, patient: bool) -> None:
        """End all that is over."""
        self._closed = True
        over = [(span, at) for span, at in self._over if span.is_recording()]
        ended = self._closer.end(over) if over else None
        if patient and ended is not None:
            await self._closer.wait(ended)

    def _tool(self, name: str, version: str) -> tuple[Span, Context]:
        known = self._tools.get(name)
        if known is None:
            span = self._tracer.start_span(f"{names.EXECUTE_TOOL} {name}", self._below)
            span.set_attributes({names.OPERATION: names.EXECUTE_TOOL, names.TOOL: name, names.TOOL_VERSION: version})
            if self._content:
                span.set_attribute(names.ARGUMENTS, self._shown("request", self._request))
            known = self._tools[name] = (span, set_span_in_context(span))
        return known

    def _fail(self, span: Span, error: Mapping[str, Any]) -> None:
        """As `describe_error` has it. Its message may hold the request, so it is content."""
        span.set_attribute(names.ERROR_TYPE, error.get("type", "error"))
        known = (str(error[name]) for name in ("code", "status_code") if error.get(name) is not None)
        said = self._redacted("error", error.get("message", "")) if self._content else " ".join(known)
        span.set_status(Status(StatusCode.ERROR, str(said)[:LONGEST]))

    def _shown(self, name: str, value: Any) -> str:
        return json.dumps(self._redacted(name, value), ensure_ascii=False, default=str)[:LONGEST]

    def _redacted(self, name: str, value: Any) -> Any:
        if self._redact is None:
            return value
        try:
            return self._redact({name: value}).get(name)
        except Exception as error:
            _log.warning("redact failed, and nothing of it is shown: %s", type(error).__name__)
            return _NOT_REDACTED


_NOT_REDACTED = "(redact failed)"


def _spent(span: Span, usage: Mapping[str, Any], cost: float | None) -> None:
    if not span.is_recording():
        return
    for kind, used in tokens_by_side(usage).items():
        span.set_attribute(names.USED[kind], used)
    if cost is not None:
        span.set_attribute(names.COST, cost)
