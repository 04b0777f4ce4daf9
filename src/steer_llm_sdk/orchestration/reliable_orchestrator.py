"""ReliableOrchestrator: a planner chooses, and retry, breakers and fallback stand behind the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeGuard

from steer_llm_sdk.errors import InvalidRequest, NoEligibleTool
from steer_llm_sdk.models.plain import copied
from steer_llm_sdk.orchestration._call import Call, Run
from steer_llm_sdk.orchestration.base import BaseOrchestrator, Plan
from steer_llm_sdk.orchestration.fallback import ToolCall
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy, PlanDecision, Planner, PlanRequest
from steer_llm_sdk.orchestration.planning.rule_based import RuleBasedPlanner
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig, ReliableToolExecutor
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.reliability._pipeline import Next
from steer_llm_sdk.reliability.circuit_breaker import CircuitState
from steer_llm_sdk.reliability.idempotency import IdempotencyManager


@cache
def _nothing_known() -> PlanRequest:
    """The context of a run without budget or requirements while every circuit is closed; planners read it only."""
    return PlanRequest()


def _plans_by_rule(planner: Planner) -> TypeGuard[RuleBasedPlanner]:
    """Whether `plan` is RuleBasedPlanner's own, and not that of a subclass that means something else."""
    return type(planner).plan is RuleBasedPlanner.plan


class ReliableOrchestrator(BaseOrchestrator):
    """Breakers, limits and remembered results belong to this instance."""

    def __init__(
        self,
        planner: Planner | None = None,
        reliability_config: ReliabilityConfig | None = None,
        idempotency_manager: IdempotencyManager | None = None,
        *,
        registry: ToolRegistry | None = None,
    ) -> None:
        self.planner = RuleBasedPlanner() if planner is None else planner
        self.reliability_config = ReliabilityConfig() if reliability_config is None else reliability_config
        super().__init__(
            registry,
            executor=ReliableToolExecutor(self.reliability_config),
            idempotency_manager=idempotency_manager,
        )

    @property
    def breakers(self) -> Mapping[str, Any]:
        """The state and counts of each breaker, by what it protects."""
        return self.executor.breakers.get_all_stats()

    async def _plan(self, run: Run) -> Plan:
        """A given tool_name is the shortest plan; otherwise the planner chooses from what is registered."""
        if run.tool_name is not None:
            return Plan((self._step(run, self._find(run.tool_name), {}),))
        view = self.registry.planning_view()
        if not view:
            raise NoEligibleTool
        planner, context = self.planner, self._context(run.options)
        if _plans_by_rule(planner):
            # Its plan() is decide() with a copy for the caller to keep; the flow only reads, and needs none.
            decision = planner.decide(run.request, view, context)
        else:
            decision = await planner.plan(copied(run.request), view, context)
        if decision.execution_strategy is not ExecutionStrategy.SINGLE:
            raise InvalidRequest(
                "execution_strategy", decision.execution_strategy.value, 'only "single" is carried out; plan that'
            )
        return Plan(tuple(self._steps(run, decision)), decision)

    def _steps(self, run: Run, decision: PlanDecision) -> Iterator[ToolCall]:
        """The selected tool and, where the caller allows, its fallbacks; one that is not there is passed over."""
        yield self._step(run, self._find(decision.selected_tool), decision.tool_options)
        config = self.reliability_config
        if not (run.options.enable_fallback and config.enable_fallback):
            return
        names = [name for name in dict.fromkeys(decision.fallback_tools) if name != decision.selected_tool]
        tools = [tool for name in names if (tool := self.registry.get_tool(name)) is not None]
        for tool in tools[: config.max_fallback_attempts]:
            yield self._step(run, tool, decision.tool_options)

    def _context(self, options: OrchestrationConfig) -> PlanRequest:
        states = self._breaker_states() if options.enable_circuit_breaker else {}
        if options.budget is None and options.quality_requirements is None and not states:
            return _nothing_known()
        return PlanRequest(
            budget=options.budget,
            quality_requirements=options.quality_requirements,
            circuit_breaker_states=states,
        )

    def _breaker_states(self) -> dict[str, str]:
        """By provider and by tool; empty while every circuit is closed."""
        breakers = self.executor.breakers
        if breakers.all_closed:
            return {}
        states = {name: stats["state"] for name, stats in breakers.get_all_stats().items()}
        for tool in self.registry:
            state = self._state_of(tool)
            if state is not None:
                states[tool.name] = state
        return states

    def _state_of(self, tool: Tool) -> str | None:
        """A tool with several ways to be served is as healthy as the best of them."""
        known = [(self.executor.breakers.get(target), part) for target, part in tool.targets]
        states = [CircuitState.CLOSED if breaker is None else breaker.get_state(part) for breaker, part in known]
        if all(breaker is None for breaker, _ in known):
            return None
        order = (CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN)
        return next(state.value for state in order if state in states)

    def _policies(self, options: OrchestrationConfig) -> Next[Call, Any]:
        return self.executor.pipeline(
            retry=True,
            breaker=options.enable_circuit_breaker,
            reserve=bool(options.budget),
            timeout=options.per_agent_timeout_ms is not None,
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
