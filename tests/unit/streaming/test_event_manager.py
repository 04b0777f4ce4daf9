"""EventManager: events filled in and handed to sync and async handlers, apart from any run."""

from __future__ import annotations

import asyncio
import time
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
from steer_llm_sdk.streaming.manager import EventManager

EVENTS: list[tuple[str, StreamEvent]] = [
    ("start", StreamStartEvent()),
    ("delta", StreamDeltaEvent("text")),
    ("usage", StreamUsageEvent({"total_tokens": 1})),
    ("complete", StreamCompleteEvent()),
    ("error", StreamErrorEvent(KeyError("x"))),
]


@pytest.mark.parametrize(("kind", "event"), EVENTS)
async def test_each_event_reaches_the_handler_of_its_kind_and_no_other(kind: str, event: Any) -> None:
    told: list[tuple[str, StreamEvent]] = []
    handlers = {f"on_{name}": lambda e, name=name: told.append((name, e)) for name, _ in EVENTS}
    await getattr(EventManager(**handlers), f"emit_{kind}")(event)
    ((name, got),) = told
    assert (name, got.type) == (kind, kind)
    assert type(got) is type(event)


@pytest.mark.parametrize(("kind", "event"), EVENTS)
async def test_without_handlers_nothing_happens(kind: str, event: Any) -> None:
    await getattr(EventManager(), f"emit_{kind}")(event)


async def test_what_is_left_at_its_default_is_filled_in_and_the_rest_is_kept() -> None:
    told: list[StreamDeltaEvent] = []
    manager = EventManager(on_delta=told.append, request_id="r", trace_id="t", sdk_version="9")
    before = time.time()
    await manager.emit_delta(StreamDeltaEvent("a"))
    mine = StreamDeltaEvent("b", 3, True, request_id="mine", timestamp=5.0, provider="p", metadata={"trace_id": "x"})
    await manager.emit_delta(mine)
    filled, kept = told
    assert (filled.request_id, filled.metadata) == ("r", {"trace_id": "t", "sdk_version": "9"})
    assert before <= filled.timestamp <= time.time()
    assert (kept.request_id, kept.timestamp, kept.provider) == ("mine", 5.0, "p")
    assert (kept.delta, kept.chunk_index, kept.is_json, kept.metadata["trace_id"]) == ("b", 3, True, "x")
    assert mine.metadata == {"trace_id": "x"}


async def test_an_async_handler_is_awaited() -> None:
    told: list[str] = []

    async def handler(event: StreamDeltaEvent) -> None:
        await asyncio.sleep(5)
        told.append(str(event.delta))

    await EventManager(on_delta=handler).emit_delta(StreamDeltaEvent("a"))
    assert told == ["a"]


async def test_an_event_can_be_told_without_waiting_for_its_handler() -> None:
    told: list[str] = []

    async def handler(event: StreamDeltaEvent) -> None:
        await asyncio.sleep(5)
        told.append(str(event.delta))

    EventManager(on_delta=handler).tell(StreamDeltaEvent("a"))
    assert told == []
    await asyncio.sleep(6)
    assert told == ["a"]


async def test_on_create_event_sees_each_event_before_its_own_handler() -> None:
    order: list[str] = []
    manager = EventManager(
        on_delta=lambda _: order.append("own"), on_create_event=lambda event: order.append(event.type)
    )
    await manager.emit_delta(StreamDeltaEvent("a"))
    await manager.emit_start(StreamStartEvent())
    assert order == ["delta", "own", "start"]


async def test_a_handler_that_fails_is_logged_and_the_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    told: list[StreamEvent] = []

    async def broken(_: StreamEvent) -> None:
        raise KeyError("async")

    for handler in (broken, lambda _: 1 / 0):
        await EventManager(on_delta=told.append, on_create_event=handler).emit_delta(StreamDeltaEvent("a"))
    assert len(told) == 2
    assert caplog.text.count("a handler of delta events failed") == 2


@pytest.mark.parametrize(("kind", "event"), EVENTS)
def test_events_are_frozen(kind: str, event: StreamEvent) -> None:
    with pytest.raises(AttributeError):
        event.type = "other"  # type: ignore[misc]
