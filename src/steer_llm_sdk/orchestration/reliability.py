"""The list of policies round each call to the outside, and the configuration that fills it:

    Retry(Hedge(RateLimiter(Breaker(Reserve(AttemptLimit(record(Classify(AttemptTimeout(call)))))))))

Retry is outermost, so that each attempt is admitted, paid for and counted by itself. The queue of a rate limit stands
outside of the breaker, so that who waits holds no permit and is no slow call. AttemptLimit is asked again where a queue
or a hedge lies between Retry and what counts, with no await in between. Classify stands inside of all that ask what an
error means. What is not configured is not in the list.

Two short cuts come to the same where nothing is out of the ordinary, as nearly always: `Usual` for
Retry(Breaker(record)), `AtOnce` for what stands from Retry to record. Whoever changes the order or a policy changes
these too; tests/contract/test_the_shorter_way.py compares them with the policies in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from steer_llm_sdk.errors import ProviderError, Rejected
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration._call import Attempt, Call, Policies, Spent, Usage, WatchedScope, current, replicate
from steer_llm_sdk.orchestration._result import describe_error, json_mapping, readable
from steer_llm_sdk.reliability._pipeline import Next, Policy, compose
from steer_llm_sdk.reliability.budget import Reserve, charge_of_failure, tell
from steer_llm_sdk.reliability.circuit import SUCCESS, Permit
from steer_llm_sdk.reliability.circuit_breaker import (
    Breaker,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
)
from steer_llm_sdk.reliability.classify import Classify, ErrorClassifier
from steer_llm_sdk.reliability.deadline import AttemptTimeout
from steer_llm_sdk.reliability.hedging import Hedge, HedgingPolicy
from steer_llm_sdk.reliability.rate_limit import RateLimit
from steer_llm_sdk.reliability.rate_limiter import Gate, RateLimiter, RateLimits
from steer_llm_sdk.reliability.retry import MAX_TOTAL_ATTEMPTS, MAX_TOTAL_TIME, AttemptLimit, Retry, RetryPolicy
from steer_llm_sdk.reliability.retry_budget import RetryBudget, RetryBudgetConfig

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.budget import Reservation
    from steer_llm_sdk.reliability.shared.state import SharedState

P = TypeVar("P")

__all__ = ["CircuitBreakerConfig", "ReliabilityConfig", "ReliableToolExecutor", "RetryPolicy"]


def _breaker(failures: int, timeout: float, window: float, successes: int) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(
        failure_threshold=failures, timeout=timeout, window_size=window, success_threshold=successes
    )


@cache
def built_in_breakers() -> Mapping[str, CircuitBreakerConfig]:
    """By provider; made when first asked for, so that an import stays cheap."""
    return {
        "openai": _breaker(5, 60, 300, 2),
        "anthropic": _breaker(3, 120, 300, 1),
        "xai": _breaker(4, 90, 300, 2),
        "default": _breaker(5, 60, 300, 2),
    }


class ReliabilityConfig(BaseModel):
    """How hard to try. Times in seconds.

    `circuit_breaker_configs` by provider is laid over the built-in ones; "default" serves the others.
    `max_total_attempts` bounds the upstream calls of a run, across retries, fallbacks, hedges and late starts. A bundle
    of k may always make k calls, and 2 x k while the limit is the default one. `retry_budget` bounds retries and hedges
    by provider, across runs; None is no such bound. `hedging` None: no call is hedged. Where a tool with a fallback, or
    a model with a next one, gives no byte for `silence_timeout` seconds after a request was sent, the other is asked
    beside it; None: only after it has failed. `on_store_down` says what a keyed run does when its store does not
    answer, `on_duplicate` what it does when the same run is under way: "wait" for its result, or "raise" InFlight.
    `remember_failures`: a failure that no retry can cure is replayed like an answer. `rate_limits` by
    provider, "default" for the others; without any, nothing is limited. `learn_rate_limits`: what the providers'
    answers say of their limits holds too, for each model; off by default, so that nothing waits that was not told to.
    `error_classifier` says what the exceptions of a tool mean that this library does not know; it is the way to have
    them retried.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    retry_policy: RetryPolicy = Field(default_factory=RetryPolicy)
    circuit_breaker_configs: dict[str, CircuitBreakerConfig] = Field(default_factory=dict)
    rate_limits: dict[str, RateLimit] = Field(default_factory=dict)
    learn_rate_limits: bool = False
    enable_fallback: bool = True
    max_fallback_attempts: int = Field(default=2, ge=0)
    max_total_retry_time: float = Field(default=MAX_TOTAL_TIME, ge=0, allow_inf_nan=False)
    max_total_attempts: int = Field(default=MAX_TOTAL_ATTEMPTS, ge=1)
    retry_budget: RetryBudgetConfig | None = Field(default_factory=RetryBudgetConfig)
    hedging: HedgingPolicy | None = None
    silence_timeout: float | None = Field(default=10.0, gt=0, allow_inf_nan=False)
    on_store_down: Literal["fail_closed", "run_unprotected"] = "fail_closed"
    on_duplicate: Literal["wait", "raise"] = "wait"
    remember_failures: bool = True
    error_classifier: InstanceOf[ErrorClassifier] | None = None

    @property
    def attempt_limit(self) -> AttemptLimit:
        """A default that a bundle of 6 cannot spend on one retry each, or on a fallback, is doubled for it."""
        return AttemptLimit(self.max_total_attempts, 1 if "max_total_attempts" in self.model_fields_set else 2)

    def breaker_for(self, target: str) -> CircuitBreakerConfig:
        """For "openai@http://…" the configuration of that endpoint if there is one, else openai's, else the default."""
        configs = {**built_in_breakers(), **self.circuit_breaker_configs}
        return next(configs[name] for name in _names_for(target) if name in configs)

    def limit_for(self, target: str) -> RateLimit | None:
        """Found as `breaker_for` finds its own; None where there is none and nothing is to be learned."""
        limits = self.rate_limits
        found = next((limits[name] for name in _names_for(target) if name in limits), None)
        return RateLimit() if found is None and self.learn_rate_limits else found


