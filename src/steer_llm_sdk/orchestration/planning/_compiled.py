"""A rule with an action, made ready to be asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steer_llm_sdk.orchestration.planning._conditions import Test, Unfit, adapted, compiled, guard_of
from steer_llm_sdk.orchestration.planning._index import Value, Words
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy, PlanRequest
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, RuleCondition


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """`values` and `words` are what the index finds it by; `settled`: one value is all it asks for. `serves` is its
    tool and then the fallbacks; `options` None: it gives the tool none.

    Few objects, because of ten thousand rules most are not in the processor's cache when they are met.
    """

    rule: PlanningRule
    action: RuleAction
    order: tuple[int, int]
    values: Sequence[Value]
    words: Words | None
    holds: Test
    serves: tuple[str, ...]
    options: Callable[[Any, PlanRequest | None], Mapping[str, Any]] | None
    name: str
    strategy: ExecutionStrategy
    settled: bool
    always_the_same: bool

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
        tests, values, words = _tests(rule.conditions)
        options: Callable[..., Any] | None
        try:
            options = _options_of(action) if action.tool_options or action.option_transformer is not None else None
        except Unfit as error:
            options = _unusable(str(error))
            tests.append(options)
        return cls(
            rule,
            action,
            (-rule.priority, number),
            values,
            words,
            _all(tests),
            action.tools,
            options,
            rule.name,
            action.execution_strategy,
            len(tests) == len(values) == 1,
            action.option_transformer is None,
        )


def _tests(conditions: Sequence[RuleCondition]) -> tuple[list[Test], list[Value], Words | None]:
    """What is asked of a request, and what guards it. The guards are asked first: so a condition that cannot be used on
    a request is told of where the guards hold, however the rule was found."""
    values: list[Value] = []
    words: Words | None = None
    first: list[Test] = []
    then: list[Test] = []
    late: list[Test] = []
    for condition in conditions:
        try:
            test = compiled(condition)
        except Unfit as error:
            late.append(_unusable(str(error)))
            continue
        guard = guard_of(condition)
        if isinstance(guard, Value):
            values.append(guard)
            first.append(test)
        elif guard is not None and words is None:
            words = guard
            then.append(test)
        else:
            late.append(test)
    return [*first, *then, *late], values, words


def _all(tests: list[Test]) -> Test:
    if not tests:
        return lambda request: True
    if len(tests) == 1:
        return tests[0]

    def holds(request: Any) -> bool:
        for test in tests:  # noqa: SIM110 - a loop is twice as fast as all() over a generator
            if not test(request):
                return False
        return True

    return holds


def _unusable(reason: str) -> Callable[..., Any]:
    def refuse(*given: Any) -> Any:
        raise Unfit(reason)

    return refuse


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
            raise Unfit(f"option_transformer: returned a {type(made).__name__}, not a mapping of options")
        return dict(made)

    return options
