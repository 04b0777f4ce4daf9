"""Why a planner decides as it does: every rule and every tool, with what spoke for or against it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from steer_llm_sdk.errors import NoEligibleTool, a_kind
from steer_llm_sdk.orchestration.planning._conditions import checker, reader
from steer_llm_sdk.orchestration.planning._request import default_options, task_type_of
from steer_llm_sdk.orchestration.planning._search import reason_of
from steer_llm_sdk.orchestration.planning.eligibility import Check
from steer_llm_sdk.orchestration.planning.planner import PlanDecision, PlanRequest, ToolMetadata
from steer_llm_sdk.orchestration.planning.rule_based import RuleBasedPlanner
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleCondition

_SHOWN = 120
_GREATEST_SHOWN = 10**18


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionAccount:
    """`value` is what the request has at the path, shortened. `holds` is None where `problem` is why nobody can say."""

    path: str
    operator: str
    expected: Any
    value: Any
    holds: bool | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleAccount:
    """`decides`: the decision is this rule's; of one that restricts, forbids or prefers, that it was applied. `problem`
    says why the rule is skipped, or has no say. `looked_at` False: the index knew without asking that it does not
    match."""

    name: str
    priority: int
    effect: str | None
    looked_at: bool
    matches: bool
    decides: bool
    tools: tuple[str, ...]
    conditions: tuple[ConditionAccount, ...]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAccount:
    """`reason` says why the tool is not eligible. Cost in USD, duration in ms and success (0 to 1) as they are expected
    with the decision's options: after `runs` that were seen, of what was seen; with none, of what is declared."""

    name: str
    version: str
    eligible: bool
    reason: str | None
    failed_before: bool
    selected: bool
    fallback: bool
    estimated_cost: float | None
    estimated_duration_ms: int | None
    estimated_success: float | None
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`decision` is None where no tool can serve; then `refusal` is the sentence that would be raised."""

    decision: PlanDecision | None
    refusal: str | None
    rules: tuple[RuleAccount, ...]
    tools: tuple[ToolAccount, ...]


def explain(
    planner: RuleBasedPlanner,
    request: Any,
    available_tools: Mapping[str, ToolMetadata],
    context: PlanRequest | None = None,
) -> Explanation:
    """The decision that `plan` would take now, and the whole account of it. Nothing is run, and nothing is written."""
    decision, refusal = _decision(planner, request, available_tools, context)
    asked = {"query": request} if isinstance(request, str) else request
    options = default_options(None, asked, context) if decision is None else decision.tool_options
    looked_at = {id(rule) for rule in planner.looked_at(asked)}
    kind = task_type_of(asked)
    check = planner.check(asked, available_tools, context)
    return Explanation(
        decision=decision,
        refusal=refusal,
        rules=tuple(_rule(rule, asked, decision, id(rule) in looked_at) for rule in planner.rules),
        tools=tuple(
            _tool(planner, name, available_tools, context, decision, options, check, kind) for name in available_tools
        ),
    )


def _decision(
    planner: RuleBasedPlanner, request: Any, tools: Mapping[str, ToolMetadata], context: PlanRequest | None
) -> tuple[PlanDecision | None, str | None]:
    try:
        # A copy: what the planner decides it may hand out again.
        return planner.decide(request, tools, context).model_copy(deep=True), None
    except NoEligibleTool as error:
        return None, str(error)


def _rule(rule: PlanningRule, request: Any, decision: PlanDecision | None, looked_at: bool) -> RuleAccount:
    conditions = tuple(_condition(condition, request) for condition in rule.conditions)
    told = {} if decision is None else decision.metadata
    skipped = told.get("skipped_rules", {}).get(rule.name)
    problem = next((account.problem for account in conditions if account.problem), skipped)
    action = rule.action
    matches = all(account.holds for account in conditions)
    # A policy holds beside others, and where nobody is left to decide for.
    applied = matches and action is not None and action.effect != "pin"
    return RuleAccount(
        name=rule.name,
        priority=rule.priority,
        effect=None if action is None else action.effect,
        looked_at=looked_at,
        matches=matches,
        decides=applied or (action is not None and rule.name == told.get("matched_rule")),
        tools=() if action is None else (action.tool_name, *action.fallback_tools),
        conditions=conditions,
        problem="it has no action" if action is None else problem,
    )


def _condition(condition: RuleCondition, request: Any) -> ConditionAccount:
    value: Any = None
    holds: bool | None = None
    problem: str | None = None
    try:
        value = reader(condition.attribute_path)(request)
        holds = checker(condition)(value)
    except Exception as error:
        problem = reason_of(error)
    return ConditionAccount(
        path=condition.attribute_path,
        operator="custom_matcher" if condition.custom_matcher is not None else condition.operator,
        expected=_shown(condition.value),
        value=_shown(value),
        holds=holds,
        problem=problem,
    )


def _tool(
    planner: RuleBasedPlanner,
    name: str,
    tools: Mapping[str, ToolMetadata],
    context: PlanRequest | None,
    decision: PlanDecision | None,
    options: Mapping[str, Any],
    check: Check,
    kind: str | None,
) -> ToolAccount:
    tool, reason = tools[name], check(name)
    expected = planner.expected(tool, options, kind)
    return ToolAccount(
        name=name,
        version=tool.version,
        eligible=reason is None,
        reason=reason,
        failed_before=context is not None and name in context.previous_failures,
        selected=decision is not None and decision.selected_tool == name,
        fallback=decision is not None and name in decision.fallback_tools,
        estimated_cost=expected.cost_usd,
        estimated_duration_ms=None if expected.duration_ms is None else ceil(expected.duration_ms),
        estimated_success=expected.success if expected.runs else None,
        runs=expected.runs,
    )


def _shown(value: Any) -> Any:
    """What a JSON document can hold: short values as they are, others in a line."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < _GREATEST_SHOWN):
        return value
    text = value if isinstance(value, str) else _described(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _described(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # a number of 6000 digits, an object that cannot describe itself
        return a_kind(value)
