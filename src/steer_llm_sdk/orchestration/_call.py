"""One call and the run it belongs to: what the flow, the policies and the tools hand to each other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount, tokens_of

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.options import OrchestrationConfig
    from steer_llm_sdk.reliability._pipeline import Next
    from steer_llm_sdk.reliability.budget import Ledger
    from steer_llm_sdk.reliability.deadline import Deadline
    from steer_llm_sdk.streaming.manager import RunEvents

R = TypeVar("R")


class Spent(NamedTuple):
    """What a call is known to have used. `cost_usd` None: the price is unknown."""

    usage: Mapping[str, Any]
    cost_usd: float | None = None


_NOTHING = Spent(MappingProxyType({}))


def unmeasured(_: object) -> Spent:
    return _NOTHING


def current_scope() -> Scope | None:
    """The tool call that the running code is inside of; None outside of every run."""
    return _scope.get()


def time_left() -> float | None:
    """Seconds until the deadline of the run, never below 0; None where there is no deadline, or no run."""
    scope = _scope.get()
    deadline = None if scope is None else scope.run.deadline
    left = math.inf if deadline is None else deadline.remaining()
    return left if left < math.inf else None


def budget_left() -> tuple[float, float]:
    """Tokens and USD that the run may still spend; infinite without a budget, or outside of a run."""
    scope = _scope.get()
    ledger = None if scope is None else scope.run.ledger
    return (math.inf, math.inf) if ledger is None else (ledger.tokens_left, ledger.cost_left)


async def protected(
    execute: Callable[[], Coroutine[Any, Any, R]],
    *,
    target: str,
    part: str,
    measure: Callable[[R], Spent] = unmeasured,
    worst_case: Amount = Amount(),
    model: str | None = None,
) -> R:
    """Make one call to the outside under the policies of the run: retry, breaker, budget, attempt timeout.

    A composite tool calls this once for each request it sends; `execute` is called again for each retry. `target` is
    the provider, `part` the name within it by which a breaker localises. Outside of a run `execute` is simply awaited.
    """
    scope = _scope.get()
    if scope is None:
        return await execute()
    call = Call(
        scope=scope, target=target, part=part, execute=execute, measure=measure, worst_case=worst_case, model=model
    )
    result: R = await scope.run.attempt(call)
    return result


def enter(scope: Scope) -> Token[Scope | None]:
    return _scope.set(scope)


def leave(token: Token[Scope | None]) -> None:
    _scope.reset(token)


def cancellations() -> int:
    """How often the running task has been asked to stop: it has grown where a tool swallowed its cancellation."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def expect_answers(count: int) -> None:
    """Say that this run asks for `count` answers (a bundle of k): `max_total_attempts` then holds for each of them."""
    scope = _scope.get()
    if scope is not None:
        scope.run.answers = max(scope.run.answers, count)


class Attempt(TypedDict):
    """One line of a run's timeline, as the output shows it. Times are ms; `started_ms` counts from the run's start."""

    tool: str
    provider: str
    attempt: int
    started_ms: float
    elapsed_ms: float
    outcome: Literal["running", "succeeded", "failed", "cancelled"]
    model: NotRequired[str]
    error: NotRequired[dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Run:
    """One run: what the caller sent, read only, and what all its calls share.

    `started` and the deadline are on the clock of the event loop, in seconds. `ledger` is None without a budget.
    `spending` has what each attempt is known to have used, with the tool that it was for.
    """

    request: Any
    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: OrchestrationConfig
    request_id: str
    trace_id: str
    clock: Callable[[], float]
    started: float
    deadline: Deadline | None
    ledger: Ledger | None
    events: RunEvents | None
    attempt: Next[Call, Any]
    max_attempts: int
    timeline: list[Attempt] = field(default_factory=list)
    spending: list[tuple[str, Spent]] = field(default_factory=list)
    answers: int = 1

    def tell(self, event_type: str, data: dict[str, Any]) -> None:
        """A delta event of this run, if anybody listens."""
        if self.events is not None:
            self.events.tell(StreamDeltaEvent({"event_type": event_type, "data": data}))


class Scope(NamedTuple):
    """One tool at work within a run."""

    run: Run
    tool: str
    version: str


@dataclass(slots=True, kw_only=True)
class Call:
    """One call to the outside. The mechanisms below know of it what `reliability._pipeline.Call` says."""

    scope: Scope
    target: str
    part: str
    execute: Callable[[], Coroutine[Any, Any, Any]]
    measure: Callable[[Any], Spent]
    worst_case: Amount
    model: str | None = None
    attempts: int = 0

    @property
    def deadline(self) -> Deadline | None:
        return self.scope.run.deadline

    @property
    def ledger(self) -> Ledger | None:
        return self.scope.run.ledger

    @property
    def sent(self) -> int:
        return len(self.scope.run.timeline)

    def elapsed(self) -> float:
        return self.scope.run.clock() - self.scope.run.started

    @property
    def max_attempts(self) -> int:
        return self.scope.run.max_attempts

    @property
    def attempt_timeout(self) -> float | None:
        limit = self.scope.run.options.per_agent_timeout_ms
        return None if limit is None else limit / 1000

    @property
    def answers(self) -> int:
        return self.scope.run.answers

    def spent(self, result: Any) -> Amount:
        spent = self.measure(result)
        return Amount(tokens_of(spent.usage), spent.cost_usd)

    def emit(self, event_type: str, data: dict[str, Any]) -> None:
        self.scope.run.tell(event_type, {"tool_name": self.scope.tool, **data})


_scope: ContextVar[Scope | None] = ContextVar("steer_llm_sdk.scope", default=None)