def _names_for(target: str) -> tuple[str, ...]:
    return target, target.partition("@")[0], "default"


Asked = tuple[bool, bool, bool, bool]
"""Whether a run asks for retries, circuit breakers, reserving from a budget, and a timeout of each attempt."""


class ReliableToolExecutor:
    """Makes calls under the policies. It owns what outlives a call: the circuit breakers, the accounts of rate limits,
    the retry budget and the latencies of one orchestrator; or, with `shared`, its part in what several share."""

    outermost: Sequence[Policy[Any]] = ()
    """Policies round all the others: each sees a call once, however often it is tried. Set before the first call."""

    def __init__(self, config: ReliabilityConfig | None = None, shared: SharedState | None = None) -> None:
        self.config = config or ReliabilityConfig()
        self.shared = shared
        self.breakers = self._breakers()
        learn = self.config.learn_rate_limits
        self.learned_limits = RateLimits(self.config.limit_for, learn=True) if learn else None
        self.limits = self._limits() if learn or self.config.rate_limits else None
        budget = self.config.retry_budget
        self._retry_budget = None if budget is None else self._budget(budget)
        self._limit = self.config.attempt_limit
        hedging = self.config.hedging
        self._hedge = None if hedging is None else Hedge(hedging, limit=self._limit, budget=self._retry_budget)
        self._around_attempts: tuple[Policy[Any], ...] = ()
        self.folded: dict[Asked, Policies] = {}
        """The policies that were asked for before, since any was added."""

    def around_attempts(self, policy: Policy[Any]) -> None:
        """Put `policy` round each attempt, from now on, once. What waits for leave to be sent is outside of it."""
        if policy not in self._around_attempts:
            self._around_attempts += (policy,)
            self.folded = {}

    def policies(self, asked: Asked) -> Policies:
        """What stands round each call to the outside. A policy that is not asked for is not in the list."""
        if (folded := self.folded.get(asked)) is None:
            retry, breaker, reserve, timeout = asked
            breakers = self.breakers if breaker else None
            limiters = [limits.policy(breakers) for limits in (self.learned_limits, self.limits) if limits]
            hedges = [self._hedge] if retry and self._hedge is not None else []
            order: list[tuple[bool, Policy[Any]]] = [
                *((True, policy) for policy in self.outermost),
                (retry, self._retry(breakers)),
                *((True, hedge) for hedge in hedges),
                *((True, limiter) for limiter in limiters),
                (breaker, self.breakers.policy()),
                (reserve, Reserve()),
                (retry and bool(hedges or limiters), self._limit),
                *((True, policy) for policy in self._around_attempts),
                (True, record),
                *self._classify(),
                (timeout, AttemptTimeout()),
            ]
            policies = [policy for wanted, policy in order if wanted]
            usual = None
            if [type(policy) for policy in policies] == [Retry, Breaker, FunctionType]:
                usual = Usual(self._retry(breakers), Breaker(self.breakers), self.breakers)
            folded = self.folded[asked] = Policies(at_once(policies), usual, self.config.silence_timeout)
        return folded

    def _breakers(self) -> CircuitBreakerManager:
        shared, config_for = self.shared, self.config.breaker_for
        return CircuitBreakerManager(config_for) if shared is None else shared.breakers(config_for)

    def _limits(self) -> RateLimits:
        shared, limit_for = self.shared, self.config.limit_for
        return RateLimits(limit_for) if shared is None else shared.limits(limit_for)

    def _budget(self, config: RetryBudgetConfig) -> RetryBudget:
        return RetryBudget(config) if self.shared is None else self.shared.retry_budget(config)

    def _classify(self) -> list[tuple[bool, Policy[Any]]]:
        classifier = self.config.error_classifier
        return [] if classifier is None else [(True, Classify(classifier))]

    def _retry(self, breakers: CircuitBreakerManager | None) -> Retry:
        config = self.config
        return Retry(
            config.retry_policy,
            max_total_time=config.max_total_retry_time,
            limit=self._limit,
            budget=self._retry_budget,
            check=None if breakers is None else breakers.check,
        )


