"""Rules as their authors write them, and three ready-made kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy, PlanRequest

Operator = Literal["equals", "contains", "regex", "keywords", "exists", "gt", "lt"]
Effect = Literal["pin", "restrict", "prefer", "forbid"]

_NAME_LENGTH = 40


class _Positional(BaseModel):
    """Fields may be given by position, in the order they are declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def __init__(self, *values: Any, **fields: Any) -> None:
        names = list(type(self).model_fields)
        if len(values) > len(names):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)}; {len(values)} values were given")
        given = dict(zip(names, values, strict=False))
        for twice in given.keys() & fields.keys():
            raise TypeError(f"{type(self).__name__}: {twice} was given twice, by position and by name")
        super().__init__(**given, **fields)


class RuleCondition(_Positional):
    """One test on the value that `attribute_path` leads to in the request.

    A path is keys, list positions and attributes with dots between: "options.budget.tokens", "messages.0.role". Where
    it leads nowhere the value is None, and a null in the request reads the same.

        equals    the same value; true is not 1
        contains  a text within a text, an item of a list, a key of a mapping
        regex     the pattern (RE2 syntax, linear time) occurs in a text, or in one of the texts of a list
        keywords  one of a list of words occurs there, in capitals or not
        exists    the value is not None; `value=False` turns it round
        gt, lt    greater, less than `value`

    A value of a kind that the test does not fit (gt on a text and a number) makes the planner skip the rule and say so.
    `custom_matcher(value)`, or `custom_matcher(value, expected)`, is asked in place of the operator where it is given.
    """

    attribute_path: str = Field(min_length=1)
    operator: Operator
    value: Any = None
    custom_matcher: Callable[..., bool] | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            attribute_path: str,
            operator: str,
            value: Any = None,
            custom_matcher: Callable[..., bool] | None = None,
        ) -> None: ...


class RuleAction(_Positional):
    """What a matching rule decides, by its `effect`:

        pin       the tool serves; where it cannot, its fallbacks stand in. The first rule that matches and can, decides
        restrict  only the tool and `fallback_tools` may serve
        forbid    none of them may
        prefer    they go before others of which no rule says more: the highest sum of `weight` first; below 0, last

    What is restricted or forbidden is so whatever the priority: no pin gets round it. A name may ask for versions, as
    in "text_analyzer>=1.2,<2"; restrict and forbid then look at the version that would be used.

    `option_transformer` returns the tool's options. It is given what it asks for by name of `request`, `options` (a
    copy of `tool_options`) and `context`; under other names, in this order; a function of one argument the options.
    """

    tool_name: str = Field(min_length=1)
    tool_options: dict[str, Any] = Field(default_factory=dict)
    fallback_tools: list[str] = Field(default_factory=list)
    execution_strategy: ExecutionStrategy = ExecutionStrategy.SINGLE
    option_transformer: Callable[..., Mapping[str, Any]] | None = None
    effect: Effect = "pin"
    weight: float = Field(default=1.0, allow_inf_nan=False)

    if TYPE_CHECKING:

        def __init__(
            self,
            tool_name: str,
            tool_options: Mapping[str, Any] = ...,
            fallback_tools: Sequence[str] = ...,
            execution_strategy: ExecutionStrategy = ...,
            option_transformer: Callable[..., Mapping[str, Any]] | None = None,
            effect: Effect = "pin",
            weight: float = 1.0,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_effect(self) -> RuleAction:
        of_a_pin = {
            "tool_options": bool(self.tool_options),
            "execution_strategy": self.execution_strategy is not ExecutionStrategy.SINGLE,
            "option_transformer": self.option_transformer is not None,
        }
        for name, given in of_a_pin.items():
            if given and self.effect != "pin":
                raise ValueError(f"{name}: only a pin has it, and the effect is {self.effect!r}; leave it out")
        if self.weight != 1.0 and self.effect != "prefer":
            raise ValueError(f"weight: only prefer has one, and the effect is {self.effect!r}; leave it out")
        return self

    @classmethod
    def restrict(cls, *tools: str) -> RuleAction:
        """Only these tools may serve."""
        return cls(tool_name=tools[0], fallback_tools=tools[1:], effect="restrict")

    @classmethod
    def forbid(cls, *tools: str) -> RuleAction:
        """None of these tools may serve."""
        return cls(tool_name=tools[0], fallback_tools=tools[1:], effect="forbid")

    @classmethod
    def prefer(cls, *tools: str, weight: float = 1.0) -> RuleAction:
        """These tools go before others."""
        return cls(tool_name=tools[0], fallback_tools=tools[1:], effect="prefer", weight=weight)

    @property
    def tools(self) -> tuple[str, ...]:
        return (self.tool_name, *self.fallback_tools)


class PlanningRule(_Positional):
    """All conditions must hold; none at all always do. The highest priority is asked first, and among equals the one
    that was added first. A rule without action is passed over."""

    name: str = Field(min_length=1)
    priority: int = 0
    conditions: list[RuleCondition] = Field(default_factory=list)
    action: RuleAction | None = None
    description: str | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            priority: int = 0,
            conditions: Sequence[RuleCondition] = ...,
            action: RuleAction | None = None,
            description: str | None = None,
        ) -> None: ...


