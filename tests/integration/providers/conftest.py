"""A server of recorded answers with faults, and one that answers whatever a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from canned import Answer, Canned, adapter_at

from steer_llm_sdk.providers.base import Message, ModelAdapter, ModelRequest
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording


@pytest.fixture(autouse=True)
def _no_endpoints_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "OPENAI_ORG_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def canned() -> AsyncIterator[Callable[[Answer], Awaitable[Canned]]]:
    """Start a server with an answer; it ends with the test."""
    servers: list[tuple[asyncio.Server, Canned]] = []

    async def start(answer: Answer) -> Canned:
        held = Canned(answer)
        server = await asyncio.start_server(held.serve, "127.0.0.1", 0)
        servers.append((server, held))
        held.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return held

    yield start
    for server, held in servers:
        server.close()
        await held.stop()


@pytest.fixture
async def simulated() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


@pytest.fixture(params=["openai", "anthropic"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def adapter(simulated: SimulatedServer, wire: str) -> AsyncIterator[ModelAdapter]:
    adapter = adapter_at(simulated.base_url, wire)
    yield adapter
    await adapter.aclose()


@pytest.fixture
def question() -> ModelRequest:
    """One that the recording answers, with limits that no good answer meets."""
    text = shipped_recording().questions[0].text
    return ModelRequest(messages=(Message("user", text),), timeout=30.0, first_byte_timeout=15.0, chunk_timeout=15.0)
