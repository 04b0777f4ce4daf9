"""A tool that plays a script: what to answer or raise, how long to take, whether to ignore a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.orchestration._declared import names_of
from steer_llm_sdk.orchestration.tool_registry import Tool

if TYPE_CHECKING:
    from steer_llm_sdk.streaming.manager import EventManager

__all__ = ["HANG", "OK", "ScriptedCall", "ScriptedTool", "Step", "err", "stubborn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """One call that a ScriptedTool got. `at` is the time on the clock of the event loop."""

    request: Any
    options: dict[str, Any]
    at: float


class Step(Protocol):
    """One line of a script: returns what the tool returns, or raises what it raises."""

    async def play(self, tool: ScriptedTool) -> Any: ...


@dataclass(frozen=True, slots=True)
class OK:
    """Answer `content` after `after` seconds. With `usage`, `cost_usd` or `metadata` the tool returns a mapping."""

    content: Any = "ok"
    usage: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    cost_usd: float | None = field(default=None, kw_only=True)
    metadata: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    after: float = field(default=0.0, kw_only=True)

    async def play(self, tool: ScriptedTool) -> Any:
        await _pass(self.after)
        if not self.usage and not self.metadata and self.cost_usd is None:
            return self.content
        return {
            "content": self.content,
            "usage": dict(self.usage),
            "cost_usd": self.cost_usd,
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class _Raise:
    what: int | BaseException | type[BaseException]
    retry_after: float | None
    usage: Mapping[str, Any]
    after: float

    async def play(self, tool: ScriptedTool) -> Any:
        await _pass(self.after)
        raise self._error(tool.provider or tool.name)

    def _error(self, provider: str) -> BaseException:
        if not isinstance(self.what, int):
            return self.what if isinstance(self.what, BaseException) else self.what()
        return ProviderError(
            f"{provider} answered {self.what}",
            provider,
            status_code=self.what,
            retry_after=self.retry_after,
            usage=self.usage,
        )


@dataclass(frozen=True, slots=True)
class _Hang:
    async def play(self, tool: ScriptedTool) -> Any:
        await asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class _Stubborn:
    seconds: float
    then: Step

    async def play(self, tool: ScriptedTool) -> Any:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        while (left := end - loop.time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left)
        return await self.then.play(tool)


HANG: Step = _Hang()
"""Never answer; stop when cancelled."""


def err(
    what: int | BaseException | type[BaseException],
    *,
    retry_after: float | None = None,
    usage: Mapping[str, Any] | None = None,
    after: float = 0.0,
) -> Step:
    """Raise: a ProviderError of that HTTP status (with `retry_after` in seconds and the `usage` it cost), or `what`."""
    return _Raise(what, retry_after, dict(usage or {}), after)


def stubborn(seconds: float, then: Step | None = None) -> Step:
    """Work for `seconds`, ignoring cancellation, then play `then`."""
    return _Stubborn(seconds, then or OK())


async def _pass(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


class ScriptedTool(Tool):
    """Plays one step for each call, the last one again and again; no step means OK().

        primary = ScriptedTool("primary", err(503), err(429, retry_after=2), OK("x"), provider="openai")

    `delay` seconds pass before each step. `calls` lists what it was asked and when, `cancelled` counts the calls
    during which it was cancelled, `running` those that have not ended.
    """

    def __init__(
        self,
        name: str,
        *steps: Step,
        provider: str | None = None,
        version: str = "1.0.0",
        description: str = "",
        capabilities: Sequence[str] = (),
        default_options: Mapping[str, Any] | None = None,
        resource_requirements: Mapping[str, Any] | None = None,
        delay: float = 0.0,
    ) -> None:
        self._name = name
        self._steps: Sequence[Step] = steps or (OK(),)
        self.provider = provider
        self.version = version
        self.description = description
        self.capabilities = names_of(name, "capabilities", capabilities)
        self.default_options = dict(default_options or {})
        self.resource_requirements = dict(resource_requirements or {})
        self.delay = delay
        self.calls: list[ScriptedCall] = []
        self.cancelled = 0
        self.running = 0

    @property
    def name(self) -> str:
        return self._name

    async def execute(
        self,
        request: Any,
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> Any:
        step = self._steps[min(len(self.calls), len(self._steps) - 1)]
        now = asyncio.get_running_loop().time()
        self.calls.append(ScriptedCall(request=request, options=dict(options or {}), at=now))
        self.running += 1
        try:
            await _pass(self.delay)
            return await step.play(self)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
