"""The flow of one request, and the order of everything that happens to it:

    Deadline(Replay(Plan(Fallback(
        Retry(Hedge(RateLimiter(Breaker(Reserve(AttemptLimit(record(Classify(AttemptTimeout(call))))))))) ))))

The first four stand round the run and are here, in `_in_time` and `_work`. The others stand round each call that a
tool makes to the outside; their list is in `orchestration/reliability.py`. Orchestrators differ in how they plan and
in which policies they ask for.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.events import (
    StreamCompleteEvent,
    StreamErrorEvent,
    StreamStartEvent,
    StreamUsageEvent,
)
from steer_llm_sdk.models.usage import tokens_of
from steer_llm_sdk.orchestration._call import PLAIN, Run
from steer_llm_sdk.orchestration._observed import watch_canaries
from steer_llm_sdk.orchestration._outcome import answered, cut_off, elapsed_ms, failed
from steer_llm_sdk.orchestration._pinned import may_be_taken_over, pinned
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration._versioned import warn_deprecated, who_of
from steer_llm_sdk.orchestration.fallback import Answer, ToolCall, first_answer, only_answer
from steer_llm_sdk.orchestration.options import OrchestrationConfig, invalid_option
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliability import Asked, ReliableToolExecutor
from steer_llm_sdk.orchestration.replay import KeyedRun, fingerprint_of, key_of
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry, get_global_registry
from steer_llm_sdk.orchestration.ways_to_run import ManyOutputs, Progress, RunStream, run_many, run_sync
from steer_llm_sdk.reliability.budget import BudgetAccounts, Ledger, excess
from steer_llm_sdk.reliability.deadline import Deadline, Late, turn, until
from steer_llm_sdk.reliability.idempotency import IdempotencyManager, once
from steer_llm_sdk.streaming.manager import EventManager, RunEvents

__all__ = ["BaseOrchestrator", "OrchestrationOutput"]

Self = TypeVar("Self", bound="BaseOrchestrator")

_log = logging.getLogger(__name__)

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@cache
def _defaults() -> OrchestrationConfig:
    """Made when first asked for: a model costs milliseconds to build, and an import should not."""
    return OrchestrationConfig()


@dataclass(frozen=True, slots=True)
class Plan:
    """The tools to try, in order; `shown` makes what the output shows of the decision, anew for each run. `observe` is
    told how the run went. `strategy` comes to the answer where more than one tool is to be used for it."""

    steps: Sequence[ToolCall]
    shown: Callable[[], dict[str, Any]] | None = None
    observe: Callable[[Run, Sequence[ToolCall], Answer], None] | None = None
    strategy: Callable[[Run, float | None], Awaitable[Answer]] | None = None


class BaseOrchestrator(ABC):
    """Takes a request through deadline, replay, plan and fallback to an output. `async with` closes what it opened."""

    on_accept: Callable[[Run], None] | None = None
    """Told of each run before anything is done for it: one listener, which `instrument` sets. What it raises ends the
    run."""

    def __init__(
        self,
        registry: ToolRegistry | None = None,
        *,
        executor: ReliableToolExecutor | None = None,
        idempotency_manager: IdempotencyManager | None = None,
        budget_accounts: BudgetAccounts | None = None,
    ) -> None:
        check_types(
            ("registry", registry, ToolRegistry),
            ("executor", executor, ReliableToolExecutor),
            ("idempotency_manager", idempotency_manager, IdempotencyManager),
            ("budget_accounts", budget_accounts, BudgetAccounts),
        )
        self.registry = get_global_registry() if registry is None else registry
        self.executor = ReliableToolExecutor() if executor is None else executor
        self.idempotency_manager = IdempotencyManager() if idempotency_manager is None else idempotency_manager
        self.budget_accounts = BudgetAccounts() if budget_accounts is None else budget_accounts
        self._plain_asks = self._asks(_defaults().__dict__)
        # Planning, asking, and saying what came of it, and no more: then `run` can do it itself, a coroutine less.
        self._works_at_once = type(self)._work is BaseOrchestrator._work
        self._used: dict[int, Tool] = {}  # No more than were ever registered; each is to be closed once.
        self._last_used: Plan | None = None

    @abstractmethod
    async def _plan(self, run: Run) -> Plan:
        """Which tools to try, in which order, with which options."""

    def _plan_at_once(self, run: Run) -> Plan | None:
        """The plan where nothing has to be awaited for it: a given tool_name is the shortest plan."""
        return None if run.tool_name is None else Plan((ToolCall.of(self._find(run.tool_name, run), _NO_OPTIONS),))

    @abstractmethod
    def _asks(self, given: Mapping[str, Any]) -> Asked:
        """What is to stand round each call to the outside."""

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

        Raises BudgetExceeded (time, tokens or cost; what was done is on `.output`), ConflictError, ToolNotFound,
        NoEligibleTool, StoreUnavailable, InFlight, InvalidRequest. A str request reaches the tool as {"query": text}.
        """
        run = self._accept(request, tool_name, tool_options, options, event_manager)
        if run.stops:  # It was asked to stop before: if it has not been told yet, that is told here, and not to a tool.
            await turn()
        if run.events is not None:
            return await self._told(run, run.events)
        deadline = run.deadline
        if deadline is None and run.given["idempotency_key"] is None and self._works_at_once:
            plan = self._plan_at_once(run) or await self._plan(run)
            output = self._output(run, plan, await self._answer(run, plan))
        else:
            try:
                output = await self._in_time(run)
            except Late as late:
                raise exceeded_by(late, run, deadline) from None
        return output if run.plain else self._within_budget(run, output)

    def stream(
        self,
        request: Any,
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | Mapping[str, Any] | None = None,
    ) -> RunStream:
        """The run's events as they come, text included; its output is on `.output` afterwards. Text before a `restart`
        event is void: see RunStream."""
        config = config_of(options).model_copy(update={"streaming": True})
        return RunStream(lambda events: self.run(request, tool_name, tool_options, config, events))

    async def run_many(
        self,
        requests: Iterable[Any],
        max_parallel: int = 10,
        *,
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> ManyOutputs:
        """One run for each request, at most `max_parallel` at a time; a run that raises does not stop the others."""
        config = config_of(options)
        for name in ("idempotency_key", "request_id"):
            if getattr(config, name) is not None:
                raise InvalidRequest(f"options.{name}", getattr(config, name), "each run needs its own; leave it out")

        async def one(request: Any) -> OrchestrationOutput:
            return await self.run(request, tool_name, tool_options, config)

        return await run_many(one, requests, max_parallel, on_progress)

    def run_sync(
        self,
        request: Any,
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | Mapping[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> OrchestrationOutput:
        """`run` for code without a loop, and for notebooks. All such runs share one loop, kept for the process."""
        return run_sync(self.run(request, tool_name, tool_options, options, event_manager))

    @property
    def budgets(self) -> Mapping[str, Mapping[str, Any]]:
        """The accounts of the shared budgets, by name: limit, spent, reserved, resets_in. See BudgetAccounts.view."""
        return self.budget_accounts.view()

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what the tools that this orchestrator used have opened, and the store that it opened."""
        await self.idempotency_manager.aclose()
        tools, self._used, self._last_used = self._used, {}, None
        for tool in tools.values():
            await _closed(tool)

    # ── accept ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _accept(
        self,
        request: Any,
        tool_name: str | None,
        tool_options: Mapping[str, Any] | None,
        options: OrchestrationConfig | Mapping[str, Any] | None,
        event_manager: EventManager | None,
    ) -> Run:
        config = options if type(options) is OrchestrationConfig else config_of(options)
        if tool_options is not None and not isinstance(tool_options, Mapping):
            raise InvalidRequest("tool_options", tool_options, "give a mapping of option names to values")
        if tool_name is not None and not isinstance(tool_name, str):
            raise InvalidRequest("tool_name", tool_name, "give the name of a tool as text")
        given = config.__dict__
        # Metadata may be put in without being set, and a class of the caller's own has its own defaults.
        plain = (
            config.__pydantic_fields_set__ <= PLAIN and not given["metadata"] and type(config) is OrchestrationConfig
        )
        executor, asks = self.executor, self._plain_asks if plain else self._asks(given)
        run = Run(
            {"query": request} if isinstance(request, str) else request,
            tool_name,
            _NO_OPTIONS if tool_options is None else tool_options,
            config,
            given,
            plain,
            executor.folded.get(asks) or executor.policies(asks),
            self._max_attempts,
        )
        limit = given["timeout_ms"] if plain else config.limit_ms
        if limit is not None:
            run.deadline = Deadline(run.started + limit / 1000, limit)
        if not plain:
            run.ledger = self._ledger(config)
        if event_manager is not None:
            run.events = _events_of(event_manager, config, run.request_id, run.trace_id)
        if self.on_accept is not None:
            self.on_accept(run)
        return run

    # ── deadline and replay ──────────────────────────────────────────────────────────────────────────────────────────

    async def _told(self, run: Run, events: RunEvents) -> OrchestrationOutput:
        """A run that somebody listens to. Its last event says how it ended, and it ends when all have been handled."""
        deadline = run.deadline
        end = None if deadline is None else deadline.at  # That of keyed work moves, and this caller's does not.
        try:
            try:
                output = self._within_budget(run, await self._in_time(run))
            except Late as late:
                raise exceeded_by(late, run, deadline) from None
            tell_end(events, output)
            return output
        except Exception as error:
            events.tell(StreamErrorEvent(describe_error(error)))
            raise
        finally:
            await events.flush(end)

    def _in_time(self, run: Run) -> Awaitable[OrchestrationOutput]:
        """Deadline outside, replay inside: whoever waits for a keyed run waits no longer than he said, then Late."""
        deadline = run.deadline
        if run.given["idempotency_key"] is not None:
            # Only where a tool has several versions is there anything to pin.
            do = self._in_its_versions if self.registry.several else self._work
            return once(self.idempotency_manager, KeyedRun(run, do, self.executor.config.__dict__), deadline)
        return self._work(run) if deadline is None else until(deadline.at, self._work(run))

    async def _in_its_versions(self, run: Run) -> OrchestrationOutput:
        if not may_be_taken_over(self.idempotency_manager):
            return await self._work(run)

        async def make() -> Plan:
            return self._plan_at_once(run) or await self._plan(run)

        return await self._work(
            run, await pinned(self.idempotency_manager, key_of(run), fingerprint_of(run), self.registry, make)
        )

    # ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self, run: Run, plan: Plan | None = None) -> OrchestrationOutput:
        """Plan, unless a plan was made already, ask the tools in order, and say what came of it."""
        plan = plan or self._plan_at_once(run) or await self._plan(run)
        return self._output(run, plan, await self._answer(run, plan))

    def _answer(self, run: Run, plan: Plan) -> Awaitable[Answer]:
        if run.deadline is not None:
            run.plan = plan.steps, plan.shown
        if plan is not self._last_used:
            self._note_used(plan)
        events = run.events
        if events is not None:
            _tell_start(events, plan.steps[0].tool)
        if self.registry.staged and (farewell := self.registry.farewell(plan.steps[0].tool)) is not None:
            warn_deprecated(run, plan.steps[0].tool, farewell)
        wanted = None if run.plain else self._min_confidence(run.options)
        steps, strategy = plan.steps, plan.strategy
        if strategy is not None:
            return strategy(run, wanted)
        return only_answer(run, steps[0], wanted) if len(steps) == 1 else first_answer(run, steps, wanted)

    def _note_used(self, plan: Plan) -> None:
        self._used.update((id(step.tool), step.tool) for step in plan.steps)
        self._last_used = plan

    def _output(self, run: Run, plan: Plan, answer: Answer) -> OrchestrationOutput:
        if (observe := plan.observe) is not None:
            try:
                observe(run, plan.steps, answer)
            except Exception:  # The answer was paid for.
                _log.warning("the planner failed when it was told how a run went", exc_info=True)
        if self.registry.staged:
            watch_canaries(self.registry, run, plan.steps, answer)
        if answer.result is None:
            return failed(run, plan.shown, answer)
        if run.events is not None:
            run.events.choose(answer.result)
        return answered(run, plan.shown, answer)

    def _ledger(self, config: OrchestrationConfig) -> Ledger | None:
        """None where neither tokens nor cost are limited: nothing is reserved then."""
        own = config.budget or {}
        tokens, cost_usd = own.get("tokens"), own.get("cost_usd")
        if config.budgets:
            return self.budget_accounts.ledger(tokens, cost_usd, config.budgets)
        return None if tokens is None and cost_usd is None else Ledger(tokens, cost_usd)

    def _find(self, name: str, run: Run) -> Tool:
        """The version that this caller gets. A run keeps what it found, whatever is promoted or taken out meanwhile."""
        registry = self.registry
        if registry.staged:
            return registry.resolve(name, who_of(run))
        return registry.get_tool(name) or registry.resolve(name)

    def _within_budget(self, run: Run, output: OrchestrationOutput) -> OrchestrationOutput:
        """Every caller is held to his own budget, also where somebody else did the work."""
        if run.ledger is not None and run.ledger.exceeded is not None:
            exceeded = run.ledger.exceeded
            exceeded.affected_agents, exceeded.output = list(output.per_agent), output
            raise exceeded
        budget = run.options.budget
        if budget is None:
            return output
        over = excess(budget.get("tokens"), budget.get("cost_usd"), tokens_of(output.usage), output.cost_usd or 0.0)
        if over is not None:
            raise BudgetExceeded(*over, list(output.per_agent), output=output)
        return output


def exceeded_by(late: Late, run: Run, deadline: Deadline | None) -> BudgetExceeded:
    """What a run that its deadline ended is answered with. A keyed one has another by then, which it shares."""
    assert deadline is not None
    agents = [line["tool"] for line in run.timeline if line["outcome"] in ("running", "cancelled")]
    exceeded = BudgetExceeded("time", deadline.limit_ms, elapsed_ms(run), agents, output=late.result)
    if exceeded.output is None and run.timeline:
        exceeded.output = cut_off(run, exceeded)
    return exceeded


def check_types(*arguments: tuple[str, object, type]) -> None:
    """TypeError names the first argument that is neither None nor of its type."""
    for name, given, kind in arguments:
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name}: expected {kind.__name__}, got {type(given).__name__}; give each by its name")


CLOSING = 5.0
"""Seconds that a tool gets to close; after that it is left to itself."""


async def _closed(tool: Tool) -> None:
    try:
        await until(asyncio.get_running_loop().time() + CLOSING, tool.aclose())
    except Late:
        _log.warning("%r did not close within %g s", tool, CLOSING)
    except Exception:
        _log.warning("%r could not be closed", tool, exc_info=True)


def config_of(options: OrchestrationConfig | Mapping[str, Any] | None) -> OrchestrationConfig:
    """What a caller gave as options; InvalidRequest names the first that cannot be used."""
    if options is None:
        return _defaults()
    if isinstance(options, OrchestrationConfig):
        return options
    if not isinstance(options, Mapping):
        raise InvalidRequest("options", options, "give an OrchestrationConfig, or a mapping of its fields")
    try:
        return OrchestrationConfig.model_validate(dict(options))
    except ValidationError as error:
        raise invalid_option(error, OrchestrationConfig.model_fields, "options") from error


def _events_of(manager: EventManager, config: OrchestrationConfig, request_id: str, trace_id: str) -> RunEvents:
    if not callable(getattr(manager, "for_run", None)):
        raise InvalidRequest("event_manager", manager, "give an EventManager, with handlers such as on_start")
    metadata: dict[str, Any] = {"tool_name": None, "tool_version": None, "orchestration": True}
    if config.metadata:
        metadata["user"] = dict(config.metadata)
    return manager.for_run(request_id, trace_id, metadata, config.redactor_cb)


def _tell_start(events: RunEvents, tool: Tool) -> None:
    events.metadata.update(tool_name=tool.name, tool_version=tool.version)
    events.tell(StreamStartEvent())


def tell_end(events: RunEvents, output: OrchestrationOutput) -> None:
    who = {name: output.metadata.get(name) for name in ("tool_name", "tool_version")}
    if events.metadata["tool_name"] is None:  # A replay: nothing was started here, and yet start comes before the end.
        events.tell(StreamStartEvent(metadata=who))
    if output.usage:
        events.tell(StreamUsageEvent(output.usage, metadata=who))
    if output.status == "failed":
        events.tell(StreamErrorEvent(output.content["error"], metadata=who))
    else:
        told = {**who, "status": output.status, "elapsed_ms": output.elapsed_ms, "replayed": output.replayed}
        events.tell(StreamCompleteEvent(metadata=told))


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
