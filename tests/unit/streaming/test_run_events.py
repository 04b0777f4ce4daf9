"""RunEvents: the events of one run: in order, redacted at the exit, and never in the way of the run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from steer_llm_sdk.models.events import (
    StreamCompleteEvent,
    StreamDeltaEvent,
    StreamErrorEvent,
    StreamEvent,
    StreamStartEvent,
    StreamUsageEvent,
)
from steer_llm_sdk.streaming import manager as module
from steer_llm_sdk.streaming.manager import ALLOWANCE, EACH, EventManager, RunEvents


def events_of(
    handler: Callable[[Any], Any] | None = None,
    *,
    redactor: Callable[[dict[str, Any]], Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> RunEvents:
    return EventManager(on_create_event=handler).for_run("r", "t", metadata, redactor)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class HeldLoop:
    """The processor's clock, which handlers move on as heavy work would."""

    now: float = 0.0

    def hold(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> HeldLoop:
    clock = HeldLoop()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=time.time, perf_counter=lambda: clock.now))
    return clock


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records]


# ── filled in, in order ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_event_carries_the_ids_and_the_metadata_of_its_run() -> None:
    told: list[StreamEvent] = []
    events = events_of(told.append, metadata={"orchestration": True})
    events.tell(StreamStartEvent())
    await events.emit_delta(StreamDeltaEvent("a", provider="openai", model="m", metadata={"own": 1}))
    start, delta = told
    assert (start.provider, start.model, start.request_id) == ("orchestrator", "orchestrator", "r")
    assert start.metadata == {"orchestration": True, "trace_id": "t"}
    assert (delta.provider, delta.model, delta.metadata["own"]) == ("openai", "m", 1)


async def test_the_version_of_the_sdk_is_told_where_the_manager_knows_it() -> None:
    told: list[StreamEvent] = []
    EventManager(on_create_event=told.append, sdk_version="9").for_run("r", "t").tell(StreamStartEvent())
    assert told[0].metadata["sdk_version"] == "9"


async def test_a_handler_may_return_anything_that_can_be_awaited() -> None:
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    events = events_of(lambda _: woken)
    events.tell(StreamStartEvent())
    asyncio.get_running_loop().call_later(0.1, woken.set_result, None)
    await events.flush()
    assert now() == 0.1


async def test_async_and_sync_handlers_see_all_events_in_the_order_they_were_told() -> None:
    seen: list[Any] = []

    async def slow(event: StreamDeltaEvent) -> None:
        await asyncio.sleep(0.01)
        seen.append(event.delta)

    events = events_of(slow)
    for n in range(20):
        events.tell(StreamDeltaEvent(str(n)))
    assert seen == []
    await events.flush()
    assert seen == [str(n) for n in range(20)]
    assert now() == pytest.approx(0.2)


async def test_a_handler_that_is_sometimes_async_sees_them_in_order_too() -> None:
    seen: list[Any] = []

    async def later(delta: Any) -> None:
        await asyncio.sleep(0.01)
        seen.append(delta)

    def handler(event: StreamDeltaEvent) -> Any:
        return later(event.delta) if int(str(event.delta)) % 2 else seen.append(event.delta)

    events = events_of(handler)
    for n in range(8):
        events.tell(StreamDeltaEvent(str(n)))
    await events.flush()
    assert seen == [str(n) for n in range(8)]


async def test_on_create_event_and_the_own_handler_take_turns_event_by_event() -> None:
    seen: list[str] = []

    async def slow(event: StreamDeltaEvent) -> None:
        await asyncio.sleep(0.01)
        seen.append(f"create {event.delta}")

    manager = EventManager(on_delta=lambda event: seen.append(f"delta {event.delta}"), on_create_event=slow)
    events = manager.for_run("r", "t")
    events.tell(StreamDeltaEvent("1"))
    events.tell(StreamDeltaEvent("2"))
    await events.flush()
    assert seen == ["create 1", "delta 1", "create 2", "delta 2"]


async def test_telling_waits_for_nobody() -> None:
    async def slow(_: StreamEvent) -> None:
        await asyncio.sleep(0.1)

    events = events_of(slow)
    await events.emit_delta(StreamDeltaEvent("a"))
    assert now() == 0
    await events.flush()
    assert now() == 0.1


# ── handlers that fail, hang, write ──────────────────────────────────────────────────────────────────────────────────


