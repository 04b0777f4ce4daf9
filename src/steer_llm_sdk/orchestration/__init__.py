"""Orchestration: name a tool or let a planner choose; get an answer, what it cost, and how far to trust it."""

from steer_llm_sdk._names import answer_for_renamed
from steer_llm_sdk.orchestration import direct as _direct  # noqa: F401 - FunctionTool.run runs through it
from steer_llm_sdk.orchestration.base import BaseOrchestrator, OrchestrationOutput
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

_HERE = ("base", "options", "orchestrator", "planning", "planning.planner", "planning.rule_based")
answer_for_renamed((__name__, *(f"{__name__}.{module}" for module in _HERE)))
