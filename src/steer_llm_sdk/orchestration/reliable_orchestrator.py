"""ReliableOrchestrator: a planner chooses, and retry, breakers and fallback stand behind the choice."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeGuard

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, NoEligibleTool, ToolNotFound
from steer_llm_sdk.models.plain import copied, copier
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration._observed import Observer
from steer_llm_sdk.orchestration._outcome import plan_shown
from steer_llm_sdk.orchestration._versioned import who_of
from steer_llm_sdk.orchestration.base import BaseOrchestrator, Plan, check_types
from steer_llm_sdk.orchestration.fallback import ToolCall
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.planning._copies import Copies
from steer_llm_sdk.orchestration.planning.eligibility import over_budget
from steer_llm_sdk.orchestration.planning.planner import (
    ExecutionStrategy,
    PlanDecision,
    Planner,
    PlanRequest,
    ToolMetadata,
)
from steer_llm_sdk.orchestration.planning.rule_based import RuleBasedPlanner
from steer_llm_sdk.orchestration.reliability import Asked, ReliabilityConfig, ReliableToolExecutor
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.reliability.budget import BudgetAccounts
from steer_llm_sdk.reliability.circuit import CircuitState
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreaker
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.reliability.stores import Store
from steer_llm_sdk.reliability.stores._url import shown

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.shared.state import SharedState

_log = logging.getLogger(__name__)

# Loaded by the first run that uses several tools for one answer.
_late = looked_up(__name__, {"of_decision": "steer_llm_sdk.orchestration.strategies"})


@cache
def _nothing_known() -> PlanRequest:
    """The context of a run without budget or requirements while every circuit is closed; planners read it only."""
    return PlanRequest()


_BEST_FIRST = (CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN)


def _of_budget(error: NoEligibleTool) -> Exception:
    """Where only the budget stands in the way of every tool, the run has exceeded it before it began."""
    nearest = over_budget(error.reasons.values())
    if nearest is None:
        return error
    return BudgetExceeded(nearest.budget_type, nearest.limit, nearest.actual)


def _plans_by_rule(planner: Planner) -> TypeGuard[RuleBasedPlanner]:
    """Whether `plan` is RuleBasedPlanner's own, and not that of a subclass that means something else."""
    kind = type(planner)
    return kind.plan is RuleBasedPlanner.plan and _is_ours(kind)


@lru_cache(maxsize=100)
def _is_ours(kind: type) -> bool:
    """Whether a planner is of this package in all that it does. What somebody else wrote may write into what it is
    told, and may answer the same decision with other things in it."""
    own = (getattr(kind, name, None) for name in ("plan", "decide"))
    return all(method is None or str(method.__module__).startswith("steer_llm_sdk.") for method in own)


_SERVERS = ("redis://", "rediss://", "postgres://", "postgresql://")
"""How the URL of a store begins that several machines can reach."""


def shared_at(url: str) -> SharedState:
    from steer_llm_sdk.reliability.shared.state import SharedState

    return SharedState(url)


@dataclass(frozen=True, slots=True)
class _Made:
    """The last plan, and what it was made of: by whom, from which tools, with how many fallbacks (None: there is none);
    and the tools of its steps with the provider of each, which may be set anew."""

    planner: RuleBasedPlanner
    decision: PlanDecision
    view: Mapping[str, ToolMetadata]
    most: int | None
    plan: Plan
    providers: Sequence[tuple[Tool, str | None]]
    observer: Observer | None


