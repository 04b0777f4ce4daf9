"""Limits on time and honest streams over real HTTP, in both wire formats, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from steer_llm_sdk import LLMTool, OrchestrationOutput, ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration._call import budget_left
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import RecordedEvents

QUESTION = shipped_recording().questions[3].text
GPT, OTHER = "gemma-2-2b-it", "claude-3-haiku-20240307"


@pytest.fixture(params=["openai", "anthropic"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server(wire: str) -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        await run(LLMTool("warm", at(running, wire)))  # what is loaded when first used is loaded now
        yield running


def at(server: SimulatedServer, wire: str, model: str = GPT) -> Model:
    return Model(f"{wire}:{model}", base_url=f"{server.base_url}/v1" if wire == "openai" else server.base_url)


async def run(tool: Tool, events: Any = None, **options: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    registry.register_tool(tool)
    config = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.01, max_delay=0.02))
    async with ReliableOrchestrator(registry=registry, reliability_config=config) as orchestrator:
        return await orchestrator.run(QUESTION, tool.name, options=options, event_manager=events)


def reader_s_text(events: RecordedEvents) -> str:
    """By the rule: add each text, drop all of it at a `restart`."""
    text = ""
    for event in events.all:
        if isinstance(event, StreamDeltaEvent):
            if isinstance(event.delta, str):
                text += event.delta
            elif event.delta["event_type"] == "restart":
                text = ""
    return text


@pytest.mark.parametrize("fault", ["silence", "slow:seconds=30", "stall:chunks=2", "stall:chunks=0"])
async def test_a_run_comes_back_at_its_deadline_whatever_the_server_does(
    server: SimulatedServer, wire: str, fault: str
) -> None:
    await server.set_faults(fault)
    started = time.monotonic()
    with pytest.raises(BudgetExceeded) as caught:
        await run(LLMTool("t", at(server, wire)), timeout_ms=400)
    assert 0.4 <= time.monotonic() - started < 10  # The server takes 30 s, or for ever.
    assert caught.value.budget_type == "time"


@pytest.mark.parametrize(
    ("fault", "limit"),
    [("silence", "first_byte_timeout"), ("slow:seconds=30", "first_byte_timeout"), ("stall:chunks=2", "chunk_timeout")],
)
async def test_silence_has_its_own_limit_before_the_first_byte_and_between_two(
    server: SimulatedServer, wire: str, fault: str, limit: str
) -> None:
    await server.set_faults(fault)
    limits = {"first_byte_timeout": 5.0, "chunk_timeout": 5.0, limit: 0.15}
    output = await run(LLMTool("t", at(server, wire), **limits), max_retries=0, timeout_ms=20_000)
    error = output.content["error"]
    assert (error["type"], error["code"], error["is_retryable"]) == ("ProviderTimeout", "timeout", True)
    assert f"({limit})" in error["message"]
    assert output.attempts[0]["elapsed_ms"] < 2_000


async def test_a_slow_first_byte_within_its_limit_is_waited_for(server: SimulatedServer, wire: str) -> None:
    await server.set_faults("slow:seconds=0.3")
    tool = LLMTool("t", at(server, wire), first_byte_timeout=10.0, chunk_timeout=0.2)
    output = await run(tool, timeout_ms=20_000)
    assert (output.status, len(output.attempts)) == ("succeeded", 1)


async def test_a_stream_that_stalls_is_asked_again_and_the_reader_is_told(server: SimulatedServer, wire: str) -> None:
    await server.set_faults("stall:chunks=3,first=1")
    events = RecordedEvents()
    tool = LLMTool("t", at(server, wire), chunk_timeout=0.15)
    output = await run(tool, events, streaming=True, timeout_ms=20_000)
    assert [line["outcome"] for line in output.attempts] == ["failed", "succeeded"]
    assert reader_s_text(events) == events.text == output.content


@pytest.mark.parametrize("fault", ["no-end:first=1", "reset:chunks=4,first=1", "malformed:chunks=4,first=1"])
async def test_a_stream_that_breaks_is_never_an_answer_and_its_text_is_taken_back(
    server: SimulatedServer, wire: str, fault: str
) -> None:
    await server.set_faults(fault)
    events = RecordedEvents()
    output = await run(LLMTool("t", at(server, wire)), events, streaming=True, timeout_ms=20_000)
    assert [line["outcome"] for line in output.attempts] == ["failed", "succeeded"]
    assert events.types.count("restart") == 1
    assert reader_s_text(events) == output.content


async def test_a_stream_without_its_end_marker_is_a_failure(server: SimulatedServer, wire: str) -> None:
    await server.set_faults("no-end")
    output = await run(LLMTool("t", at(server, wire)), max_retries=0)
    assert (output.status, output.content["error"]["type"]) == ("failed", "TruncatedStream")


async def test_another_model_never_goes_on_where_the_first_stopped(server: SimulatedServer, wire: str) -> None:
    await server.set_faults(f"reset:chunks=4,model={GPT}")
    events = RecordedEvents()
    tool = LLMTool("t", [at(server, wire), at(server, wire, OTHER)])
    output = await run(tool, events, streaming=True, max_retries=0)
    assert output.metadata["model"] == OTHER
    assert events.types.count("restart") == 1
    assert reader_s_text(events) == output.content


class Counted(Tool):
    """Asks a model tool, and notes what each stage of it took from the run's budget."""

    composite = True
    name = "counted"  # type: ignore[assignment]

    def __init__(self, inner: LLMTool) -> None:
        self.inner, self.spent = inner, 0.0

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        before, _ = budget_left()
        try:
            return await self.inner.execute(request, {}, event_manager)
        finally:
            self.spent = before - budget_left()[0]

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.mark.parametrize("fault", ["no-end", "reset:chunks=3", "malformed:chunks=3"])
async def test_a_broken_stream_is_charged_its_estimate_once_and_an_answer_what_it_used(
    server: SimulatedServer, wire: str, fault: str
) -> None:
    async def spent(fault: str | None, **options: Any) -> tuple[float, OrchestrationOutput]:
        await (server.set_faults(fault) if fault else server.set_faults())
        tool = Counted(LLMTool("t", at(server, wire), max_tokens=2_000))
        output = await run(tool, budget={"tokens": 1_000_000}, **options)
        return tool.spent, output

    answer, whole = await spent(None)
    assert answer == whole.usage["total_tokens"]
    estimate, broken = await spent(fault, max_retries=0)
    assert broken.status == "failed"
    assert estimate > 2_000
    both, output = await spent(f"{fault}{',' if ':' in fault else ':'}first=1")
    assert output.status == "succeeded"
    assert both == estimate + answer
    assert output.usage == whole.usage


async def test_a_request_that_was_given_up_leaves_no_connection_open(server: SimulatedServer, wire: str) -> None:
    await server.set_faults("stall:chunks=2")
    before = len(asyncio.all_tasks())
    with pytest.raises(BudgetExceeded):
        await run(LLMTool("t", at(server, wire)), timeout_ms=300)
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.005)
