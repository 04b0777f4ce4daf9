"""The flow of one request. What differs between orchestrators is how they plan and which policies they ask for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import getrandbits
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from pydantic import ValidationError

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded, InvalidRequest, ToolNotFound
from steer_llm_sdk.models.events import (
    StreamCompleteEvent,
    StreamErrorEvent,
    StreamStartEvent,
    StreamUsageEvent,
)
from steer_llm_sdk.models.usage import add_usage, tokens_of
from steer_llm_sdk.orchestration._call import Attempt, Call, Run
from steer_llm_sdk.orchestration._result import as_json, describe_error
from steer_llm_sdk.orchestration.fallback import Answer, ToolCall, first_answer
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning.planner import PlanDecision
from steer_llm_sdk.orchestration.reliability import ReliableToolExecutor
from steer_llm_sdk.orchestration.replay import keyed
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry, get_global_registry
from steer_llm_sdk.reliability._pipeline import Next
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.reliability.deadline import Deadline, Late, until
from steer_llm_sdk.reliability.idempotency import IdempotencyManager, once
from steer_llm_sdk.streaming.manager import EventManager, RunEvents

__all__ = ["BaseOrchestrator", "OrchestrationOutput"]

Self = TypeVar("Self", bound="BaseOrchestrator")

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_DEFAULTS = OrchestrationConfig()
SEED = 0
"""What a deterministic run gives its tools, unless the caller gives a seed of his own."""


@dataclass(slots=True)
class Job:
    """What the caller sent, read only, and the run that came of it."""

    request: Any
    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: OrchestrationConfig
    run: Run


@dataclass(frozen=True, slots=True)
class Plan:
    """The tools to try, in order, and why."""

    steps: Sequence[ToolCall]
    decision: PlanDecision | None = None


class BaseOrchestrator(ABC):
    """Takes a request through deadline, replay, plan and fallback to an output. `async with` closes what it opened."""

    def __init__(
        self,
        registry: ToolRegistry | None = None,
        *,
        executor: ReliableToolExecutor | None = None,
        idempotency_manager: IdempotencyManager | None = None,
    ) -> None:
        self.registry = get_global_registry() if registry is None else registry
        self.executor = executor or ReliableToolExecutor()
        self.idempotency_manager = idempotency_manager or IdempotencyManager()
        self._used: dict[int, Tool] = {}

    @abstractmethod
    async def _plan(self, job: Job) -> Plan:
        """Which tools to try, in which order, with which options."""

    @abstractmethod
    def _policies(self, options: OrchestrationConfig) -> Next[Call, Any]:
        """What stands round each call to the outside."""

    @abstractmethod
    def _max_attempts(self, options: OrchestrationConfig) -> int:
        """How often one call may be tried."""

    def _min_confidence(self, options: OrchestrationConfig) -> float | None:
        return None

    async def run(
        self,
        request: Any,
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | Mapping[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> OrchestrationOutput:
        """Run one request. A tool that fails is an output with status "failed".

        Raises BudgetExceeded (time, tokens or cost; finished work is on `.output`), ConflictError, ToolNotFound,
        NoEligibleTool, StoreUnavailable, InvalidRequest. A str request reaches the tool as {"query": text}.
        """
        job = self._accept(request, tool_name, tool_options, options, event_manager)
        events = job.run.events
        if events is None:
            return self._within_budget(job, await self._in_time(job))
        try:
            output = self._within_budget(job, await self._in_time(job))
            _tell_end(events, output)
            return output
        except Exception as error:
            events.tell(StreamErrorEvent(describe_error(error)))
            raise
        finally:
            deadline = job.run.deadline
            await events.flush(None if deadline is None else deadline.at)

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what the tools that this orchestrator used have opened."""
        tools, self._used = self._used, {}
        for tool in tools.values():
            await tool.aclose()

    # ── accept ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _accept(
        self,
        request: Any,
        tool_name: str | None,
        tool_options: Mapping[str, Any] | None,
        options: OrchestrationConfig | Mapping[str, Any] | None,
        event_manager: EventManager | None,
    ) -> Job:
        config = _config_of(options)
        if tool_options is not None and not isinstance(tool_options, Mapping):
            raise InvalidRequest("tool_options", tool_options, "give a mapping of option names to values")
        if tool_name is not None and not isinstance(tool_name, str):
            raise InvalidRequest("tool_name", tool_name, "give the name of a tool as text")
        request = {"query": request} if isinstance(request, str) else request
        return Job(request, tool_name, tool_options or _NO_OPTIONS, config, self._start(config, event_manager))

    def _start(self, config: OrchestrationConfig, event_manager: EventManager | None) -> Run:
        clock = asyncio.get_running_loop().time
        now = clock()
        request_id = config.request_id or f"{getrandbits(128):032x}"
        trace_id = config.trace_id or request_id
        limit, budget = config.limit_ms, config.budget or _NO_OPTIONS
        return Run(
            request_id=request_id,
            trace_id=trace_id,
            options=config,
            clock=clock,
            started=now,
            deadline=None if limit is None else Deadline.after(limit, now),
            ledger=Ledger(budget.get("tokens"), budget.get("cost_usd")),
            events=None if event_manager is None else _events_of(event_manager, config, request_id, trace_id),
            attempt=self._policies(config),
            max_attempts=self._max_attempts(config),
        )

    # ── deadline and replay ──────────────────────────────────────────────────────────────────────────────────────────

    async def _in_time(self, job: Job) -> OrchestrationOutput:
        """Deadline outside, replay inside: whoever waits for a keyed run waits no longer than he said."""
        deadline = job.run.deadline
        try:
            if job.options.idempotency_key is not None:
                return await once(self.idempotency_manager, self._keyed(job), deadline)
            if deadline is None:
                return await self._work(job)
            return await until(deadline.at, self._work(job))
        except Late as late:
            assert deadline is not None
            raise BudgetExceeded(
                "time",
                deadline.limit_ms,
                _elapsed_ms(job.run),
                [line.tool for line in job.run.timeline if line.outcome in ("running", "cancelled")],
                output=late.result,
            ) from None

    def _keyed(self, job: Job) -> Any:
        assert job.options.idempotency_key is not None
        config = self.executor.config

        async def work(shared: Deadline) -> OrchestrationOutput:
            job.run.deadline = shared
            return await self._work(job)

        return keyed(
            job.options.tenant,
            job.options.idempotency_key,
            {"request": job.request, "tool_name": job.tool_name, "tool_options": dict(job.tool_options)},
            work,
            remember_failures=config.remember_failures,
            run_unprotected=config.on_store_down == "run_unprotected",
        )

    # ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self, job: Job) -> OrchestrationOutput:
        """Plan, ask the tools in order, and say what came of it."""
        plan = await self._plan(job)
        for step in plan.steps:
            self._used[id(step.tool)] = step.tool
        _tell_start(job.run, plan.steps[0].tool)
        answer = await first_answer(job.run, plan.steps, job.request, self._min_confidence(job.options))
        if answer.result is None:
            return _failed(job, plan, answer)
        return _answered(job, plan, answer)

    def _step(self, job: Job, tool: Tool, planned: Mapping[str, Any]) -> ToolCall:
        return ToolCall(tool, _options_for(job, tool, planned))

    def _find(self, name: str) -> Tool:
        tool = self.registry.get_tool(name)
        if tool is None:
            raise ToolNotFound(name, self.registry.names())
        return tool

    def _within_budget(self, job: Job, output: OrchestrationOutput) -> OrchestrationOutput:
        """Every caller is held to his own budget, also where somebody else did the work."""
        budget = job.options.budget
        if not budget:
            return output
        tokens, limit = tokens_of(output.usage), budget.get("tokens")
        if limit is not None and tokens > limit:
            raise BudgetExceeded("tokens", limit, tokens, list(output.per_agent), output=output)
        cost, limit = output.cost_usd, budget.get("cost_usd")
        if limit is not None and cost is not None and cost > limit + 1e-10:
            raise BudgetExceeded("cost", limit, cost, list(output.per_agent), output=output)
        return output


