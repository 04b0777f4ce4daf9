"""Which tools may serve a request, and why each of the others may not. Pure: nothing is chosen here.

A planner asks `eligible` for the whole set, or a Check for one tool at a time. What a request demands comes from its
PlanRequest and from rules that restrict or forbid; what a tool offers, from what it declares and, with statistics, from
what it has done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeGuard

from steer_llm_sdk.orchestration.planning.planner import PlanRequest, ToolMetadata, declared_number
from steer_llm_sdk.orchestration.planning.statistics import ENOUGH, UNKNOWN, Estimate
from steer_llm_sdk.orchestration.versions import wanted

Tools = Mapping[str, ToolMetadata]
Estimates = Callable[[ToolMetadata], Estimate]
"""What a run of a tool is expected to come to, for the request at hand."""

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly; by which the length of a request is estimated where nobody counted its tokens."""
TEXT_KEYS = ("query", "prompt", "text", "messages", "content", "input")
"""Where the text of a request is looked for."""


class OverBudget(str):
    """A reason: the tool costs, or takes, more than is left. Somebody with more could have it."""

    budget_type: Literal["cost", "time"]
    limit: float
    actual: float

    @classmethod
    def of(cls, budget_type: Literal["cost", "time"], limit: float, actual: float, reason: str) -> OverBudget:
        made = cls(reason)
        made.budget_type, made.limit, made.actual = budget_type, limit, actual
        return made


class Unrelated(str):
    """A reason: rules pin other tools, and this one has nothing to do with them."""

    __slots__ = ()


def over_budget(reasons: Iterable[str]) -> OverBudget | None:
    """The tool that comes nearest to the budget, where nothing but the budget stands in the way of any."""
    those = [reason for reason in reasons if not isinstance(reason, Unrelated)]
    over = [reason for reason in those if isinstance(reason, OverBudget)]
    return min(over, key=lambda reason: reason.actual / reason.limit) if over and len(over) == len(those) else None


class Eligible(NamedTuple):
    """`names` may serve, in the order of the tools; `reasons` has one sentence for each of the others."""

    names: tuple[str, ...]
    reasons: Mapping[str, str]


class Policy(NamedTuple):
    """What rules say beside pinning. `allowed` None: any. `forbidden` maps a tool to why; `restricted_by` says why a
    tool that is not among `allowed` is out. `weights` are added to a tool's utility."""

    allowed: frozenset[str] | None = None
    restricted_by: str = ""
    forbidden: Mapping[str, str] = MappingProxyType({})
    weights: Mapping[str, float] = MappingProxyType({})


NO_POLICY = Policy()


def eligible(
    tools: Tools,
    context: PlanRequest | None = None,
    *,
    request: Any = None,
    estimates: Estimates | None = None,
    policy: Policy = NO_POLICY,
) -> Eligible:
    """The tools that may serve. `request` is looked at only where a tool declares a context window.

    The work grows with the tools only where something can exclude one.
    """
    check = Check(tools, context, request=request, estimates=estimates, policy=policy)
    if check.excludes_nothing(tools.values()):
        return Eligible(tuple(tools), {})
    reasons = {name: reason for name in tools if (reason := check(name)) is not None}
    return Eligible(tuple(name for name in tools if name not in reasons), reasons)


class Check:
    """Says of one tool why it may not serve; None where it may."""

    __slots__ = ("_context", "_demands", "_estimates", "_policy", "_request", "_tokens", "_tools")

    def __init__(
        self,
        tools: Tools,
        context: PlanRequest | None = None,
        *,
        request: Any = None,
        estimates: Estimates | None = None,
        policy: Policy = NO_POLICY,
    ) -> None:
        self._tools = tools
        self._context = context
        self._request = request
        self._estimates = estimates
        self._policy = policy
        self._demands = demands_of(context)
        self._tokens: int | None = None

    def __call__(self, name: str) -> str | None:
        tool = self._tools.get(name)
        if tool is None:
            name, tool, missing = at_version(name, self._tools)
            if tool is None:
                return missing
        policy = self._policy
        if policy is not NO_POLICY:
            if name in policy.forbidden:
                return policy.forbidden[name]
            if policy.allowed is not None and name not in policy.allowed:
                return policy.restricted_by
        if tool.tenants or tool.context_window is not None or tool.unavailable is not None:
            reason = self._declared_limits(tool)
            if reason is not None:
                return reason
        if not self._demands:
            return None
        context = self._context
        assert context is not None
        for demand in self._demands:
            reason = demand(name, tool, context, self._estimate)
            if reason is not None:
                return reason
        return None

    def excludes_nothing(self, tools: Iterable[ToolMetadata]) -> bool:
        if self._demands or self._policy.allowed is not None or self._policy.forbidden:
            return False
        return not any(tool.tenants or tool.context_window is not None or tool.unavailable for tool in tools)

    def _estimate(self, tool: ToolMetadata) -> Estimate:
        return UNKNOWN if self._estimates is None else self._estimates(tool)

    def _declared_limits(self, tool: ToolMetadata) -> str | None:
        if tool.unavailable is not None:
            return tool.unavailable
        tenant = None if self._context is None else self._context.tenant
        if tool.tenants and tenant not in tool.tenants:
            return f"it serves {_listed(tool.tenants)} only, and the tenant is {tenant or 'not known'}"
        if tool.context_window is not None:
            tokens = self._input_tokens()
            if tokens > tool.context_window:
                return f"its context window is {tool.context_window} tokens, and the request has about {tokens}"
        return None

    def _input_tokens(self) -> int:
        if self._tokens is None:
            told = None if self._context is None else self._context.input_tokens
            self._tokens = estimated_tokens(self._request) if told is None else told
        return self._tokens


