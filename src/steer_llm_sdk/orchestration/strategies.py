"""Ways to use several tools for one request, which compose: a stage of each is a tool or another strategy.

    chain(extract, check, publish)                each output is the next request
    race(a, b, c)                                 the first acceptable answer; the others are stopped, and charged
    merge(a, b, c)                                one evidence bundle over the answers of all
    quorum(2, a, b, c)                            the answer that two agree on
    cascade(cheap, dear, calibration=...)         the dear one only where the cheap one's answer is not trusted
    branch(is_code, coder, writer)                by the request

All stages share the run's deadline, budget and limit of attempts. Each call stands under the run's policies, and shows
in the output under the name of its tool: in `per_agent`, in the timeline, in the costs and in the events.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from steer_llm_sdk.errors import AllToolsFailed, InvalidRequest, OrchestratorError
from steer_llm_sdk.orchestration._calibration import Calibration
from steer_llm_sdk.orchestration._call import Run, current
from steer_llm_sdk.orchestration._declared import names_of
from steer_llm_sdk.orchestration._in_turn import Cascade, Chain, branch, cascade, chain
from steer_llm_sdk.orchestration._result import ToolResult, describe_error
from steer_llm_sdk.orchestration._side_by_side import Merge, Race, merge, quorum, race
from steer_llm_sdk.orchestration._stages import Done, One, Stage, Strategy, View, step, strategy_of
from steer_llm_sdk.orchestration.fallback import Answer, ToolCall
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy, PlanDecision
from steer_llm_sdk.orchestration.tool_registry import Tool

__all__ = ["Calibration", "Strategy", "StrategyTool", "branch", "cascade", "chain", "merge", "quorum", "race", "step"]


def of_decision(
    decision: PlanDecision, calls: Sequence[ToolCall], wanted: float | None
) -> Callable[[Run, float | None], Coroutine[Any, Any, Answer]]:
    """The strategy of a decision over its tool and then its fallbacks.

    chain: in this order. parallel: a race, or what `metadata["parallel"]` says: "race", "merge", or a whole number for
    a quorum of so many. conditional: a cascade; its bound is `metadata["bound"]`, else the run's min_confidence.
    """
    strategy = _decided(decision, calls, wanted)

    async def answer(run: Run, wanted: float | None) -> Answer:
        done = await strategy.carry_out(run, wanted)
        return done.answer._replace(result=_traced(done))

    return answer


def _decided(decision: PlanDecision, calls: Sequence[ToolCall], wanted: float | None) -> Strategy:
    kind, stages = decision.execution_strategy, tuple(map(One, calls))
    if kind is ExecutionStrategy.CHAIN:
        return Chain(stages)
    if len(stages) < 2:
        raise InvalidRequest("fallback_tools", decision.fallback_tools, f"{kind.value} needs two tools or more")
    if kind is ExecutionStrategy.PARALLEL:
        return _parallel(decision.metadata.get("parallel", "race"), stages)
    bound = decision.metadata.get("bound", wanted)
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise InvalidRequest(
            "metadata.bound",
            bound,
            "a conditional plan needs the score from which an answer is trusted; give it there, or min_confidence",
        )
    return Cascade(stages, float(bound))


def _parallel(how: Any, stages: Sequence[Strategy]) -> Strategy:
    if how == "race":
        return Race(stages)
    if how == "merge":
        return Merge(stages)
    if isinstance(how, int) and not isinstance(how, bool):
        return quorum(how, *stages)
    raise InvalidRequest("metadata.parallel", how, 'give "race", "merge", or how many are a quorum')


def _traced(done: Done) -> ToolResult | None:
    result = done.answer.result
    return None if result is None else result._replace(metadata={**result.metadata, "strategy": done.trace})


class StrategyTool(Tool):
    """A strategy under a name, so that rules and planners can choose it like any tool.

    Its tools need not be registered. A breaker may know of all that they are served by.
    """

    composite = True

    def __init__(
        self,
        name: str,
        strategy: Stage,
        *,
        version: str = "1.0.0",
        description: str = "",
        capabilities: Sequence[str] = (),
        resource_requirements: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self.strategy = strategy_of(strategy)
        self.version = version
        self.description = description
        self.capabilities = names_of(name, "capabilities", capabilities)
        self.resource_requirements = dict(resource_requirements or {})

    @property
    def name(self) -> str:
        return self._name

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        return tuple(dict.fromkeys(target for call in self.strategy.calls for target in call.tool.targets))

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> ToolResult:
        scope = current.get()
        if scope is None:
            raise OrchestratorError(f"'{self._name}' is a strategy: run it with an orchestrator")
        done = await self.strategy.carry_out(View(scope.run, request), None, scope.life)
        result, failures = _traced(done), done.answer.failures
        if result is None:
            raise next(iter(failures.values())) if len(failures) == 1 else AllToolsFailed(failures)
        if not done.answer.acceptable:
            says = {name: describe_error(error) for name, error in failures.items()}
            result = result._replace(metadata={**result.metadata, "truncated": True, "stage_errors": says})
        return result

    async def aclose(self) -> None:
        for call in self.strategy.calls:
            await call.tool.aclose()