def _config_of(options: OrchestrationConfig | Mapping[str, Any] | None) -> OrchestrationConfig:
    if options is None:
        return _DEFAULTS
    if isinstance(options, OrchestrationConfig):
        return options
    if not isinstance(options, Mapping):
        raise InvalidRequest("options", options, "give an OrchestrationConfig, or a mapping of its fields")
    try:
        return OrchestrationConfig.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(("options", *map(str, first["loc"])))
        raise InvalidRequest(field, first["input"], first["msg"].removeprefix("Value error, ")) from error


def _events_of(manager: EventManager, config: OrchestrationConfig, request_id: str, trace_id: str) -> RunEvents:
    metadata: dict[str, Any] = {"tool_name": None, "tool_version": None, "orchestration": True}
    if config.metadata:
        metadata["user"] = dict(config.metadata)
    return manager.for_run(request_id, trace_id, metadata, config.redactor_cb)


def _options_for(job: Job, tool: Tool, planned: Mapping[str, Any]) -> dict[str, Any]:
    """What the tool sees: the caller's options over the plan's over the tool's own, then what the run adds."""
    config, caller, run = job.options, job.tool_options, job.run
    options: dict[str, Any] = {**tool.default_options, **planned}
    if "max_parallel" in config.model_fields_set or "max_parallel" not in options:
        options["max_parallel"] = config.max_parallel
    if config.deterministic:
        options["seed"], options["temperature"] = SEED, 0
    if config.streaming:
        options["streaming"] = True
    options.update(caller)
    options["request_id"], options["trace_id"] = run.request_id, run.trace_id
    if config.budget:
        options["global_budget"] = dict(config.budget)
    if config.timeout_ms is not None:
        options["timeout_ms"] = config.timeout_ms
    if config.idempotency_key is not None:
        options["idempotency_key"] = f"{config.idempotency_key}:{tool.name}"
    return options


