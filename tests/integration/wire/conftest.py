"""A simulated server for each test, and the official clients in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from official_clients import PATIENCE, Clients, bare

from steer_llm_sdk.providers.simulated import SimulatedServer


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


@pytest.fixture
async def clients(server: SimulatedServer) -> AsyncIterator[Clients]:
    async with Clients(server.base_url) as made:
        yield made


@pytest.fixture
async def impatient(server: SimulatedServer) -> AsyncIterator[Clients]:
    """Clients that soon give up, in front of a server that has loaded all it needs."""
    async with bare(server.base_url) as client:
        await client.get("/v1/models")
    async with Clients(server.base_url, patience=PATIENCE) as made:
        yield made