class ReliableOrchestrator(BaseOrchestrator):
    """Breakers, limits and remembered results belong to this instance, unless `store` says where they are kept.

    `store` is a URL, see `open_store`, or a Store. Unset, it is what STEER_STORE names; without that, results are
    remembered in memory. The URL of a server (Redis or PostgreSQL) means that breakers, rate limits, retry budgets and
    budgets are those of all instances with this URL; `shared` is for who wants that without remembered results, or
    several orchestrators on one connection. `async with` or `aclose` closes what was opened from a URL. An
    idempotency_manager has a store of its own.
    """

    def __init__(
        self,
        planner: Planner | None = None,
        reliability_config: ReliabilityConfig | None = None,
        idempotency_manager: IdempotencyManager | None = None,
        *,
        registry: ToolRegistry | None = None,
        budget_accounts: BudgetAccounts | None = None,
        store: Store | str | None = None,
        shared: SharedState | None = None,
    ) -> None:
        check_types(("reliability_config", reliability_config, ReliabilityConfig))
        self._opened: SharedState | None = None
        if idempotency_manager is None:
            store = store or os.environ.get("STEER_STORE") or None
            idempotency_manager = IdempotencyManager(store=store)
            if shared is None and isinstance(store, str) and store.startswith(_SERVERS):
                shared = self._opened = shared_at(store)
        elif store is not None:
            raise InvalidRequest(
                "store",
                shown(store) if isinstance(store, str) else store,
                "there is an idempotency_manager, which has one; give it to IdempotencyManager(store=…)",
            )
        if planner is not None and not callable(getattr(planner, "plan", None)):  # One that is written without the base
            check_types(("planner", planner, Planner))
        self.planner = RuleBasedPlanner() if planner is None else planner
        self.reliability_config = ReliabilityConfig() if reliability_config is None else reliability_config
        if shared is not None and budget_accounts is None:
            budget_accounts = shared.budget_accounts()
        super().__init__(
            registry,
            executor=ReliableToolExecutor(self.reliability_config, shared),
            idempotency_manager=idempotency_manager,
            budget_accounts=budget_accounts,
        )
        self._last_context: PlanRequest | None = None
        self._missing: set[str] = set()
        self._well: tuple[Mapping[str, Sequence[Tool]], tuple[int, int], Mapping[str, str]] | None = None
        self._last_plan: _Made | None = None

    async def aclose(self) -> None:
        await super().aclose()
        if self._opened is not None:
            await asyncio.to_thread(self._opened.close)

    @property
    def breakers(self) -> Mapping[str, Any]:
        """The state and counts of each breaker, by what it protects."""
        return self.executor.breakers.get_all_stats()

    def _plan_at_once(self, run: Run) -> Plan | None:
        """The plan of a given tool_name, or of rules: its plan() is decide() with a copy for the caller to keep; the
        flow only reads, and needs none."""
        planner, given, registry, last = self.planner, run.given, self.registry, self._last_plan
        if run.tool_name is not None or not ((last is not None and last.planner is planner) or _plans_by_rule(planner)):
            return super()._plan_at_once(run)
        view = registry.planning_view(who_of(run)) if registry.staged else registry.planning_view()
        if not view:
            raise NoEligibleTool
        nothing_known = run.plain and self.executor.breakers.all_closed and not registry.serves_some_only
        try:
            decision = planner.decide(run.request, view, None if nothing_known else self._known(given))
        except NoEligibleTool as error:
            raise _of_budget(error) from None
        # Rules hand the same decision out again while the tools are the same.
        if (
            last is not None
            and last.decision is decision
            and last.view is view
            and (last.most is None or last.most == self._most_fallbacks(given))
        ):
            for tool, provider in last.providers:
                if tool.provider != provider:
                    break
            else:
                return last.plan
        most = self._most_fallbacks(given)
        plan, observer = self._carry_out(decision, most, run)
        providers = [(step.tool, step.tool.provider) for step in plan.steps]
        self._last_plan = _Made(
            planner, decision, view, most if decision.fallback_tools else None, plan, providers, observer
        )
        return plan

    async def _plan(self, run: Run) -> Plan:
        # A planner of somebody else's may write into what it is told, and the next run is told the same.
        context = self._known(run.given) or _nothing_known()
        context = PlanRequest.model_construct(**copied(dict(context)))
        view = self._view(run)
        tools = view if _is_ours(type(self.planner)) else Copies(view)
        if run.options.deterministic:
            context.explore = False
        try:
            planned: Any = self.planner.plan(copied(run.request), tools, context)
            decision = await planned if (is_async := inspect.isawaitable(planned)) else None
        except NoEligibleTool as error:
            raise _of_budget(error) from None
        if not isinstance(decision, PlanDecision):
            remedy = "it has to be an async function that returns a PlanDecision"
            raise InvalidRequest(f"{type(self.planner).__name__}.plan()", decision if is_async else planned, remedy)
        return self._carry_out(decision, self._most_fallbacks(run.given), run)[0]

    def _most_fallbacks(self, given: Mapping[str, Any]) -> int:
        config = self.reliability_config
        return config.max_fallback_attempts if config.enable_fallback and given["enable_fallback"] else 0

    def _view(self, run: Run) -> Mapping[str, ToolMetadata]:
        registry = self.registry
        view = registry.planning_view(who_of(run)) if registry.staged else registry.planning_view()
        if not view:
            raise NoEligibleTool
        return view

    def _carry_out(self, decision: PlanDecision, most_fallbacks: int, run: Run) -> tuple[Plan, Observer | None]:
        single = decision.execution_strategy is ExecutionStrategy.SINGLE
        tools, shown = [self._chosen(decision, run)], plan_shown(decision)
        shown["tool_version"] = tools[0].version
        if decision.estimated_cost is not None:
            shown["estimated_cost"] = decision.estimated_cost
        if decision.estimated_duration_ms is not None:
            shown["estimated_duration_ms"] = decision.estimated_duration_ms
        if decision.fallback_tools and (most_fallbacks or not single):
            fallbacks, missing = self._fallbacks(decision, run)
            tools += fallbacks[:most_fallbacks] if single else fallbacks
            if missing:
                shown["missing_tools"] = missing
        steps = tuple(ToolCall.of(tool, decision.tool_options) for tool in tools)
        observer, strategy = self._observer(decision), None
        if not single:
            shown["execution_strategy"] = decision.execution_strategy.value
            strategy = _late("of_decision")(decision, steps, self._min_confidence(run.options))
        return Plan(steps, copier(shown), None if observer is None else observer.tell, strategy), observer

    def _chosen(self, decision: PlanDecision, run: Run) -> Tool:
        name, version = decision.selected_tool, decision.tool_version
        tool = None if version is None else self.registry.get_tool(name, version)
        return self._find(name, run) if tool is None else tool

    def _observer(self, decision: PlanDecision) -> Observer | None:
        """What tells the planner how the run went; None where it has no use for it."""
        planner = self.planner
        if not isinstance(planner, Planner) or type(planner).observe is Planner.observe:
            return None
        return Observer(planner, decision, None if self._last_plan is None else self._last_plan.observer)

    def _fallbacks(self, decision: PlanDecision, run: Run) -> tuple[list[Tool], list[str]]:
        """The fallbacks of a decision that serve the caller's tenant, and the names of those that are not there: they
        are passed over."""
        names = [name for name in dict.fromkeys(decision.fallback_tools) if name != decision.selected_tool]
        found = {name: self._found(name, run) for name in names}
        missing = [name for name, tool in found.items() if tool is None]
        for name in missing:
            self._warn_of_missing(name, decision)
        tenant = run.given["tenant"]
        serving = [tool for tool in found.values() if tool is not None and (not tool.tenants or tenant in tool.tenants)]
        return serving, missing

    def _found(self, name: str, run: Run) -> Tool | None:
        try:
            return self._find(name, run)
        except (ToolNotFound, InvalidRequest):  # Or its name asks for versions in a way that none can be read.
            return None

    def _warn_of_missing(self, name: str, decision: PlanDecision) -> None:
        """Once for each name: a typo in a rule would show itself only on the day when the first tool fails."""
        if name not in self._missing:
            self._missing.add(name)
            _log.warning(
                "the fallback tool %r of the plan for %r is not registered and is passed over (%s)",
                name,
                decision.selected_tool,
                decision.reasoning,
            )

    def _known(self, given: Mapping[str, Any]) -> PlanRequest | None:
        """What a planner is told beside the request; None for a run without budget or requirements while every circuit
        is closed and every tool serves everybody."""
        all_closed = self.executor.breakers.all_closed
        budget = given["budget"]
        if all_closed and given["quality_requirements"] is None and not self.registry.serves_some_only:
            if budget is None:
                return None
            known = self._last_context
            if known is None or known.budget != budget:
                known = self._last_context = PlanRequest(budget=budget)
            return known
        states, probes = self._breaker_states() if given["enable_circuit_breaker"] and not all_closed else ({}, {})
        return PlanRequest(
            budget=budget,
            quality_requirements=given["quality_requirements"],
            circuit_breaker_states=states,
            probes_left=probes,
            tenant=given["tenant"],
        )

    def _breaker_states(self) -> tuple[dict[str, str], dict[str, int]]:
        """By provider and by tool; and the tools that no further probe may try. Only the tools of a provider that is
        not well are asked about each time."""
        breakers, by_target = self.executor.breakers, self.registry.by_target()
        states = {name: stats["state"] for name, stats in breakers.get_all_stats().items()}
        states.update(self._when_well(by_target))
        probes: dict[str, int] = {}
        for tool in {id(tool): tool for target in breakers.unwell for tool in by_target.get(target, ())}.values():
            known = self._breakers_of(tool)
            found = {CircuitState.CLOSED if breaker is None else breaker.get_state(part) for breaker, part in known}
            # A tool with several ways to be served is as healthy as the best of them.
            states[tool.name] = next(state.value for state in _BEST_FIRST if state in found)
            if not any(breaker is None or breaker.would_admit(part) for breaker, part in known):
                probes[tool.name] = 0
        return states, probes

    def _when_well(self, by_target: Mapping[str, Sequence[Tool]]) -> Mapping[str, str]:
        """The tools that have a circuit, as if all were closed."""
        known = self.executor.breakers.known
        kept = self._well
        if kept is None or kept[0] is not by_target or kept[1] != known:
            tools = {id(tool): tool for tools in by_target.values() for tool in tools}.values()
            having = [tool.name for tool in tools if any(breaker for breaker, _ in self._breakers_of(tool))]
            kept = self._well = (by_target, known, dict.fromkeys(having, CircuitState.CLOSED.value))
        return kept[2]

    def _breakers_of(self, tool: Tool) -> list[tuple[CircuitBreaker | None, str]]:
        return [(self.executor.breakers.of_part(target, part), part) for target, part in tool.targets]

    def _asks(self, given: Mapping[str, Any]) -> Asked:
        reserve = given["budget"] is not None or bool(given["budgets"])
        return True, given["enable_circuit_breaker"], reserve, given["per_agent_timeout_ms"] is not None

    def _max_attempts(self, options: OrchestrationConfig) -> int:
        if not options.retry_on_failure:
            return 1
        if options.max_retries is not None:
            return 1 + options.max_retries
        return self.reliability_config.retry_policy.max_attempts

    def _min_confidence(self, options: OrchestrationConfig) -> float | None:
        wanted = (options.quality_requirements or {}).get("min_confidence")
        if wanted is None:
            return None
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not 0 <= wanted <= 1:
            raise InvalidRequest("quality_requirements.min_confidence", wanted, "give a number from 0 to 1")
        return float(wanted)


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