async def test_a_handler_that_fails_is_logged_and_sees_the_next_event(warnings: Callable[[], list[str]]) -> None:
    seen: list[Any] = []

    def at_once(event: StreamDeltaEvent) -> None:
        seen.append(event.delta)
        raise KeyError("at once")

    async def later(event: StreamDeltaEvent) -> None:
        seen.append(event.delta)
        await asyncio.sleep(0.01)
        raise KeyError("later")

    for handler in (at_once, later):
        seen.clear()
        events = events_of(handler)
        events.tell(StreamDeltaEvent("1"))
        events.tell(StreamDeltaEvent("2"))
        await events.flush()
        assert seen == ["1", "2"]
    assert warnings() == ["a handler of delta events failed"] * 4


class Bare(BaseException):
    """What a library raises that is to be caught by nobody."""


@pytest.mark.parametrize("error", [Bare("x"), SystemExit(3)], ids=repr)
async def test_a_handler_or_redactor_that_raises_more_than_an_exception_has_failed_and_no_more(
    error: BaseException, warnings: Callable[[], list[str]]
) -> None:
    def at_once(event: StreamDeltaEvent) -> None:
        raise error

    async def later(event: StreamDeltaEvent) -> None:
        await asyncio.sleep(0.01)
        raise error

    def redact(content: dict[str, Any]) -> dict[str, Any]:
        raise error

    for handler in (at_once, later):
        events = events_of(handler)
        events.tell(StreamDeltaEvent("1"))
        events.tell(StreamDeltaEvent("2"))
        await events.flush()
        await EventManager(on_delta=handler).emit_delta(StreamDeltaEvent("3"))
    assert warnings() == ["a handler of delta events failed"] * 6
    seen: list[Any] = []
    events = EventManager(on_delta=seen.append).for_run("r", "t", None, redact)
    events.tell(StreamDeltaEvent("1"))
    assert (seen, warnings()[6:]) == ([], ["the redactor failed: a delta event is withheld"])


