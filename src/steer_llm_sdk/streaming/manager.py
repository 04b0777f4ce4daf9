"""EventManager: typed events to subscribers. Nothing a subscriber does changes a run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from steer_llm_sdk.errors import InvalidRequest, a_kind
from steer_llm_sdk.models.events import (
    StreamCompleteEvent,
    StreamDeltaEvent,
    StreamErrorEvent,
    StreamEvent,
    StreamStartEvent,
    StreamUsageEvent,
)
from steer_llm_sdk.models.plain import copied
from steer_llm_sdk.streaming.text import Screen, Speaker, Stage, Voice, Work

R = TypeVar("R")
E = TypeVar("E", bound=StreamEvent)
Handler = Callable[[Any], Any]
Redactor = Callable[[dict[str, Any]], dict[str, Any]]
_log = logging.getLogger(__name__)

ALLOWANCE = 0.25
"""Seconds of a run's time that its handlers and redactor may take in all, and EACH more for every event; after that
they are dropped with a warning. At the end of the run a handler that is behind has as long, if it goes on."""
EACH = 0.001
_PASSED_ON = (KeyboardInterrupt, GeneratorExit)
"""Whatever else a handler or a redactor raises is its own failure: an exit() in it ends no run, and no event loop."""
BACKLOG = 10_000
"""Events that may wait for a slow handler; more are dropped with a warning."""
_HANDLER_OF = {kind: f"on_{kind}" for kind in ("start", "delta", "usage", "complete", "error")}
KINDS = frozenset(
    [StreamEvent, StreamStartEvent, StreamDeltaEvent, StreamUsageEvent, StreamCompleteEvent, StreamErrorEvent]
)
"""Classes of events that are nothing but their fields."""


def _handler(name: str, given: Handler) -> Handler:
    if not callable(given):
        raise InvalidRequest(name, given, "give a function of one event, or None")
    return given


class EventManager:
    """One handler per kind of event, sync or async; `on_create_event` sees every event before its own handler does.

    An async handler runs beside the run, in order; a sync one runs in the loop and should be short. `dropped` counts
    what handlers were not given, because they or the redactor were too slow or the redactor failed; the log says why.
    InvalidRequest for a handler that cannot be called.
    """

    dropped: int = 0
    allowance: float = ALLOWANCE
    """Of its handlers; more for those that are known to be short, of which a busy machine may hold one for long."""
    copies: bool = True
    """Its handlers may keep an event or write into it; False where they only look at it."""

    def __init__(
        self,
        on_start: Handler | None = None,
        on_delta: Handler | None = None,
        on_usage: Handler | None = None,
        on_complete: Handler | None = None,
        on_error: Handler | None = None,
        request_id: str | None = None,
        trace_id: str | None = None,
        sdk_version: str | None = None,
        on_create_event: Handler | None = None,
    ) -> None:
        self.on_start = None if on_start is None else _handler("on_start", on_start)
        self.on_delta = None if on_delta is None else _handler("on_delta", on_delta)
        self.on_usage = None if on_usage is None else _handler("on_usage", on_usage)
        self.on_complete = None if on_complete is None else _handler("on_complete", on_complete)
        self.on_error = None if on_error is None else _handler("on_error", on_error)
        self.request_id = request_id
        self.trace_id = trace_id
        self.sdk_version = sdk_version
        self.on_create_event = None if on_create_event is None else _handler("on_create_event", on_create_event)
        self._telling: set[asyncio.Task[None]] = set()

    async def emit_start(self, event: StreamStartEvent) -> None:
        await self._emit(event)

    async def emit_delta(self, event: StreamDeltaEvent) -> None:
        await self._emit(event)

    async def emit_usage(self, event: StreamUsageEvent) -> None:
        await self._emit(event)

    async def emit_complete(self, event: StreamCompleteEvent) -> None:
        await self._emit(event)

    async def emit_error(self, event: StreamErrorEvent) -> None:
        await self._emit(event)

    def tell(self, event: StreamEvent) -> None:
        """Hand over an event without waiting for its handlers. Needs a running loop."""
        telling = asyncio.get_running_loop().create_task(self._emit(event))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def for_run(
        self,
        request_id: str,
        trace_id: str,
        metadata: Mapping[str, Any] | None = None,
        redactor: Redactor | None = None,
    ) -> RunEvents:
        """The events of one run: filled in, redacted once on the way out, handlers held to ALLOWANCE."""
        return RunEvents(self, request_id, trace_id, metadata or {}, redactor)

    def handlers_of(self, event: StreamEvent) -> list[Handler]:
        name = _HANDLER_OF.get(event.type)
        first, own = self.on_create_event, None if name is None else getattr(self, name)
        if first is None:
            return [] if own is None else [own]
        return [first] if own is None else [first, own]

    async def _emit(self, event: StreamEvent) -> None:
        event = self._filled(event)
        for handler in self.handlers_of(event):
            try:
                result = handler(event)
                if inspect.isawaitable(result):
                    await result
            except (*_PASSED_ON, asyncio.CancelledError):
                raise
            except BaseException:
                _log.warning("a handler of %s events failed", event.type, exc_info=True)

    def _filled(self, event: StreamEvent) -> StreamEvent:
        metadata = {**event.metadata}
        if self.trace_id:
            metadata.setdefault("trace_id", self.trace_id)
        if self.sdk_version:
            metadata.setdefault("sdk_version", self.sdk_version)
        return replace(
            event,
            request_id=event.request_id or self.request_id or "",
            timestamp=event.timestamp or time.time(),
            metadata=metadata,
        )


def _changed(event: E, changes: dict[str, Any]) -> E:
    """As `replace`, in a fifth of its time where the class is one of ours."""
    kind = type(event)
    if kind not in KINDS:
        return replace(event, **changes)
    fresh = object.__new__(kind)
    object.__setattr__(fresh, "__dict__", event.__dict__ | changes)
    return fresh


class RunEvents(EventManager):
    """The events of one run, on their way to the handlers of `source`. `metadata` goes into every event."""

    on_start = on_delta = on_usage = on_complete = on_error = on_create_event = None

    def __init__(
        self,
        source: EventManager,
        request_id: str,
        trace_id: str,
        metadata: Mapping[str, Any],
        redactor: Redactor | None,
    ) -> None:
        self.request_id, self.trace_id, self.sdk_version = request_id, trace_id, source.sdk_version
        self.metadata = dict(metadata)
        self._source = source
        self._redactor = redactor
        self._queue: deque[tuple[Handler, StreamEvent]] = deque()
        self._drain: asyncio.Task[None] | None = None
        self._taken = 0.0
        self._told = 0
        self._handled = 0
        self._dropped = False
        self._over = False
        self._stage: Stage | None = None

    def stage(self) -> Stage:
        """For the attempts of which one at a time is shown to the handlers."""
        if self._stage is None:
            self._stage = Stage(Screen(self.tell))
        return self._stage

    async def attempt(
        self,
        who: Mapping[str, Any],
        work: Callable[[EventManager], Awaitable[R]],
        metadata: Mapping[str, Any] | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> R:
        """Do `work` with an event manager of its own, whose text is shown only while this attempt is the one shown.

        `who` is what a `restart` before its text says of it, `metadata` goes into its events. Each of them calls
        `on_event`.
        """
        if on_event is None and self._source.on_delta is None and self._source.on_create_event is None:
            return await work(self)  # Nobody hears any text.
        events = AttemptEvents(self, who, metadata, on_event)
        if self._stage is not None:
            events.voice()  # What was shown before is void from now on.
        try:
            result = await work(events)
        except BaseException:
            if events.spoken is not None:
                events.spoken.fail()
            raise
        if events.spoken is not None:
            events.spoken.returned(result)
        return result

    def choose(self, result: object) -> None:
        """The attempt that returned `result` has the answer: its text is what is shown in the end."""
        if self._stage is not None:
            self._stage.choose(result)

    def tell(self, event: StreamEvent) -> None:
        if self._over:
            return
        handlers = self._source.handlers_of(event)
        if not handlers:
            return
        self._told += 1
        complete = None if self._dropped else self._redacted(self._filled(event))
        if complete is None:
            self._source.dropped += len(handlers)
            return
        for handler in handlers:
            self._hand_over(handler, complete)

    async def flush(self, until: float | None = None) -> None:
        """Let async handlers catch up, for what is left of their time and never past `until` (loop time).

        Then the run is over: what is told after that, by work that was left behind, is no part of it.
        """
        drain = self._drain
        try:
            if drain is not None and not drain.done():
                await self._catch_up(drain, until)
        finally:
            if drain is not None and not drain.done():
                self._drop("they had not finished when the run was over")
            self._over = True

    async def _catch_up(self, drain: asyncio.Task[None], until: float | None) -> None:
        """One that hangs at an event is not waited for as long as one that is slow."""
        now = asyncio.get_running_loop().time
        end = now() + max(self._source.allowance + EACH * self._told - self._taken, 0.0)
        if until is not None:
            end = min(end, max(until, now() + 0.01))
        before = -1
        while not drain.done() and self._handled > before and (left := end - now()) > 0:
            before = self._handled
            await asyncio.wait({drain}, timeout=min(left, ALLOWANCE))

    async def _emit(self, event: StreamEvent) -> None:
        self.tell(event)

    emit_start = emit_delta = emit_usage = emit_complete = emit_error = _emit

    def _filled(self, event: StreamEvent) -> StreamEvent:
        metadata = {**self.metadata, "trace_id": self.trace_id, **event.metadata}
        if self.sdk_version:
            metadata.setdefault("sdk_version", self.sdk_version)
        changes: dict[str, Any] = {
            "provider": event.provider or "orchestrator",
            "model": event.model or "orchestrator",
            "request_id": event.request_id or self.request_id or "",
            "timestamp": event.timestamp or time.time(),
            "metadata": metadata,
        }
        if self._source.copies or self._redactor is not None:
            changes["metadata"] = copied(metadata)
            if event.PAYLOAD is not None:
                changes[event.PAYLOAD] = copied(getattr(event, event.PAYLOAD))
        return _changed(event, changes)

    def _redacted(self, event: StreamEvent) -> StreamEvent | None:
        """The event as it may leave; None where the redactor failed, for then nobody knows what is in it."""
        if self._redactor is None:
            return event
        started = time.perf_counter()
        try:
            changes: dict[str, Any] = {"metadata": self._clean(dict(event.metadata))}
            name = event.PAYLOAD
            if name is not None:
                changes[name] = self._clean_payload(name, getattr(event, name))
            return _changed(event, changes)
        except _PASSED_ON:
            raise
        except BaseException:
            _log.warning("the redactor failed: a %s event is withheld", event.type, exc_info=True)
            return None
        finally:
            self._took(started)

    def _clean_payload(self, name: str, payload: Any) -> Any:
        if isinstance(payload, Mapping):
            return self._clean(dict(payload))
        return self._clean({name: payload})[name]

    def _clean(self, content: dict[str, Any]) -> dict[str, Any]:
        assert self._redactor is not None
        cleaned = self._redactor(content)
        if not isinstance(cleaned, dict):
            raise TypeError(f"redactor_cb returned {a_kind(cleaned)}; it must return a dict")
        return cleaned

    def _hand_over(self, handler: Handler, event: StreamEvent) -> None:
        if self._dropped:
            self._source.dropped += 1
            return
        if self._drain is not None and not self._drain.done():
            if len(self._queue) >= BACKLOG:
                self._source.dropped += 1
                self._drop(f"{BACKLOG} events were waiting for them")
                return
            self._queue.append((handler, event))
            return
        result = self._call(handler, event)
        if result is not None:
            self._drain = asyncio.get_running_loop().create_task(self._work_off(result, event))
            if inspect.iscoroutine(result):  # The task may be cancelled before it has begun.
                self._drain.add_done_callback(lambda _: result.close())

    def _call(self, handler: Handler, event: StreamEvent) -> Awaitable[Any] | None:
        started = time.perf_counter()
        try:
            result = handler(event)
        except _PASSED_ON:
            raise
        except BaseException:  # It may have asked a future that was cancelled.
            _log.warning("a handler of %s events failed", event.type, exc_info=True)
            return None
        finally:
            self._took(started)
        return result if result is not None and inspect.isawaitable(result) else None

    def _took(self, started: float) -> None:
        # Wall time, not the loop's clock, which a test may hold still: measured is how long the loop was held.
        self._taken += time.perf_counter() - started
        if self._taken > self._source.allowance + EACH * self._told:
            self._drop(f"they held the run for {self._taken:.2g} s")

    async def _work_off(self, result: Awaitable[Any] | None, event: StreamEvent) -> None:
        task = asyncio.current_task()
        while True:
            if result is not None:
                try:
                    await result
                except _PASSED_ON:
                    raise
                except BaseException:
                    if task is not None and task.cancelling():
                        return
                    _log.warning("a handler of %s events failed", event.type, exc_info=True)
            self._handled += 1
            if not self._queue:
                return
            handler, event = self._queue.popleft()
            result = self._call(handler, event)

    def _drop(self, why: str) -> None:
        if self._dropped:
            return
        self._dropped = True
        self._source.dropped += len(self._queue)
        self._queue.clear()
        if self._drain is not None:
            self._drain.cancel()
        _log.warning("the event handlers of run %s are dropped: %s", self.request_id, why)


class AttemptEvents(EventManager):
    """What one attempt tells: its text by way of the stage, everything else at once. `spoken` is None until it has said
    something, for most tools never do."""

    on_start = on_delta = on_usage = on_complete = on_error = on_create_event = None
    spoken: Voice | None = None

    def __init__(
        self,
        run: RunEvents,
        who: Mapping[str, Any],
        metadata: Mapping[str, Any] | None,
        on_event: Callable[[], None] | None,
    ) -> None:
        self.request_id, self.trace_id, self.sdk_version = run.request_id, run.trace_id, run.sdk_version
        self._run = run
        self._who = who
        self._metadata = metadata
        self._on_event = on_event
        self._work = Work.running()

    def stage(self) -> Stage:
        """For the attempts that this one makes itself, of which one at a time is a part of its text."""
        return Stage(self.voice())

    def voice(self) -> Voice:
        if self.spoken is None:
            self.spoken = self._run.stage().begin(Speaker(self._who, metadata=self._metadata or {}), self._work)
            self.spoken.on_text = self._on_event
        return self.spoken

    def tell(self, event: StreamEvent) -> None:
        if self._metadata is not None:
            event = _changed(event, {"metadata": {**self._metadata, **event.metadata}})
        if isinstance(event, StreamDeltaEvent) and isinstance(event.delta, str):
            self.voice().write(event)
            return
        if self._on_event is not None:
            self._on_event()
        self._run.tell(event)

    async def _emit(self, event: StreamEvent) -> None:
        self.tell(event)

    emit_start = emit_delta = emit_usage = emit_complete = emit_error = _emit
