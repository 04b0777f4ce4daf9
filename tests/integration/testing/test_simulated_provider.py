"""The fixture: a provider on this machine, whose faults a test switches and whose requests it sees."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import SimulatedProvider

QUESTION = shipped_recording().questions[0].text


def orchestrator(provider: SimulatedProvider) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(LLMTool("ask", Model("openai:demo", base_url=f"{provider.base_url}/v1")))
    quick = RetryPolicy(initial_delay=0.001)
    return ReliableOrchestrator(registry=registry, reliability_config=ReliabilityConfig(retry_policy=quick))


async def test_a_fault_is_met_and_retried_and_the_provider_says_what_it_was_asked(
    simulated_provider: SimulatedProvider,
) -> None:
    simulated_provider.set_faults("503:first=2")
    async with orchestrator(simulated_provider) as runner:
        output = await runner.run({"query": QUESTION}, "ask")
    assert output.status == "succeeded"
    assert [call.status for call in simulated_provider.calls] == [503, 503, 200]
    assert [call.fault for call in simulated_provider.calls] == ["503", "503", None]
    assert {call.model for call in simulated_provider.calls} == {"demo"}


def test_it_serves_a_test_without_an_event_loop(simulated_provider: SimulatedProvider) -> None:
    output = orchestrator(simulated_provider).run_sync({"query": QUESTION}, "ask")
    assert output.status == "succeeded"
    assert len(simulated_provider.calls) == 1


def test_faults_are_switched_while_it_runs_and_numbers_start_again(simulated_provider: SimulatedProvider) -> None:
    said = []
    for faults in (("429:after=1",), ("500",), ()):
        simulated_provider.set_faults(*faults)
        said += [_status(simulated_provider), _status(simulated_provider)]
    assert said == [400, 429, 500, 500, 400, 400]  # 400: the body is no request


def test_a_fault_that_cannot_be_read_is_refused_and_changes_nothing(simulated_provider: SimulatedProvider) -> None:
    simulated_provider.set_faults("500")
    with pytest.raises(InvalidRequest, match="kind"):
        simulated_provider.set_faults("nonsense")
    assert _status(simulated_provider) == 500


def test_without_the_fixture_it_is_a_context_that_closes_its_port() -> None:
    with SimulatedProvider("503") as provider:
        assert _status(provider) == 503
    with pytest.raises(urllib.error.URLError):
        _status(provider)


async def test_two_tests_at_once_have_two_providers() -> None:
    with SimulatedProvider("500") as one, SimulatedProvider("503") as other:
        assert await asyncio.gather(*(asyncio.to_thread(_status, p) for p in (one, other))) == [500, 503]


def _status(provider: SimulatedProvider) -> int:
    request = urllib.request.Request(f"{provider.base_url}/v1/chat/completions", b"{}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return int(error.code)
