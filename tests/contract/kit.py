"""What the tests of the contract have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import (
    BundleMetadata,
    BundleSummary,
    EvidenceBundle,
    OrchestrationOutput,
    Orchestrator,
    PlanDecision,
    Planner,
    PlanRequest,
    ReliabilityConfig,
    ReliableOrchestrator,
    Replicate,
    ReplicateQuality,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import ToolMetadata
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.reliability import CircuitBreakerConfig, IdempotencyManager, RetryPolicy

STEADY = RetryPolicy(jitter_factor=0)
"""The default policy without chance: it waits 1, 2, 4 ... seconds."""


def registry(*tools: Tool) -> ToolRegistry:
    made = ToolRegistry()
    for tool in tools:
        made.register_tool(tool)
    return made


def plain(*tools: Tool, manager: IdempotencyManager | None = None) -> Orchestrator:
    return Orchestrator(registry(*tools), idempotency_manager=manager)


def reliable(
    *tools: Tool,
    planner: Planner | None = None,
    manager: IdempotencyManager | None = None,
    breaker: CircuitBreakerConfig | None = None,
    retry: RetryPolicy = STEADY,
    **fields: Any,
) -> ReliableOrchestrator:
    """With several tools and no planner: the first, the others as its fallbacks in their order."""
    if breaker is not None:
        fields["circuit_breaker_configs"] = {"default": breaker}
    if planner is None and len(tools) > 1:
        planner = Fixed(*(tool.name for tool in tools))
    config = ReliabilityConfig(retry_policy=retry, **fields)
    return ReliableOrchestrator(planner, config, manager, registry=registry(*tools))


class Fixed(Planner):
    """Always the same plan. `asked` keeps what it was told."""

    def __init__(self, tool: str, *fallbacks: str, options: Mapping[str, Any] | None = None) -> None:
        self.decision = PlanDecision(
            selected_tool=tool, fallback_tools=list(fallbacks), tool_options=dict(options or {}), reasoning="fixed"
        )
        self.asked: list[PlanRequest | None] = []

    async def plan(
        self, request: Any, available_tools: Mapping[str, ToolMetadata], context: PlanRequest | None = None
    ) -> PlanDecision:
        self.asked.append(context)
        return self.decision


def bundle(
    *data: Any,
    k: int | None = None,
    invalid: int = 0,
    confidence: float | None = None,
    usage: Mapping[str, Any] | None = None,
    cost: float | None = None,
    **meta: Any,
) -> EvidenceBundle:
    """A bundle of these answers, and so many more that are none."""
    answers = [Replicate(id=f"r{n}", data=value) for n, value in enumerate(data)]
    none = [Replicate(id=f"x{n}", quality=ReplicateQuality(valid=False, errors=["no answer"])) for n in range(invalid)]
    return EvidenceBundle(
        meta=BundleMetadata(task="t", k=k or len(data) + invalid, **meta),
        replicates=[*answers, *none],
        summary=BundleSummary(consensus=data[0] if confidence is not None else None, confidence=confidence),
        usage_total=dict(usage or {}),
        cost_total_usd=cost,
    )


def now() -> float:
    return asyncio.get_running_loop().time()


def tasks() -> set[asyncio.Task[Any]]:
    """Every task but the one that asks."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def calls(*tools: Any) -> list[int]:
    return [len(tool.calls) for tool in tools]


def failed(output: OrchestrationOutput) -> Mapping[str, Any]:
    """The error of an output that failed."""
    assert output.status == "failed", output
    error = output.content["error"]
    assert isinstance(error, Mapping)
    return error


def kinds(infos: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    return [(name, info["type"]) for name, info in (infos or {}).items()]


class Model:
    """A model behind the adapter contract: answers `text` after so many seconds, or raises.

    `requests` lists what it was asked, `most_running` how many at once.
    """

    def __init__(
        self, *steps: Any, name: str = "test:m", target: str = "test", after: float = 0.0, cost_usd: float = 0.01
    ) -> None:
        self.name = name
        self.target = target
        self.steps = steps or ("yes",)
        self.after = after
        self.cost_usd = cost_usd
        self.requests: list[ModelRequest] = []
        self.running = self.most_running = self.cancelled = 0

    async def request(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        step = self.steps[min(len(self.requests), len(self.steps) - 1)]
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.after)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(step, BaseException):
            raise step
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        return ModelReply(text=str(step), model=self.name, usage=usage, cost_usd=self.cost_usd, ignored=self.ignores)

    ignores: tuple[str, ...] = ()

    async def prepare(self) -> None:
        """Always ready."""

    def worst_case(self, request: ModelRequest) -> Amount:
        return Amount(20, self.cost_usd * 2)

    async def aclose(self) -> None:
        """Nothing was opened."""
