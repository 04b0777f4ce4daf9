"""A planner that does what its rules say, and picks a sensible tool where they say nothing."""

from __future__ import annotations

import copy
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import NoEligibleTool
from steer_llm_sdk.orchestration.planning._catalog import Catalog, CatalogCache
from steer_llm_sdk.orchestration.planning._conditions import Test, Unfit, adapted, compiled, guard_of, reader
from steer_llm_sdk.orchestration.planning.planner import PlanDecision, Planner, PlanRequest, ToolMetadata
from steer_llm_sdk.orchestration.planning.rules import (
    PlanningRule,
    RuleAction,
    RuleCondition,
    budget_is_below,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)

__all__ = [
    "PlanningRule",
    "RuleAction",
    "RuleBasedPlanner",
    "RuleCondition",
    "create_budget_aware_rule",
    "create_keyword_based_rule",
    "create_type_based_rule",
]

# A default lists no more fallbacks than a run makes attempts: with a thousand related tools the rest is never reached.
MAX_DEFAULT_FALLBACKS = 10

MAX_REMEMBERED = 1000
"""Combinations of guarded values whose candidates are kept."""

LONGEST_REMEMBERED = 200
"""Characters. Who sends longer texts, each time others, is not to fill the memory with them."""

DEFAULT_CONFIDENCE = 0.5

_REASON_LENGTH = 200

Tools = Mapping[str, ToolMetadata]


