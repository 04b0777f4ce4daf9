"""Choosing the tool that serves a request."""

from __future__ import annotations

from steer_llm_sdk.orchestration.planning.explanation import (
    ConditionAccount,
    Explanation,
    RuleAccount,
    ToolAccount,
    explain,
)
from steer_llm_sdk.orchestration.planning.planner import (
    ExecutionStrategy,
    PlanDecision,
    Planner,
    PlanRequest,
    ToolMetadata,
)
from steer_llm_sdk.orchestration.planning.rule_based import RuleBasedPlanner
from steer_llm_sdk.orchestration.planning.rules import (
    PlanningRule,
    RuleAction,
    RuleCondition,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)

__all__ = [
    "ConditionAccount",
    "ExecutionStrategy",
    "Explanation",
    "PlanDecision",
    "PlanRequest",
    "Planner",
    "PlanningRule",
    "RuleAccount",
    "RuleAction",
    "RuleBasedPlanner",
    "RuleCondition",
    "ToolAccount",
    "ToolMetadata",
    "create_budget_aware_rule",
    "create_keyword_based_rule",
    "create_type_based_rule",
    "explain",
]
