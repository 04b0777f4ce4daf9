"""What a planner is told, and what it answers. This module is a leaf: the registry builds on it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk._names import looked_up

DEFAULT_MAX_PARALLEL = 10

# Beyond this a number that somebody declared is a mistake, and products of two would leave the range of a float.
_MOST = 1e15


class ExecutionStrategy(str, Enum):
    """How the tools of a plan are used. `single`: the selected one, the others only where it fails."""

    SINGLE = "single"
    CHAIN = "chain"
    PARALLEL = "parallel"
    CONDITIONAL = "conditional"


class ToolMetadata(BaseModel):
    """What a tool declares. `resource_requirements` may hold `estimated_cost_per_run` (USD) and
    `estimated_duration_ms`, both for one replicate."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    name: str
    version: str = "1.0.0"
    description: str = ""
    supported_models: list[str] = Field(default_factory=list)
    default_options: dict[str, Any] = Field(default_factory=dict)
    capabilities: list[str] = Field(default_factory=list)
    resource_requirements: dict[str, Any] = Field(default_factory=dict)


class PlanRequest(BaseModel):
    """What is known beside the request itself.

    `budget` has ms, tokens or cost_usd. `previous_failures` names tools that failed in this run or just before it.
    `circuit_breaker_states` maps tool names (and provider names) to "closed", "open" or "half_open"; a planner looks
    a tool up by its own name. `quality_requirements` may hold min_confidence, min_quality and max_latency_ms.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    budget: dict[str, float] | None = None
    quality_requirements: dict[str, Any] | None = None
    previous_failures: list[str] = Field(default_factory=list)
    circuit_breaker_states: dict[str, str] = Field(default_factory=dict)
    user_preferences: dict[str, Any] = Field(default_factory=dict)


class PlanDecision(BaseModel):
    """Which tool serves the request, with which options, and who takes over in which order where it fails.

    `estimated_cost` is in USD; None, like `estimated_duration_ms`, where the tool declares nothing.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    selected_tool: str
    tool_options: dict[str, Any] = Field(default_factory=dict)
    fallback_tools: list[str] = Field(default_factory=list)
    execution_strategy: ExecutionStrategy = ExecutionStrategy.SINGLE
    estimated_cost: float | None = None
    estimated_duration_ms: int | None = None
    confidence: float = Field(default=1.0, ge=0.0, le=1.0)
    reasoning: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)


class Planner(ABC):
    """Chooses the tool that serves a request."""

    @abstractmethod
    async def plan(
        self,
        request: Any,
        available_tools: Mapping[str, ToolMetadata],
        context: PlanRequest | None = None,
    ) -> PlanDecision:
        """Decide. NoEligibleTool, with a reason per tool, where no tool can serve. Nothing given is ever written."""

    def validate_tool_availability(
        self, decision: PlanDecision | str, available_tools: Mapping[str, ToolMetadata]
    ) -> bool:
        """Whether the selected tool, or the tool of that name, is there."""
        name = decision.selected_tool if isinstance(decision, PlanDecision) else decision
        return name in available_tools

    def estimate_cost(self, tool: ToolMetadata, options: Mapping[str, Any] | None = None) -> float | None:
        """USD: the declared cost of one replicate times `k`. None where nothing is declared."""
        cost = _declared(tool, "estimated_cost_per_run")
        return None if cost is None else cost * _count("k", 1, tool, options)

    def estimate_duration(self, tool: ToolMetadata, options: Mapping[str, Any] | None = None) -> int | None:
        """Milliseconds: the declared duration times the rounds that `k` replicates take, `max_parallel` at a time."""
        duration = _declared(tool, "estimated_duration_ms")
        if duration is None:
            return None
        k = _count("k", 1, tool, options)
        return math.ceil(duration * -(-k // _count("max_parallel", DEFAULT_MAX_PARALLEL, tool, options)))


def _declared(tool: ToolMetadata, name: str) -> float | None:
    """A declared number; what is negative, absurd or no number counts as not declared."""
    value = tool.resource_requirements.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= _MOST else None


def _count(name: str, default: int, tool: ToolMetadata, options: Mapping[str, Any] | None) -> int:
    """An option that counts: the given one over the tool's own; what is no whole number from 1 up is passed over."""
    for source in (options or {}, tool.default_options):
        value = source.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST:
            return value
    return default


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
