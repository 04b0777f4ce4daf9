"""A server that answers whatever a test tells it to, byte for byte, and adapters that ask it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from steer_llm_sdk.providers.base import Message, ModelAdapter, ModelRequest
from steer_llm_sdk.providers.models import Model, resolve_model

RECORDED = {"openai": "gpt-4o-2024-05-13", "anthropic": "claude-3-haiku-20240307"}
KEY = "sk-canary-0123456789abcdef"


@dataclass
class Seen:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Answer = Callable[["Canned", asyncio.StreamWriter], Awaitable[bool]]
"""Writes what the client gets; true where the connection is kept for its next request."""


@dataclass
class Canned:
    """`left` is set when a client hangs up before it was answered."""

    answer: Answer
    url: str = ""
    connections: int = 0
    seen: list[Seen] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def sent(self) -> dict[str, Any]:
        """The body of the last request."""
        return self.seen[-1].body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._converse(reader, writer):
                pass
        self.serving.discard(task)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def stop(self) -> None:
        """End every connection, whatever its answer is waiting for."""
        tasks = list(self.serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.seen.append(Seen(first.split()[1], headers, json.loads(body or b"{}")))
        watching = asyncio.create_task(self._watch(reader))
        try:
            return await self.answer(self, writer)
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            if await reader.read(1) == b"":
                self.left.set()


def raw(status: str, content_type: str, body: bytes, *headers: str) -> Answer:
    """One response, then the connection closes."""

    async def answer(_: Canned, writer: asyncio.StreamWriter) -> bool:
        head = [f"HTTP/1.1 {status}", f"content-type: {content_type}", "connection: close", *headers]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        return False

    return answer


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """An event of OpenAI's stream."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test-1"}
    return b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n"


def stream(*events: bytes) -> Answer:
    return raw("200 OK", "text/event-stream", b"".join(events))


def message_start(**usage: int) -> bytes:
    """The first event of Anthropic's stream."""
    counts = {"input_tokens": 10, "output_tokens": 1, **usage}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test-1", "content": []}
    return event("message_start", message={**message, "stop_reason": None, "usage": counts})


def event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def text_block(text: str) -> bytes:
    return (
        event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        + event("content_block_stop", index=0)
    )


OK_OPENAI = (chunk({"role": "assistant", "content": "yes"}), chunk({}, "stop"), b"data: [DONE]\n\n")
OK_ANTHROPIC = (
    message_start(),
    text_block("yes"),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
    event("message_stop"),
)


def model_at(url: str, wire: str, name: str | None = None, **more: Any) -> Model:
    base_url = f"{url}/v1" if wire == "openai" else url
    return Model(f"{wire}:{name or RECORDED[wire]}", base_url=base_url, api_key=KEY, **more)


def adapter_at(url: str, wire: str, name: str | None = None, **more: Any) -> ModelAdapter:
    return resolve_model(model_at(url, wire, name, **more))


def asking(text: str = "Is it?", **more: Any) -> ModelRequest:
    return ModelRequest(messages=(Message("user", text),), timeout=30.0, **more)