class RuleBasedPlanner(Planner):
    """Asks its rules in order of priority, those of equal priority in the order they were added; the first that
    matches decides.

    Where the tool of a matching rule is not registered, its circuit breaker is open, or it declares to take longer than
    `quality_requirements["max_latency_ms"]`, the rule's fallbacks stand in, in their order; after them come the
    other rules that match, then tools that share a declared capability with the rule's own, and never any other. A tool
    named in `previous_failures` is chosen only where nothing else can be.

    Where no rule matches: a tool whose declared capabilities contain the request's `type`, else the first registered,
    with k 3, epsilon 0.2 and max_parallel 10 where the tool declares no others, and k 2 where fewer than 1000 tokens
    or 0.05 USD are left.

    A rule that cannot be evaluated is skipped; `decision.metadata["skipped_rules"]` says which and why.
    """

    def __init__(self, rules: Iterable[PlanningRule] | None = None) -> None:
        self._all: list[PlanningRule] = []
        self._rules: list[_Rule] = []
        self._guards: tuple[str, ...] = ()
        self._guarded: dict[Any, list[_Rule]] = {}
        self._catalogs = CatalogCache()
        self._decisions: tuple[Tools, dict[int, PlanDecision]] = ({}, {})
        for rule in rules or ():
            self.add_rule(rule)

    @property
    def rules(self) -> list[PlanningRule]:
        """The rules in the order they are asked."""
        return list(self._all)

    def add_rule(self, rule: PlanningRule) -> None:
        """TypeError if it is no PlanningRule. A pattern that does not compile is no error here: the rule is skipped."""
        if not isinstance(rule, PlanningRule):
            raise TypeError(f"rule: expected a PlanningRule, got {type(rule).__name__}")
        insort(self._all, rule, key=lambda other: -other.priority)
        if rule.action is not None:
            entry = _Rule.of(rule, rule.action)
            insort(self._rules, entry, key=lambda entry: -entry.rule.priority)
            if entry.guard is not None:
                self._guards = tuple(dict.fromkeys((*self._guards, entry.guard[0])))
            self._guarded.clear()

    async def plan(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> PlanDecision:
        decision = self.decide(request, available_tools, context)
        own = {"tool_options": copy.deepcopy(decision.tool_options), "fallback_tools": [*decision.fallback_tools]}
        return decision.model_copy(update={**own, "metadata": copy.deepcopy(decision.metadata)})

    def decide(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> PlanDecision:
        """What `plan` answers, without a loop, and to be read only: it may be handed out again."""
        if not available_tools:
            raise NoEligibleTool
        asked = {"query": request} if isinstance(request, str) else request
        made_before = self._made_before(available_tools, context)
        search: _Search | None = None  # Nearly always the first rule that matches decides, by what it decided before.
        for entry in self._candidates(asked):
            try:
                if not entry.holds(asked):
                    continue
                if search is None:
                    known = made_before.get(id(entry))
                    if known is not None and known.selected_tool in available_tools:
                        return known
                    search = _Search(self, asked, available_tools, context)
                if (decision := search.first_choice(entry)) is not None:
                    if entry.always_the_same and search.met_nothing:
                        made_before[id(entry)] = decision
                    return decision
            except Exception as error:
                search = search or _Search(self, asked, available_tools, context)
                search.skip(entry, error)
        search = search or _Search(self, asked, available_tools, context)
        return search.without_first_choice(self._catalogs.of(available_tools))

    def _candidates(self, asked: Any) -> list[_Rule]:
        """The rules that may hold, in order: those whose guard says otherwise are left out, by what the request has
        under the keys that guards ask for. Anything but a plain dict with texts there is asked every rule."""
        guards = self._guards
        if type(asked) is not dict or not guards:
            return self._rules
        given: Any = asked.get(guards[0]) if len(guards) == 1 else tuple([asked.get(key) for key in guards])
        try:
            found = self._guarded.get(given)
        except Exception:  # It cannot be hashed, or not be compared.
            return self._rules
        if found is None:
            values = (given,) if len(guards) == 1 else given
            if not all(value is None or (type(value) is str and len(value) <= LONGEST_REMEMBERED) for value in values):
                return self._rules
            if len(self._guarded) >= MAX_REMEMBERED:
                self._guarded.clear()
            found = self._guarded[given] = [entry for entry in self._rules if entry.may_hold(asked)]
        return found

    def _made_before(self, tools: Tools, context: PlanRequest | None) -> dict[int, PlanDecision]:
        """Decisions that rules have made for these tools, by the identity of the rule; to be added to.

        They save validating the same decision again, most of what deciding takes (1.2 us instead of 4). Nothing is kept
        where the context may change a decision, nor for a mapping of tools that may be changed in place.
        """
        if context is not None and (
            context.circuit_breaker_states or context.quality_requirements or context.previous_failures
        ):
            return {}
        if self._decisions[0] is not tools:
            if type(tools) is not MappingProxyType:
                return {}
            self._decisions = (tools, {})
        return self._decisions[1]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule with an action, made ready. `guard` is what a request must have for it to hold. `serves` is its tool and
    then the fallbacks; `fields` is the decision for the tool itself, but for the options."""

    rule: PlanningRule
    guard: tuple[str, str] | None
    holds: Test
    serves: tuple[str, ...]
    options: Callable[[Any, PlanRequest | None], Mapping[str, Any]]
    fields: Mapping[str, Any]
    always_the_same: bool

    def may_hold(self, asked: dict[Any, Any]) -> bool:
        return self.guard is None or asked.get(self.guard[0]) == self.guard[1]

    @classmethod
    def of(cls, rule: PlanningRule, action: RuleAction) -> _Rule:
        try:
            holds = _all([compiled(condition) for condition in rule.conditions])
            options = _options_of(action)
        except Unfit as error:
            holds = options = _unusable(str(error))
        serves = (action.tool_name, *action.fallback_tools)
        return cls(
            rule,
            guard_of(rule.conditions),
            holds,
            serves,
            options,
            _fields_of(rule, action),
            action.option_transformer is None,
        )


def _fields_of(rule: PlanningRule, action: RuleAction) -> dict[str, Any]:
    return {
        "selected_tool": action.tool_name,
        "fallback_tools": [name for name in action.fallback_tools if name != action.tool_name],
        "execution_strategy": action.execution_strategy,
        "confidence": 1.0,
        "reasoning": f"Matched rule: {rule.name}",
        "metadata": {"matched_rule": rule.name, "selection_method": "rule"},
    }


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


@dataclass(slots=True)
class _Search:
    """The way to one decision, and what was met on it."""

    planner: RuleBasedPlanner
    request: Any
    tools: Tools
    context: PlanRequest | None
    skipped: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    matched: list[_Rule] = field(default_factory=list)

    @property
    def met_nothing(self) -> bool:
        """Whether the first rule that matched decides for its own tool."""
        return not (self.skipped or self.passed_over or self.matched)

    def skip(self, entry: _Rule, error: Exception) -> None:
        self.skipped[entry.rule.name] = reason_of(error)

    def first_choice(self, entry: _Rule) -> PlanDecision | None:
        """The decision of a rule that matches; None where its tools cannot be chosen, or only as a last resort."""
        for name in entry.serves:
            if self.is_open_to(name) and not self.has_failed(name):
                return self.by_rule(entry, name)
        self.matched.append(entry)
        return None

    def without_first_choice(self, catalog: Catalog) -> PlanDecision:
        """Where no rule could decide at once: related tools if one matched, any tool if none did; last, what failed
        before."""
        for name in self.candidates(catalog):
            if not self.has_failed(name):
                return self.by_default(name, catalog)
        if (decision := self.last_resort()) is not None:
            return decision
        for name in self.candidates(catalog):
            return self.by_default(name, catalog)
        raise NoEligibleTool(self.reasons())

    def candidates(self, catalog: Catalog) -> Iterator[str]:
        of_type = catalog.with_capability(_type_of(self.request))
        if not self.matched:
            return filter(self.is_open_to, chain(of_type, catalog.names))
        named = (name for entry in self.matched for name in entry.serves)
        return filter(self.is_open_to, chain(of_type, chain.from_iterable(map(catalog.related, named))))

    def last_resort(self) -> PlanDecision | None:
        """The first rule that matches decides for a tool that failed before."""
        for entry in self.matched:
            try:
                for name in filter(self.is_open_to, entry.serves):
                    return self.by_rule(entry, name)
            except Exception as error:
                self.skip(entry, error)
        return None

    def is_open_to(self, name: str) -> bool:
        reason = obstacle(name, self.tools, self.context)
        if reason is not None:
            self.passed_over[name] = reason
        return reason is None

    def has_failed(self, name: str) -> bool:
        failed = self.context is not None and name in self.context.previous_failures
        if failed:
            self.passed_over[name] = "it failed before"
        return failed

    def by_rule(self, entry: _Rule, name: str) -> PlanDecision:
        fields = {**entry.fields, "tool_options": entry.options(self.request, self.context)}
        if name != entry.serves[0]:
            fields["selected_tool"] = name
            fields["fallback_tools"] = [other for other in entry.serves[1:] if other != name]
        return self.decision(name, fields)

    def by_default(self, name: str, catalog: Catalog) -> PlanDecision:
        reasoning, method = "No matching rules, using default selection", "default"
        if self.matched:
            rule = self.matched[0].rule.name
            reasoning, method = f"No tool of rule {rule} can be used, using one with the same capability", "related"
        fields = {
            "selected_tool": name,
            "tool_options": default_options(self.tools.get(name), self.request, self.context),
            "fallback_tools": self.default_fallbacks(name, catalog),
            "confidence": DEFAULT_CONFIDENCE,
            "reasoning": reasoning,
            "metadata": {"selection_method": method},
        }
        return self.decision(name, fields)

    def default_fallbacks(self, name: str, catalog: Catalog) -> list[str]:
        related: Iterable[str] = (n for n in catalog.related(name) if obstacle(n, self.tools, self.context) is None)
        if self.context is not None and self.context.previous_failures:
            related = sorted(related, key=self.context.previous_failures.__contains__)
        return list(islice(related, MAX_DEFAULT_FALLBACKS))

    def decision(self, name: str, fields: dict[str, Any]) -> PlanDecision:
        if self.skipped or self.passed_over:
            fields["metadata"] = {**fields["metadata"], **self.met(name)}
        tool = self.tools[name]
        if tool.resource_requirements:
            fields["estimated_cost"] = self.planner.estimate_cost(tool, fields["tool_options"])
            fields["estimated_duration_ms"] = self.planner.estimate_duration(tool, fields["tool_options"])
        # Validating a mapping costs half of what keyword arguments do, and copies the lists and mappings in it.
        return PlanDecision.model_validate(fields)

    def met(self, chosen: str) -> dict[str, dict[str, str]]:
        """What the decision tells of the way to it, where there is anything to tell."""
        passed_over = {name: reason for name, reason in self.passed_over.items() if name != chosen}
        told = {"skipped_rules": self.skipped, "passed_over": passed_over}
        return {name: value for name, value in told.items() if value}

    def reasons(self) -> dict[str, str]:
        """One per tool, those that only a rule names included."""
        rules = ", ".join(entry.rule.name for entry in self.matched)
        unrelated = f"no rule that matches ({rules}) names it, and it shares no declared capability with their tools"
        return {name: self.passed_over.get(name, unrelated) for name in [*self.tools, *self.passed_over]}


def obstacle(name: str, tools: Tools, context: PlanRequest | None) -> str | None:
    """Why the tool cannot be chosen now; None where it can."""
    tool = tools.get(name)
    if tool is None:
        return "it is not registered"
    if context is None:
        return None
    if context.circuit_breaker_states.get(name) == "open":
        return "its circuit breaker is open"
    if context.quality_requirements:
        return _too_slow(tool, context.quality_requirements.get("max_latency_ms"))
    return None


def _too_slow(tool: ToolMetadata, limit: Any) -> str | None:
    declared = tool.resource_requirements.get("estimated_duration_ms")
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (declared, limit))
    return f"it declares {declared:g} ms, and max_latency_ms is {limit:g}" if numbers and declared > limit else None


DEFAULT_OPTIONS: Mapping[str, Any] = MappingProxyType({"k": 3, "epsilon": 0.2, "max_parallel": 10})


def default_options(tool: ToolMetadata | None, request: Any, context: PlanRequest | None) -> dict[str, Any]:
    """What a tool gets where no rule says it: what it declares itself, else DEFAULT_OPTIONS; k 2 on a small budget."""
    declared = {} if tool is None else tool.default_options
    options = {name: declared.get(name, value) for name, value in DEFAULT_OPTIONS.items()}
    if budget_is_below(request, context, tokens=1000, cost_usd=0.05):
        options["k"] = 2
    return options


def reason_of(error: Exception) -> str:
    """Why a rule was skipped, in one short line."""
    text = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."


_read_type = reader("type")


def _type_of(request: Any) -> Any:
    try:
        return _read_type(request)
    except Exception:  # an attribute that raises is no type
        return None


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
