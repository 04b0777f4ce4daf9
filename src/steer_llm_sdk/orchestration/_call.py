"""One call and the run it belongs to: what the flow, the policies and the tools hand to each other."""

from __future__ import annotations

import math
from asyncio import AbstractEventLoop, BaseEventLoop, current_task, get_running_loop
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from random import getrandbits
from sys import exception
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, TypeVar

from steer_llm_sdk.errors import BudgetExceeded, ProviderError, ToolExecutionError
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount, tokens_of
from steer_llm_sdk.providers.base import ModelReply
from steer_llm_sdk.reliability.deadline import attempt_ends

if TYPE_CHECKING:
    from steer_llm_sdk.models.quota import RateLimitStatus
    from steer_llm_sdk.orchestration.options import OrchestrationConfig
    from steer_llm_sdk.reliability._pipeline import Next
    from steer_llm_sdk.reliability.budget import Ledger
    from steer_llm_sdk.reliability.deadline import Deadline
    from steer_llm_sdk.reliability.silence import Life, Pulse
    from steer_llm_sdk.streaming.manager import RunEvents

R = TypeVar("R")


class Usage(Protocol):
    """What a call is known to have used. `cost_usd` None: the price is unknown."""

    @property
    def usage(self) -> Mapping[str, Any]: ...
    @property
    def cost_usd(self) -> float | None: ...


class Spent(NamedTuple):
    """A Usage and nothing else. `simulated`: a recording answered, so nothing was paid."""

    usage: Mapping[str, Any]
    cost_usd: float | None = None
    simulated: bool = False


_NOTHING = Spent(MappingProxyType({}))


def unmeasured(_: object) -> Usage:
    return _NOTHING


def current_scope() -> Scope | None:
    """The tool call that the running code is inside of; None outside of every run."""
    return current.get()


def time_left() -> float | None:
    """Seconds that the running attempt still has: until the deadline of the run or the end of the attempt, whichever
    comes first. Never below 0; None where there is neither, or no run. Also in the thread of a function tool.

    A retry, a repair and a fallback see the smaller rest.
    """
    scope = current.get()
    if scope is None:
        return None
    run, ends = scope.run, attempt_ends()
    at = math.inf if run.deadline is None else run.deadline.at
    left = min(at, math.inf if ends is None else ends) - run.clock()
    return max(left, 0.0) if left < math.inf else None


def budget_left() -> tuple[float, float]:
    """Tokens and USD that the run may still spend; infinite without a budget, or outside of a run."""
    scope = current.get()
    ledger = None if scope is None else scope.run.ledger
    return (math.inf, math.inf) if ledger is None else (ledger.tokens_left, ledger.cost_left)


async def protected(
    execute: Callable[[], Coroutine[Any, Any, R]],
    *,
    target: str,
    part: str,
    measure: Callable[[R], Usage] = unmeasured,
    worst_case: Amount = Amount(),
    model: str | None = None,
    followed: bool = False,
) -> R:
    """Make one call to the outside under the policies of the run: retry, breaker, budget, attempt timeout.

    A composite tool calls this once for each request it sends; `execute` is called again for each retry. `target` is
    the provider, `part` the name within it by which a breaker localises. `followed`: if this call fails, somebody else
    is asked for the same answer, so its retries leave calls for that. Outside of a run `execute` is simply awaited.
    Once the deadline has passed nothing is sent any more: BudgetExceeded.
    """
    scope = current.get()
    if scope is None:
        return await execute()
    _require_time(scope.run)
    result: R = await scope.run.policies.attempt(
        Call(scope, target, part, execute, measure, worst_case, model, followed)
    )
    return result


def _require_time(run: Run) -> None:
    # A tool that swallowed the cancellation at its deadline may still come here.
    deadline, now = run.deadline, run.clock()
    if deadline is not None and now >= deadline.at:
        raise BudgetExceeded("time", deadline.limit_ms, (now - run.started) * 1000)


def expect_answers(count: int) -> None:
    """Say that this run asks for `count` answers (a bundle of k): `max_total_attempts` then holds for each of them."""
    scope = current.get()
    if scope is not None:
        scope.run.answers = max(scope.run.answers, count)


