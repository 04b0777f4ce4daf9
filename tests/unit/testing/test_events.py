"""RecordedEvents keeps what a run tells, in order."""

from __future__ import annotations

from steer_llm_sdk.models.events import (
    StreamCompleteEvent,
    StreamDeltaEvent,
    StreamErrorEvent,
    StreamStartEvent,
    StreamUsageEvent,
)
from steer_llm_sdk.testing import RecordedEvents


async def test_every_kind_of_event_is_kept_in_order() -> None:
    events = RecordedEvents()
    await events.emit_start(StreamStartEvent())
    await events.emit_delta(StreamDeltaEvent("par"))
    await events.emit_delta(StreamDeltaEvent({"event_type": "retry_attempt", "data": {"attempt": 2}}))
    await events.emit_delta(StreamDeltaEvent("is"))
    await events.emit_usage(StreamUsageEvent({"total_tokens": 3}))
    await events.emit_complete(StreamCompleteEvent())
    await events.emit_error(StreamErrorEvent(KeyError("x")))
    assert events.types == ["start", "delta", "retry_attempt", "delta", "usage", "complete", "error"]
    assert events.text == "paris"
    assert events.data("retry_attempt") == [{"attempt": 2}]
    assert events.data("replicate_done") == []


async def test_the_events_of_a_run_arrive_with_its_ids() -> None:
    events = RecordedEvents()
    run = events.for_run("r-1", "t-1")
    run.tell(StreamStartEvent())
    await run.flush()
    (event,) = events.all
    assert (event.request_id, event.metadata["trace_id"]) == ("r-1", "t-1")
