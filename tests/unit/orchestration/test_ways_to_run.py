"""Streams of events, many runs at once, and runs without a loop."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry, ways_to_run
from steer_llm_sdk.orchestration.ways_to_run import _BackgroundLoop
from steer_llm_sdk.testing import OK, ScriptedTool, err


def orchestrator(*tools: ScriptedTool) -> ReliableOrchestrator:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    return ReliableOrchestrator(registry=registry)


async def test_a_stream_gives_the_events_in_order_and_then_the_output() -> None:
    stream = orchestrator(ScriptedTool("t", err(503), OK("done"))).stream("q")
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("start", "complete")
    assert kinds.count("delta") == 1
    assert stream.output.content == "done"


class Talker(ScriptedTool):
    """Says numbers, and waits a second after each tenth."""

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        for n in range(20):
            await event_manager.emit_delta(StreamDeltaEvent(f"{n} "))
            if n % 10 == 9:
                await asyncio.sleep(1)
        return "all of them"


def heard(event: StreamEvent) -> Any:
    return event.delta if isinstance(event, StreamDeltaEvent) else event.type


def dropped(events: int) -> dict[str, Any]:
    return {"event_type": "dropped", "data": {"events": events}}


async def test_what_a_slow_reader_was_not_given_is_told_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_to_run, "BACKLOG", 4)
    stream, seen = orchestrator(Talker("t")).stream("q"), []
    async for event in stream:
        seen.append(heard(event))
        if event.type == "start":
            await asyncio.sleep(0.5)
    assert seen[:5] == ["start", "0 ", "1 ", "2 ", dropped(7)]
    assert seen[5:] == ["10 ", "11 ", "12 ", "13 ", dropped(6), "complete"]
    assert (stream.dropped, stream.output.content) == (13, "all of them")


async def test_what_the_redactor_withheld_of_a_stream_is_told_in_its_place() -> None:
    def redactor(content: dict[str, Any]) -> dict[str, Any]:
        if content.get("delta") == "3 ":
            raise ValueError("what is this?")
        return content

    stream = orchestrator(Talker("t")).stream("q", options={"redactor_cb": redactor})
    events = [event async for event in stream]
    assert [heard(event) for event in events][:6] == ["start", "0 ", "1 ", "2 ", dropped(1), "4 "]
    assert len({event.request_id for event in events}) == 1
    assert all(event.timestamp for event in events)
    assert stream.dropped == 1


async def test_what_is_missing_at_the_end_of_a_stream_is_told_there() -> None:
    def redactor(content: dict[str, Any]) -> dict[str, Any]:
        if "status" in content:
            raise ValueError("what is this?")
        return content

    stream = orchestrator(ScriptedTool("t", OK())).stream("q", options={"redactor_cb": redactor})
    assert [heard(event) async for event in stream] == ["start", dropped(1)]


async def test_the_output_of_a_stream_is_not_there_before_its_end() -> None:
    stream = orchestrator(ScriptedTool("t", OK())).stream("q")
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.output


async def test_a_stream_raises_what_the_run_raises_after_its_last_event() -> None:
    events = aiter(orchestrator(ScriptedTool("t", OK(), delay=1.0)).stream("q", options={"timeout_ms": 100}))
    assert [(await anext(events)).type, (await anext(events)).type] == ["start", "error"]
    with pytest.raises(BudgetExceeded):
        await anext(events)


async def test_closing_a_stream_cancels_the_run() -> None:
    tool = ScriptedTool("t", OK(), delay=60.0)
    async with orchestrator(tool).stream("q") as events:
        async for event in events:
            assert event.type == "start"
            break
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_breaking_out_of_a_stream_that_nobody_holds_cancels_the_run() -> None:
    async for _ in orchestrator(ScriptedTool("t", OK(), delay=60.0)).stream("q"):
        break
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stream_is_iterated_over_once() -> None:
    stream = orchestrator(ScriptedTool("t", OK())).stream("q")
    assert [event async for event in stream]
    with pytest.raises(RuntimeError, match="once"):
        aiter(stream)


async def test_many_outputs_come_in_the_order_of_the_requests() -> None:
    tool = ScriptedTool("t", OK("a"), OK("b"), OK("c"), delay=0.1)
    many = await orchestrator(tool).run_many(["1", "2", "3"], 2)
    assert [output.content for output in many.succeeded] == ["a", "b", "c"]
    assert many.failures == {}


async def test_never_more_run_at_once_than_max_parallel() -> None:
    began = asyncio.get_running_loop().time()
    await orchestrator(ScriptedTool("t", OK(), delay=1.0)).run_many(map(str, range(7)), 3)
    assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)


async def test_a_run_that_raises_does_not_stop_the_others() -> None:
    tool = ScriptedTool("t", OK("quick"), delay=0.0)
    slow = ScriptedTool("slow", OK(), delay=60.0)
    runner = orchestrator(tool, slow)
    many = await runner.run_many(["1", "2"], tool_name="slow", options={"timeout_ms": 100})
    assert many.outputs == [None, None]
    assert {position: type(error) for position, error in many.failures.items()} == {
        0: BudgetExceeded,
        1: BudgetExceeded,
    }


async def test_each_request_is_in_one_of_succeeded_failed_and_failures() -> None:
    steps = [OK("a"), err(400), err(RuntimeError("a bug")), OK("b")]
    registry = ToolRegistry()
    registry.register_tool(ScriptedTool("t", *steps))
    many = await ReliableOrchestrator(registry=registry).run_many(["q"] * 4, 1, tool_name="t")
    assert [output.content for output in many.succeeded] == ["a", "b"]
    assert [output.errors["t"]["type"] for output in many.failed if output.errors] == ["ProviderError", "RuntimeError"]
    assert many.failures == {}


class Bare(BaseException):
    """What a library raises that is to be caught by nobody."""


class OnceBare(ScriptedTool):
    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        if request == {"query": "2"}:
            raise Bare("x")
        return await super().execute(request, options, event_manager)


async def test_a_run_that_raises_more_than_an_exception_takes_no_other_with_it() -> None:
    many = await orchestrator(OnceBare("t", OK("x"), delay=1.0)).run_many(["1", "2", "3"], 2)
    assert [output and output.content for output in many.outputs] == ["x", None, "x"]
    assert [(position, type(error)) for position, error in many.failures.items()] == [(1, Bare)]


async def test_progress_is_told_after_each_run_with_the_total_where_it_is_known() -> None:
    told: list[tuple[int, int | None]] = []
    runner = orchestrator(ScriptedTool("t", OK()))
    await runner.run_many(["1", "2"], on_progress=lambda done, total: told.append((done, total)))
    await runner.run_many(iter(["1"]), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2), (1, None)]


async def test_progress_that_raises_is_logged_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(done: int, total: int | None) -> None:
        raise ValueError("no terminal")

    many = await orchestrator(ScriptedTool("t", OK("x"))).run_many(["1", "2"], on_progress=broken)
    assert len(many.succeeded) == 2
    assert "on_progress failed" in caplog.text


async def test_requests_that_end_in_an_error_keep_what_was_done_and_name_its_place() -> None:
    def requests() -> Iterator[str]:
        yield "1"
        yield "2"
        raise OSError("the file is gone")

    many = await orchestrator(ScriptedTool("t", OK("x"))).run_many(requests(), 1)
    assert [output and output.content for output in many.outputs] == ["x", "x", None]
    assert {place: str(error) for place, error in many.failures.items()} == {2: "the file is gone"}


async def test_requests_are_taken_as_places_become_free() -> None:
    taken = 0

    def requests() -> Iterator[str]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield "q"

    work = asyncio.ensure_future(orchestrator(ScriptedTool("t", OK(), delay=1.0)).run_many(requests(), 4))
    await asyncio.sleep(0.5)
    assert taken == 4
    work.cancel()
    await asyncio.wait({work})
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("option", ["idempotency_key", "request_id"])
async def test_what_belongs_to_one_run_is_refused_for_many(option: str) -> None:
    with pytest.raises(InvalidRequest, match=f"options.{option}"):
        await orchestrator(ScriptedTool("t", OK())).run_many(["1"], options={option: "x"})


@pytest.mark.parametrize("places", [0, -1, 1.5, True])
async def test_max_parallel_is_a_whole_number_from_one(places: object) -> None:
    with pytest.raises(InvalidRequest, match="max_parallel"):
        await orchestrator(ScriptedTool("t", OK())).run_many(["1"], places)  # type: ignore[arg-type]


async def test_a_text_is_no_list_of_requests() -> None:
    with pytest.raises(InvalidRequest, match="requests"):
        await orchestrator(ScriptedTool("t", OK())).run_many("hello")


@pytest.mark.parametrize("requests", [{"text": "one"}, None, 5, b"one"])
async def test_what_is_no_list_of_requests_is_refused_by_name(requests: Any) -> None:
    tool = ScriptedTool("t", OK())
    with pytest.raises(InvalidRequest, match=r"requests: .* cannot be used; give a list of requests"):
        await orchestrator(tool).run_many(requests)
    assert tool.calls == []


class Quick(Tool):
    name = "quick"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return "at once"


async def test_many_runs_that_wait_for_nothing_leave_the_loop_to_others_and_can_be_cancelled() -> None:
    asked = 0

    def requests() -> Iterator[str]:
        nonlocal asked
        while asked < 5_000:  # Not without end: where this fails, it should not take for ever.
            asked += 1
            yield "q"

    registry = ToolRegistry()
    registry.register_tool(Quick())
    work = asyncio.ensure_future(ReliableOrchestrator(registry=registry).run_many(requests(), 4, tool_name="quick"))
    for _ in range(10):
        await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert 0 < asked <= 50


def test_run_sync_keeps_one_loop() -> None:
    loops = set()

    class Where(ScriptedTool):
        async def execute(self, request: object, options: object = None, event_manager: object = None) -> object:
            loops.add(asyncio.get_running_loop())
            return "here"

    runner = orchestrator(Where("t", OK()))
    assert [runner.run_sync("q").content for _ in range(3)] == ["here"] * 3
    assert len(loops) == 1


def test_run_sync_raises_what_the_run_raises() -> None:
    with pytest.raises(ValueError, match="Tool 'nobody' not found"):
        orchestrator(ScriptedTool("t", OK())).run_sync("q", "nobody")


async def test_run_sync_works_where_a_loop_is_running() -> None:
    assert orchestrator(ScriptedTool("t", OK("x"))).run_sync("q").content == "x"


def test_run_sync_from_several_threads() -> None:
    runner = orchestrator(ScriptedTool("t", OK("x")))
    contents: list[object] = []
    threads = [threading.Thread(target=lambda: contents.append(runner.run_sync("q").content)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == ["x"] * 8


def test_run_sync_within_a_run_says_to_await_instead() -> None:
    class Nested(ScriptedTool):
        async def execute(self, request: object, options: object = None, event_manager: object = None) -> object:
            return inner.run_sync("q").content

    inner = orchestrator(ScriptedTool("t", OK()))
    output = orchestrator(Nested("nested", OK())).run_sync("q")
    assert output.status == "failed"
    assert "await run() there" in output.content["error"]["message"]


class Background:
    """The loop behind run_sync, one for the test, and what it was doing when the process came to its end."""

    def __init__(self) -> None:
        self.loop = _BackgroundLoop()
        self.cancelled = threading.Event()
        self.closed = threading.Event()

    async def leave_work_behind(self) -> asyncio.AbstractEventLoop:
        self.task = asyncio.ensure_future(self._work())
        self.numbers = self._numbers()
        await anext(self.numbers)
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def _work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def _numbers(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            self.closed.set()


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background()
    yield made
    atexit.unregister(made.loop._end)


def test_the_end_of_the_process_stops_what_runs_and_closes_the_loop(background: Background) -> None:
    loop = background.loop.run(background.leave_work_behind())
    background.loop._end()
    assert background.task.cancelled()
    assert background.cancelled.is_set()
    assert background.closed.is_set()
    assert loop.is_closed()


def test_after_the_end_another_run_has_another_loop(background: Background) -> None:
    first = background.loop.run(background.leave_work_behind())
    background.loop._end()
    second = background.loop.run(background.leave_work_behind())
    assert second is not first
    assert not second.is_closed()
    background.loop._end()
    assert second.is_closed()


def test_an_end_before_any_run_starts_no_thread(background: Background) -> None:
    before = set(threading.enumerate())
    background.loop._end()
    assert set(threading.enumerate()) <= before