async def record(call: Call, next: Next[Call, Any], /) -> Any:
    """The policy that counts an attempt and writes it into the run's timeline: how it ended and what it used.

    Retry's limits are on what is counted here. It is always in the list.
    """
    began, line = begin(call)
    if (life := call.life) is not None:
        pulse = life.sent()
        # So that what is inside of the attempt can give signs of life.
        token = current.set(WatchedScope(call, life, pulse))
    try:
        result = call.received(await next(call))
        succeed(call, began, line, result)
        return result
    except BaseException as error:
        if (stopped := fail(call, began, line, error)) is not None:
            raise stopped from error
        raise
    finally:
        if life is not None:
            pulse.ended()
            current.reset(token)


def begin(call: Call) -> tuple[float, Attempt]:
    """An attempt is sent: count it, and write its line into the timeline."""
    run = call.run
    clock = run.clock  # As a method it would be looked for on the class first.
    number = call.attempts = call.attempts + 1
    began = clock()
    line: Attempt = {
        "tool": call.tool,
        "provider": call.target,
        "attempt": number,
        "started_ms": ((began - run.started) * 10_000 + 0.5) // 1 / 10,  # As tenths() has it, in half the time.
        "elapsed_ms": 0.0,
        "outcome": "running",
    }
    if call.model is not None:
        line["model"] = call.model
        if said := replicate.get():
            line["replicate"] = said
    if call.queued:
        line["queued_ms"], call.queued = tenths(call.queued * 1000), 0.0
    run.timeline.append(line)
    return began, line


def succeed(call: Call, began: float, line: Attempt, result: Any) -> None:
    """The attempt has an answer, with which its line is finished."""
    run, spent = call.run, (call.tool, call.measure(result))
    run.spending = (*run.spending, spent) if run.spending else (spent,)
    ended = call.ended = run.clock()
    line["elapsed_ms"] = int((ended - began) * 10_000 + 0.5) / 10
    line["outcome"] = "succeeded"


def fail(call: Call, began: float, line: Attempt, error: BaseException) -> BaseException | None:
    """The attempt has ended with `error`. What is to be raised instead, where a tool made an error of its cancellation,
    for nothing may follow that; or where its error cannot be read."""
    run = call.run
    ended = call.ended = run.clock()
    line["elapsed_ms"] = tenths((ended - began) * 1000)
    spent: Usage | None = None
    instead: BaseException | None = None
    if (said := readable(call.tool, error)) is not error:
        error = instead = said
    if isinstance(error, (Exception, SystemExit)) and run.asked_to_stop():
        error = instead = asyncio.CancelledError()
    if isinstance(error, asyncio.CancelledError):
        # It is charged what Reserve charges.
        if run.ledger is not None or (call.life is not None and call.life.was_lost):
            spent = _estimated(call.worst_case)
        line["outcome"], line["spent"] = "cancelled", "unknown" if spent is None else "estimated"
    else:
        line["outcome"], line["error"] = "failed", describe_error(error)
        if isinstance(error, ProviderError) and error.usage:
            spent = Spent(json_mapping(error.usage))
    if spent is not None:
        run.spending += ((call.tool, spent),)
    return instead


