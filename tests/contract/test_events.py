"""Part 1, events: what a run tells, to whom, in which order, with which ids."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from contract.kit import Fixed, Model, bundle, plain, reliable
from steer_llm_sdk import EventManager
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.models.events import (
    StreamCompleteEvent,
    StreamDeltaEvent,
    StreamErrorEvent,
    StreamEvent,
    StreamStartEvent,
    StreamUsageEvent,
)
from steer_llm_sdk.orchestration import BudgetExceeded
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


class Talks(ScriptedTool):
    """Says something of its own on the way."""

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        for number, piece in enumerate(("one ", "two")):
            await event_manager.emit_delta(StreamDeltaEvent(piece, number, provider="acme", model="m"))
        return await super().execute(request, options, event_manager)


@BOTH
async def test_a_run_tells_start_deltas_usage_and_complete_in_this_order(orchestrator: Any) -> None:
    events = RecordedEvents()
    tool = Talks("t", OK("x", usage={"total_tokens": 3}))
    output = await orchestrator(tool).run("q", "t", None, None, events)
    assert [type(event) for event in events.all] == [
        StreamStartEvent,
        StreamDeltaEvent,
        StreamDeltaEvent,
        StreamUsageEvent,
        StreamCompleteEvent,
    ]
    assert events.text == "one two"
    usage = events.all[3]
    assert isinstance(usage, StreamUsageEvent)
    assert usage.usage == output.usage == {"total_tokens": 3}


@BOTH
async def test_a_run_that_fails_tells_the_error_and_no_complete(orchestrator: Any) -> None:
    events = RecordedEvents()
    output = await orchestrator(ScriptedTool("t", err(400))).run("q", "t", None, None, events)
    assert events.types == ["start", "error"]
    last = events.all[-1]
    assert isinstance(last, StreamErrorEvent)
    assert last.error == output.content["error"]


@BOTH
async def test_a_run_that_raises_tells_the_error_too(orchestrator: Any) -> None:
    events = RecordedEvents()
    with pytest.raises(BudgetExceeded):
        await orchestrator(ScriptedTool("t", OK("x", usage={"total_tokens": 9}))).run(
            "q", "t", None, {"budget": {"tokens": 5}}, events
        )
    assert events.types == ["start", "error"]
    last = events.all[-1]
    assert isinstance(last, StreamErrorEvent)
    assert isinstance(last.error, dict)
    assert last.error["type"] == "BudgetExceeded"


@BOTH
async def test_orchestration_events_carry_tool_ids_and_orchestration(orchestrator: Any) -> None:
    events = RecordedEvents()
    before = time.time()
    output = await orchestrator(ScriptedTool("t", err(503), OK("x"), version="2.0")).run(
        "q", "t", None, {"max_retries": 2}, events
    )
    assert events.types == ["start", "retry_attempt", "complete"]
    for event in events.all:
        assert (event.provider, event.model) == ("orchestrator", "orchestrator")
        assert event.request_id == output.metadata["request_id"]
        expected = {
            "tool_name": "t",
            "tool_version": "2.0",
            "trace_id": output.metadata["trace_id"],
            "orchestration": True,
        }
        assert {name: event.metadata[name] for name in expected} == expected
        assert before <= event.timestamp <= time.time()


@BOTH
async def test_an_event_of_a_tool_keeps_what_the_tool_said_and_gets_the_rest(orchestrator: Any) -> None:
    events = RecordedEvents()
    await orchestrator(Talks("t")).run("q", "t", None, {"request_id": "r"}, events)
    one, two = (event for event in events.all if isinstance(event, StreamDeltaEvent))
    assert (one.provider, one.model, one.chunk_index, two.chunk_index) == ("acme", "m", 0, 1)
    assert (one.request_id, one.metadata["tool_name"]) == ("r", "t")


@BOTH
async def test_bundle_events_arrive_as_deltas_with_event_type_and_data(orchestrator: Any) -> None:
    events = RecordedEvents()
    await orchestrator(LLMBundleTool("t", Model(), k=3, options={"latency": "min"})).run(
        "q", "t", None, {"max_parallel": 1}, events
    )
    assert events.types == [
        "start",
        "bundle_started",
        *(["replicate_started", "replicate_done"] * 2),
        "partial_summary",
        "replicate_started",
        "replicate_done",
        "bundle_ready",
        "usage",
        "complete",
    ]
    deltas = [event for event in events.all if isinstance(event, StreamDeltaEvent)]
    assert all(set(event.delta) == {"event_type", "data"} for event in deltas if isinstance(event.delta, dict))
    assert events.data("bundle_started")[0]["k"] == 3


@BOTH
async def test_a_bundle_that_is_cancelled_says_so(orchestrator: Any) -> None:
    events = RecordedEvents()
    running = asyncio.create_task(
        orchestrator(LLMBundleTool("t", Model(after=10), k=2)).run("q", "t", None, None, events)
    )
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert events.types[-1] == "cancelled"


@BOTH
async def test_a_bundle_that_meets_the_deadline_tells_timeout_and_hands_over_what_there_is(orchestrator: Any) -> None:
    class Uneven(Model):
        async def request(self, request: Any, on_text: Any = None) -> Any:
            self.after = 0.1 if not self.requests else 60.0
            return await super().request(request, on_text)

    events = RecordedEvents()
    output = await orchestrator(LLMBundleTool("t", Uneven(), k=3, options={"latency": "min"})).run(
        "q", "t", None, {"timeout_ms": 1000}, events
    )
    assert output.status == "partial"
    assert "timeout" in events.types
    assert events.types[-1] == "complete"


async def test_a_fallback_is_told_with_who_and_why() -> None:
    events = RecordedEvents()
    await reliable(ScriptedTool("a", err(400)), ScriptedTool("b")).run("q", None, None, None, events)
    (told,) = events.data("fallback")
    assert (told["from"], told["to"], told["error"]["status_code"]) == ("a", "b", 400)


@BOTH
async def test_one_manager_may_serve_many_runs_at_once_and_keeps_them_apart(orchestrator: Any) -> None:
    events = RecordedEvents()
    runner = orchestrator(Talks("t", OK("x", after=1)))
    await asyncio.gather(*(runner.run("q", "t", None, {"request_id": str(n)}, events) for n in range(5)))
    by_run: dict[str, list[str]] = {}
    for type_, event in zip(events.types, events.all, strict=True):
        by_run.setdefault(event.request_id, []).append(type_)
    assert by_run == {str(n): ["start", "delta", "delta", "complete"] for n in range(5)}


@BOTH
async def test_handlers_may_be_sync_or_async(orchestrator: Any) -> None:
    told: list[str] = []

    async def later(event: StreamEvent) -> None:
        await asyncio.sleep(0)
        told.append(event.type)

    manager = EventManager(on_start=later, on_complete=lambda event: told.append(event.type))
    await orchestrator(ScriptedTool("t")).run("q", "t", None, None, manager)
    assert told == ["start", "complete"]


@BOTH
async def test_without_handlers_a_tool_is_given_no_manager(orchestrator: Any) -> None:
    given: list[Any] = []

    class Watches(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            given.append(event_manager)
            return await super().execute(request, options, event_manager)

    await orchestrator(Watches("t")).run("q", "t")
    await orchestrator(Watches("t")).run("q", "t", None, None, RecordedEvents())
    assert given[0] is None
    assert isinstance(given[1], EventManager)


async def test_secrets_that_a_redactor_hides_are_hidden_in_every_event_of_a_hard_run() -> None:
    def hide(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: hide(value) for key, value in content.items()}
        if isinstance(content, list):
            return [hide(value) for value in content]
        return content.replace("s3cret", "***") if isinstance(content, str) else content

    events = RecordedEvents()
    first = Talks("first", err(503), err(ValueError("key s3cret is wrong")))
    second = ScriptedTool("second", OK(bundle("s3cret", "b", confidence=0.5), after=0.1))
    runner = reliable(first, second, planner=Fixed("first", "second"))
    options = {"redactor_cb": hide, "metadata": {"note": {"deep": ["s3cret"]}}}
    await runner.run("s3cret", None, None, options, events)
    first_try, second_try = ["start", "delta", "delta", "retry_attempt"], ["restart", "delta", "delta", "fallback"]
    assert events.types == [*first_try, *second_try, "restart", "complete"]
    assert "s3cret" not in repr(events.all)


@pytest.mark.parametrize("manager", [5, "on_start", {"on_start": print}])
async def test_what_is_no_event_manager_is_refused_before_anything_is_sent(manager: Any) -> None:
    tool = ScriptedTool("t")
    with pytest.raises(InvalidRequest, match=r"^event_manager: .* cannot be used; give an EventManager"):
        await plain(tool).run("q", "t", event_manager=manager)
    assert tool.calls == []


@pytest.mark.parametrize("name", ["on_start", "on_delta", "on_usage", "on_complete", "on_error", "on_create_event"])
def test_a_handler_that_cannot_be_called_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name}: 5 cannot be used; give a function of one event"):
        EventManager(**{name: 5})  # type: ignore[arg-type]  # That is what is refused.
