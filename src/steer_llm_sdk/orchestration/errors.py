"""The errors of orchestration, under the name callers know."""

from steer_llm_sdk.errors import (
    AllToolsFailed,
    AttemptsUsedUp,
    BudgetExceeded,
    CircuitOpen,
    ConflictError,
    InvalidRequest,
    NoEligibleTool,
    OrchestratorError,
    Rejected,
    StoreUnavailable,
    ToolExecutionError,
    ToolNotFound,
    VersionUnavailable,
)

__all__ = [
    "AllToolsFailed",
    "AttemptsUsedUp",
    "BudgetExceeded",
    "CircuitOpen",
    "ConflictError",
    "InvalidRequest",
    "NoEligibleTool",
    "OrchestratorError",
    "Rejected",
    "StoreUnavailable",
    "ToolExecutionError",
    "ToolNotFound",
    "VersionUnavailable",
]
