"""What a planner is told, and what it answers. This module is a leaf: the registry builds on it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.orchestration.versions import satisfies

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
    `estimated_duration_ms`, both for one replicate, and `expected_quality` (0 to 1).

    `context_window` is in tokens, None where it does not matter. `tenants`: whom it serves; none: everybody.
    `unavailable` says why nobody can have it. `versions` are the other versions that can be asked for, highest first.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    name: str
    version: str = "1.0.0"
    description: str = ""
    supported_models: list[str] = Field(default_factory=list)
    default_options: dict[str, Any] = Field(default_factory=dict)
    capabilities: list[str] = Field(default_factory=list)
    resource_requirements: dict[str, Any] = Field(default_factory=dict)
    provider: str | None = None
    context_window: int | None = None
    tenants: list[str] = Field(default_factory=list)
    unavailable: str | None = None
    versions: list[ToolMetadata] = Field(default_factory=list)

    def at(self, spec: str) -> ToolMetadata | None:
        """This version if it satisfies the specifier (PEP 440, as in ">=1.2,<2"), else the highest other one that does;
        None where none does, or what is given is no specifier."""
        if satisfies(self.version, spec):
            return self
        return next((other for other in self.versions if satisfies(other.version, spec)), None)


class PlanRequest(BaseModel):
    """What is known beside the request itself.

    `budget` has ms, tokens or cost_usd. `previous_failures` names tools that failed in this run or just before it.
    `circuit_breaker_states` maps tool names (and provider names) to "closed", "open" or "half_open"; a planner looks
    a tool up by its own name; `probes_left` has how many probes a half-open one still admits, where that is known.
    `quality_requirements` may hold min_confidence, and as hard limits min_quality, max_latency_ms and max_cost_usd.

    A tool has to declare all `capabilities` and one of the `models`, and be at the version that `versions` asks of it
    ({"text_analyzer": ">=1.2,<2"}). `input_tokens` is the length of the request, for tools with a context window;
    None: it is estimated. `tenant` is who asks.

    `user_preferences` may hold preferred_tools and avoid_tools (names), preferred_models, and optimize: "cost",
    "latency" or "quality". They order the tools that may serve, and exclude none.

    `explore` False: a planner that learns takes what it knows to be best.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    budget: dict[str, float] | None = None
    quality_requirements: dict[str, Any] | None = None
    previous_failures: list[str] = Field(default_factory=list)
    circuit_breaker_states: dict[str, str] = Field(default_factory=dict)
    user_preferences: dict[str, Any] = Field(default_factory=dict)
    probes_left: dict[str, int] = Field(default_factory=dict)
    capabilities: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    input_tokens: int | None = Field(default=None, ge=0)
    tenant: str | None = None
    explore: bool = True


class PlanDecision(BaseModel):
    """Which tool serves the request, with which options, and who takes over in which order where it fails.

    `tool_version` None leaves the version to the registry. `estimated_cost` is in USD; None, like
    `estimated_duration_ms`, where nothing is declared or known.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    selected_tool: str
    tool_version: str | None = None
    tool_options: dict[str, Any] = Field(default_factory=dict)
    fallback_tools: list[str] = Field(default_factory=list)
    execution_strategy: ExecutionStrategy = ExecutionStrategy.SINGLE
    estimated_cost: float | None = None
    estimated_duration_ms: int | None = None
    confidence: float = Field(default=1.0, ge=0.0, le=1.0)
    reasoning: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)


class Outcome(NamedTuple):
    """How one tool of a decision did in a run. `cost_usd` is None where nobody knows; `duration_ms`, from its first
    attempt to the end of the last, where it did not answer. `runs`: so many runs went by of which this is one. Of the
    tool that answered, `content` is its answer, and `confidence` that of its evidence bundle, if it gave one."""

    tool: str
    version: str
    succeeded: bool
    cost_usd: float | None = None
    duration_ms: float | None = None
    runs: int = 1
    content: Any = None
    confidence: float | None = None


class Planner(ABC):
    """Chooses the tool that serves a request.

    `observes_every_run` False: once many runs of one decision went well, `observe` is told of a part of the others.
    """

    observes_every_run = True

    @abstractmethod
    async def plan(
        self,
        request: Any,
        available_tools: Mapping[str, ToolMetadata],
        context: PlanRequest | None = None,
    ) -> PlanDecision:
        """Decide. NoEligibleTool, with a reason per tool, where no tool can serve. Nothing given is ever written."""

    def observe(self, request: Any, decision: PlanDecision, outcomes: Sequence[Outcome]) -> None:  # noqa: B027
        """Called at the end of each run that went by a decision, before its output is returned. It must not wait, and
        must not write into what it is given."""

    def validate_tool_availability(
        self, decision: PlanDecision | str, available_tools: Mapping[str, ToolMetadata]
    ) -> bool:
        """Whether the selected tool, or the tool of that name, is there."""
        name = decision.selected_tool if isinstance(decision, PlanDecision) else decision
        return name in available_tools

    def estimate_cost(self, tool: ToolMetadata, options: Mapping[str, Any] | None = None) -> float | None:
        """USD: the declared cost of one replicate times `k`. None where nothing is declared."""
        cost = declared_number(tool, "estimated_cost_per_run")
        return None if cost is None else cost * _count("k", 1, tool, options)

    def estimate_duration(self, tool: ToolMetadata, options: Mapping[str, Any] | None = None) -> int | None:
        """Milliseconds: the declared duration times the rounds that `k` replicates take, `max_parallel` at a time."""
        duration = declared_number(tool, "estimated_duration_ms")
        if duration is None:
            return None
        k = _count("k", 1, tool, options)
        return math.ceil(duration * -(-k // _count("max_parallel", DEFAULT_MAX_PARALLEL, tool, options)))


def declared_number(tool: ToolMetadata, name: str) -> float | None:
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
