"""LLMTool and LLMBundleTool over real HTTP: recorded answers, both wire formats, and faults on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from steer_llm_sdk.cli._show import cost_of
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration import (
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import RecordedEvents

ANSWER = {"type": "object", "properties": {"answer": {}}, "required": ["answer"]}
ALL = {"latency": "min"}
QUESTION = shipped_recording().questions[3].text
SOUND, BROKEN, SECOND = "gpt-4o-2024-05-13", "gemma-2-2b-it", "claude-3-haiku-20240307"


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


def at(server: SimulatedServer, model: str = "demo", wire: str = "openai") -> Model:
    """A recorded model behind `server`, in one of the two formats."""
    base_url = f"{server.base_url}/v1" if wire == "openai" else server.base_url
    return Model(f"{wire}:{model}", base_url=base_url)


async def run(tool: Tool, request: Any = QUESTION, **given: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    registry.register_tool(tool)
    patience = RetryPolicy(initial_delay=0.001, max_delay=0.01)
    config = ReliabilityConfig(retry_policy=patience)
    async with ReliableOrchestrator(registry=registry, reliability_config=config) as orchestrator:
        return await orchestrator.run(request, tool.name, **given)


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
async def test_a_recorded_question_is_answered_in_both_formats(server: SimulatedServer, wire: str) -> None:
    output = await run(LLMTool("t", at(server, wire=wire), output_type=ANSWER))
    assert (output.status, output.content.keys() >= {"answer"}) == ("succeeded", True)
    assert output.metadata["simulated"] is True
    assert output.usage["total_tokens"] > 0
    assert output.metadata["provider_request_ids"][0].startswith("req_")


async def test_recorded_demo_needs_no_server_of_ones_own_and_says_that_it_is_simulated() -> None:
    output = await run(LLMBundleTool("b", "recorded:demo", output_type=ANSWER, k=7, fields=["answer"], options=ALL))
    assert output.evidence is not None
    assert output.metadata["simulated"] is True
    assert len({replicate.model for replicate in output.evidence.replicates}) == 7
    assert output.evidence.summary.disagreements
    assert output.evidence.summary.confidence is not None
    assert 0.5 < output.evidence.summary.confidence < 1


async def test_the_same_seeds_give_the_same_bundle() -> None:
    tool = LLMBundleTool("b", "recorded:demo", output_type=ANSWER, k=5, options=ALL)
    first, second = [await run(tool, options={"deterministic": True}) for _ in range(2)]
    assert first.evidence is not None
    assert second.evidence is not None
    assert first.evidence.summary == second.evidence.summary
    assert [r.data for r in first.evidence.replicates] == [r.data for r in second.evidence.replicates]


async def test_a_question_outside_of_the_recording_is_refused_with_a_sentence() -> None:
    output = await run(LLMTool("t", "recorded:demo"), "What is the capital of France?")
    assert output.status == "failed"
    assert "answers its own 100 questions and no others" in output.content["error"]["message"]


async def test_a_run_that_failed_says_that_what_it_cost_was_simulated(server: SimulatedServer) -> None:
    hopeless = {"type": "object", "properties": {"colour": {}}, "required": ["colour"]}
    output = await run(LLMTool("t", at(server, SOUND), output_type=hopeless))
    assert (output.status, output.metadata["simulated"]) == ("failed", True)
    assert cost_of(output).endswith("list price, not spent")
    await server.set_faults(["503"])
    output = await run(LLMTool("t", at(server, SOUND), output_type=hopeless))
    assert (output.status, "simulated" in output.metadata) == ("failed", False)


async def test_each_replicate_is_retried_by_itself(server: SimulatedServer) -> None:
    await server.set_faults(["503:first=2"])
    output = await run(LLMBundleTool("b", at(server), output_type=ANSWER, k=4, options=ALL))
    assert (output.status, output.per_agent["b"]["attempts"]) == ("succeeded", 6)


async def test_the_next_model_answers_in_the_other_format_when_the_first_is_down(server: SimulatedServer) -> None:
    await server.set_faults([f"503:model={BROKEN}"])
    tool = LLMTool("t", [at(server, BROKEN), at(server, SOUND, "anthropic")], output_type=ANSWER)
    output = await run(tool)
    assert (output.status, output.metadata["model"]) == ("succeeded", SOUND)
    assert list(output.metadata["failed_models"]) == [f"openai:{BROKEN}"]


SILENCES = pytest.mark.parametrize(
    ("fault", "limit"),
    [("slow", "first_byte_timeout"), ("silence", "first_byte_timeout"), ("stall:chunks=2", "chunk_timeout")],
)


@SILENCES
async def test_a_silence_longer_than_the_tools_limit_is_a_provider_timeout(
    server: SimulatedServer, fault: str, limit: str
) -> None:
    tool = LLMTool("t", at(server, SOUND), output_type=ANSWER, **{limit: 0.1})
    await run(tool, tool_options={limit: 10.0})  # what is loaded when first used is loaded now
    await server.set_faults([fault])
    output = await run(tool, options={"max_retries": 0})
    error = output.content["error"]
    assert (output.status, error["type"]) == ("failed", "ProviderTimeout")
    assert f"no byte for 0.1 s ({limit})" in error["message"]
    assert output.elapsed_ms < 4000, "slow is 5 seconds late"


@SILENCES
async def test_after_a_silence_the_next_model_answers(server: SimulatedServer, fault: str, limit: str) -> None:
    tool = LLMTool("t", [at(server, SOUND), at(server, SECOND, "anthropic")], output_type=ANSWER)
    await run(tool)
    await server.set_faults([f"{fault}{',' if ':' in fault else ':'}model={SOUND}"])
    output = await run(tool, tool_options={limit: 0.1}, options={"max_retries": 0})
    assert (output.status, output.metadata["model"]) == ("succeeded", SECOND)
    assert limit in output.metadata["failed_models"][f"openai:{SOUND}"]
    assert [line["outcome"] for line in output.attempts] == ["failed", "succeeded"]


async def test_a_bundles_replicates_are_asked_of_the_next_model_after_a_silence(server: SimulatedServer) -> None:
    tool = LLMBundleTool(
        "b",
        [at(server, SOUND), at(server, SECOND, "anthropic")],
        output_type=ANSWER,
        k=2,
        chunk_timeout=0.1,
    )
    await run(tool, tool_options={"chunk_timeout": 10.0})
    await server.set_faults([f"stall:chunks=2,model={SOUND}"])
    output = await run(tool, options={"max_retries": 0})
    assert output.evidence is not None
    assert [replicate.model for replicate in output.evidence.replicates] == [SECOND] * 2


async def test_a_bundle_reports_what_it_has_when_a_model_stays_silent(server: SimulatedServer) -> None:
    await run(LLMTool("t", at(server)))  # what is loaded when first used is loaded now
    await server.set_faults(["silence:after=2"])
    tool = LLMBundleTool("b", at(server), output_type=ANSWER, k=4, options=ALL)
    output = await run(tool, options={"timeout_ms": 600})
    assert output.evidence is not None
    meta = output.evidence.meta
    assert (output.status, meta.k_completed, meta.early_stop_reason) == ("partial", 2, "deadline")
    assert output.elapsed_ms < 600


async def test_a_recorded_answer_that_is_no_json_is_asked_again_and_then_a_typed_failure(
    server: SimulatedServer,
) -> None:
    number = {"type": "object", "properties": {"answer": {"type": "number"}}, "required": ["answer"]}
    output = await run(LLMTool("t", at(server, SOUND), output_type=number))
    assert (output.status, output.content["error"]["type"]) == ("failed", "InvalidOutput")
    assert [line["outcome"] for line in output.attempts] == ["succeeded", "succeeded"]
    first, second = output.attempts
    assert output.usage["input_tokens"] > 2 * 50
    assert first["model"] == second["model"] == f"openai:{SOUND}"


async def test_text_is_streamed_from_the_provider(server: SimulatedServer) -> None:
    events = RecordedEvents()
    output = await run(LLMTool("t", at(server, BROKEN)), options={"streaming": True}, event_manager=events)
    assert events.text == output.content
    assert len(_texts(events)) > 1


async def test_a_stream_that_breaks_off_begins_anew_and_says_so(server: SimulatedServer) -> None:
    await server.set_faults(["no-end:first=1"])
    events = RecordedEvents()
    output = await run(LLMTool("t", at(server, BROKEN)), options={"streaming": True}, event_manager=events)
    assert output.status == "succeeded"
    place = events.types.index("restart")
    after = [event.delta for event in events.all[place + 1 :] if isinstance(event, StreamDeltaEvent)]
    assert "".join(delta for delta in after if isinstance(delta, str)) == output.content
    assert events.types.index("retry_attempt") < place


async def test_an_image_reaches_the_model_or_is_refused_by_name(server: SimulatedServer) -> None:
    image = {"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    request = {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]}
    blind = Model("openai:demo", base_url=f"{server.base_url}/v1", takes_images=False)
    output = await run(LLMTool("t", blind), request)
    assert output.content["error"]["message"].startswith("messages[0].content[1]: openai:demo takes no images")


def _texts(events: RecordedEvents) -> list[str]:
    deltas = [event.delta for event in events.all if isinstance(event, StreamDeltaEvent)]
    return [delta for delta in deltas if isinstance(delta, str)]
