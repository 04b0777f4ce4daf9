"""A planner that does what its rules say, and picks a sensible tool where they say nothing."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from math import ceil
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import NoEligibleTool
from steer_llm_sdk.orchestration.planning._catalog import Catalog, CatalogCache
from steer_llm_sdk.orchestration.planning._compiled import CompiledRule
from steer_llm_sdk.orchestration.planning._conditions import Unfit, reader
from steer_llm_sdk.orchestration.planning._index import RuleIndex
from steer_llm_sdk.orchestration.planning._ranking import OPTIMIZE, Group, Ranking
from steer_llm_sdk.orchestration.planning.eligibility import NO_POLICY, Check, Eligible, Policy, Unrelated, at_version
from steer_llm_sdk.orchestration.planning.planner import Outcome, PlanDecision, Planner, PlanRequest, ToolMetadata
from steer_llm_sdk.orchestration.planning.rules import (
    PlanningRule,
    RuleAction,
    RuleCondition,
    budget_is_below,
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

# A default lists no more fallbacks than a run makes attempts: with a thousand related tools the rest is never reached.
MAX_DEFAULT_FALLBACKS = 10

MAX_REMEMBERED = 1000
"""Decisions that are kept to be handed out again."""

LONGEST_TYPE = 200
"""Characters of a task type. Who sends longer texts, each time others, is not to fill the memory with them."""

DEFAULT_CONFIDENCE = 0.5

_REASON_LENGTH = 200

Tools = Mapping[str, ToolMetadata]
_Made = dict[Any, tuple[PlanDecision, int]]
"""Decisions by the order of their rule or by the task type, each with the version of the statistics it holds for."""


class Allowed(NamedTuple):
    """What rules and limits leave to choose from. `pinned` is the decision of a rule, where one pins a tool that can
    serve; `weights` are what rules that prefer add to a tool. `rules` are those that restrict, forbid or prefer, and
    `skipped` those that could not be asked."""

    eligible: Eligible
    pinned: PlanDecision | None
    weights: Mapping[str, float]
    rules: tuple[str, ...]
    skipped: Mapping[str, str]


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
        search: _Search | None = None
        if self._has_policies:
            search = _Search(self, asked, available_tools, context)
            search.ask_policies(self._policies.candidates(asked))
        elif (certain := self._certain(asked)) is not None and certain.always_the_same:
            if made_before is not None and (known := self._recall(made_before, certain.order, available_tools)):
                return known
            search = _Search(self, asked, available_tools, context)
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
                    search = _Search(self, asked, available_tools, context)
                if (decision := search.first_choice(entry)) is not None:
                    if made_before is not None and entry.always_the_same and search.met_nothing:
                        made_before[entry.order] = (decision, self.statistics.version)
                    return decision
            except Exception as error:
                search = search or _Search(self, asked, available_tools, context)
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
        search = _Search(self, asked, tools, context)
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
        search = _Search(self, asked, available_tools, context)
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
        return Allowed(search.eligible(), pinned, search.weights(), tuple(search.applied), search.skipped)

    def looked_at(self, request: Any) -> list[PlanningRule]:
        """The rules that are asked for a request; what the others ask for it certainly does not have."""
        asked = {"query": request} if isinstance(request, str) else request
        found = chain(self._policies.candidates(asked), self._pins.candidates(asked))
        return [entry.rule for entry in sorted(found, key=lambda entry: entry.order)]

    def check(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> Check:
        """Says of one tool at a time why it may not serve this request now, rules that restrict and forbid included."""
        asked = {"query": request} if isinstance(request, str) else request
        search = _Search(self, asked, available_tools, context)
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


@dataclass(slots=True)
class _Search:
    """The way to one decision, and what was met on it."""

    planner: RuleBasedPlanner
    request: Any
    tools: Tools
    context: PlanRequest | None
    check: Check = field(init=False)
    kind: str | None = field(init=False)
    policy: Policy = NO_POLICY
    applied: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    matched: list[CompiledRule] = field(default_factory=list)
    _catalog: Catalog | None = None

    def __post_init__(self) -> None:
        self.kind = task_type_of(self.request)
        self._check_by(NO_POLICY)

    def _check_by(self, policy: Policy) -> None:
        self.policy = policy
        # Not a method of this one: a circle would keep the request until it is collected.
        estimates = partial(self.planner.statistics.estimate, self.kind)
        self.check = Check(self.tools, self.context, request=self.request, estimates=estimates, policy=policy)

    @property
    def met_nothing(self) -> bool:
        """Whether nothing stood in the way of the first choice."""
        return not (self.skipped or self.passed_over or self.matched or self.applied)

    @property
    def catalog(self) -> Catalog:
        catalog = self._catalog
        if catalog is None:
            catalog = self._catalog = self.planner._catalogs.of(self.tools)
        return catalog

    def skip(self, entry: CompiledRule, error: Exception) -> None:
        self.skipped[entry.rule.name] = reason_of(error)

    # ── what restricts, forbids and prefers ──────────────────────────────────────────────────────────────────────────

    def ask_policies(self, candidates: Iterable[CompiledRule]) -> None:
        allowed: frozenset[str] | None = None
        restricted: list[str] = []
        forbidden: dict[str, str] = {}
        weights: dict[str, float] = {}
        for entry in candidates:
            try:
                if not entry.holds(self.request):
                    continue
            except Exception as error:
                self.skip(entry, error)
                continue
            self.applied.append(entry.rule.name)
            names = [name for asked in entry.serves if (name := self._meant(asked)) is not None]
            effect = entry.action.effect
            if effect == "restrict":
                allowed = frozenset(names) if allowed is None else allowed & frozenset(names)
                restricted.append(f"rule {entry.rule.name} leaves only {', '.join(entry.serves)}")
            elif effect == "forbid":
                for name in names:
                    forbidden.setdefault(name, f"rule {entry.rule.name} forbids it")
            else:
                for name in names:
                    weights[name] = weights.get(name, 0.0) + entry.action.weight
        if self.applied:
            self._check_by(Policy(allowed, "; ".join(restricted), forbidden, weights))

    def _meant(self, name: str) -> str | None:
        """The tool that a name of a policy stands for; None where it is there in another version only."""
        if name in self.tools:
            return name
        base, tool, _ = at_version(name, self.tools)
        return base if tool is not None and tool is self.tools[base] else None

    def eligible(self) -> Eligible:
        catalog = self.catalog
        if not catalog.limited and self.check.excludes_nothing(()):
            return Eligible(catalog.names, {})
        reasons = {name: reason for name in catalog.names if (reason := self.check(name)) is not None}
        return Eligible(tuple(name for name in catalog.names if name not in reasons), reasons)

    # ── which tool ───────────────────────────────────────────────────────────────────────────────────────────────────

    def first_choice(self, entry: CompiledRule) -> PlanDecision | None:
        """The decision of a rule that matches; None where its tools cannot be chosen, or only as a last resort."""
        for name in entry.serves:
            if self.is_open_to(name) and not self.comes_last(name):
                return self.by_rule(entry, name)
        self.matched.append(entry)
        return None

    def without_first_choice(self) -> PlanDecision:
        """Where no rule could decide at once: related tools if one matched, any tool if none did; last, what failed
        before."""
        for name, group in self.candidates():
            if self.is_open_to(name) and not self.comes_last(name):
                return self.by_default(name, group)
        if (decision := self.last_resort()) is not None:
            return decision
        for name, group in self.candidates():
            if self.is_open_to(name):
                return self.by_default(name, group)
        raise NoEligibleTool(self.reasons())

    def candidates(self) -> Iterator[tuple[str, Group]]:
        groups = self.groups_of_matched() if self.matched else self.groups_of_all()
        return ((name, group) for group in groups for name in group.names)

    def groups_of_matched(self) -> Iterator[Group]:
        yield self._of_type()
        for entry in self.matched:
            for name in entry.serves:
                yield self._group(("related", name), self.catalog.related(name))

    def groups_of_all(self) -> Iterator[Group]:
        catalog, allowed, weights = self.catalog, self.policy.allowed, self.weights()
        if allowed is not None:
            names = [name for name in catalog.with_capability(self.kind) if name in allowed]
            rest = sorted(allowed - set(names), key=catalog.position.__getitem__)
            groups: Iterable[Group] = [self._ranked(part, None) for part in (names, rest) if part]
        elif weights:
            liked = [name for name, weight in weights.items() if weight > 0]
            groups = chain(self._liked(liked, weights), self._usual(weights))
        else:
            yield from self._usual(None)
            return
        if allowed is not None and weights:
            both = [name for group in groups for name in group.names]
            groups = [self._ranked(both, {name: weights.get(name, 0.0) for name in both})]
        yield from groups

    def _liked(self, liked: list[str], weights: Mapping[str, float]) -> Iterator[Group]:
        if liked:
            yield self._ranked(liked, weights)

    def _usual(self, weights: Mapping[str, float] | None) -> Iterator[Group]:
        """Those of the type, then all; those that rules put back come last."""
        catalog = self.catalog
        back = [] if weights is None else [name for name, weight in weights.items() if weight < 0]
        usual = chain((self._of_type(),), (self._group(("class", c), n) for c, n in catalog.classes.items()))
        if not back:
            yield from usual
            return
        for group in usual:
            yield group._replace(names=[name for name in group.names if name not in back])
        yield self._ranked(back, weights)

    def weights(self) -> Mapping[str, float]:
        """What rules and the caller's preferences add to tools that are there."""
        preferences = None if self.context is None else self.context.user_preferences
        if not preferences:
            return self.policy.weights
        catalog = self.catalog
        liked = [name for name in _names(preferences.get("preferred_tools")) if name in self.tools]
        for model in _names(preferences.get("preferred_models")):
            liked += catalog.by_model.get(model, ())
        weights = dict(self.policy.weights)
        for name in dict.fromkeys(liked):
            weights[name] = weights.get(name, 0.0) + 1.0
        return weights

    def _of_type(self) -> Group:
        return self._group("type", self.catalog.with_capability(self.kind))

    def _group(self, key: Any, names: Iterable[str]) -> Group:
        planner = self.planner
        names = names if isinstance(names, (list, tuple)) else list(names)
        if not names:
            return _NOBODY
        return planner._ranking.group(self.catalog, key, names, self.kind, self._optimize())

    def _ranked(self, names: list[str], weights: Mapping[str, float] | None) -> Group:
        return self.planner._ranking.ranked(self.catalog, names, self.kind, self._optimize(), weights)

    def _optimize(self) -> str | None:
        wanted = None if self.context is None else self.context.user_preferences.get("optimize")
        return wanted if wanted in OPTIMIZE else None

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
        reason = self.check(name)
        if reason is not None:
            self.passed_over[name] = reason
        return reason is None

    def comes_last(self, name: str) -> bool:
        context = self.context
        if context is None:
            return False
        if name in context.previous_failures:
            self.passed_over[name] = "it failed before"
        elif context.user_preferences and name in _names(context.user_preferences.get("avoid_tools")):
            self.passed_over[name] = "the caller would rather not have it"
        else:
            return False
        return True

    # ── the decision ─────────────────────────────────────────────────────────────────────────────────────────────────

    def by_rule(self, entry: CompiledRule, name: str) -> PlanDecision:
        fields = entry.decision(self.request, self.context, name)
        if self.policy is not NO_POLICY:
            fields["fallback_tools"] = [other for other in fields["fallback_tools"] if self._is_allowed(other)]
        return self.decision(name, fields)

    def _is_allowed(self, name: str) -> bool:
        policy = self.policy
        base = name if name in self.tools else at_version(name, self.tools)[0]
        return base not in policy.forbidden and (policy.allowed is None or base in policy.allowed)

    def by_default(self, name: str, group: Group) -> PlanDecision:
        reasoning, method = "No matching rules, using default selection", "default"
        if self.matched:
            rule = self.matched[0].rule.name
            reasoning, method = f"No tool of rule {rule} can be used, using one with the same capability", "related"
        fallbacks, by_order = self.default_fallbacks(name)
        metadata: dict[str, Any] = {"selection_method": method}
        decided = [
            field for field, so in (("selected_tool", self._tied(name, group)), ("fallback_tools", by_order)) if so
        ]
        if decided:
            metadata["order_of_registration"] = decided
        fields = {
            "selected_tool": name,
            "tool_options": default_options(self.tools.get(name), self.request, self.context),
            "fallback_tools": fallbacks,
            "confidence": DEFAULT_CONFIDENCE,
            "reasoning": reasoning,
            "metadata": metadata,
        }
        return self.decision(name, fields)

    def _tied(self, name: str, group: Group) -> bool:
        """Whether another one could have been chosen as well, and only came later."""
        key = group.keys[name]
        for other in group.names:
            if other != name and group.keys[other] == key and self.check(other) is None:
                return True
        if self.matched or group.keys is self._of_type().keys or self.policy.allowed is not None:
            return False
        # Which class of tools is asked first is by order too, unless rules or the caller have named this one.
        return not self.weights().get(name) and len(self.catalog.classes) > 1

    def default_fallbacks(self, name: str) -> tuple[list[str], bool]:
        """Tools that share a capability, those that failed before last; and whether only their order decided."""
        group = self._group(("related", name), self.catalog.related(name))
        usable: Iterable[str] = (other for other in group.names if self.check(other) is None)
        if self.context is not None and (self.context.previous_failures or self.context.user_preferences):
            usable = sorted(usable, key=self._is_put_back)
        found = list(islice(usable, MAX_DEFAULT_FALLBACKS))
        keys = [group.keys[other] for other in found]
        return found, len(set(keys)) < len(keys) or len(found) == MAX_DEFAULT_FALLBACKS

    def _is_put_back(self, name: str) -> bool:
        context = self.context
        assert context is not None
        return name in context.previous_failures or name in _names(context.user_preferences.get("avoid_tools"))

    def decision(self, name: str, fields: dict[str, Any]) -> PlanDecision:
        tool = self.tools.get(name)
        if tool is None:
            name, tool, _ = at_version(name, self.tools)
            assert tool is not None
            fields["selected_tool"] = name
        if self.context is not None and name in self.context.versions:
            tool = tool.at(self.context.versions[name]) or tool
        fields["tool_version"] = tool.version
        added = self.met(name)
        options, statistics = fields["tool_options"], self.planner.statistics
        runs = statistics.runs(tool.name, tool.version)
        if runs:
            estimate = self.planner.expected(tool, options, self.kind)
            fields["estimated_cost"] = estimate.cost_usd
            fields["estimated_duration_ms"] = None if estimate.duration_ms is None else ceil(estimate.duration_ms)
            added["estimated_from_runs"] = runs
        elif tool.resource_requirements:
            fields["estimated_cost"] = self.planner.estimate_cost(tool, options)
            fields["estimated_duration_ms"] = self.planner.estimate_duration(tool, options)
        if added:
            fields["metadata"] = {**fields["metadata"], **added}
        # Validating a mapping costs half of what keyword arguments do, and copies the lists and mappings in it.
        return PlanDecision.model_validate(fields)

    def met(self, chosen: str) -> dict[str, Any]:
        """What the decision tells of the way to it, where there is anything to tell."""
        if self.context is None and not (self.skipped or self.passed_over or self.applied):
            return {}
        told = {
            "skipped_rules": self.skipped,
            "passed_over": {name: reason for name, reason in self.passed_over.items() if name != chosen},
            "applied_rules": self.applied,
            "unknown_preferences": self._unknown_preferences(),
        }
        return {name: value for name, value in told.items() if value}

    def _unknown_preferences(self) -> list[str]:
        preferences = {} if self.context is None else self.context.user_preferences
        unknown = [name for name in preferences if name not in PREFERENCES]
        if preferences.get("optimize", "cost") not in OPTIMIZE:
            unknown.append(f"optimize={preferences['optimize']}")
        return unknown

    def reasons(self) -> dict[str, str]:
        """One per tool, those that only a rule names included."""
        rules = ", ".join(entry.rule.name for entry in self.matched)
        unrelated = f"no rule that matches ({rules}) names it, and it shares no declared capability with their tools"
        found = {name: self.passed_over.get(name) for name in [*self.tools, *self.passed_over]}
        return {name: reason or self.check(name) or Unrelated(unrelated) for name, reason in found.items()}


_NOBODY = Group((), {})

PREFERENCES = frozenset({"preferred_tools", "preferred_models", "avoid_tools", "optimize"})


def _names(given: Any) -> list[str]:
    """One name or several, as somebody's preference."""
    if isinstance(given, str):
        return [given]
    return [name for name in given if isinstance(name, str)] if isinstance(given, (list, tuple, set, frozenset)) else []


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


def task_type_of(request: Any) -> str | None:
    """The request's `type`, where it is a text of a sensible length: what tools declare they can do, and what is
    learned about them apart."""
    try:
        kind = request.get("type") if type(request) is dict else _read_type(request)
    except Exception:  # an attribute that raises is no type
        return None
    return kind if isinstance(kind, str) and len(kind) <= LONGEST_TYPE else None


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
