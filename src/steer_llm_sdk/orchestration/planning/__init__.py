"""Choosing the tool that serves a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.orchestration.planning.eligibility import Eligible, eligible
from steer_llm_sdk.orchestration.planning.planner import (
    ExecutionStrategy,
    Outcome,
    PlanDecision,
    Planner,
    PlanRequest,
    ToolMetadata,
)
from steer_llm_sdk.orchestration.planning.rule_based import Allowed, RuleBasedPlanner
from steer_llm_sdk.orchestration.planning.rules import (
    PlanningRule,
    RuleAction,
    RuleCondition,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.planning.statistics import Estimate, Statistics

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.planning.explanation import (
        ConditionAccount,
        Explanation,
        RuleAccount,
        ToolAccount,
        explain,
    )
    from steer_llm_sdk.orchestration.planning.learned import LearnedPlanner, Neighbours, Pacing
    from steer_llm_sdk.orchestration.planning.rule_checks import Finding, check_rules
    from steer_llm_sdk.orchestration.planning.rule_files import RuleFileError, load_rules

__all__ = [
    "Allowed",
    "ConditionAccount",
    "Eligible",
    "Estimate",
    "ExecutionStrategy",
    "Explanation",
    "Finding",
    "LearnedPlanner",
    "Neighbours",
    "Outcome",
    "Pacing",
    "PlanDecision",
    "PlanRequest",
    "Planner",
    "PlanningRule",
    "RuleAccount",
    "RuleAction",
    "RuleBasedPlanner",
    "RuleCondition",
    "RuleFileError",
    "Statistics",
    "ToolAccount",
    "ToolMetadata",
    "check_rules",
    "create_budget_aware_rule",
    "create_keyword_based_rule",
    "create_type_based_rule",
    "eligible",
    "explain",
    "load_rules",
]

# Loaded when somebody asks for it: a run does not.
_LATE = {
    **dict.fromkeys(
        ("ConditionAccount", "Explanation", "RuleAccount", "ToolAccount", "explain"),
        "steer_llm_sdk.orchestration.planning.explanation",
    ),
    **dict.fromkeys(("LearnedPlanner", "Neighbours", "Pacing"), "steer_llm_sdk.orchestration.planning.learned"),
    **dict.fromkeys(("Finding", "check_rules"), "steer_llm_sdk.orchestration.planning.rule_checks"),
    **dict.fromkeys(("RuleFileError", "load_rules"), "steer_llm_sdk.orchestration.planning.rule_files"),
}

if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)
