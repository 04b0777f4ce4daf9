"""A planner that does what its rules say, and picks a sensible tool where they say nothing."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import NoEligibleTool
from steer_llm_sdk.orchestration.planning._catalog import CatalogCache
from steer_llm_sdk.orchestration.planning._compiled import CompiledRule
from steer_llm_sdk.orchestration.planning._conditions import reader
from steer_llm_sdk.orchestration.planning._index import RuleIndex
from steer_llm_sdk.orchestration.planning._ranking import Ranking
from steer_llm_sdk.orchestration.planning._request import default_options, task_type_of
from steer_llm_sdk.orchestration.planning._search import Search, Tools
from steer_llm_sdk.orchestration.planning.eligibility import Check, Eligible
from steer_llm_sdk.orchestration.planning.planner import Outcome, PlanDecision, Planner, PlanRequest, ToolMetadata
from steer_llm_sdk.orchestration.planning.rules import (
    PlanningRule,
    RuleAction,
    RuleCondition,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.planning.statistics import Estimate, Statistics

__all__ = [
    "PlanningRule",
    "RuleAction",
    "RuleBasedPlanner",
    "RuleCondition",
    "create_budget_aware_rule",
    "create_keyword_based_rule",
    "create_type_based_rule",
]

MAX_REMEMBERED = 1000
"""Decisions that are kept to be handed out again."""

_Made = dict[Any, tuple[PlanDecision, int]]
"""Decisions by the order of their rule or by the task type, each with the version of the statistics it holds for."""


class Allowed(NamedTuple):
    """What rules and limits leave to choose from. `pinned` is the decision of a rule, where one pins a tool that can
    serve; `weights` are what rules that prefer add to a tool. `rules` are those that restrict, forbid or prefer,
    `skipped` those that could not be asked, and `unserved` those that pin and match, but have no tool that can serve;
    `passed_over` says why not, by tool."""

    eligible: Eligible
    pinned: PlanDecision | None
    weights: Mapping[str, float]
    rules: tuple[str, ...]
    skipped: Mapping[str, str]
    unserved: tuple[str, ...]
    passed_over: Mapping[str, str]


_adding = Lock()
"""Held while a rule is added. One for all planners, so that a planner can be copied."""


class RuleBasedPlanner(Planner):
    """Asks its rules in order of priority, those of equal priority in the order they were added; the first that
    matches and pins a tool decides. What rules restrict or forbid holds whatever their priority.

    Where the tool of a matching rule cannot serve (it is not registered, its circuit breaker is open, or a limit of the
    request excludes it: see PlanRequest), the rule's fallbacks stand in, in their order; after them come the
    other rules that match, then tools that share a declared capability with the rule's own, and never any other. A tool
    named in `previous_failures` or in the preference `avoid_tools` is chosen only where nothing else can be.

    Where no rule pins: what rules and preferences prefer; a tool whose declared capabilities contain the request's
    `type`, else the first registered or one that declares the same. Among several that can do the same the one whose
    answer costs least, where each is known to cost something; else the first registered, and then
    `decision.metadata["order_of_registration"]` names what it decided. The options are k 3, epsilon 0.2 and
    max_parallel 10 where the tool declares no others, and k 2 where fewer than 1000 tokens or 0.05 USD are left.

    A rule that cannot be evaluated is skipped; `decision.metadata["skipped_rules"]` says which and why.

    `statistics` is what tools have done, for estimates and limits. An orchestrator tells it of the runs it planned.
    """

    observes_every_run = False

    def __init__(self, rules: Iterable[PlanningRule] | None = None, *, statistics: Statistics | None = None) -> None:
        self.statistics = Statistics() if statistics is None else statistics
        self._all: list[PlanningRule] = []
        self._pins: RuleIndex[CompiledRule] = RuleIndex(reader)
        self._policies: RuleIndex[CompiledRule] = RuleIndex(reader)
        self._has_policies = False
        self._catalogs = CatalogCache()
        self._ranking = Ranking(self.statistics, self._expected)
        self._decisions: tuple[Tools, _Made] = ({}, {})
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
        with _adding:
            insort(self._all, rule, key=lambda other: -other.priority)
            if rule.action is not None:
                is_pin = rule.action.effect == "pin"
                self._has_policies = self._has_policies or not is_pin
                index = self._pins if is_pin else self._policies
                index.add(CompiledRule.of(rule, rule.action, len(self._all)))
                self._decisions = ({}, {})

    async def plan(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> PlanDecision:
        if type(self).decide is RuleBasedPlanner.decide:
            return self._decide(request, available_tools, context, None)
        return self.decide(request, available_tools, context).model_copy(deep=True)

    def decide(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> PlanDecision:
        """What `plan` answers, without a loop, and to be read only: it may be handed out again."""
        made_before: _Made | None = None
        if not self._has_policies:
            tools, made_before = self._decisions
            if context is not None or tools is not available_tools:
                made_before = self._made_before(available_tools, context)
            elif type(request) is dict and type(value := request.get((pins := self._pins).key)) is str:
                # Nearly always the rule that certainly holds has decided before, and no estimate has changed since.
                certain = pins.certain.get(value)
                known = None if certain is None else made_before.get(certain.order)
                if known is not None and known[1] == self.statistics.version:
                    return known[0]
        return self._decide(request, available_tools, context, made_before)

    def _decide(
        self, request: Any, available_tools: Tools, context: PlanRequest | None, made_before: _Made | None
    ) -> PlanDecision:
        if not available_tools:
            raise NoEligibleTool
        asked = {"query": request} if isinstance(request, str) else request
        search: Search | None = None
        if self._has_policies:
            search = Search(self, asked, available_tools, context)
            search.ask_policies(self._policies.candidates(asked))
        elif (certain := self._certain(asked)) is not None and certain.always_the_same:
            if made_before is not None and (known := self._recall(made_before, certain.order, available_tools)):
                return known
            search = Search(self, asked, available_tools, context)
            if (decision := search.first_choice(certain)) is not None:
                if made_before is not None and search.met_nothing:
                    made_before[certain.order] = (decision, self.statistics.version)
                return decision
            search = None
        for entry in self._pins.candidates(asked):
            try:
                if not entry.holds(asked):
                    continue
                if search is None:
                    if made_before is not None and (known := self._recall(made_before, entry.order, available_tools)):
                        return known
                    search = Search(self, asked, available_tools, context)
                if (decision := search.first_choice(entry)) is not None:
                    if made_before is not None and entry.always_the_same and search.met_nothing:
                        made_before[entry.order] = (decision, self.statistics.version)
                    return decision
            except Exception as error:
                search = search or Search(self, asked, available_tools, context)
                search.skip(entry, error)
        if search is not None:
            return search.without_first_choice()
        return self._default(asked, available_tools, context, made_before)

    def _certain(self, asked: Any) -> CompiledRule | None:
        value = asked.get(self._pins.key) if type(asked) is dict else None
        return self._pins.certain.get(value) if type(value) is str else None

    def _default(
        self, asked: Any, tools: Tools, context: PlanRequest | None, made_before: _Made | None
    ) -> PlanDecision:
        """Where there is nothing to say of the request but its type, the decision is the same for each of the type."""
        search = Search(self, asked, tools, context)
        if made_before is None or type(asked) is not dict or "options" in asked or (context and context.budget):
            return search.without_first_choice()
        kind = search.kind
        if (known := self._recall(made_before, kind, tools)) is not None:
            return known
        decision = search.without_first_choice()
        if search.met_nothing:
            if len(made_before) >= MAX_REMEMBERED + len(self._pins):
                made_before.clear()
            made_before[kind] = (decision, self.statistics.version)
        return decision

    def observe(self, request: Any, decision: PlanDecision, outcomes: Sequence[Outcome]) -> None:
        kind, record = task_type_of(request), self.statistics.record
        for tool, version, succeeded, cost, duration, runs, *_ in outcomes:
            record(kind, tool, version, succeeded=succeeded, cost_usd=cost, duration_ms=duration, runs=runs)

    def allowed(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> Allowed:
        """What the rules and the limits of the request leave, for who chooses by himself. The rules that pin are asked
        as `decide` asks them; where none can decide, any of the eligible tools is right."""
        asked = {"query": request} if isinstance(request, str) else request
        search = Search(self, asked, available_tools, context)
        search.ask_policies(self._policies.candidates(asked))
        pinned: PlanDecision | None = None
        for entry in self._pins.candidates(asked):
            try:
                if entry.holds(asked) and (pinned := search.first_choice(entry)) is not None:
                    break
            except Exception as error:
                search.skip(entry, error)
        if pinned is None:
            pinned = search.last_resort()
        unserved = tuple(entry.rule.name for entry in search.matched)
        return Allowed(
            eligible=search.eligible(),
            pinned=pinned,
            weights=search.weights(),
            rules=tuple(search.applied),
            skipped=search.skipped,
            unserved=unserved,
            passed_over=search.passed_over,
        )

    def looked_at(self, request: Any) -> list[PlanningRule]:
        """The rules that are asked for a request; what the others ask for it certainly does not have."""
        asked = {"query": request} if isinstance(request, str) else request
        found = chain(self._policies.candidates(asked), self._pins.candidates(asked))
        return [entry.rule for entry in sorted(found, key=lambda entry: entry.order)]

    def check(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> Check:
        """Says of one tool at a time why it may not serve this request now, rules that restrict and forbid included."""
        asked = {"query": request} if isinstance(request, str) else request
        search = Search(self, asked, available_tools, context)
        search.ask_policies(self._policies.candidates(asked))
        return search.check

    def expected(self, tool: ToolMetadata, options: Mapping[str, Any], task_type: str | None = None) -> Estimate:
        """What a run of a tool with these options is expected to come to."""
        cost, duration = self.estimate_cost(tool, options), self.estimate_duration(tool, options)
        return self.statistics.estimate(task_type, tool, cost, duration)

    def _expected(self, tool: ToolMetadata, task_type: str | None) -> Estimate:
        return self.expected(tool, default_options(tool, None, None), task_type)

    def _made_before(self, tools: Tools, context: PlanRequest | None) -> _Made | None:
        """Decisions that were made for these tools, by the order of the rule or by the task type; to be added to.

        They save validating the same decision again, most of what deciding takes (1.2 us instead of 4). Nothing is kept
        where the context may change a decision, nor for a mapping of tools that may be changed in place.
        """
        if context is not None and _matters(context.__dict__):
            return None
        known = self._decisions
        if known[0] is not tools:
            if type(tools) is not MappingProxyType or self._catalogs.of(tools).limited:
                return None
            known = self._decisions = (tools, {})
        return known[1]

    def _recall(self, made: _Made, key: Any, tools: Tools) -> PlanDecision | None:
        """What was decided before, unless it tells an estimate of a tool that has a new one, or chose by estimates."""
        known = made.get(key)
        if known is None:
            return None
        decision, version = known
        now = self.statistics.version
        if version != now:
            changed = self.statistics.changed_since(version)
            if changed is None or type(key) is not tuple or decision.selected_tool in changed:
                return None
            made[key] = (decision, now)
        return decision if decision.selected_tool in tools else None


def _matters(context: Mapping[str, Any]) -> bool:
    """Whether a decision may depend on it."""
    if (
        context["circuit_breaker_states"]
        or context["quality_requirements"]
        or context["previous_failures"]
        or context["user_preferences"]
        or context["capabilities"]
        or context["models"]
        or context["versions"]
    ):
        return True
    budget = context["budget"]
    return budget is not None and ("cost_usd" in budget or "ms" in budget)


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