# ── the output: one constructor for an answer, one for a failure ─────────────────────────────────────────────────────


def _answered(job: Job, plan: Plan, answer: Answer) -> OrchestrationOutput:
    result = answer.result
    assert result is not None
    account = _account(job.run, answer)
    status = result.status if answer.acceptable else "partial"
    errors = {name: describe_error(error) for name, error in answer.failures.items()}
    content = result.content
    if status == "failed":
        error = {"type": "NoValidReplicate", "message": "no replicate of the bundle is valid", "code": "bad_response"}
        errors[answer.tool.name] = {**error, "is_retryable": False}
        content = {"error": errors[answer.tool.name], **content}
    return OrchestrationOutput(
        content=content,
        usage=_total_usage(job.run, result.usage),
        cost_usd=_total_cost(job.run, result.cost_usd),
        cost_breakdown=result.cost_breakdown or account.costs,
        elapsed_ms=round(_elapsed_ms(job.run)),
        per_agent=account.entries,
        status=status,
        errors=errors or None,
        metadata=_metadata(job, plan, answer.tool, result.metadata),
    )


def _failed(job: Job, plan: Plan, answer: Answer) -> OrchestrationOutput:
    _raise_if_spent(answer.failures)
    account = _account(job.run, answer)
    errors = {name: describe_error(error) for name, error in answer.failures.items()}
    if len(errors) == 1:
        (shown,) = errors.values()
    else:
        shown = describe_error(AllToolsFailed(answer.failures))
        shown["is_retryable"] = any(info["is_retryable"] for info in errors.values())
        shown["code"] = next(iter(errors.values()))["code"]
        shown["failures"] = errors
    return OrchestrationOutput(
        content={"error": shown},
        usage=_total_usage(job.run, {}),
        cost_usd=_total_cost(job.run, None),
        cost_breakdown=account.costs,
        elapsed_ms=round(_elapsed_ms(job.run)),
        per_agent=account.entries,
        status="failed",
        errors=errors,
        metadata=_metadata(job, plan, answer.tool, {}),
    )


def _raise_if_spent(failures: Mapping[str, Exception]) -> None:
    """A budget that stopped the last tool is the caller's to act on: it is raised, with the other causes behind it."""
    last = list(failures.values())[-1]
    if isinstance(last, BudgetExceeded):
        raise last


