"""The function that runs a tool outside of a registry. The flow, which imports the tools, sets it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.options import OrchestrationConfig
    from steer_llm_sdk.orchestration.output import OrchestrationOutput
    from steer_llm_sdk.orchestration.tool_registry import Tool
    from steer_llm_sdk.streaming.manager import EventManager


class Runner(Protocol):
    """Runs a tool, registered or not, under the policies."""

    async def __call__(
        self,
        tool: Tool,
        request: Mapping[str, Any],
        *,
        tool_options: Mapping[str, Any] | None,
        options: OrchestrationConfig | Mapping[str, Any] | None,
        event_manager: EventManager | None,
    ) -> OrchestrationOutput: ...


_load: Callable[[], Runner] | None = None


def set_runner(load: Callable[[], Runner]) -> None:
    """Set what `FunctionTool.run` uses, in the whole process; `load` gives it when a function is run."""
    global _load
    _load = load


def runner() -> Runner:
    """RuntimeError if none is set; importing `steer_llm_sdk.orchestration` sets it."""
    if _load is None:
        raise RuntimeError("nothing is there to run a tool; import steer_llm_sdk.orchestration first")
    return _load()
