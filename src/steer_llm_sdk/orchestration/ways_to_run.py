"""Other ways to run than awaiting one output: as a stream of events, many at once, and from code without a loop."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import itertools
import logging
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.reliability.deadline import stop
from steer_llm_sdk.streaming.manager import BACKLOG, EventManager

R = TypeVar("R")
_log = logging.getLogger(__name__)

# ── a stream of events ───────────────────────────────────────────────────────────────────────────────────────────────


class RunStream:
    """The events of one run as they come, and then its `output`.

        async with orchestrator.stream("Analyze this text") as events:
            async for event in events:
                ...
        print(events.output.content)

    The rule for text: add each delta that is a str; drop all of it at a delta whose `event_type` is "restart". What a
    reader has is then the beginning of what one attempt said, and in the end the answer. A restart stands before the
    text of a retry, a fallback, another model, a repair. Text that was shown before an error is no answer.

    Where the redactor, or a reader who is 10,000 events behind, is too slow, events are left out. A delta whose
    `event_type` is "dropped" then stands in their place, with their number as `data["events"]`: the text has a hole,
    and the answer is in `output` only. `dropped` is the number so far.

    What the run raises is raised after its last event. `async with` and `aclose()` cancel a run that has not ended; so
    does a `break` out of `async for event in orchestrator.stream(…)`, where nothing else holds the stream.
    """

    def __init__(self, start: Callable[[EventManager], Awaitable[OrchestrationOutput]]) -> None:
        self._start = start
        self._events: AsyncGenerator[StreamEvent, None] | None = None
        self._manager = EventManager()
        self._outputs: list[OrchestrationOutput] = []

    @property
    def output(self) -> OrchestrationOutput:
        """The output, once the events are at their end; RuntimeError before."""
        if not self._outputs:
            raise RuntimeError("the run has not ended; iterate over its events first")
        return self._outputs[0]

    @property
    def dropped(self) -> int:
        """How many events were left out so far."""
        return self._manager.dropped

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        if self._events is not None:
            raise RuntimeError("a stream can be iterated over once; start another run")
        self._events = _events_of(self._start, self._manager, self._outputs)
        return self._events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._events is not None:
            await self._events.aclose()


async def _events_of(
    start: Callable[[EventManager], Awaitable[OrchestrationOutput]],
    manager: EventManager,
    outputs: list[OrchestrationOutput],
) -> AsyncGenerator[StreamEvent, None]:
    # It does not know the RunStream: a cycle would keep an abandoned run alive until the next garbage collection.
    queue: asyncio.Queue[tuple[StreamEvent | None, int]] = asyncio.Queue()

    def hear(event: StreamEvent) -> None:
        if queue.qsize() < BACKLOG:
            queue.put_nowait((event, manager.dropped))
        else:
            manager.dropped += 1

    manager.on_create_event = hear
    run = asyncio.ensure_future(start(manager))
    run.add_done_callback(lambda _: queue.put_nowait((None, manager.dropped)))
    told, request_id = 0, ""
    try:
        while True:
            event, dropped = await queue.get()
            request_id = request_id if event is None else event.request_id
            if dropped > told:
                yield _left_out(dropped - told, request_id)
                told = dropped
            if event is None:
                break
            yield event
        outputs.append(await run)
    finally:
        await stop(run)


def _left_out(events: int, request_id: str) -> StreamDeltaEvent:
    """What stands in the place of events that are not there."""
    return StreamDeltaEvent(
        {"event_type": "dropped", "data": {"events": events}},
        provider="orchestrator",
        model="orchestrator",
        request_id=request_id,
        timestamp=time.time(),
    )


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ManyOutputs:
    """`outputs` in the order of the requests, None where the run raised; `failures` has what it raised, by position.

    Each request is in one of three: `succeeded`, `failed` or `failures`.
    """

    outputs: list[OrchestrationOutput | None]
    failures: dict[int, BaseException] = field(default_factory=dict)

    @property
    def succeeded(self) -> list[OrchestrationOutput]:
        """The outputs with status "succeeded" or "partial", in order."""
        return [output for output in self.outputs if output is not None and output.status != "failed"]

    @property
    def failed(self) -> list[OrchestrationOutput]:
        """The outputs with status "failed", in order. Which request it was: `enumerate(outputs)`."""
        return [output for output in self.outputs if output is not None and output.status == "failed"]


Progress = Callable[[int, int | None], object]
"""Called after each run with how many are done, and how many there are (None for an iterator without a length). What it
raises is logged."""


async def run_many(
    run: Callable[[Any], Awaitable[OrchestrationOutput]],
    requests: Iterable[Any],
    max_parallel: int,
    on_progress: Progress | None,
) -> ManyOutputs:
    """At most `max_parallel` runs at a time. Requests are taken from the iterable as places become free."""
    if isinstance(max_parallel, bool) or not isinstance(max_parallel, int) or max_parallel < 1:
        raise InvalidRequest("max_parallel", max_parallel, "give a whole number from 1")
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, Iterable):
        raise InvalidRequest("requests", requests, "give a list of requests; for one request use run()")
    total = len(requests) if isinstance(requests, Sized) else None
    waiting = enumerate(requests)
    outputs: dict[int, OrchestrationOutput | None] = {}
    failures: dict[int, BaseException] = {}
    done = itertools.count(1)

    def given() -> Iterator[tuple[int, Any]]:
        try:
            yield from waiting
        except Exception as error:  # What was done before the requests ran out is kept.
            failures[len(outputs)] = error
            outputs[len(outputs)] = None

    async def work() -> None:
        for position, request in given():
            outputs[position] = None
            try:
                outputs[position] = await run(request)
            except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # It would end the others, and what they have done would be lost.
                failures[position] = error
            _tell(on_progress, next(done), total)
            # A run that waits for nothing takes no turn of the loop: many of them would hold up everybody else's.
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as workers:
        for _ in range(max_parallel if total is None else min(max_parallel, total)):
            workers.create_task(work())
    return ManyOutputs([outputs[position] for position in sorted(outputs)], dict(sorted(failures.items())))


def _tell(on_progress: Progress | None, done: int, total: int | None) -> None:
    if on_progress is None:
        return
    try:
        on_progress(done, total)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        _log.warning("on_progress failed", exc_info=True)


# ── without a loop ───────────────────────────────────────────────────────────────────────────────────────────────────


class _BackgroundLoop:
    """One event loop on a daemon thread, kept for the life of the process: model clients belong to their loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        loop = self._running()
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("run_sync() was called from within a run; await run() there")
        done: concurrent.futures.Future[R] = concurrent.futures.Future()
        context = contextvars.copy_context()
        tasks: list[asyncio.Task[None]] = []

        async def finish() -> None:
            try:
                done.set_result(await work)
            except BaseException as error:
                done.set_exception(error)

        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(finish(), context=context)))
        try:
            return done.result()
        except BaseException:
            # The waiting thread was interrupted, or the run raised; in the first case the run must not go on.
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is None or not self._thread.is_alive() or self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="steer-run-sync", daemon=True)
                self._thread.start()
                atexit.register(self._end)
            return self._loop

    def _end(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_wind_up(), loop).result(timeout=2)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=2)
        if not thread.is_alive():
            loop.close()


async def _wind_up() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=1) if others else None
    await asyncio.get_running_loop().shutdown_asyncgens()


_background = _BackgroundLoop()


def run_sync(work: Coroutine[Any, Any, R]) -> R:
    """Run `work` to its end on the loop that is kept for this; also from a notebook, whose own loop is running."""
    return _background.run(work)
