"""Orchestration: name a tool or let a planner choose; get an answer, what it cost, and how far to trust it."""

from importlib import import_module
from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.orchestration.tools._runner import set_runner

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.base import BaseOrchestrator
    from steer_llm_sdk.orchestration.errors import BudgetExceeded, ConflictError, OrchestratorError, ToolExecutionError
    from steer_llm_sdk.orchestration.models import (
        BundleMetadata,
        BundleSummary,
        Disagreement,
        EvidenceBundle,
        Replicate,
        ReplicateQuality,
    )
    from steer_llm_sdk.orchestration.options import OrchestrationConfig
    from steer_llm_sdk.orchestration.orchestrator import Orchestrator
    from steer_llm_sdk.orchestration.output import OrchestrationOutput
    from steer_llm_sdk.orchestration.planning import (
        PlanDecision,
        Planner,
        PlanningRule,
        PlanRequest,
        RuleBasedPlanner,
    )
    from steer_llm_sdk.orchestration.reliability import ReliabilityConfig
    from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
    from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry, get_global_registry
    from steer_llm_sdk.orchestration.tools import BundleOptions, BundleTool

__all__ = [
    "BaseOrchestrator",
    "BudgetExceeded",
    "BundleMetadata",
    "BundleOptions",
    "BundleSummary",
    "BundleTool",
    "ConflictError",
    "Disagreement",
    "EvidenceBundle",
    "OrchestrationConfig",
    "OrchestrationOutput",
    "Orchestrator",
    "OrchestratorError",
    "PlanDecision",
    "PlanRequest",
    "Planner",
    "PlanningRule",
    "ReliabilityConfig",
    "ReliableOrchestrator",
    "Replicate",
    "ReplicateQuality",
    "RuleBasedPlanner",
    "Tool",
    "ToolExecutionError",
    "ToolRegistry",
    "get_global_registry",
]

# A program loads what it uses: one that only defines a tool does not pay for planner, policies and statistics.
_HOMES = {
    "base": ("BaseOrchestrator",),
    "errors": ("BudgetExceeded", "ConflictError", "OrchestratorError", "ToolExecutionError"),
    "models": ("BundleMetadata", "BundleSummary", "Disagreement", "EvidenceBundle", "Replicate", "ReplicateQuality"),
    "options": ("OrchestrationConfig",),
    "orchestrator": ("Orchestrator",),
    "output": ("OrchestrationOutput",),
    "planning": ("PlanDecision", "PlanRequest", "Planner", "PlanningRule", "RuleBasedPlanner"),
    "reliability": ("ReliabilityConfig",),
    "reliable_orchestrator": ("ReliableOrchestrator",),
    "tool_registry": ("Tool", "ToolRegistry", "get_global_registry"),
    "tools": ("BundleOptions", "BundleTool"),
}
_LATE = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in (home, *names)}


if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


# `await fn.run(...)` goes through the whole flow, which is loaded when the first function is run so.
set_runner(lambda: import_module(f"{__name__}.direct").run_tool)
