"""ReliableOrchestrator: a planner chooses, and retry, breakers and fallback stand behind the choice."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache, lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeGuard

from steer_llm_sdk.errors import InvalidRequest, NoEligibleTool
from steer_llm_sdk.models.plain import copied, copier
from steer_llm_sdk.orchestration._call import Call, Run
from steer_llm_sdk.orchestration._outcome import plan_shown
from steer_llm_sdk.orchestration.base import BaseOrchestrator, Plan, check_types
from steer_llm_sdk.orchestration.fallback import ToolCall
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.planning._copies import Copies
from steer_llm_sdk.orchestration.planning.planner import (
    ExecutionStrategy,
    PlanDecision,
    Planner,
    PlanRequest,
    ToolMetadata,
)
from steer_llm_sdk.orchestration.planning.rule_based import RuleBasedPlanner
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig, ReliableToolExecutor
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.reliability._pipeline import Next
from steer_llm_sdk.reliability.budget import BudgetAccounts
from steer_llm_sdk.reliability.circuit import CircuitState
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.reliability.stores import Store
from steer_llm_sdk.reliability.stores._url import shown

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.shared.state import SharedState

_log = logging.getLogger(__name__)


@cache
def _nothing_known() -> PlanRequest:
    """The context of a run without budget or requirements while every circuit is closed; planners read it only."""
    return PlanRequest()


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


_provider = attrgetter("tool.provider")
"""Of a step: what its `target` was made of, and may have changed since."""


class ReliableOrchestrator(BaseOrchestrator):
    """Breakers, limits and remembered results belong to this instance, unless `store` says where the results are kept.

    `store` is a URL, see `open_store`, or a Store. Unset, it is what STEER_STORE names; without that, results are
    remembered in memory. `async with` or `aclose` closes what was opened from a URL. An idempotency_manager has a
    store of its own.
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
        if idempotency_manager is None:
            idempotency_manager = IdempotencyManager(store=store or os.environ.get("STEER_STORE") or None)
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
        super().__init__(
            registry,
            executor=ReliableToolExecutor(self.reliability_config, shared),
            idempotency_manager=idempotency_manager,
            budget_accounts=shared.budget_accounts()
            if shared is not None and budget_accounts is None
            else budget_accounts,
        )
        self._last_context: PlanRequest | None = None
        self._missing: set[str] = set()
        self._last_plan: tuple[PlanDecision, Mapping[str, ToolMetadata], int, Plan, list[Any]] | None = None

    @property
    def breakers(self) -> Mapping[str, Any]:
        """The state and counts of each breaker, by what it protects."""
        return self.executor.breakers.get_all_stats()

    def _plan_at_once(self, run: Run) -> Plan | None:
        """The plan of a given tool_name, or of rules: its plan() is decide() with a copy for the caller to keep; the
        flow only reads, and needs none."""
        planner, options = self.planner, run.options
        if run.tool_name is not None or not _plans_by_rule(planner):
            return super()._plan_at_once(run)
        view = self._view()
        decision = planner.decide(run.request, view, self._context(options))
        most = self._most_fallbacks(options)
        last = self._last_plan
        # Rules hand the same decision out again while the tools are the same.
        if (
            last is not None
            and (last[0] is decision and last[1] is view and last[2] == most)
            and last[4] == list(map(_provider, last[3].steps))
        ):
            return last[3]
        plan = self._carry_out(decision, most)
        self._last_plan = (decision, view, most, plan, list(map(_provider, plan.steps)))
        return plan

    async def _plan(self, run: Run) -> Plan:
        # A planner of somebody else's may write into what it is told, and the next run is told the same.
        context = PlanRequest.model_construct(**copied(dict(self._context(run.options))))
        view = self._view()
        tools = view if _is_ours(type(self.planner)) else Copies(view)
        decision = await self.planner.plan(copied(run.request), tools, context)
        return self._carry_out(decision, self._most_fallbacks(run.options))

    def _most_fallbacks(self, options: OrchestrationConfig) -> int:
        config = self.reliability_config
        return config.max_fallback_attempts if options.enable_fallback and config.enable_fallback else 0

    def _view(self) -> Mapping[str, ToolMetadata]:
        view = self.registry.planning_view()
        if not view:
            raise NoEligibleTool
        return view

    def _carry_out(self, decision: PlanDecision, most_fallbacks: int) -> Plan:
        if decision.execution_strategy is not ExecutionStrategy.SINGLE:
            raise InvalidRequest(
                "execution_strategy", decision.execution_strategy.value, 'only "single" is carried out; plan that'
            )
        tools, shown = [self._find(decision.selected_tool)], plan_shown(decision)
        if most_fallbacks and decision.fallback_tools:
            fallbacks, missing = self._fallbacks(decision)
            tools += fallbacks[:most_fallbacks]
            if missing:
                shown["missing_tools"] = missing
        steps = tuple(ToolCall.of(tool, decision.tool_options) for tool in tools)
        return Plan(steps, copier(shown))

    def _fallbacks(self, decision: PlanDecision) -> tuple[list[Tool], list[str]]:
        """The fallbacks of a decision, and the names of those that are not there: they are passed over."""
        names = [name for name in dict.fromkeys(decision.fallback_tools) if name != decision.selected_tool]
        found = {name: self.registry.get_tool(name) for name in names}
        missing = [name for name, tool in found.items() if tool is None]
        for name in missing:
            self._warn_of_missing(name, decision)
        return [tool for tool in found.values() if tool is not None], missing

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

    def _context(self, options: OrchestrationConfig) -> PlanRequest:
        all_closed = self.executor.breakers.all_closed
        if all_closed and options.quality_requirements is None:
            if options.budget is None:
                return _nothing_known()
            known = self._last_context
            if known is None or known.budget != options.budget:
                known = self._last_context = PlanRequest(budget=options.budget)
            return known
        states = self._breaker_states() if options.enable_circuit_breaker and not all_closed else {}
        return PlanRequest(
            budget=options.budget,
            quality_requirements=options.quality_requirements,
            circuit_breaker_states=states,
        )

    def _breaker_states(self) -> dict[str, str]:
        """By provider and by tool."""
        breakers = self.executor.breakers
        states = {name: stats["state"] for name, stats in breakers.get_all_stats().items()}
        for tool in self.registry:
            state = self._state_of(tool)
            if state is not None:
                states[tool.name] = state
        return states

    def _state_of(self, tool: Tool) -> str | None:
        """A tool with several ways to be served is as healthy as the best of them."""
        known = [(self.executor.breakers.of_part(target, part), part) for target, part in tool.targets]
        states = [CircuitState.CLOSED if breaker is None else breaker.get_state(part) for breaker, part in known]
        if all(breaker is None for breaker, _ in known):
            return None
        order = (CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN)
        return next(state.value for state in order if state in states)

    def _policies(self, options: OrchestrationConfig) -> Next[Call, Any]:
        return self.executor.pipeline(
            True,
            options.enable_circuit_breaker,
            options.budget is not None or bool(options.budgets),
            options.per_agent_timeout_ms is not None,
        )

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