class Usual:
    """What `Retry(Breaker(record(call)))` comes to as long as nothing is out of the ordinary, as nearly always: the
    circuit is closed and the first attempt gives an answer. Who has a permit from `breakers.of_call(call).free` makes
    the first attempt himself, after `begin`, and says here how it went. The rest is left to the policies.

    The three policies, one in the other, take three times as long.
    """

    __slots__ = ("_breaker", "_first", "_next", "_retry", "breakers")

    def __init__(self, retry: Retry, breaker: Breaker, breakers: CircuitBreakerManager) -> None:
        self._retry = retry
        self._breaker = breaker
        self._next = compose([breaker, record], execute)
        self._first = retry.first
        self.breakers = breakers

    def succeeded(
        self, call: Call, breaker: CircuitBreaker, permit: Permit, began: float, line: Attempt, result: Usage
    ) -> None:
        """The first attempt has an answer."""
        run = call.run
        clock = run.clock
        ended = clock()
        spent = (call.tool, result)
        run.spending = (*run.spending, spent) if run.spending else (spent,)  # The tool may have made calls of its own.
        line["elapsed_ms"] = ((ended - began) * 10_000 + 0.5) // 1 / 10
        line["outcome"] = "succeeded"
        sent = began if breaker.times_calls else None
        if (changed := breaker.report(permit, call.part, SUCCESS, sent)) is not None:
            self._breaker.tell(call, breaker, changed)
        if (first := self._first) is not None:
            first(call.target, ended)

    def failed(
        self, call: Call, breaker: CircuitBreaker, permit: Permit, began: float, line: Attempt, error: BaseException
    ) -> Exception:
        """The first attempt has failed. Returns what may be tried `again`, and raises what may not."""
        stopped = fail(call, began, line, error)
        self._breaker.failed(call, breaker, permit, stopped or error, began if breaker.times_calls else None)
        if stopped is not None:
            raise stopped from error
        if not isinstance(error, Exception) or isinstance(error, Rejected):
            try:
                raise error
            finally:
                del error  # It holds this frame by its traceback.
        self._retry.begun(call)
        return error

    def again(self, call: Call, failed: Exception) -> Coroutine[Any, Any, Any]:
        return self._retry.again(call, self._next, failed)


def at_once(policies: Sequence[Policy[Any]]) -> Next[Any, Any]:
    """All of them round `execute`; those next to it, as far as AtOnce knows them, in one."""
    rest = list(policies)
    if rest.pop() is not record:
        return compose(policies, execute)
    limit, reserve, breaker = _last(rest, AttemptLimit), _last(rest, Reserve), _last(rest, Breaker)
    if breaker is None:
        return compose(policies, execute)
    limiter = _last(rest, RateLimiter)
    if limiter is not None and limiter.learns:
        rest.append(limiter)
        limiter = None
    inner = compose(policies[len(rest) :], execute)
    retry = _last(rest, Retry)
    in_turn = inner if retry is None else compose([retry], inner)
    return compose(rest, AtOnce(retry, limiter, breaker, reserve is not None, limit, inner, in_turn).__call__)


def _last(policies: list[Policy[Any]], kind: type[P]) -> P | None:
    """The last, taken off, where it is of this very kind: one that is derived may have to wait for its answer."""
    last = policies[-1] if policies else None
    if type(last) is not kind:
        return None
    policies.pop()
    return last