@dataclass(frozen=True, slots=True)
class _Account:
    entries: dict[str, Any]
    costs: dict[str, float]


def _account(run: Run, answer: Answer) -> _Account:
    """By tool: attempts, usage, cost, error, and the timeline they are read from."""
    entries: dict[str, Any] = {}
    for name in (*answer.failures, answer.tool.name):
        entries.setdefault(name, {"attempts": 0, "usage": {}, "cost_usd": None, "timeline": []})
    for line in run.timeline:
        entry = entries.setdefault(line.tool, {"attempts": 0, "usage": {}, "cost_usd": None, "timeline": []})
        entry["attempts"] += 1
        entry["usage"] = add_usage(entry["usage"], line.usage) if entry["usage"] else line.usage
        if line.cost_usd is not None:
            entry["cost_usd"] = (entry["cost_usd"] or 0.0) + line.cost_usd
        entry["timeline"].append(_line(line))
    for name, error in answer.failures.items():
        entries[name]["error"] = describe_error(error)
    costs = {name: entry["cost_usd"] for name, entry in entries.items() if entry["cost_usd"] is not None}
    return _Account(entries, costs)


def _line(line: Attempt) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "tool": line.tool,
        "provider": line.target,
        "attempt": line.number,
        "started_ms": round(line.started_ms, 1),
        "elapsed_ms": round(line.elapsed_ms, 1),
        "outcome": line.outcome,
    }
    if line.model is not None:
        shown["model"] = line.model
    if line.error is not None:
        shown["error"] = line.error
    return shown


def _total_usage(run: Run, told: dict[str, Any]) -> dict[str, Any]:
    """What all attempts used; where no attempt measured anything, what the tool says of itself."""
    used = [line.usage for line in run.timeline if line.usage]
    if not used:
        return told
    total = used[0]
    for usage in used[1:]:
        total = add_usage(total, usage)
    return total


def _total_cost(run: Run, told: float | None) -> float | None:
    """What all attempts cost; None as soon as one that used something has no known price."""
    lines = [line for line in run.timeline if line.usage or line.cost_usd is not None]
    if not lines:
        return told
    costs = [line.cost_usd for line in lines]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def _metadata(job: Job, plan: Plan, tool: Tool, own: Mapping[str, Any]) -> dict[str, Any]:
    """Ours first; a tool's own metadata may add to it and not overwrite it."""
    config, run = job.options, job.run
    metadata: dict[str, Any] = {
        "tool_name": tool.name,
        "tool_version": tool.version,
        "trace_id": run.trace_id,
        "request_id": run.request_id,
        "budget": None if config.budget is None else dict(config.budget),
    }
    if config.metadata:
        metadata["user"], _ = as_json(config.metadata)
    if config.quality_requirements is not None:
        metadata["quality_requirements"], _ = as_json(config.quality_requirements)
    if plan.decision is not None:
        metadata["plan"] = _plan_of(plan.decision)
    for name, value in own.items():
        metadata.setdefault(name, value)
    return metadata


def _plan_of(decision: PlanDecision) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "selected_tool": decision.selected_tool,
        "reasoning": decision.reasoning,
        "confidence": decision.confidence,
    }
    if decision.fallback_tools:
        plan["fallback_tools"] = list(decision.fallback_tools)
    return {**plan, **as_json(decision.metadata)[0]}


def _elapsed_ms(run: Run) -> float:
    return (run.clock() - run.started) * 1000


def _tell_start(run: Run, tool: Tool) -> None:
    if run.events is not None:
        run.events.metadata.update(tool_name=tool.name, tool_version=tool.version)
        run.events.tell(StreamStartEvent())


def _tell_end(events: RunEvents, output: OrchestrationOutput) -> None:
    who = {name: output.metadata.get(name) for name in ("tool_name", "tool_version")}
    if output.usage:
        events.tell(StreamUsageEvent(output.usage, metadata=who))
    if output.status == "failed":
        events.tell(StreamErrorEvent(output.content["error"], metadata=who))
    else:
        told = {**who, "status": output.status, "elapsed_ms": output.elapsed_ms, "replayed": output.replayed}
        events.tell(StreamCompleteEvent(metadata=told))
