"""`instrument`: spans and metrics of every run of an orchestrator."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from steer_llm_sdk import __version__
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.events import StreamEvent
from steer_llm_sdk.orchestration._call import Call, replicate
from steer_llm_sdk.orchestration.base import BaseOrchestrator
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.providers.base import trace_headers
from steer_llm_sdk.reliability._pipeline import Next
from steer_llm_sdk.streaming.manager import EventManager, Handler, RunEvents
from steer_llm_sdk.telemetry import names
from steer_llm_sdk.telemetry._closing import Closer
from steer_llm_sdk.telemetry._meters import Meters
from steer_llm_sdk.telemetry._spans import Redactor, RunSpans, caller_context, headers_of, trace_id_of

R = TypeVar("R")
O = TypeVar("O", bound=BaseOrchestrator)  # noqa: E741 - the orchestrator that is given comes back
SCOPE = "steer_llm_sdk"
_log = logging.getLogger(__name__)
_spans: ContextVar[RunSpans | None] = ContextVar("steer_llm_sdk.spans", default=None)


def instrument(
    orchestrator: O,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    content: bool = False,
    redact: Redactor | None = None,
) -> O:
    """Trace and measure every run of this orchestrator, which is returned. Calling it again changes nothing.

    Providers: those given, else the ones set for the process. Where there is none, as without an SDK, a run costs one
    look at them. `content`: requests and answers go into the spans, through `redact` where it is given; neither is
    there otherwise, nor what errors say. What telemetry itself gets wrong is logged and never touches a run; for an
    exporter that hangs no run waits longer than 50 ms.
    """
    if getattr(orchestrator.run, "__steer_traced__", False):
        return orchestrator
    traced = _Traced(orchestrator, tracer_provider, meter_provider, content, redact)
    orchestrator.executor.around_attempts(_attempt)
    orchestrator.run = traced.run  # type: ignore[method-assign]  # stream, run_many and run_sync go through it
    return orchestrator


def _carefully(work: Callable[..., R], *given: Any) -> R | None:
    """What `work` gives, and None where it raises."""
    try:
        return work(*given)
    except Exception:
        _log.warning("telemetry failed", exc_info=True)
        return None


class _Tee(EventManager):
    """Tells `hear` of every event, and then whoever the caller has listening."""

    def __init__(self, hear: Handler, source: EventManager | None) -> None:
        super().__init__()
        self._hear = functools.partial(_carefully, hear)
        self._source = source
        if source is not None:
            self.request_id, self.trace_id, self.sdk_version = source.request_id, source.trace_id, source.sdk_version
            self.on_delta, self.on_create_event = source.on_delta, source.on_create_event
            self.allowance = source.allowance

    def for_run(self, *given: Any, **named: Any) -> RunEvents:
        if self._source is not None:
            self._source.for_run(*given, **named)  # One of somebody else's may want to know when its run begins.
        return super().for_run(*given, **named)

    def handlers_of(self, event: StreamEvent) -> list[Handler]:
        return [self._hear, *([] if self._source is None else self._source.handlers_of(event))]


class _Traced:
    def __init__(
        self,
        orchestrator: BaseOrchestrator,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        content: bool,
        redact: Redactor | None,
    ) -> None:
        self._orchestrator = orchestrator
        self._run = orchestrator.run
        self._tracers = tracer_provider
        self._meter_provider = meter_provider
        self._meters: Meters | None = None
        self._content = content
        self._redact = redact
        self._closer = Closer()
        self.run = self._wrapped()

    def _wrapped(self) -> Any:
        plain = self._run

        @functools.wraps(plain)
        async def run(
            request: Any,
            tool_name: str | None = None,
            tool_options: Mapping[str, Any] | None = None,
            options: Any = None,
            event_manager: EventManager | None = None,
        ) -> OrchestrationOutput:
            # What is no event manager is refused by the run.
            if not self._wanted() or not isinstance(event_manager, (EventManager, type(None))):
                return await plain(request, tool_name, tool_options, options, event_manager)
            return await self._traced(request, tool_name, tool_options, options, event_manager)

        run.__steer_traced__ = True  # type: ignore[attr-defined]
        return run

    def _wanted(self) -> bool:
        given = self._tracers is not None or self._meter_provider is not None
        return given or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) or _measured()

    def _measuring(self) -> Meters:
        if self._meters is None:
            meter = metrics.get_meter(SCOPE, __version__, self._meter_provider)
            self._meters = Meters(meter, self._orchestrator)
        return self._meters

    async def _traced(
        self, request: Any, tool_name: str | None, tool_options: Any, options: Any, events: EventManager | None
    ) -> OrchestrationOutput:
        begun = _carefully(self._begun, request, tool_name, options)
        if begun is None:
            return await self._run(request, tool_name, tool_options, options, events)
        spans, meters, options = begun

        def hear(event: StreamEvent) -> None:
            if event.type == "start":
                spans.root.set_attribute(names.REQUEST_ID, event.request_id)
                tool = event.metadata.get("tool_name")
                if tool is not None:
                    spans.planned(str(tool), str(event.metadata.get("tool_version")), event.timestamp)
            elif event.type == "delta":
                delta = getattr(event, "delta", None)
                if isinstance(delta, Mapping) and isinstance(delta.get("data"), Mapping):
                    meters.told(str(delta.get("event_type")), delta["data"])

        began = time.perf_counter()
        output: OrchestrationOutput | None = None
        failed: BaseException | None = None
        token = _spans.set(spans)
        try:
            with trace.use_span(spans.root, record_exception=False, set_status_on_exception=False):
                output = await self._run(request, tool_name, tool_options, options, _Tee(hear, events))
                return output
        except BaseException as error:
            failed = error
            if isinstance(error, BudgetExceeded):
                output = error.output
            raise
        finally:
            _spans.reset(token)
            _carefully(spans.ended, output, failed)
            _carefully(meters.ended, time.perf_counter() - began, tool_name, output, failed, spans.tried)
            patient = not isinstance(failed, GeneratorExit)  # Nothing can be waited for in a coroutine that is closed.
            failed = None
            await spans.close(patient)

    def _begun(self, request: Any, tool_name: str | None, options: Any) -> tuple[RunSpans, Meters, Any]:
        """The spans and meters of a run that begins now, and its options, which name the trace it is in."""
        asked = _option(options, "trace_id")
        tracer = trace.get_tracer(SCOPE, __version__, self._tracers)
        name = names.INVOKE_WORKFLOW if tool_name is None else f"{names.INVOKE_WORKFLOW} {tool_name}"
        root = tracer.start_span(name, caller_context(asked))
        root.set_attribute(names.OPERATION, names.INVOKE_WORKFLOW)
        root.set_attribute(names.TENANT, _option(options, "tenant") or "default")
        own = trace_id_of(root)
        if asked is not None and asked != own:
            root.set_attribute(names.TRACE_ID, asked)
        elif asked is None and own is not None:
            options = _with_trace_id(options, own)
        spans = RunSpans(tracer, root, request, self._content, self._redact, self._closer)
        return spans, self._measuring(), options


async def _attempt(call: Call, next: Next[Call, Any], /) -> Any:
    """The policy round each attempt. It is the same one for all, for orchestrators may share an executor."""
    spans = _spans.get()
    span = None if spans is None else _carefully(spans.attempt, call, replicate.get())
    if spans is None or span is None:
        return await next(call)
    began, failed = time.perf_counter(), None
    token = trace_headers.set(_carefully(headers_of, span))
    try:
        # While it is under way the span is current, so that a client's own spans are below it.
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            return await next(call)
    except BaseException as error:
        failed = error
        raise
    finally:
        trace_headers.reset(token)
        _carefully(spans.attempt_ended, call, span, began, failed)
        failed = None


def _measured() -> bool:
    """Whether somebody has set a meter provider for the process."""
    kind = type(metrics.get_meter_provider()).__module__
    return not kind.startswith("opentelemetry.metrics")


def _option(options: Any, name: str) -> Any:
    return options.get(name) if isinstance(options, Mapping) else getattr(options, name, None)


def _with_trace_id(options: Any, trace_id: str) -> Any:
    """The same options; the events and the output then name the trace they are in."""
    if options is None:
        return {"trace_id": trace_id}
    if isinstance(options, Mapping):
        return {**options, "trace_id": trace_id}
    return options.model_copy(update={"trace_id": trace_id}) if hasattr(options, "model_copy") else options
