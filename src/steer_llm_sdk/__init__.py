"""Run LLM operations through tools, reliably: an answer, what it cost, and how far to trust it."""

from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration import (
        OrchestrationConfig,
        OrchestrationOutput,
        Orchestrator,
        ReliabilityConfig,
        ReliableOrchestrator,
        Tool,
        ToolRegistry,
        get_global_registry,
    )
    from steer_llm_sdk.orchestration._call import time_left
    from steer_llm_sdk.orchestration.tools.function import tool
    from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, LLMTool
    from steer_llm_sdk.reliability.budget import Budget
    from steer_llm_sdk.streaming.manager import EventManager

__all__ = [
    "Budget",
    "EventManager",
    "LLMBundleTool",
    "LLMTool",
    "OrchestrationConfig",
    "OrchestrationOutput",
    "Orchestrator",
    "ReliabilityConfig",
    "ReliableOrchestrator",
    "Tool",
    "ToolRegistry",
    "get_global_registry",
    "time_left",
    "tool",
]

__version__ = "1.0.0a1"

_LATE = {
    **dict.fromkeys(__all__, f"{__name__}.orchestration"),
    "Budget": f"{__name__}.reliability.budget",
    "EventManager": f"{__name__}.streaming.manager",
    "orchestration": f"{__name__}.orchestration",
    "time_left": f"{__name__}.orchestration._call",
    "tool": f"{__name__}.orchestration.tools.function",
    **dict.fromkeys(("LLMBundleTool", "LLMTool"), f"{__name__}.orchestration.tools.llm"),
}

if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
