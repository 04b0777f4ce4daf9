"""The official clients, unmodified, in front of a simulated server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import anthropic
import openai
import pytest

from steer_llm_sdk.providers.simulated import SimulatedServer

QUESTION = "crux-test-#0"
GPT = "gpt-4o-2024-05-13"
CLAUDE = "claude-3-haiku-20240307"

PATIENCE = 0.1
"""Seconds of silence after which the clients of these tests give up."""


@dataclass(frozen=True)
class Clients:
    """What a program would do: one call in one piece and one as a stream, with either client."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def openai_whole(self) -> object:
        return await self.openai.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": QUESTION}]
        )

    async def openai_stream(self) -> list[str | None]:
        """The finish reason of each event."""
        stream = await self.openai.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        return [choice.finish_reason async for chunk in stream for choice in chunk.choices]

    async def anthropic_whole(self) -> object:
        return await self.anthropic.messages.create(
            model=CLAUDE, max_tokens=1000, messages=[{"role": "user", "content": QUESTION}]
        )

    async def anthropic_stream(self) -> list[str | None]:
        """The type of each event."""
        stream = await self.anthropic.messages.create(
            model=CLAUDE, max_tokens=1000, messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        return [event.type async for event in stream]


def clients_of(base_url: str, *, timeout: float = 10.0) -> Clients:
    return Clients(
        openai=openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0, timeout=timeout),
        anthropic=anthropic.AsyncAnthropic(base_url=base_url, api_key="any", max_retries=0, timeout=timeout),
    )


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as running:
        yield running


@pytest.fixture
async def clients(server: SimulatedServer) -> AsyncIterator[Clients]:
    made = clients_of(server.base_url)
    async with made.openai, made.anthropic:
        yield made


@pytest.fixture
async def impatient(server: SimulatedServer) -> AsyncIterator[Clients]:
    made = clients_of(server.base_url, timeout=PATIENCE)
    async with made.openai, made.anthropic:
        yield made
