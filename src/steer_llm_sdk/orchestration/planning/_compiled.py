"""A rule with an action, made ready to be asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from sys import intern
from typing import Any, NamedTuple

from steer_llm_sdk.errors import a_kind
from steer_llm_sdk.orchestration.planning._conditions import (
    Check,
    Unfit,
    adapted,
    asked,
    guard_of,
    range_of,
    step_of,
    value_of,
)
from steer_llm_sdk.orchestration.planning._guards import Guard, Value
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy, PlanRequest
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, RuleCondition


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """`values` and `guard` are what the index finds it by; `settled`: one value is all it asks for. `asks` is what it
    asks with what it has `expected`. `serves` is its tool and then the fallbacks; `options` None: the tool gets none.

    Few objects, because of ten thousand rules most are not in the processor's cache when they are met.
    """

    rule: PlanningRule
    action: RuleAction
    order: tuple[int, int]
    values: Sequence[Value]
    guard: Guard | None
    asks: Check
    expected: Any
    serves: tuple[str, ...]
    options: Callable[[Any, PlanRequest | None], Mapping[str, Any]] | None
    name: str
    strategy: ExecutionStrategy
    settled: bool
    always_the_same: bool

    def holds(self, request: Any) -> bool:
        return self.asks(request, self.expected)

    def decision(self, request: Any, context: PlanRequest | None, chosen: str) -> dict[str, Any]:
        """What it decides where one of its tools is chosen, but for what depends on the tools that are there."""
        return {
            "selected_tool": chosen,
            "tool_options": {} if self.options is None else self.options(request, context),
            "fallback_tools": [name for name in self.serves[1:] if name != chosen],
            "execution_strategy": self.strategy,
            "confidence": 1.0,
            "reasoning": f"Matched rule: {self.name}",
            "metadata": {"matched_rule": self.name, "selection_method": "rule"},
        }

    @classmethod
    def of(cls, rule: PlanningRule, action: RuleAction, number: int) -> CompiledRule:
        """`number`: how many rules were added before it."""
        steps, values, guard = _steps(rule.conditions)
        options: Callable[..., Any] | None
        try:
            options = _options_of(action) if action.tool_options or action.option_transformer is not None else None
        except Unfit as error:
            options = None
            steps.append(_unusable(error))
        return cls(
            rule,
            action,
            (-rule.priority, number),
            values,
            guard,
            asked([(step.path, step.check) for step in steps]),
            steps[0].expected if len(steps) == 1 else tuple(step.expected for step in steps),
            _shared(tuple(map(_interned, action.tools))),
            options,
            rule.name,
            action.execution_strategy,
            len(steps) == len(values) == 1,
            action.option_transformer is None,
        )


class _Step(NamedTuple):
    path: str | None
    check: Check
    expected: Any


def _steps(conditions: Sequence[RuleCondition]) -> tuple[list[_Step], list[Value], Guard | None]:
    """What is asked of a request, and what guards it. The guards are asked first: so a condition that cannot be used on
    a request is told of where the guards hold, however the rule was found."""
    values: list[Value] = []
    guard: Guard | None = None
    first: list[_Step] = []
    then: list[_Step] = []
    late: list[tuple[RuleCondition, _Step]] = []
    for condition in conditions:
        try:
            step = _Step(*step_of(condition))
        except Unfit as error:
            late.append((condition, _unusable(error)))
            continue
        if (value := value_of(condition)) is not None:
            values.append(value)
            first.append(step)
        elif guard is None and (guard := guard_of(condition)) is not None:
            then.append(step)
        else:
            late.append((condition, step))
    if guard is None:
        for one, other in combinations(late, 2):
            guard = range_of(one[0], other[0])
            if guard is not None:
                then = [one[1], other[1]]
                late = [pair for pair in late if pair is not one and pair is not other]
                break
    return [*first, *then, *(step for _, step in late)], values, guard


@lru_cache(1024)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same object for the same names: most rules name tools that others name too."""
    return names


def _interned(name: str) -> str:
    return intern(name) if type(name) is str else name


def _unusable(error: Unfit) -> _Step:
    return _Step(None, _refuse, str(error))


def _refuse(value: Any, reason: str) -> bool:
    raise Unfit(reason)


def _options_of(action: RuleAction) -> Callable[[Any, PlanRequest | None], Mapping[str, Any]]:
    """Each decision gets options of its own: nobody who changes them changes the rule."""
    kept = copy.deepcopy(action.tool_options)
    deep = any(not isinstance(value, (str, int, float, type(None))) for value in kept.values())
    fresh: Callable[[], dict[str, Any]] = (lambda: copy.deepcopy(kept)) if deep else kept.copy
    if action.option_transformer is None:
        return lambda request, context: fresh()
    transform = adapted(action.option_transformer, "option_transformer", ("request", "options", "context"), alone=1)

    def options(request: Any, context: PlanRequest | None) -> Mapping[str, Any]:
        made = transform(request, fresh(), context)
        if not isinstance(made, Mapping):
            raise Unfit(f"option_transformer: returned {a_kind(made)}, not a mapping of options")
        return dict(made)

    return options
