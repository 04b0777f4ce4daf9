"""The way to one decision of rules: who may serve, which rule decides, and whom to take where none does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from math import ceil
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.errors import NoEligibleTool
from steer_llm_sdk.orchestration.planning._catalog import Catalog
from steer_llm_sdk.orchestration.planning._compiled import CompiledRule
from steer_llm_sdk.orchestration.planning._conditions import Unfit
from steer_llm_sdk.orchestration.planning._ranking import OPTIMIZE, Group
from steer_llm_sdk.orchestration.planning._request import default_options, names_in, task_type_of
from steer_llm_sdk.orchestration.planning.eligibility import NO_POLICY, Check, Eligible, Policy, Unrelated, at_version
from steer_llm_sdk.orchestration.planning.planner import PlanDecision, PlanRequest, ToolMetadata

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.planning.rule_based import RuleBasedPlanner

# A default lists no more fallbacks than a run makes attempts: with a thousand related tools the rest is never reached.
MAX_DEFAULT_FALLBACKS = 10

DEFAULT_CONFIDENCE = 0.5

PREFERENCES = frozenset({"preferred_tools", "preferred_models", "avoid_tools", "optimize"})

FAILED_BEFORE = "it failed before"
WOULD_RATHER_NOT = "the caller would rather not have it"

Tools = Mapping[str, ToolMetadata]
_REASON_LENGTH = 200
_NOBODY = Group((), {})


@dataclass(slots=True)
class Search:
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
        liked = [name for name in names_in(preferences.get("preferred_tools")) if name in self.tools]
        for model in names_in(preferences.get("preferred_models")):
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
            self.passed_over[name] = FAILED_BEFORE
        elif context.user_preferences and name in names_in(context.user_preferences.get("avoid_tools")):
            self.passed_over[name] = WOULD_RATHER_NOT
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
        return name in context.previous_failures or name in names_in(context.user_preferences.get("avoid_tools"))

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


def reason_of(error: Exception) -> str:
    """Why a rule was skipped, in one short line."""
    text = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."
