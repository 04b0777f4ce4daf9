"""The official clients, unmodified, in front of a simulated server."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from functools import cached_property
from typing import Self

import anthropic
import httpx2
import openai

QUESTION = "crux-test-#0"
GPT = "gpt-4o-2024-05-13"
CLAUDE = "claude-3-haiku-20240307"

PATIENCE = 0.1
"""Seconds of silence after which the clients of these tests give up."""


CERTIFICATES = ssl.create_default_context()
"""Read once: nothing here is encrypted, and each client would read them again, for longer than most tests take."""


def bare(base_url: str, *, timeout: float = 10.0) -> httpx2.AsyncClient:
    """A client of no provider, which sees everything."""
    return httpx2.AsyncClient(base_url=base_url, timeout=timeout, verify=CERTIFICATES)


class Clients:
    """What a program would do: one call in one piece and one as a stream, with either client.

    `patience` is how many seconds of silence they bear. Use it with `async with`; each client is made when first used.
    """

    def __init__(self, base_url: str, *, patience: float = 10.0) -> None:
        self._base_url = base_url
        self._timeout = httpx2.Timeout(10.0, read=patience)
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._closing.aclose()

    @cached_property
    def openai(self) -> openai.AsyncOpenAI:
        made = openai.AsyncOpenAI(
            base_url=f"{self._base_url}/v1",
            api_key="any",
            max_retries=0,
            timeout=self._timeout,
            http_client=openai.DefaultAsyncHttpx2Client(verify=CERTIFICATES),
        )
        self._closing.push_async_callback(made.close)
        return made

    @cached_property
    def anthropic(self) -> anthropic.AsyncAnthropic:
        made = anthropic.AsyncAnthropic(
            base_url=self._base_url,
            api_key="any",
            max_retries=0,
            timeout=self._timeout,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=CERTIFICATES),
        )
        self._closing.push_async_callback(made.close)
        return made

    async def openai_whole(self) -> object:
        return await self.openai.chat.completions.create(model=GPT, messages=[{"role": "user", "content": QUESTION}])

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