class AtOnce:
    """What `Retry(RateLimiter(Breaker(Reserve(AttemptLimit(record(execute))))))` comes to for a call that may be sent
    at once, as nearly always: the circuit is closed, there is room, and the money is there. Then one coroutine asks
    them all, in the same order, where a coroutine for each takes twice as long.

    Of these only the breaker must be there. What is out of the ordinary before the call is sent is left to them
    `in_turn`, with nothing taken; what has failed and may be tried again, to `inner`, which is all but Retry.
    """

    def __init__(
        self,
        retry: Retry | None,
        limiter: RateLimiter | None,
        breaker: Breaker,
        reserves: bool,
        limit: AttemptLimit | None,
        inner: Next[Any, Any],
        in_turn: Next[Any, Any],
    ) -> None:
        if limit is None and retry is not None:
            limit = retry.limit
        self._retry = retry
        self._limiter = limiter
        self._breaker = breaker
        self._breakers = breaker.breakers
        self._reserves = reserves
        self._limit = limit
        self._inner = inner
        self._in_turn = in_turn

    async def __call__(self, call: Call) -> Any:
        breaker = self._breakers.of_call(call)
        permit, run, retry, limit = breaker.free, call.run, self._retry, self._limit
        ledger, clock = run.ledger if self._reserves else None, run.clock
        if (
            permit is None
            or (limit is not None and (call.attempts or call.sent >= limit.limit) and not limit.allows(call))
            or (ledger is not None and ledger.elsewhere is not None)
        ):
            return await self._in_turn(call)
        limiter, gate, tokens = self._limiter, None, 0.0
        if limiter is not None and (gate := limiter.gate(call)) is not None:
            tokens = gate.tokens_of(call)
            if not gate.enter(tokens, clock()):
                return await self._in_turn(call)
        held = None
        if ledger is not None:
            try:
                held = ledger.reserve(call.worst_case)
            except Exception:  # It is raised again in turn.
                if gate is not None:
                    gate.leave(tokens, 0.0, False, clock, None)
            if held is None:
                return await self._in_turn(call)
        began, line = begin(call)
        if (life := call.life) is not None:
            pulse = life.sent(began)
            token = current.set(WatchedScope(call, life, pulse))  # As `record` does.
        failed: Exception | None = None
        try:
            result = call.received(await call.execute())
            succeed(call, began, line, result)
            used = None if held is None and gate is None else call.spent(result)
        except BaseException as error:
            sent = began if breaker.times_calls else None
            failed = self._failed(call, breaker, permit, sent, gate, tokens, held, began, line, error)
        else:
            try:
                if held is not None and used is not None and (overruns := held.settle(used)):
                    tell(call, overruns)
                changed = breaker.report(permit, call.part, SUCCESS, began if breaker.times_calls else None)
                if changed is not None:
                    self._breaker.tell(call, breaker, changed)
            finally:
                if gate is not None and used is not None:
                    gate.leave(tokens, gate.used_by(used, tokens), True, clock, None)
            if retry is not None and retry.first is not None and call.ended is not None:
                retry.first(call.target, call.ended)
        finally:
            if life is not None:
                pulse.ended()
                current.reset(token)
        if failed is None:
            return result
        assert retry is not None
        try:
            return await retry.again(call, self._inner, failed)
        finally:
            del failed  # It holds this frame by its traceback.

    def _failed(
        self,
        call: Call,
        breaker: CircuitBreaker,
        permit: Permit,
        sent: float | None,
        gate: Gate | None,
        tokens: float,
        held: Reservation | None,
        began: float,
        line: Attempt,
        error: BaseException,
    ) -> Exception:
        """The first attempt has failed. Returns what may be tried again, and raises what may not."""
        worst, clock, limiter = call.worst_case, call.run.clock, self._limiter
        stopped, charged, used, told = None, worst, tokens, None
        try:
            try:
                # An answer of which nobody can say what it has used is a failure of a call that has succeeded.
                if line["outcome"] == "running":
                    stopped = fail(call, began, line, error)
                if held is not None:
                    charged = charge_of_failure(stopped or error, worst)
            finally:  # An error may raise when it is asked what it means.
                if held is not None and (overruns := held.settle(charged)):
                    tell(call, overruns)
            self._breaker.failed(call, breaker, permit, stopped or error, sent)
            if limiter is not None and gate is not None:
                used, told = limiter.failed(gate, call, stopped or error, tokens, clock)
        finally:
            if gate is not None:
                gate.leave(tokens, used, True, clock, told)
        if stopped is not None:
            raise stopped from error
        if self._retry is None or not isinstance(error, Exception) or isinstance(error, Rejected):
            try:
                raise error
            finally:
                del error  # It holds this frame by its traceback.
        self._retry.begun(call)
        return error


def tenths(number: float) -> float:
    """Rounded to a tenth, which a built-in round() with digits takes three times as long for."""
    return int(number * 10 + 0.5) / 10


def _estimated(worst: Amount) -> Spent | None:
    """None where nothing was estimated."""
    return None if worst == _FREE else Spent({"total_tokens": worst.tokens} if worst.tokens else {}, worst.cost_usd)


_FREE = Amount()


def execute(call: Call) -> Coroutine[Any, Any, Any]:
    """The innermost step."""
    return call.execute()