async def test_who_interrupts_in_a_handler_is_heard() -> None:
    def interrupt(event: StreamDeltaEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        events_of(interrupt).tell(StreamDeltaEvent("1"))


async def test_a_handler_that_meets_a_cancelled_future_does_not_cancel_the_run(
    warnings: Callable[[], list[str]],
) -> None:
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gone.cancel()
    seen: list[Any] = []

    def at_once(event: StreamDeltaEvent) -> None:
        seen.append(event.delta)
        gone.result()

    async def later(event: StreamDeltaEvent) -> None:
        seen.append(event.delta)
        await gone

    for handler in (at_once, later):
        seen.clear()
        events = events_of(handler)
        for n in range(3):
            events.tell(StreamDeltaEvent(n))  # type: ignore[arg-type]
        await events.flush()
        assert seen == [0, 1, 2]
    assert len(warnings()) == 6


async def test_a_handler_that_hangs_is_dropped_when_the_allowance_is_used_up(
    warnings: Callable[[], list[str]],
) -> None:
    cancelled: list[float] = []

    async def hang(_: StreamEvent) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.append(now())

    events = events_of(hang)
    for _ in range(5):
        events.tell(StreamDeltaEvent("a"))
    await events.flush()
    assert now() == pytest.approx(ALLOWANCE, abs=0.02)
    await asyncio.sleep(0)
    assert cancelled == [now()]
    assert warnings() == ["the event handlers of run r are dropped: they had not finished when the run was over"]


async def test_a_handler_that_hangs_and_then_fails_when_it_is_dropped_is_no_news() -> None:
    async def spiteful(_: StreamEvent) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise KeyError("instead") from None

    events = events_of(spiteful)
    events.tell(StreamDeltaEvent("a"))
    await events.flush()
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


@pytest.mark.parametrize(("until", "end"), [(0.1, 0.1), (100.0, ALLOWANCE), (-5.0, 0.01), (None, ALLOWANCE)])
async def test_handlers_are_not_waited_for_past_the_deadline(until: float | None, end: float) -> None:
    events = events_of(lambda _: asyncio.sleep(3600))
    events.tell(StreamDeltaEvent("a"))
    await events.flush(until)
    assert now() == pytest.approx(end, abs=0.02)


async def test_a_handler_that_holds_the_loop_is_dropped(held: HeldLoop, warnings: Callable[[], list[str]]) -> None:
    seen: list[StreamEvent] = []

    def heavy(event: StreamEvent) -> None:
        seen.append(event)
        held.hold(0.1)

    events = events_of(heavy)
    for _ in range(10):
        events.tell(StreamDeltaEvent("a"))
    assert len(seen) == 3
    assert warnings() == ["the event handlers of run r are dropped: they held the run for 0.3 s"]


async def test_what_a_handler_held_the_loop_for_is_part_of_the_allowance(held: HeldLoop) -> None:
    async def heavy_then_slow(_: StreamEvent) -> None:
        held.hold(0.1)  # Beside the run, where the loop is not held by the run's own calls.
        await asyncio.sleep(3600)

    events = EventManager(on_start=lambda _: held.hold(0.2), on_delta=heavy_then_slow).for_run("r", "t")
    events.tell(StreamStartEvent())
    events.tell(StreamDeltaEvent("a"))
    await events.flush()
    assert now() == pytest.approx(ALLOWANCE + 2 * EACH - 0.2)


async def test_a_handler_that_is_dropped_at_its_own_hand_is_called_no_more(held: HeldLoop) -> None:
    """Sync handlers are called in the task of an async one while that has events waiting."""
    seen: list[Any] = []

    def handler(event: StreamDeltaEvent) -> Any:
        seen.append(event.delta)
        return asyncio.sleep(0.01) if event.delta == "0" else held.hold(1)

    events = events_of(handler)
    for n in range(5):
        events.tell(StreamDeltaEvent(str(n)))
    await events.flush()
    await asyncio.sleep(1)
    assert seen == ["0", "1"]


async def test_the_allowance_grows_with_the_events(held: HeldLoop, warnings: Callable[[], list[str]]) -> None:
    def quick(content: dict[str, Any]) -> dict[str, Any]:
        held.hold(0.0004)  # twice an event
        return content

    seen: list[StreamEvent] = []
    source = EventManager(on_delta=seen.append)
    events = source.for_run("r", "t", {}, quick)
    for _ in range(2000):
        events.tell(StreamDeltaEvent("a"))
    assert (len(seen), source.dropped, warnings()) == (2000, 0, [])


async def test_a_handler_that_is_behind_at_the_end_has_the_time_of_all_events() -> None:
    seen: list[StreamEvent] = []

    async def slow(event: StreamEvent) -> None:
        await asyncio.sleep(0.001)
        seen.append(event)

    source = EventManager(on_delta=slow)
    events = source.for_run("r", "t")
    for _ in range(1000):
        events.tell(StreamDeltaEvent("a"))
    await events.flush()
    assert (len(seen), source.dropped) == (1000, 0)


async def test_a_handler_that_hangs_at_the_end_of_many_events_is_not_waited_for_longer() -> None:
    source = EventManager(on_delta=lambda _: asyncio.sleep(3600))
    events = source.for_run("r", "t")
    for _ in range(1000):
        events.tell(StreamDeltaEvent("a"))
    await events.flush()
    assert (now(), source.dropped) == (ALLOWANCE, 999)


async def test_what_is_told_after_the_run_was_dropped_by_nobody() -> None:
    source = EventManager(on_delta=lambda _: None)
    events = source.for_run("r", "t")
    await events.flush()
    events.tell(StreamDeltaEvent("a"))
    assert source.dropped == 0


async def test_what_handlers_were_not_given_is_counted(held: HeldLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(tell: int, redactor: Any = None, **handlers: Any) -> int:
        source = EventManager(**handlers)
        events = source.for_run("r", "t", {}, redactor)
        for _ in range(tell):
            events.tell(StreamDeltaEvent("a"))
        return source.dropped

    heavy, seen = (lambda _: held.hold(0.1)), (lambda _: None)
    assert told(10, on_delta=heavy) == 7
    assert told(10, on_create_event=heavy, on_delta=seen) == 1 + 2 * 7
    assert told(10, lambda _: None, on_create_event=seen, on_delta=seen) == 20
    monkeypatch.setattr(module, "BACKLOG", 3)
    assert told(10, on_delta=lambda _: asyncio.sleep(1)) == 9


async def test_a_redactor_that_holds_the_loop_is_dropped_too(held: HeldLoop, warnings: Callable[[], list[str]]) -> None:
    seen: list[StreamEvent] = []

    def heavy(content: dict[str, Any]) -> dict[str, Any]:
        held.hold(0.05)  # twice an event: its payload and its metadata
        return content

    events = events_of(seen.append, redactor=heavy)
    for _ in range(10):
        events.tell(StreamDeltaEvent("a"))
    assert len(seen) == 2
    assert warnings() == ["the event handlers of run r are dropped: they held the run for 0.3 s"]


async def test_so_many_events_may_wait_for_a_slow_handler_and_no_more(
    monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(module, "BACKLOG", 3)
    seen: list[Any] = []

    async def slow(event: StreamDeltaEvent) -> None:
        await asyncio.sleep(0.01)
        seen.append(event.delta)

    events = events_of(slow)
    for n in range(10):
        events.tell(StreamDeltaEvent(str(n)))
    await events.flush()
    assert seen == []
    assert warnings() == ["the event handlers of run r are dropped: 3 events were waiting for them"]


async def test_cancelling_the_run_while_it_waits_for_handlers_leaves_no_task_behind() -> None:
    async def hang(_: StreamEvent) -> None:
        await asyncio.sleep(3600)

    events = events_of(hang)
    events.tell(StreamDeltaEvent("a"))
    flushing = asyncio.create_task(events.flush())
    await asyncio.sleep(0.01)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


async def test_what_is_told_after_the_run_is_no_part_of_it() -> None:
    seen: list[StreamEvent] = []
    events = events_of(seen.append)
    events.tell(StreamCompleteEvent())
    await events.flush()
    events.tell(StreamDeltaEvent("late"))
    await events.emit_delta(StreamDeltaEvent("later"))
    assert [event.type for event in seen] == ["complete"]


async def test_a_handler_that_writes_into_an_event_writes_into_its_own_copy() -> None:
    usage = {"total_tokens": 1, "details": {"cached": 1}}
    error = {"message": "x", "failures": [{"a": 1}]}
    metadata = {"user": {"name": "n"}}

    def write(event: Any) -> None:
        event.metadata["user"]["name"] = "written"
        for payload in (getattr(event, "usage", None), getattr(event, "error", None)):
            if payload:
                payload["written"] = True
        if isinstance(event, StreamUsageEvent):
            event.usage["details"]["cached"] = 99  # type: ignore[index]
        if isinstance(event, StreamErrorEvent):
            event.error["failures"][0]["a"] = 99  # type: ignore[index]

    events = events_of(write, metadata=metadata)
    events.tell(StreamUsageEvent(usage))
    events.tell(StreamErrorEvent(error))
    assert usage == {"total_tokens": 1, "details": {"cached": 1}}
    assert error == {"message": "x", "failures": [{"a": 1}]}
    assert metadata == {"user": {"name": "n"}}


# ── redaction ────────────────────────────────────────────────────────────────────────────────────────────────────────


def hide(content: dict[str, Any]) -> dict[str, Any]:
    """As callers write it: in place, and deep."""
    for key, value in content.items():
        if isinstance(value, dict):
            hide(value)
        elif isinstance(value, str):
            content[key] = value.replace("secret", "***")
    return content


async def test_each_payload_and_each_metadata_is_redacted() -> None:
    told: list[Any] = []
    events = events_of(told.append, redactor=hide, metadata={"user": {"name": "secret"}})
    events.tell(StreamStartEvent())
    events.tell(StreamDeltaEvent("a secret text"))
    events.tell(StreamDeltaEvent({"event_type": "x", "data": {"key": "secret"}}))
    events.tell(StreamUsageEvent({"tier": "secret"}))
    events.tell(StreamErrorEvent({"message": "secret"}))
    assert "secret" not in repr(told)
    assert [event.metadata["user"] for event in told] == [{"name": "***"}] * 5
    assert told[1].delta == "a *** text"
    assert told[2].delta == {"event_type": "x", "data": {"key": "***"}}


async def test_a_redactor_that_writes_deep_writes_into_copies() -> None:
    usage = {"details": {"key": "secret"}}
    events = events_of(lambda _: None, redactor=hide)
    events.tell(StreamUsageEvent(usage))
    assert usage == {"details": {"key": "secret"}}


@pytest.mark.parametrize(
    "redactor",
    [lambda _: 1 / 0, lambda _: None, lambda _: "text", lambda _: {}],
    ids=["raises", "returns nothing", "returns text", "loses the payload"],
)
async def test_where_the_redactor_fails_the_event_is_withheld(redactor: Any, warnings: Callable[[], list[str]]) -> None:
    told: list[StreamEvent] = []
    events = events_of(told.append, redactor=redactor)
    events.tell(StreamDeltaEvent("secret"))
    await events.flush()
    assert told == []
    assert warnings() == ["the redactor failed: a delta event is withheld"]


async def test_without_handlers_the_redactor_is_not_asked() -> None:
    asked: list[Any] = []
    events = EventManager().for_run("r", "t", None, lambda content: asked.append(content) or content)
    events.tell(StreamDeltaEvent("a"))
    assert asked == []
