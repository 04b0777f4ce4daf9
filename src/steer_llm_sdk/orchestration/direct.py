"""`await fn.run(…)`: a tool that is in no registry, run through a ReliableOrchestrator all the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.streaming.manager import EventManager

_handed: ContextVar[Tool] = ContextVar("steer_llm_sdk.handed")


class _Handed(ToolRegistry):
    """Finds the tool that was handed over in this context. Two functions of one name do not get into each other's way,
    as they do when a cell of a notebook is run again."""

    def get_tool(self, name: str, version: str | None = None) -> Tool | None:
        return _handed.get()


class _Direct(ReliableOrchestrator):
    async def run_tool(
        self,
        tool: Tool,
        request: Mapping[str, Any],
        *,
        tool_options: Mapping[str, Any] | None,
        options: OrchestrationConfig | Mapping[str, Any] | None,
        event_manager: EventManager | None,
    ) -> OrchestrationOutput:
        token = _handed.set(tool)
        try:
            return await self.run(request, tool.name, tool_options, options, event_manager)
        finally:
            _handed.reset(token)
            self._last_used = None
            self._used.pop(id(tool), None)  # A function has nothing open; keeping it would keep it for ever.


@cache
def _direct() -> _Direct:
    """One for the process: functions of one provider share its breaker, and a key is known from call to call."""
    return _Direct(registry=_Handed())


async def run_tool(tool: Tool, request: Mapping[str, Any], **given: Any) -> OrchestrationOutput:
    """What `FunctionTool.run` calls."""
    return await _direct().run_tool(tool, request, **given)
