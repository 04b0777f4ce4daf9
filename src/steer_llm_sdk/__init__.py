"""Run LLM operations through tools, reliably: an answer, what it cost, and how far to trust it."""

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
from steer_llm_sdk.streaming.manager import EventManager

__all__ = [
    "EventManager",
    "OrchestrationConfig",
    "OrchestrationOutput",
    "Orchestrator",
    "ReliabilityConfig",
    "ReliableOrchestrator",
    "Tool",
    "ToolRegistry",
    "get_global_registry",
]

__version__ = "1.0.0a1"
