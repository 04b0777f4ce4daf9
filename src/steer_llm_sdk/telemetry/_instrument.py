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
from steer_llm_sdk.orchestration._call import Call, Run, replicate
from steer_llm_sdk.orchestration.base import BaseOrchestrator
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.providers.base import trace_headers
from steer_llm_sdk.reliability._pipeline import Next
from steer_llm_sdk.streaming.manager import EventManager, Handler, RunEvents
from steer_llm_sdk.telemetry import names
from steer_llm_sdk.telemetry._closing import Closer
from steer_llm_sdk.telemetry._meters import Meters
from steer_llm_sdk.telemetry._spans import Redactor, RunSpans, caller_context, headers_of, in_trace, trace_id_of

R = TypeVar("R")
O = TypeVar("O", bound=BaseOrchestrator)  # noqa: E741 - the orchestrator that is given comes back
SCOPE = "steer_llm_sdk"
_log = logging.getLogger(__name__)


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
    look at them; where there is none that traces, it is only measured. `content`: requests and answers go into the
    spans, through `redact` where it is given; neither is there otherwise, nor what errors say. What telemetry itself
    gets wrong is logged and never touches a run; for an exporter that hangs no run waits longer than 50 ms.
    """
    if getattr(orchestrator.run, "__steer_traced__", False):
        return orchestrator
    traced = _Traced(orchestrator, tracer_provider, meter_provider, content, redact)
    orchestrator.on_accept = _accepted
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
    """Tells `hear` of the start, and then whoever the caller has listening of every event."""

    def __init__(self, hear: Handler, source: EventManager | None) -> None:
        super().__init__()
        self._hear = functools.partial(_carefully, hear)
        self._source = source
        if source is not None:
            self.request_id, self.trace_id, self.sdk_version = source.request_id, source.trace_id, source.sdk_version
            self.on_delta, self.on_create_event = source.on_delta, source.on_create_event
            self.allowance, self.copies = source.allowance, source.copies

    def for_run(self, *given: Any, **named: Any) -> RunEvents:
        if self._source is not None:
            self._source.for_run(*given, **named)  # One of somebody else's may want to know when its run begins.
        return super().for_run(*given, **named)

    def handlers_of(self, event: StreamEvent) -> list[Handler]:
        theirs = [] if self._source is None else self._source.handlers_of(event)
        return [self._hear, *theirs] if event.type == "start" else theirs


class _Watch:
    """`with` it a run is measured. `spans` None: nobody keeps any. `output` is what it came to."""

    __slots__ = ("_began", "_meters", "_token", "_tool_name", "heard", "output", "runs", "spans")

    def __init__(self, meters: Meters, tool_name: str | None, spans: RunSpans | None = None) -> None:
        self._meters = meters
        self._tool_name = tool_name
        self.heard = functools.partial(_carefully, meters.told)
        self.spans = spans
        self.runs: tuple[Run, ...] = ()
        self.output: OrchestrationOutput | None = None

    def __enter__(self) -> _Watch:
        self._token = _watching.set(self)
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        seconds = time.perf_counter() - self._began
        _watching.reset(self._token)
        if isinstance(error, BudgetExceeded):
            self.output = error.output
        lines = (line for run in self.runs for line in run.timeline)
        _carefully(self._meters.ended, seconds, self._tool_name, self.output, error, lines)
        self.runs = ()  # What it has left behind may keep the context, and this in it.


_watching: ContextVar[_Watch | None] = ContextVar("steer_llm_sdk.watch", default=None)


def _accepted(run: Run) -> None:
    watch = _watching.get()
    if watch is not None:
        watch.runs += (run,)
        run.heard = watch.heard


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
        # A proxy stands for the one of the process.
        self._tracers = None if isinstance(tracer_provider, trace.ProxyTracerProvider) else tracer_provider
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
            given = request, tool_name, tool_options, options, event_manager
            tracers = trace.get_tracer_provider() if self._tracers is None else self._tracers
            # What is no event manager is refused by the run.
            if not self._wanted(tracers) or not isinstance(event_manager, (EventManager, type(None))):
                return await plain(*given)
            if isinstance(tracers, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
                return await self._measured(*given)
            return await self._traced(*given)

        run.__steer_traced__ = True  # type: ignore[attr-defined]
        return run

    def _wanted(self, tracers: TracerProvider) -> bool:
        there = self._meter_provider is not None or not isinstance(tracers, trace.ProxyTracerProvider)
        return there or _meters_are_set()

    def _its_meters(self) -> Meters:
        if self._meters is None:
            meter = metrics.get_meter(SCOPE, __version__, self._meter_provider)
            self._meters = Meters(meter, self._orchestrator)
        return self._meters

    async def _measured(
        self, request: Any, tool_name: str | None, tool_options: Any, options: Any, events: EventManager | None
    ) -> OrchestrationOutput:
        """A run of which nobody keeps spans: none is begun, and nothing stands round its attempts."""
        meters = _carefully(self._its_meters)
        if meters is None:
            return await self._run(request, tool_name, tool_options, options, events)
        asked = _carefully(_option, options, "trace_id")
        with _Watch(meters, tool_name) as watch, in_trace(asked) as own:
            if asked is None and own is not None:
                options = _with_trace_id(options, own)
            output = watch.output = await self._run(request, tool_name, tool_options, options, events)
            return output

    async def _traced(
        self, request: Any, tool_name: str | None, tool_options: Any, options: Any, events: EventManager | None
    ) -> OrchestrationOutput:
        begun = _carefully(self._begun, request, tool_name, options)
        if begun is None:
            return await self._run(request, tool_name, tool_options, options, events)
        spans, meters, options = begun

        def hear(start: StreamEvent) -> None:
            spans.root.set_attribute(names.REQUEST_ID, start.request_id)
            tool = start.metadata.get("tool_name")
            if tool is not None:
                spans.planned(str(tool), str(start.metadata.get("tool_version")), start.timestamp)

        watch = _Watch(meters, tool_name, spans)
        failed: BaseException | None = None
        try:
            with watch, trace.use_span(spans.root, record_exception=False, set_status_on_exception=False):
                output = watch.output = await self._run(request, tool_name, tool_options, options, _Tee(hear, events))
                return output
        except BaseException as error:
            failed = error
            raise
        finally:
            _carefully(spans.ended, watch.output, failed)
            patient = not isinstance(failed, GeneratorExit)  # Nothing can be waited for in a coroutine that is closed.
            failed = None
            await spans.close(patient)

    def _begun(self, request: Any, tool_name: str | None, options: Any) -> tuple[RunSpans, Meters, Any]:
        """The spans and meters of a run that begins now, and its options, which name the trace it is in."""
        # Here and not in `instrument`: what is only measured has nothing round its attempts.
        self._orchestrator.executor.around_attempts(_attempt)
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
        return spans, self._its_meters(), options


async def _attempt(call: Call, next: Next[Call, Any], /) -> Any:
    """The policy round each attempt, once a run was traced. It is the same one for all, for orchestrators may share an
    executor."""
    watch = _watching.get()
    spans = None if watch is None else watch.spans
    span = None if spans is None else _carefully(spans.attempt, call, replicate.get())
    if spans is None or span is None:
        return await next(call)
    failed: BaseException | None = None
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
        _carefully(spans.attempt_ended, span, failed)
        failed = None


def _meters_are_set() -> bool:
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