def at_version(name: str, tools: Tools) -> tuple[str, ToolMetadata | None, str]:
    """The name and the tool that "text_analyzer>=1.2,<2" means; None and the reason where there is none."""
    asked = wanted(name)
    tool = None if asked is None else tools.get(asked.name)
    if asked is None or tool is None:
        return name, None, "it is not registered"
    found = tool.at(asked.spec)
    return asked.name, found, "" if found is not None else f"no version of it that can be chosen satisfies {asked.spec}"


Demand = Callable[[str, ToolMetadata, PlanRequest, Estimates], str | None]


def demands_of(context: PlanRequest | None) -> list[Demand]:
    """The tests that a tool has to pass for this context, the cheapest first; most runs have none."""
    if context is None:
        return []
    found: list[Demand] = []
    if context.circuit_breaker_states:
        found.append(_breaker)
    if context.capabilities:
        found.append(_capabilities)
    if context.models:
        found.append(_models)
    if context.versions:
        found.append(_version)
    wanted = context.quality_requirements
    if wanted:
        found += [_FLOORS[name] for name in _FLOORS if is_number(wanted.get(name))]
    budget = context.budget
    if budget and (is_number(budget.get("cost_usd")) or is_number(budget.get("ms"))):
        found.append(_budget)
    return found


def _breaker(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    state = context.circuit_breaker_states.get(name)
    if state == "open":
        return "its circuit breaker is open"
    if state == "half_open" and context.probes_left.get(name, 1) <= 0:
        return "its circuit breaker is half open, and all its probes are under way"
    return None


def _capabilities(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    missing = [wanted for wanted in context.capabilities if wanted not in tool.capabilities]
    return f"it does not declare {_listed(missing)}" if missing else None


def _models(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    if any(model in tool.supported_models for model in context.models):
        return None
    return f"it declares none of the models {_listed(context.models)}"


def _version(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    wanted = context.versions.get(name)
    if wanted is None or tool.at(wanted) is not None:
        return None
    return f"no version of it that can be chosen satisfies {wanted} (it is at {tool.version})"


def _latency(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    limit = (context.quality_requirements or {})["max_latency_ms"]
    p95 = estimate(tool).p95_ms
    if p95 is not None:
        return f"19 of 20 runs took up to {p95:g} ms, and max_latency_ms is {limit:g}" if p95 > limit else None
    declared = declared_number(tool, "estimated_duration_ms")
    if declared is not None and declared > limit:
        return f"it declares {declared:g} ms, and max_latency_ms is {limit:g}"
    return None


def _quality(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    limit = (context.quality_requirements or {})["min_quality"]
    seen = estimate(tool)
    if seen.quality is not None and seen.runs >= ENOUGH:
        return f"its quality is {seen.quality:.2f}, and min_quality is {limit:g}" if seen.quality < limit else None
    declared = declared_number(tool, "expected_quality")
    if declared is not None and declared < limit:
        return f"it declares a quality of {declared:g}, and min_quality is {limit:g}"
    return None


def _cost(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    limit = (context.quality_requirements or {})["max_cost_usd"]
    cost = _known_cost(tool, estimate)
    return None if cost is None or cost <= limit else f"it costs about ${cost:g}, and max_cost_usd is {limit:g}"


def _budget(name: str, tool: ToolMetadata, context: PlanRequest, estimate: Estimates) -> str | None:
    budget = context.budget or {}
    left = budget.get("cost_usd")
    if is_number(left):
        cost = _known_cost(tool, estimate)
        if cost is not None and cost > left:
            return OverBudget.of("cost", left, cost, f"it costs about ${cost:g}, and the budget has ${left:g} left")
    time = budget.get("ms")
    if is_number(time):
        fastest = estimate(tool).fastest_ms
        if fastest is not None and fastest > time:
            said = f"none of its recent runs took less than {fastest:g} ms, and the budget has {time:g} left"
            return OverBudget.of("time", time, fastest, said)
    return None


_FLOORS: Mapping[str, Demand] = {"max_latency_ms": _latency, "max_cost_usd": _cost, "min_quality": _quality}


def _known_cost(tool: ToolMetadata, estimate: Estimates) -> float | None:
    """USD of a run: what it has cost where that is known well enough, else what one replicate is declared to."""
    seen = estimate(tool)
    if seen.runs >= ENOUGH and seen.cost_usd is not None:
        return seen.cost_usd
    return declared_number(tool, "estimated_cost_per_run")


def estimated_tokens(request: Any) -> int:
    """The length of the text of a request in tokens, at CHARACTERS_PER_TOKEN. Other values count for nothing."""
    return characters_of(request) // CHARACTERS_PER_TOKEN


def characters_of(request: Any) -> int:
    """The length of the text of a request."""
    return _characters(request, 0)


def _characters(value: Any, depth: int) -> int:
    if isinstance(value, str):
        return len(value)
    if depth > 4:
        return 0
    if isinstance(value, Mapping):
        keys = value if depth else TEXT_KEYS
        return sum(_characters(value.get(key), depth + 1) for key in keys)
    if isinstance(value, (list, tuple)):
        return sum(_characters(item, depth + 1) for item in value)
    return 0


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