class Attempt(TypedDict):
    """One line of a run's timeline, as the output shows it. Times are ms; `started_ms` counts from the run's start.

    `replicate` is the answer of a bundle that it was for, as "r1". `queued_ms`, before `started_ms`, went by in the
    queue of a rate limit. `spent` is there where an attempt was cancelled: its worst case is in usage and cost, or
    nothing is, for nobody knows.
    """

    tool: str
    provider: str
    attempt: int
    started_ms: float
    elapsed_ms: float
    outcome: Literal["running", "succeeded", "failed", "cancelled"]
    model: NotRequired[str]
    replicate: NotRequired[str]
    queued_ms: NotRequired[float]
    spent: NotRequired[Literal["estimated", "unknown"]]
    error: NotRequired[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Policies:
    """What stands round each call of a run to the outside. `usual` is a shorter way to the same, an
    `orchestration.reliability.Usual`, None where there is none."""

    attempt: Next[Call, Any]
    usual: Any
    silence_timeout: float | None


class Run:
    """One run: what the caller sent, read only, and what all its calls share.

    `started` and the deadline are on the clock of the event loop, in seconds. `ledger` is None without any budget. Of
    the `answers` asked for, `answered` are there; `tools_left` of the plan have not been asked. `task` is the caller's,
    and `stops` how often it had been asked to stop when the run began; `handled` is the exception that he was handling
    then. `spending` has what each attempt is known to have used, with the tool that it was for. `promised` has the
    calls whose next attempt is waited for, with the attempts that each had made by then. `plan` (steps, and what is
    shown of it) is kept where a deadline may cut the run off; so are the answers that were not acceptable, as
    NotAcceptable. `given` has the fields of `options`, which are read from a dict in a quarter of the time; all that
    was set of them is in PLAIN where the run is `plain`.
    """

    # One is made for each run: a dataclass would take a microsecond, and what most runs begin with is on the class.
    ledger: Ledger | None = None
    answers: int = 1
    answered: int = 0
    tools_left: int = 0
    spending: tuple[tuple[str, Usage], ...] = ()
    promised: tuple[tuple[Call, int], ...] = ()
    plan: tuple[Sequence[Any], Callable[[], dict[str, Any]] | None] | None = None
    unaccepted: tuple[Any, ...] = ()
    heard: Callable[[str, Mapping[str, Any]], None] | None = None
    """Called with the type and the data of each delta event, whether or not the run has events. It must not raise."""

    def __init__(
        self,
        request: Any,
        tool_name: str | None,
        tool_options: Mapping[str, Any],
        options: OrchestrationConfig,
        given: Mapping[str, Any],
        plain: bool,
        policies: Policies,
        max_attempts: Callable[[OrchestrationConfig], int],
    ) -> None:
        loop = get_running_loop()
        # Read several times in each run, and on the class that takes ten times as long.
        self.deadline: Deadline | None = None
        self.events: RunEvents | None = None
        self.request = request
        self.tool_name = tool_name
        self.tool_options = tool_options
        self.options = options
        self.given = given
        self.plain = plain
        # Sixteen bytes in hex, as a W3C trace id is.
        self.request_id = request_id = given["request_id"] or getrandbits(128).to_bytes(16, "big").hex()
        self.trace_id = given["trace_id"] or request_id
        self.clock = clock = _clocks.get(type(loop)) or _clock_of(loop)
        self.started = clock()
        self.policies = policies
        self._max_attempts = max_attempts
        self.timeline: list[Attempt] = []
        self.handled = exception()
        self.task = task = current_task(loop)
        self.stops = 0 if task is None else task.cancelling()

    @property
    def max_attempts(self) -> int:
        """How often one call may be tried. Only a failure asks for it."""
        return self._max_attempts(self.options)

    def asked_to_stop(self) -> bool:
        """Whether the running task was asked to stop since the run began, though a tool may have swallowed that."""
        task = current_task()
        return task is not None and task.cancelling() > (self.stops if task is self.task else 0)

    def tell(self, event_type: str, data: dict[str, Any]) -> None:
        """A delta event of this run, if anybody listens."""
        if self.heard is not None:
            self.heard(event_type, data)
        if self.events is not None:
            self.events.tell(StreamDeltaEvent({"event_type": event_type, "data": data}))


PLAIN = frozenset({"timeout_ms", "idempotency_key", "request_id", "trace_id", "tenant"})
"""The options that neither change what stands round a call nor what a tool and a planner are told."""

_clocks: dict[type, Callable[[], float]] = {}
"""By the type of a loop, what its `time` asks: that takes half as long as asking the loop."""


def _clock_of(loop: AbstractEventLoop) -> Callable[[], float]:
    kind = type(loop)
    if kind.time is not BaseEventLoop.time:
        return loop.time
    _clocks[kind] = monotonic
    return monotonic


class Scope:
    """One tool, by name and version, at work within a run."""

    __slots__ = ("run", "tool", "version")

    life: Life | None = None
    """Who watches the tool's attempts, where anybody wants to know whether it is silent."""
    pulse: Pulse | None = None
    """That of the attempt under way."""

    def __init__(self, run: Run, tool: str, version: str) -> None:
        self.run = run
        self.tool = tool
        self.version = version


class WatchedScope(Scope):
    """A scope of which somebody wants to know whether it is silent."""

    __slots__ = ("life", "pulse")

    def __init__(self, scope: Scope, life: Life, pulse: Pulse | None = None) -> None:
        self.run = scope.run
        self.tool = scope.tool
        self.version = scope.version
        self.life = life
        self.pulse = pulse


class Call(Scope):
    """One call to the outside. The mechanisms below know of it what `reliability._pipeline.Call` says."""

    __slots__ = (
        "_execute",
        "_measure",
        "attempts",
        "ended",
        "followed",
        "life",
        "model",
        "part",
        "queued",
        "target",
        "worst_case",
    )

    def __init__(
        self,
        scope: Scope,
        target: str,
        part: str,
        execute: Callable[[], Coroutine[Any, Any, Any]],
        measure: Callable[[Any], Usage],
        worst_case: Amount,
        model: str | None = None,
        followed: bool = False,
    ) -> None:
        super().__init__(scope.run, scope.tool, scope.version)
        self.life = scope.life
        self.target = target
        self.part = part
        self._execute = execute
        self._measure = measure
        self.worst_case = worst_case
        self.model = model
        self.followed = followed
        self.attempts = 0
        self.ended: float | None = None
        self.queued = 0.0

    def execute(self) -> Coroutine[Any, Any, Any]:
        """Send it once."""
        return self._execute()

    def received(self, result: Any) -> Any:
        """What came back, as the policies are to see it."""
        return result

    def measure(self, result: Any) -> Usage:
        """What it used, read off its result."""
        return self._measure(result)

    @property
    def tenant(self) -> str:
        return self.run.options.tenant

    @property
    def deadline(self) -> Deadline | None:
        return self.run.deadline

    @property
    def ledger(self) -> Ledger | None:
        return self.run.ledger

    @property
    def sent(self) -> int:
        run = self.run
        made = len(run.timeline)
        if not run.promised:
            return made
        return made + sum(call is not self and call.attempts == attempts for call, attempts in run.promised)

    def promise(self) -> None:
        self.renounce()
        self.run.promised += ((self, self.attempts),)

    def renounce(self) -> None:
        run = self.run
        if run.promised:
            run.promised = tuple(promise for promise in run.promised if promise[0] is not self)

    def elapsed(self) -> float:
        return self.run.clock() - self.run.started

    @property
    def max_attempts(self) -> int:
        return self.run.max_attempts

    @property
    def attempt_timeout(self) -> float | None:
        limit = self.run.options.per_agent_timeout_ms
        return None if limit is None else limit / 1000

    @property
    def answers(self) -> int:
        return self.run.answers

    @property
    def kept_for_others(self) -> int:
        run = self.run
        return max(run.answers - run.answered, 1) if self.followed or run.tools_left else 0

    def watched(self, life: Life) -> Call:
        scope, worst = WatchedScope(self, life), self.worst_case
        return Call(scope, self.target, self.part, self._execute, self._measure, worst, self.model, self.followed)

    def spent(self, result: Any) -> Amount:
        spent = self.measure(self.received(result))  # An attempt that was left behind gives it as it came.
        # What nobody counted is held to be the worst, as a cost that nobody knows is.
        return Amount(tokens_of(spent.usage) if spent.usage else self.worst_case.tokens, spent.cost_usd)

    def told(self, result: Any) -> RateLimitStatus | None:
        if isinstance(result, ToolExecutionError):
            result = result.original_error
        return result.rate_limit if isinstance(result, (ModelReply, ProviderError)) else None

    def emit(self, event_type: str, data: dict[str, Any]) -> None:
        self.run.tell(event_type, {"tool_name": self.tool, **data})


current: ContextVar[Scope | None] = ContextVar("steer_llm_sdk.scope", default=None)

replicate: ContextVar[str] = ContextVar("steer_llm_sdk.replicate", default="")
"""Which answer of a bundle the running code is after ("r3"), so that its calls can be told from those of the others."""
