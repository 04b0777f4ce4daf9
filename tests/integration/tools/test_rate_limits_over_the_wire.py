"""Rate limits over real HTTP: what both formats' headers say is learned and kept to, and Retry-After is waited out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from steer_llm_sdk.errors import RateLimited
from steer_llm_sdk.models.quota import Quota
from steer_llm_sdk.orchestration import OrchestrationOutput, ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.base import Message, ModelRequest
from steer_llm_sdk.providers.models import Model, resolve_model
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.reliability import RateLimit
from steer_llm_sdk.testing import RecordedEvents

QUESTION = shipped_recording().questions[3].text
MODELS = {"openai": "gpt-4o-2024-05-13", "anthropic": "claude-3-haiku-20240307"}
ALONE = {"max_retries": 0}


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


@pytest.fixture(params=["openai", "anthropic"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def at(server: SimulatedServer, wire: str) -> Model:
    return Model(f"{wire}:{MODELS[wire]}", base_url=server.base_url + ("/v1" if wire == "openai" else ""))


def orchestrator(server: SimulatedServer, wire: str, **config: Any) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(LLMTool("t", at(server, wire)))
    return ReliableOrchestrator(registry=registry, reliability_config=ReliabilityConfig(**config))


async def run_many(runner: ReliableOrchestrator, count: int) -> list[OrchestrationOutput]:
    return await asyncio.gather(*(runner.run(QUESTION, "t", None, ALONE) for _ in range(count)))


def statuses(server: SimulatedServer) -> dict[int | None, int]:
    found: dict[int | None, int] = {}
    for row in server.calls():
        found[row.status] = found.get(row.status, 0) + row.count
    return found


async def test_both_formats_tell_an_answer_and_an_error_of_their_limits(server: SimulatedServer, wire: str) -> None:
    adapter = resolve_model(at(server, wire))
    request = ModelRequest(messages=(Message("user", QUESTION),), timeout=30.0)
    plain = await adapter.request(request)
    assert plain.rate_limit is not None
    assert plain.rate_limit.tokens is not None
    assert plain.rate_limit.requests is not None
    assert (plain.rate_limit.requests.limit, plain.rate_limit.requests.remaining) == (10_000, 9_999)

    await server.set_faults("limit:requests=1")
    first = await adapter.request(request)
    assert first.rate_limit is not None
    assert first.rate_limit.requests is not None
    assert first.rate_limit.requests[:2] == (1, 0)
    assert first.rate_limit.requests.reset == pytest.approx(60, abs=2)
    with pytest.raises(RateLimited) as caught:
        await adapter.request(request)
    error = caught.value
    assert error.rate_limit is not None
    assert error.rate_limit.requests == Quota(1, 0, pytest.approx(60, abs=2))
    assert error.retry_after == pytest.approx(60, abs=2)
    await adapter.aclose()


async def test_a_limit_that_answers_tell_of_is_learned_and_no_request_is_refused(
    server: SimulatedServer, wire: str
) -> None:
    await server.set_faults("limit:requests=60")
    async with orchestrator(server, wire, learn_rate_limits=True) as runner:
        began = time.monotonic()
        await run_many(runner, 1)
        outputs = await run_many(runner, 61)
        took = time.monotonic() - began
    assert statuses(server) == {200: 62}
    assert {output.status for output in outputs} == {"succeeded"}
    waited = [
        line["queued_ms"] for output in outputs for line in output.per_agent["t"]["timeline"] if "queued_ms" in line
    ]
    assert waited
    assert took < 15


async def test_without_learning_the_same_requests_are_refused_by_the_server(server: SimulatedServer) -> None:
    await server.set_faults("limit:requests=5")
    async with orchestrator(server, "openai") as runner:
        await run_many(runner, 1)
        await run_many(runner, 24)
    assert statuses(server)[429] >= 10


async def test_a_configured_limit_paces_the_requests(server: SimulatedServer, wire: str) -> None:
    limits = {wire: RateLimit(requests_per_minute=60)}
    async with orchestrator(server, wire, rate_limits=limits) as runner:
        began = time.monotonic()
        outputs = await run_many(runner, 61)
        took = time.monotonic() - began
    assert statuses(server) == {200: 61}
    assert took >= 1
    assert [output.status for output in outputs] == ["succeeded"] * 61


async def test_no_more_connections_are_busy_than_the_bulkhead_allows(server: SimulatedServer) -> None:
    await server.set_faults("slow:seconds=0.2")
    async with orchestrator(server, "openai", rate_limits={"openai": RateLimit(max_concurrent=2)}) as runner:
        await run_many(runner, 1)
        began = time.monotonic()
        await run_many(runner, 6)
        took = time.monotonic() - began
    assert 0.6 <= took < 3


async def test_what_a_429_asks_for_holds_back_the_others_too_and_they_are_told(
    server: SimulatedServer, wire: str
) -> None:
    await server.set_faults("429:first=1,retry-after=1.5")
    async with orchestrator(server, wire, rate_limits={"default": RateLimit()}) as runner:
        first = await runner.run(QUESTION, "t", None, ALONE)
        began = time.monotonic()
        events = RecordedEvents()
        second = await runner.run(QUESTION, "t", None, ALONE, events)
        took = time.monotonic() - began
    assert (first.status, second.status) == ("failed", "succeeded")
    assert 1.3 <= took < 5
    (told,) = events.data("rate_limited")
    assert 1000 < told["wait_ms"] <= 1500
    assert statuses(server) == {429: 1, 200: 1}
