"""A model that plays a script: a small real implementation of the adapter contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.providers.base import ModelReply, ModelRequest

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


@dataclass(frozen=True, kw_only=True)
class Say:
    """Answer `text` after so many seconds, or another value as JSON; `pieces` are shown first, as they come."""

    text: Any = "ok"
    after: float = 0.0
    pieces: Sequence[str] = ()
    fail: BaseException | None = None
    reply: Mapping[str, Any] = field(default_factory=dict)


Step = Any
"""A Say, an exception to raise, a text, or a value to answer as JSON."""


class ScriptedModel:
    """One step for each request, the last one again and again. `requests` lists what it was asked, `at` when."""

    def __init__(
        self,
        *steps: Step,
        name: str = "test:model",
        target: str = "test",
        cost_usd: float | None = 0.01,
        tokens_out: int = 100,
        choose: Callable[[ModelRequest], Step] | None = None,
    ) -> None:
        self._name, self._target, self._steps = name, target, steps or ("ok",)
        self._cost, self._tokens_out, self._choose = cost_usd, tokens_out, choose
        self.requests: list[ModelRequest] = []
        self.at: list[float] = []
        self.running = self.most_running = self.cancelled = self.closed = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def target(self) -> str:
        return self._target

    async def request(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelReply:
        step = self._next(request)
        self.requests.append(request)
        self.at.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            return await self._play(step, on_text)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def prepare(self) -> None:
        """Always ready."""

    def worst_case(self, request: ModelRequest) -> Amount:
        """Ten tokens in, `max_tokens` out, a thousandth of `cost_usd` for each token."""
        tokens = 10 + (self._tokens_out if request.max_tokens is None else request.max_tokens)
        return Amount(tokens, None if self._cost is None else tokens * self._cost / 1000)

    async def aclose(self) -> None:
        self.closed += 1

    @property
    def said(self) -> list[str]:
        """The last message of each request."""
        return [str(request.messages[-1].content) for request in self.requests]

    def _next(self, request: ModelRequest) -> Say:
        step = self._steps[min(len(self.requests), len(self._steps) - 1)]
        step = step if self._choose is None else self._choose(request)
        if isinstance(step, BaseException):
            return Say(fail=step)
        return step if isinstance(step, Say) else Say(text=step)

    async def _play(self, step: Say, on_text: Callable[[str], None] | None) -> ModelReply:
        for piece in step.pieces:
            if on_text is not None:
                on_text(piece)
        if step.after:
            await asyncio.sleep(step.after)
        if step.fail is not None:
            raise step.fail
        text = step.text if isinstance(step.text, str) else json.dumps(step.text)
        known: dict[str, Any] = {"usage": USAGE, "cost_usd": self._cost, "finish_reason": "stop", **step.reply}
        return ModelReply(**{"text": text, "model": self._name, "request_id": f"req-{len(self.requests)}", **known})


async def callers_with_one_key(tool: Tool, *callers: tuple[float, int], **given: Any) -> list[str]:
    """What becomes of each caller: the status of its run, or "late". A caller comes after so many seconds and has so
    many milliseconds."""
    registry = ToolRegistry()
    registry.register_tool(tool)
    orchestrator = ReliableOrchestrator(registry=registry)

    async def call(after: float, timeout_ms: int) -> str:
        await asyncio.sleep(after)
        options = {"idempotency_key": "key", "timeout_ms": timeout_ms}
        try:
            return (await orchestrator.run("Why?", tool.name, options=options, **given)).status
        except BudgetExceeded:
            return "late"

    return await asyncio.gather(*(call(*caller) for caller in callers))