def create_type_based_rule(
    request_type: str, tool_name: str, priority: int = 10, *, fallback_tools: Sequence[str] = (), **opts: Any
) -> PlanningRule:
    """Requests whose `type` is `request_type` go to the tool; `opts` are its options."""
    return PlanningRule(
        name=f"type_{request_type}",
        priority=priority,
        conditions=[RuleCondition("type", "equals", request_type)],
        action=RuleAction(tool_name, opts, list(fallback_tools)),
        description=f"type is {request_type!r}",
    )


def create_keyword_based_rule(
    keywords: Sequence[str],
    attribute: str,
    tool_name: str,
    priority: int = 5,
    *,
    fallback_tools: Sequence[str] = (),
    **opts: Any,
) -> PlanningRule:
    """Requests whose `attribute` has any of the keywords in it, in capitals or not, go to the tool."""
    words = _checked_keywords(keywords)
    return PlanningRule(
        name=f"keyword_{'_'.join(words)[:_NAME_LENGTH]}",
        priority=priority,
        conditions=[RuleCondition(attribute, "keywords", words)],
        action=RuleAction(tool_name, opts, list(fallback_tools)),
        description=f"{attribute} has one of: {', '.join(words)}",
    )


def create_budget_aware_rule(
    tool_name: str, low_budget_k: int = 2, high_budget_k: int = 5, priority: int = 8
) -> PlanningRule:
    """Every request goes to the tool: with `low_budget_k` replicates where the budget, the request's own under
    `options.budget` or the context's, is below 2000 tokens or 0.10 USD, else with `high_budget_k`."""

    def with_k(request: Any, options: Mapping[str, Any], context: PlanRequest | None) -> dict[str, Any]:
        low = budget_is_below(request, context, tokens=2000, cost_usd=0.10)
        return {**options, "k": low_budget_k if low else high_budget_k}

    return PlanningRule(
        name=f"budget_{tool_name}",
        priority=priority,
        action=RuleAction(tool_name, option_transformer=with_k),
        description=f"k = {low_budget_k} on a small budget, else {high_budget_k}",
    )


def budget_is_below(request: Any, context: PlanRequest | None, *, tokens: float, cost_usd: float) -> bool:
    """Whether the request's own budget or the context's is under one of the marks. No budget is not a small one."""
    budgets = (_dug(_dug(request, "options"), "budget"), None if context is None else context.budget)
    return any(_less(_dug(budget, "tokens"), tokens) or _less(_dug(budget, "cost_usd"), cost_usd) for budget in budgets)


def _dug(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, Mapping) else None


def _less(value: Any, mark: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value < mark


def _checked_keywords(keywords: Sequence[str]) -> list[str]:
    words = [] if isinstance(keywords, str) else list(keywords)
    if not words or not all(isinstance(word, str) and word for word in words):
        raise InvalidRequest("keywords", keywords, 'give a list of words that are not empty, as in ["urgent", "asap"]')
    return words
